"""The tools as an MCP client sees them, in both eras of the protocol."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import jsonschema
import pytest
from mcp.client.client import Client

from agemem_mcp.adapters.system import RandomIds
from agemem_mcp.app import open_service
from agemem_mcp.domain.memory import Scope
from agemem_mcp.domain.operations import HELPERS, SIX, input_schema, tool_name
from agemem_mcp.errors import ConfigurationError
from agemem_mcp.server.tools import ACTOR_META_KEY, SESSION_META_KEY, MemoryServer, ToolOffer
from agemem_mcp.service.gate import Progress, ServiceGate

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from contextlib import AbstractAsyncContextManager

    from mcp_types import CallToolResult

    from agemem_mcp.adapters.system import SteppingClock
    from agemem_mcp.domain.memory import MemoryEvent
    from agemem_mcp.service.memory_service import MemoryService
    from agemem_mcp.settings import Settings

ERAS = pytest.mark.parametrize("mode", ["legacy", "auto"])


class Served:
    """A server on a real service, and what holds it up or brings it down."""

    def __init__(self, settings: Settings, clock: SteppingClock, tools: str = "all") -> None:
        """Serve; nothing is opened yet."""
        self.settings = settings
        self.clock = clock
        self.let = asyncio.Event()
        self.let.set()
        self.failures: list[Exception] = []
        self.namespace = "default"
        self.gate = ServiceGate(self._open)
        self.server = MemoryServer(
            self.gate,
            scope_of=lambda _: Scope(namespace=self.namespace),
            offer=ToolOffer(tools=tools),
            writer="connection 1",
        )

    @asynccontextmanager
    async def _open(self, note: Callable[[Progress], None]) -> AsyncGenerator[MemoryService]:
        note(Progress("model: downloading", 1, 4))
        await self.let.wait()
        if self.failures:
            raise self.failures.pop(0)
        async with open_service(self.settings, clock=self.clock, ids=RandomIds(seed=7)) as service:
            yield service

    def client(self, mode: str = "auto") -> AbstractAsyncContextManager[Client]:
        """A client in this process."""
        return Client(self.server.mcp, mode=mode)

    async def history(self, memory_id: str) -> list[MemoryEvent]:
        """The ledger's rows on a memory."""
        return await (await self.gate.service()).long_term._ledger.history(Scope(), memory_id)


@asynccontextmanager
async def serving(settings: Settings, clock: SteppingClock, tools: str = "all") -> AsyncGenerator[Served]:
    """A server, closed at the end."""
    served = Served(settings, clock, tools)
    try:
        yield served
    finally:
        await served.server.drain()
        await served.gate.close()


@pytest.fixture
async def served(lexical_settings: Settings, clock: SteppingClock) -> AsyncGenerator[Served]:
    """A server without a model."""
    async with serving(lexical_settings, clock) as served:
        yield served


def text(result: CallToolResult) -> str:
    """What a model reads of a result."""
    (block,) = result.content
    assert block.type == "text"
    return block.text


async def done(client: Client, name: str, arguments: dict[str, Any], **meta: Any) -> dict[str, Any]:
    """The structured result of a call that succeeds."""
    result = await client.call_tool(name, arguments, meta=cast("Any", meta) if meta else None)
    assert not result.is_error, text(result)
    assert result.structured_content is not None
    return result.structured_content


@ERAS
async def test_the_tools_are_listed_with_what_the_operations_say_of_themselves(served: Served, mode: str) -> None:
    async with served.client(mode) as client:
        listed = (await client.list_tools()).tools
    assert [one.name for one in listed] == [tool_name(one) for one in (*SIX, *HELPERS)]
    for tool, operation in zip(listed, (*SIX, *HELPERS), strict=True):
        assert tool.input_schema == input_schema(operation)
        assert tool.annotations is not None
        assert tool.annotations.read_only_hint is operation.read_only
        assert tool.annotations.destructive_hint is operation.destructive
        assert tool.annotations.open_world_hint is False


