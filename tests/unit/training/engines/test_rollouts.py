"""Runs whose rollouts a vLLM server samples: from the newest adapter, and refused early where it cannot."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

WHY = "training needs torch, transformers, accelerate and peft: `pip install 'agemem-mcp[train]'`"
for extra in ("torch", "transformers", "accelerate", "peft", "matplotlib"):
    pytest.importorskip(extra, reason=WHY)

import transformers  # noqa: E402  after the skip
from peft import PeftModel  # noqa: E402  as above
from tests.unit.training.engines.vllm_server import MODEL, VLLM, serving  # noqa: E402  as above
from tests.unit.training.tiny_policy import tiny_run  # noqa: E402  as above

from agemem_mcp.errors import ConfigurationError, ProviderError  # noqa: E402  as above
from agemem_training.config import changed  # noqa: E402  as above
from agemem_training.progress import Progress  # noqa: E402  as above
from agemem_training.reporting.metrics import MetricsFile  # noqa: E402  as above
from agemem_training.run import Wishes, train  # noqa: E402  as above

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from fastapi.responses import Response

    from agemem_training.config import RunConfig
    from agemem_training.reporting.metrics import Iteration


@dataclass
class WithAdapters(VLLM):
    """A server that samples from the adapter which a request names, as it was when it was loaded."""

    folder: str = ""
    adapted: dict[str, Any] = field(default_factory=dict)

    def load(self, body: dict[str, Any]) -> Response:
        answer = super().load(body)
        self.adapted[body["lora_name"]] = PeftModel.from_pretrained(loaded(self.folder), body["lora_path"]).eval()
        return answer

    def generated(self, body: dict[str, Any]) -> tuple[list[int], list[float], str]:
        self.model = self.adapted.get(body["model"], self.model)
        return super().generated(body)


def loaded(folder: str) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


@contextmanager
def served(folder: Path) -> Generator[WithAdapters]:
    """The server, in a thread of its own."""
    server = WithAdapters(loaded(str(folder)), transformers.AutoTokenizer.from_pretrained(folder), folder=str(folder))
    ready, over = threading.Event(), threading.Event()

    async def serve() -> None:
        async with serving(server):
            ready.set()
            await asyncio.to_thread(over.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(60)
        yield server
    finally:
        over.set()
        thread.join()


def adapter_run(start: Path, url: str) -> RunConfig:
    return changed(
        tiny_run(start),
        model={"lora_rank": 2, "lora_targets": ("q_proj", "v_proj")},
        grpo={"iterations": 3, "trajectories": 4, "rollout_url": url, "rollout_model": MODEL},
        evaluation={"every": 5, "final_episodes": 1},
    )


def run(config: RunConfig, out: Path, *, resume: bool = False) -> tuple[Iteration, ...]:
    with Progress(silent=True) as progress:
        train(config, Wishes(out, "agemem-mcp train", resume=resume), progress, lambda _: None)
    return MetricsFile(out / "metrics.jsonl").read().of_phase("grpo")


def test_rollouts_are_sampled_by_the_server_from_the_weights_of_the_last_update(
    tiny_start: Path, tmp_path: Path
) -> None:
    with served(tiny_start) as server:
        first, second, third = run(adapter_run(tiny_start, server.url), tmp_path / "run")
    named = list(dict.fromkeys(body["model"] for body in server.bodies))
    assert named == [MODEL, *server.adapted]
    assert len(server.adapted) == 3
    assert len(server.adapters) == 1, "those before the last are let go"
    assert (second.update.kl or 0) > 0, "the weights have moved"
    # The server's log-probabilities are those of the process that trains, iteration after iteration.
    assert [one.update.ratio_max for one in (first, second, third)] == pytest.approx([1, 1, 1], abs=2e-3)
    assert all(one.cost.tokens_rolled_out and one.cost.environment_s < one.cost.rollout_s for one in (first, third))


def test_a_server_that_takes_no_adapters_ends_the_run_with_what_to_do(tiny_start: Path, tmp_path: Path) -> None:
    with served(tiny_start) as server:
        server.lora = False
        with pytest.raises(ProviderError, match=r"--enable-lora .*No iteration was saved"):
            run(adapter_run(tiny_start, server.url), tmp_path / "run")
        server.lora = True
        assert len(run(adapter_run(tiny_start, server.url), tmp_path / "run", resume=True)) == 3


def test_a_server_that_tells_no_tokens_is_refused_before_anything_is_measured(tiny_start: Path, tmp_path: Path) -> None:
    with served(tiny_start) as server:
        server.changes = {"token_ids": None}
        with pytest.raises(ProviderError, match="told no token ids"):
            run(adapter_run(tiny_start, server.url), tmp_path / "run")
    assert not MetricsFile(tmp_path / "run" / "metrics.jsonl").read().evaluations


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"model": {"lora_rank": None}}, r"rollout_url needs model\.lora_rank"),
        ({"grpo": {"rollout_model": None}}, "given together"),
    ],
)
def test_what_a_server_needs_is_asked_for(tables: dict[str, dict[str, Any]], said: str, tiny_start: Path) -> None:
    with pytest.raises(ConfigurationError, match=said):
        changed(adapter_run(tiny_start, "http://127.0.0.1:1/v1"), **tables)
