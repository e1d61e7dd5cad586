"""Rewards of what a real agent did on a real server: what they read is what is written there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.unit.training.building import MOVES, OSLO, ROME, TEA

from agemem_mcp.app import service_gate
from agemem_mcp.domain.memory import Actor, Scope
from agemem_policies.agent import Agent, AgentOptions
from agemem_policies.memory import tools_in_process
from agemem_policies.protocol import Call, Turn
from agemem_policies.scripted import ScriptedPolicy
from agemem_policies.session import SessionContext
from agemem_training.record import CONSTRUCTION, DISTRACTION, REASONING, Episode
from agemem_training.rewards import reward

if TYPE_CHECKING:
    from agemem_mcp.domain.memory import MemoryEvent
    from agemem_mcp.service.memory_service import MemoryService
    from agemem_mcp.settings import Settings
    from agemem_policies.memory import MemoryTools
    from agemem_policies.scripted import Line


async def staged(tools: MemoryTools, episode: Episode, stage: int, message: str, *lines: Line) -> None:
    """A stage of an episode, its policy following a script."""
    agent = Agent(ScriptedPolicy(lines), tools, AgentOptions(stage=stage, strict=True))
    session_id = episode.sessions.get(stage)
    trajectory = await agent.run(message, session_id=session_id)
    episode.sessions[stage] = trajectory.session_id
    episode.steps += trajectory.steps
    episode.stop_reason, episode.answer = trajectory.stop_reason, trajectory.answer
    episode.context_tokens, episode.budget_tokens = trajectory.context_tokens, trajectory.budget_tokens
    episode.context = tuple((await SessionContext.resume(tools, trajectory.session_id)).messages)


async def events_of(service: MemoryService) -> tuple[MemoryEvent, ...]:
    """The whole ledger of the default scope."""
    ledger = service.long_term._ledger
    heads = await ledger.list_heads(Scope(), limit=None, include_deleted=True)
    events = [event for head in heads for event in await ledger.history(Scope(), head.memory_id)]
    return tuple(sorted(events, key=lambda event: event.seq))


async def test_a_real_episode_is_paid_for_what_it_did(lexical_settings: Settings) -> None:
    gate = service_gate(lexical_settings)
    episode = Episode(MOVES)
    async with tools_in_process(gate, Scope()) as tools:
        added = await tools.require(
            "Add_memory", {"content": "The bakery closes at six."}, session_id=None, actor=Actor.ENVIRONMENT
        )
        add = await tools.call("Add_memory", {"content": OSLO.text}, session_id=None, actor=Actor.ENVIRONMENT)
        oslo = add.structured["memory_id"]
        await staged(
            tools,
            episode,
            CONSTRUCTION,
            "Maya moved to Rome. Tom drinks green tea.",
            Turn("", (Call("Update_memory", {"memory_id": oslo, "content": ROME.text}),)),
            Turn("", (Call("Update_memory", {"memory_id": oslo, "content": ROME.text}),)),
            Turn("", (Call("Add_memory", {"content": TEA.text}), Call("Add_memory", {"content": TEA.text}))),
            Turn("", (Call("Delete_memory", {"memory_id": added["memory_id"]}),)),
            Turn("", answer="ok"),
        )
        await staged(
            tools,
            episode,
            DISTRACTION,
            "Zeppelins over the harbour, zeppelins everywhere.",
            Turn("", (Call("Filter_context", {"criteria": "Zeppelins over the harbour"}),)),
            Turn("", (Call("Filter_context", {"criteria": "submarines"}),)),
            Turn("", (Call("Summary_context", {"span": "all", "summary": "A long walk along the shore."}),)),
            Turn("", answer="ok"),
        )
        episode.sessions[REASONING] = episode.sessions[DISTRACTION]
        await staged(
            tools,
            episode,
            REASONING,
            MOVES.query,
            Turn("", (Call("Retrieve_memory", {"query": "Where does Maya live?", "top_k": 1}),)),
            Turn("", answer="Rome"),
        )
        episode.events = await events_of(await gate.service())
    await gate.close()
    result = reward(episode)
    assert result.success
    strict = result.strict
    # An update of nothing, an addition of what was there, a delete that was not confirmed, a filter of nothing.
    assert strict.no_effect_calls == 4
    assert (strict.storage, strict.maintenance, strict.relevance, strict.preservation) == (1.0, 1.0, 1.0, 1.0)
    assert (strict.preventive, result.paper.preventive) == (1.0, 1.0)
    assert 0 < strict.compression < 1
    assert strict.penalty_no_effect == pytest.approx(-0.08)
    # One entry was added in stage 1, and it is not what the query asks for.
    assert (result.paper.storage, result.paper.maintenance) == (0.0, 1.0)