@ERAS
async def test_all_eight_tools_answer_as_their_output_schemas_say(served: Served, mode: str) -> None:
    async with served.client(mode) as client:
        schemas = {one.name: one.output_schema for one in (await client.list_tools()).tools}
        results: dict[str, dict[str, Any]] = {}

        async def call(name: str, **arguments: Any) -> dict[str, Any]:
            results[name] = await done(client, name, arguments)
            schema = schemas[name]
            assert schema is not None
            jsonschema.validate(results[name], schema)
            return results[name]

        await call("Add_memory", content="Bo likes green tea.")
        added = await call("Add_memory", content="Ana likes green tea.", metadata={"topic": "drinks"})
        await call("Update_memory", memory_id=added["memory_id"], content="Ana likes black tea.")
        session_id = (await call("Retrieve_memory", query="tea"))["session_id"]
        messages = [{"role": "user", "content": "It rains in Oslo today. " * 20}]
        await call("Append_context", messages=messages, session_id=session_id)
        await call("Filter_context", criteria="Oslo", session_id=session_id)
        await call("Summary_context", span="all", summary="Tea.", session_id=session_id)
        await call("Show_context", session_id=session_id)
        await call("Delete_memory", memory_id=added["memory_id"], confirmation=True)
    assert set(results) == set(schemas)
    assert [one["content"] for one in results["Add_memory"]["similar"]] == ["Bo likes green tea."]
    assert [one["content"] for one in results["Show_context"]["messages"]] == ["Tea."]
    assert len(results["Filter_context"]["removed"]) == 1


async def test_six_leaves_the_helpers_out(lexical_settings: Settings, clock: SteppingClock) -> None:
    async with serving(lexical_settings, clock, tools="six") as served, served.client() as client:
        assert [one.name for one in (await client.list_tools()).tools] == [tool_name(one) for one in SIX]
        result = await client.call_tool("Show_context", {"session_id": "ctx_1"})
        assert result.is_error
        assert "no tool 'Show_context'" in text(result)


@ERAS
@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("Add_memory", {}, "content is missing"),
        ("Update_memory", {"memory_id": "mem_none", "content": "x"}, "There is no memory 'mem_none'"),
        ("Delete_memory", {"memory_id": "mem_1", "confirmation": False}, "confirmation: true"),
        ("Summary_context", {"span": "all"}, "needs a session_id"),
        ("Show_context", {"session_id": "ctx_none"}, "There is no session 'ctx_none'"),
        ("No_such_tool", {}, "The tools are Add_memory"),
    ],
)
async def test_a_refusal_is_a_tool_error_that_says_what_to_do(
    served: Served, mode: str, name: str, arguments: dict[str, Any], said: str
) -> None:
    async with served.client(mode) as client:
        result = await client.call_tool(name, arguments)
    assert result.is_error
    assert said in text(result)
    assert result.structured_content is None


async def test_listing_the_tools_does_not_wait_and_begins_to_open_the_memory(served: Served) -> None:
    served.let.clear()
    async with served.client("legacy") as client:
        assert len((await client.list_tools()).tools) == 8
        assert not served.gate.ready
        served.let.set()
        await served.gate.service()


