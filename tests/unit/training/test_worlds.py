"""The servers that episodes work on: in this process or at a URL, what was done is told alike."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.training.playing import MOVES, OK, call, first_id, lexical_world, rows

from agemem_mcp.adapters.system import SequentialIds, SteppingClock
from agemem_mcp.app import service_gate
from agemem_mcp.domain.memory import Actor, MemoryEventKind, Scope
from agemem_mcp.errors import ConfigurationError, InvalidOperation, StoreError
from agemem_mcp.server.http import HttpListener, HttpOptions, build_app
from agemem_policies.protocol import Call, Turn
from agemem_policies.scripted import ScriptedPolicy
from agemem_training.environment import Rules, run_episode
from agemem_training.results_ledger import ResultsLedger
from agemem_training.rewards import reward
from agemem_training.worlds import NAMESPACE_PREFIX, WorldSettings, at_url, in_process

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from agemem_mcp.service.gate import ServiceGate
    from agemem_mcp.settings import Settings
    from agemem_policies.scripted import Line
    from agemem_training.record import Episode
    from agemem_training.worlds import World

TOKEN = "a token of the tests"
ADD = {"content": "Maya lives in Oslo."}


@asynccontextmanager
async def served(settings: Settings) -> AsyncGenerator[tuple[str, ServiceGate]]:
    """A server that listens, and the memory behind it."""
    gate = service_gate(settings, clock=SteppingClock(), ids=SequentialIds(1))
    options = HttpOptions(host="127.0.0.1", port=0, token=TOKEN)
    listener = HttpListener(build_app(options, gate), options)
    try:
        yield f"{listener.url}/mcp", gate
    finally:
        await listener.close(process_ends=False)
        await gate.close()


def everything() -> list[Line]:
    """Turns that write every kind of row, and that try to write rows which no ledger has."""
    return [
        Turn(
            "",
            (
                Call("Add_memory", {"content": "  Maya lives in Oslo. ", "metadata": {"tags": ["home"], "gone": None}}),
                Call("Add_memory", {"content": "Maya lives in Oslo."}),
                Call("Add_memory", {"content": "Maya lives in Oslo.", "memory_type": "fact"}),
                Call("Add_memory", {"content": "Small talk."}),
                Call("Add_memory", {"content": ""}),
            ),
        ),
        OK,
        lambda prompt: call(
            "Update_memory", memory_id=first_id(prompt, "Maya lives in Oslo."), content="Maya lives in Rome."
        ),
        call("Update_memory", memory_id="mem_2", content="Maya lives in Rome."),
        call("Update_memory", memory_id="mem_2", content="Maya lives in Rome.", metadata={"sure": True, "tags": None}),
        call("Update_memory", memory_id="mem_99", content="Nobody."),
        call("Delete_memory", memory_id="mem_3", confirmation=False),
        call("Delete_memory", memory_id="mem_3", confirmation=True),
        call("Delete_memory", memory_id="mem_3", confirmation=True),
        OK,
        OK,
        call("Filter_context", criteria="Zeppelins over the harbour"),
        OK,
        call("Retrieve_memory", query="Maya lives"),
        call("Add_memory", content="Small talk."),
        Turn("", answer="Rome"),
    ]


async def played(world: World, namespace: str = "one") -> Episode:
    return await run_episode(MOVES, ScriptedPolicy(everything()), world, Rules(), namespace=namespace)


async def test_a_server_at_a_url_tells_the_same_as_the_ledger_in_this_process(
    tmp_path: Path, lexical_settings: Settings
) -> None:
    budget = lexical_settings.context.budget_tokens
    async with lexical_world(tmp_path, ids="sequential", budget_tokens=budget) as world:
        here = await played(world)
    async with served(lexical_settings) as (url, gate), at_url(url, token=TOKEN) as world:
        there = await played(world)
        service = await gate.service()
        ledger = await service.long_term.events(Scope(principal="local", namespace=world.namespace_of("one")))
    assert rows(there) == rows(here)
    kinds = [event.kind.value for event in here.events]
    assert kinds == ["add", "add", "update", "add", "update", "update", "delete", "add"]
    assert {event.actor for event in here.events} == {Actor.ENVIRONMENT, Actor.POLICY}
    assert [event.record.created_at for event in there.events] == [event.record.created_at for event in ledger]
    assert [event.at for event in there.events] == sorted(event.at for event in there.events)
    assert reward(there) == reward(here)
    assert (there.answer, there.context_tokens) == (here.answer, here.context_tokens)


async def test_each_episode_and_each_run_has_a_namespace_of_its_own_on_a_server(lexical_settings: Settings) -> None:
    async with served(lexical_settings) as (url, _), at_url(url, token=TOKEN) as one, at_url(url, token=TOKEN) as two:
        episodes = await asyncio.gather(played(one, "a"), played(one, "b"), played(two, "a"))
        assert rows(episodes[0]) == rows(episodes[1]) == rows(episodes[2])
        names = [one.namespace_of("a"), one.namespace_of("b"), two.namespace_of("a")]
        assert len(set(names)) == 3
        assert all(name.startswith(f"{NAMESPACE_PREFIX}.") for name in names)
        with pytest.raises(InvalidOperation, match="'a' was used before"):
            await played(one, "a")
        with pytest.raises(InvalidOperation, match="is no namespace"):
            await played(one, "not a name")


async def test_a_url_without_a_server_or_with_another_token_is_told_before_any_episode(
    lexical_settings: Settings,
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{probe.getsockname()[1]}/mcp"
        with pytest.raises(ConfigurationError, match="No memory server could be used"):
            async with at_url(nobody):
                pass
    async with served(lexical_settings) as (url, _):
        with pytest.raises(ConfigurationError, match="AGEMEM_TOKEN"):
            async with at_url(url, token="wrong"):
                pass


def test_a_change_of_what_nobody_added_is_no_row() -> None:
    ledger = ResultsLedger(Scope())
    result: dict[str, Any] = {"memory_id": "mem_1", "deleted": True}
    with pytest.raises(StoreError, match="mem_1 was stored by somebody else"):
        ledger.note(
            "Delete_memory",
            {"memory_id": "mem_1", "confirmation": True},
            result,
            session_id=None,
            actor=Actor.POLICY,
        )
    assert ledger.events == []


def folders_in(place: Path) -> list[Path]:
    return list(place.iterdir())


async def test_a_memory_of_this_process_vanishes(tmp_path: Path) -> None:
    async with lexical_world(tmp_path) as world:
        async with world.tools("one") as tools:
            await tools.require("Add_memory", ADD, session_id=None, actor=Actor.ENVIRONMENT)
        assert [event.kind for event in await world.events("one")] == [MemoryEventKind.ADD]
        assert await world.events("two") == ()
        assert len(folders_in(tmp_path)) == 1
    assert not folders_in(tmp_path)


async def test_a_seed_gives_the_same_ids_and_days_and_another_seed_other_ones(tmp_path: Path) -> None:
    seen: list[tuple[str, str]] = []
    for seed in (1, 1, 2):
        async with lexical_world(tmp_path, seed=seed) as world, world.tools("one") as tools:
            added = await tools.require("Add_memory", ADD, session_id=None, actor=Actor.ENVIRONMENT)
            seen.append((added["memory_id"], added["created_at"]))
    assert seen[0] == seen[1]
    assert seen[0][0] != seen[2][0]
    assert seen[0][1][:10] != seen[2][1][:10]


async def test_the_servers_settings_are_those_asked_for(tmp_path: Path) -> None:
    settings = WorldSettings(budget_tokens=77, tokenizer="estimate", folder=tmp_path, extra={"embedding": "none"})
    async with in_process(settings, seed=1) as world, world.tools("one") as tools:
        message = {"messages": [{"role": "user", "content": "Hello."}]}
        shown = await tools.require("Append_context", message, session_id=None, actor=Actor.USER)
    assert (shown["context"]["budget_tokens"], shown["context"]["tokenizer"]) == (77, "estimate")


async def test_a_persons_own_settings_are_not_those_of_episodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGEMEM_QDRANT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AGEMEM_QUOTA__ENTRIES", "1")
    monkeypatch.setenv("AGEMEM_NAMESPACE", "not a namespace!")
    settings = WorldSettings(tokenizer="estimate", folder=tmp_path, extra={"embedding": "none"})
    async with in_process(settings, seed=1) as world, world.tools("one") as tools:
        for text in ("Maya lives in Oslo.", "Tom drinks tea."):
            added = {"content": text, "memory_type": "fact"}
            await tools.require("Add_memory", added, session_id=None, actor=Actor.POLICY)


async def test_settings_that_the_server_does_not_take_are_refused(tmp_path: Path) -> None:
    settings = WorldSettings(folder=tmp_path, extra={"embeding": "none"})
    with pytest.raises(ConfigurationError, match="AGEMEM_EMBEDING"):
        async with in_process(settings, seed=1):
            pass
