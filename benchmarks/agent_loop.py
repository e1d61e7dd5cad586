"""What the agent's loop costs beside its model: everything of a step but the policy and the embedding.

    python benchmarks/agent_loop.py [--steps 150] [--agents 32] [--turn-s 1] [--json OUT]

A scripted policy stores, looks up and clears, over the MCP server of this process with the real embedding model; the
policy's time and the embedder's within each step are taken off. One agent alone first, whose turns take no time; then
one, and many at once, whose turns take as long as a fast model's (``--turn-s``), each in a scope of its own: a step's
overhead is then all it waits for beside models, other agents included.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from contextlib import AsyncExitStack
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agemem_mcp.adapters.embedding import FastEmbedEmbedder
from agemem_mcp.app import service_gate
from agemem_mcp.domain.memory import Scope
from agemem_mcp.settings import load_settings
from agemem_policies.agent import Agent, AgentOptions, Limits
from agemem_policies.memory import tools_in_process
from agemem_policies.protocol import Call, Turn
from agemem_policies.scripted import ScriptedPolicy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agemem_mcp.service.gate import ServiceGate
    from agemem_policies.policy import Completion, OnText, Prompt
    from agemem_policies.scripted import Line

_embedding_s: ContextVar[list[float] | None] = ContextVar("embedding_s", default=None)
"""Where the embedding time of the present agent is summed up."""


class TimedPolicy(ScriptedPolicy):
    """Notes the time between its turns, less what was embedded meanwhile."""

    def __init__(self, lines: Sequence[Line], embedded_s: list[float], turn_s: float) -> None:
        super().__init__(lines)
        self._turn_s = turn_s
        self.overhead_s: list[float] = []
        self._embedded_s = embedded_s
        self._left = 0.0

    async def act(self, prompt: Prompt, on_text: OnText | None = None) -> Completion:
        """The next turn."""
        came = time.perf_counter()
        if self._left:
            self.overhead_s.append(came - self._left - sum(self._embedded_s))
        self._embedded_s.clear()
        if self._turn_s:
            # Not all at once: models answer sooner or later.
            await asyncio.sleep(random.uniform(0.5, 1.5) * self._turn_s)
        completion = await super().act(prompt, on_text)
        self._left = time.perf_counter()
        return completion


def lines(agent: int, steps: int) -> list[Line]:
    """Stores, searches and filters in turn."""
    made: list[Line] = []
    for number in range(steps // 3):
        fact = f"Room {number} of house {agent} is on floor {number % 7} and has {number % 5} windows."
        made += [
            Turn("Keep.", (Call("Add_memory", {"content": fact}),)),
            Turn("Look.", (Call("Retrieve_memory", {"query": f"Which floor is room {number} on?"}),)),
            Turn("Clear.", (Call("Filter_context", {"criteria": f"room {number} and its floor"}),)),
        ]
    return made


async def one(gate: ServiceGate, agent: int, steps: int, turn_s: float = 0.0) -> list[float]:
    """One agent's episode; its overhead for each step, in seconds."""
    embedded_s: list[float] = []
    _embedding_s.set(embedded_s)
    policy = TimedPolicy(lines(agent, steps), embedded_s, turn_s)
    options = AgentOptions(limits=Limits(rounds=steps + 1), own_summaries=False)
    async with tools_in_process(gate, Scope(namespace=f"agent-{agent}")) as tools:
        trajectory = await Agent(policy, tools, options).run("Look after these rooms.")
    failed = [one.text for step in trajectory.steps for one in step.observations if one.is_error]
    assert not failed, failed[0]
    return policy.overhead_s


def note_embedding() -> None:
    """Have the embedder's time noted for the agent that waits for it."""
    embed = FastEmbedEmbedder.embed

    async def noted(self: FastEmbedEmbedder, texts: Sequence[str]) -> Any:
        began = time.perf_counter()
        try:
            return await embed(self, texts)
        finally:
            if (taken := _embedding_s.get()) is not None:
                taken.append(time.perf_counter() - began)

    setattr(FastEmbedEmbedder, "embed", noted)  # noqa: B010  a method, which a type checker would not let be replaced


def quantiles_ms(values_s: Sequence[float]) -> dict[str, float]:
    cut = statistics.quantiles(values_s, n=20)
    return {"p50_ms": round(statistics.median(values_s) * 1000, 2), "p95_ms": round(cut[18] * 1000, 2)}


async def measure(steps: int, agents: int, turn_s: float) -> dict[str, Any]:
    note_embedding()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="agemem-loop-") as folder:
        gate = service_gate(load_settings(data_dir=Path(folder)))
        async with AsyncExitStack() as stack:
            stack.push_async_callback(gate.close)
            await gate.service()
            await one(gate, 0, 30)
            alone = await one(gate, 1, steps)
            figures["alone"] = quantiles_ms(alone)
            figures["alone, first third"] = quantiles_ms(alone[: steps // 3])
            figures["alone, last third"] = quantiles_ms(alone[-steps // 3 :])
            figures["one with a model"] = quantiles_ms(await one(gate, 2, 30, turn_s))
            together = await asyncio.gather(*(one(gate, 100 + n, 30, turn_s) for n in range(agents)))
            many = f"{agents} with models"
            figures[many] = quantiles_ms([value for taken in together for value in taken])
    figures["p95 of many to one"] = round(figures[many]["p95_ms"] / figures["one with a model"]["p95_ms"], 2)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--agents", type=int, default=32)
    parser.add_argument("--turn-s", type=float, default=1.0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    figures = asyncio.run(measure(arguments.steps, arguments.agents, arguments.turn_s))
    for name, values in figures.items():
        print(f"{name:<20} {values}")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