@ERAS
async def test_a_call_that_waits_for_the_memory_is_told_how_far_things_are(
    served: Served, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agemem_mcp.service.gate._PROGRESS_INTERVAL_S", 0.001)
    served.let.clear()
    told: list[tuple[float, str | None]] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        told.append((progress, message))
        if len(told) == 4:
            served.let.set()

    async with served.client(mode) as client:
        result = await client.call_tool("Add_memory", {"content": "tea"}, progress_callback=on_progress)
    assert not result.is_error
    values = [value for value, _ in told]
    assert values == sorted(set(values))
    assert told[-1][1] == "model: downloading (25%)"


@ERAS
async def test_a_memory_that_cannot_be_opened_is_tried_again_with_the_next_call(served: Served, mode: str) -> None:
    served.failures = [ConfigurationError("The data folder cannot be used.")]
    async with served.client(mode) as client:
        result = await client.call_tool("Add_memory", {"content": "tea"})
        assert (result.is_error, text(result)) == (True, "The data folder cannot be used.")
        assert not (await client.call_tool("Add_memory", {"content": "tea"})).is_error


@ERAS
async def test_a_crash_hides_its_text(served: Served, mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    served.failures = [ZeroDivisionError("secret /home/ana")]
    async with served.client(mode) as client:
        result = await client.call_tool("Add_memory", {"content": "tea"})
    assert result.is_error
    assert "secret" not in text(result)
    assert text(result).startswith("Add_memory failed for a reason of the server's own; its log has the details.")
    assert "secret /home/ana" in "".join(capsys.readouterr())


async def test_a_client_reaches_its_own_scope_alone(served: Served) -> None:
    async with served.client() as client:
        added = await done(client, "Add_memory", {"content": "tea"})
        opened = await done(client, "Retrieve_memory", {"query": "tea"})
        served.namespace = "other"
        assert (await done(client, "Retrieve_memory", {"query": "tea"}))["memories"] == []
        for name, arguments in (
            ("Update_memory", {"memory_id": added["memory_id"], "content": "x"}),
            ("Show_context", {"session_id": opened["session_id"]}),
        ):
            assert (await client.call_tool(name, arguments)).is_error


@ERAS
@pytest.mark.parametrize(
    ("meta", "actor", "session_id"),
    [
        ({}, "policy", None),
        ({ACTOR_META_KEY: "environment", SESSION_META_KEY: "ctx_1"}, "environment", "ctx_1"),
        ({ACTOR_META_KEY: "user"}, "user", None),
        ({ACTOR_META_KEY: "root", SESSION_META_KEY: 5}, "policy", None),
        ({ACTOR_META_KEY: ["user"], SESSION_META_KEY: {}}, "policy", None),
        ({ACTOR_META_KEY: {}, SESSION_META_KEY: "x" * 100}, "policy", "x" * 64),
        ({SESSION_META_KEY: "a\x00b"}, "policy", None),
    ],
    ids=str,
)
async def test_a_host_names_actor_and_session_beside_the_arguments(
    served: Served, mode: str, meta: dict[str, Any], actor: str, session_id: str | None
) -> None:
    async with served.client(mode) as client:
        added = await done(client, "Add_memory", {"content": "tea"}, **meta)
    (event,) = await served.history(added["memory_id"])
    assert (event.actor, event.session_id) == (actor, session_id)


async def test_what_a_session_stores_hangs_together_and_so_does_the_rest_of_a_connection(served: Served) -> None:
    follows: list[str | None] = []
    ids: list[str] = []
    async with served.client() as client:
        for number, session_id in enumerate([None, "ctx_1", None, "ctx_1", "", "a\x00b"]):
            meta = {} if session_id is None else {SESSION_META_KEY: session_id}
            ids.append((await done(client, "Add_memory", {"content": f"tea {number}"}, **meta))["memory_id"])
            follows.append((await served.history(ids[-1]))[0].record.follows)
    assert follows == [None, None, ids[0], ids[1], ids[2], ids[4]]


async def test_a_session_that_is_no_text_does_not_reach_the_ledger(served: Served) -> None:
    async with served.client() as client:
        added = await done(client, "Add_memory", {"content": "tea"}, **{SESSION_META_KEY: "a\ud800"})
    (event,) = await served.history(added["memory_id"])
    assert event.session_id is None


async def test_an_operation_whose_caller_cancels_is_done_wholly(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = await served.gate.service()
    begun, go_on = asyncio.Event(), asyncio.Event()
    write = service.long_term._ledger.write

    async def slow_write(work: Any) -> Any:
        begun.set()
        await go_on.wait()
        return await write(work)

    monkeypatch.setattr(service.long_term._ledger, "write", slow_write)
    async with served.client() as client:
        call = asyncio.create_task(client.call_tool("Add_memory", {"content": "tea"}))
        await begun.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        go_on.set()
        await served.server.drain()
        (hit,) = (await done(client, "Retrieve_memory", {"query": "tea"}))["memories"]
    assert hit["content"] == "tea"


async def test_many_calls_at_once_are_all_carried_out(served: Served) -> None:
    async with served.client() as client:
        texts = [f"note number {number}" for number in range(30)]
        added = await asyncio.gather(*(done(client, "Add_memory", {"content": one}) for one in texts))
        found = await done(client, "Retrieve_memory", {"query": "note", "top_k": 100})
    assert len({one["memory_id"] for one in added}) == 30
    assert sorted(one["content"] for one in found["memories"]) == sorted(texts)
