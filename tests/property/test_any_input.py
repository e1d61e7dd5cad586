"""Whatever a client sends, a tool answers: with a result or with a text that helps, never with another's data."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mcp.client.client import Client

from agemem_mcp.app import service_gate
from agemem_mcp.domain.memory import Scope
from agemem_mcp.domain.operations import HELPERS, SIX, parse_operation, tool_name
from agemem_mcp.errors import InvalidOperation
from agemem_mcp.server.tools import MemoryServer
from agemem_mcp.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

CANARIES = {
    Scope(namespace="neighbour"): "canary-neighbour-7f3a zebra",
    Scope(principal="someone-else"): "canary-principal-91bc zebra",
    Scope(principal="someone-else", namespace="neighbour"): "canary-both-55d0 zebra",
}
OWN = "An own memory about a zebra."
NAMES = [tool_name(operation) for operation in (*SIX, *HELPERS)]
FIELDS = sorted({field for operation in (*SIX, *HELPERS) for field in operation.model_fields} - {"name"})


class OneServer:
    """One server for all examples, on a loop of its own: opening it for each would take seconds."""

    def __init__(self, folder: Any) -> None:
        self.scope = Scope()
        self.ids: list[str] = []
        self.foreign: list[str] = []
        self._runner = asyncio.Runner()
        configured = load_settings(
            data_dir=folder / "data", assets_dir=folder / "assets", embedding="none", context={"tokenizer": "estimate"}
        )
        self._gate = service_gate(configured)
        self._server = MemoryServer(self._gate, scope_of=lambda _: self.scope)

    def __enter__(self) -> Self:
        self._runner.run(self._plant())
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._close())
        self._runner.close()

    def call(self, tool: str, arguments: dict[str, Any]) -> Any:
        return self._runner.run(self._call(tool, arguments))

    async def _close(self) -> None:
        await self._server.drain()
        await self._gate.close()

    @asynccontextmanager
    async def _client(self, scope: Scope) -> AsyncGenerator[Client]:
        self.scope = scope
        async with Client(self._server.mcp, raise_exceptions=True) as client:
            yield client
        self.scope = Scope()

    async def _call(self, tool: str, arguments: dict[str, Any]) -> Any:
        async with self._client(Scope()) as client:
            return await client.call_tool(tool, arguments)

    async def _plant(self) -> None:
        for scope, canary in {**CANARIES, Scope(): OWN}.items():
            async with self._client(scope) as client:
                added = await client.call_tool(
                    "Add_memory", {"content": canary, "metadata": {"secret": canary}, "memory_type": "canary"}
                )
                opened = await client.call_tool("Append_context", {"messages": [canary, canary]})
                assert added.structured_content is not None
                assert opened.structured_content is not None
                ids = [added.structured_content["memory_id"], opened.structured_content["session_id"]]
                (self.ids if scope == Scope() else self.foreign).extend(ids)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[OneServer]:
    with OneServer(tmp_path_factory.mktemp("any-input")) as server:
        yield server


def check(server: OneServer, tool: str, arguments: dict[str, Any]) -> None:
    """The answer is one a client can use, and holds nothing of another scope."""
    result = server.call(tool, arguments)
    text = "\n".join(part.text for part in result.content)
    assert "of the server's own" not in text, (tool, arguments)
    assert text.strip()
    assert "canary-" not in text
    assert "canary-" not in json.dumps(result.structured_content)
    assert result.is_error == (result.structured_content is None)


ANY_TEXT = st.text(max_size=40) | st.text(st.characters(codec=None, categories=None), max_size=20)
TEXTS = ANY_TEXT | st.sampled_from(["zebra", "", " ", "\x00", "\ud800", "canary", "all", "1", "0", "\u202e", "'; --"])
KEYS = st.text(max_size=20) | st.sampled_from(["", " ", "\x00", "secret"])
"""Without lone surrogates, which the client cannot encode in keys; another test has them."""
NUMBERS = st.integers() | st.floats() | st.sampled_from([0, -1, 1, 3, 100, 101, 2**63, -(2**63) - 1, 1e308])
SCALARS = st.none() | st.booleans() | NUMBERS | TEXTS
JSON_VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)
FILTERS = st.dictionaries(
    st.sampled_from(["secret", "memory_type", "created_at", "updated_at", "principal", "namespace", "scope", ""])
    | KEYS,
    SCALARS
    | st.lists(SCALARS, max_size=3)
    | st.dictionaries(st.sampled_from(["gt", "gte", "lt", "lte", "after", "before", "near"]), SCALARS, max_size=3),
    max_size=3,
)


def near_valid(server_ids: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    """Arguments under the right names, mostly of the right kind."""
    ids = st.sampled_from(server_ids) | TEXTS
    message = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "tool"]) | TEXTS, "content": TEXTS})
    kinds: dict[str, st.SearchStrategy[Any]] = {
        "memory_id": ids,
        "session_id": ids | st.none(),
        "metadata": st.dictionaries(KEYS, JSON_VALUES, max_size=3),
        "metadata_filter": FILTERS,
        "top_k": NUMBERS | st.integers(1, 100),
        "span": st.sampled_from(["all", "1", "2", 1]) | SCALARS,
        "confirmation": st.booleans() | SCALARS,
        "messages": st.lists(message, max_size=3) | message | TEXTS,
    }
    fields = {name: kinds.get(name, TEXTS) | SCALARS for name in FIELDS}
    return st.fixed_dictionaries({}, optional=fields)


@settings(max_examples=250)
@given(
    tool=st.sampled_from(NAMES) | KEYS,
    arguments=st.dictionaries(st.sampled_from(FIELDS) | KEYS, JSON_VALUES, max_size=5),
)
def test_any_json_gets_an_answer(server: OneServer, tool: str, arguments: dict[str, Any]) -> None:
    check(server, tool, arguments)


@settings(max_examples=400)
@given(data=st.data(), tool=st.sampled_from(NAMES))
def test_near_valid_arguments_get_an_answer_without_another_scopes_data(
    server: OneServer, data: st.DataObject, tool: str
) -> None:
    own_fields = [
        name for operation in (*SIX, *HELPERS) if tool_name(operation) == tool for name in operation.model_fields
    ]
    drawn = data.draw(near_valid([*server.ids, *server.foreign]))
    check(server, tool, {name: value for name, value in drawn.items() if name in own_fields})


@settings(max_examples=100)
@given(filters=FILTERS, query=st.sampled_from(["zebra", "canary", "canary-neighbour-7f3a", "zebra canary-both-55d0"]))
def test_no_filter_reaches_into_another_scope(server: OneServer, filters: dict[str, Any], query: str) -> None:
    check(server, "Retrieve_memory", {"query": query, "metadata_filter": filters, "top_k": 100})


@settings(max_examples=300)
@given(
    tool=st.sampled_from(NAMES) | TEXTS,
    arguments=st.dictionaries(
        st.sampled_from(FIELDS) | TEXTS, JSON_VALUES | st.dictionaries(TEXTS, JSON_VALUES, max_size=3), max_size=5
    ),
)
def test_reading_any_json_gives_an_operation_or_a_text_that_can_be_sent(tool: str, arguments: dict[str, Any]) -> None:
    try:
        operation = parse_operation(tool, arguments)
    except InvalidOperation as error:
        refusal = str(error)
    else:
        refusal = ""
        assert operation.name == tool
        assert operation.model_dump_json()
    assert refusal.encode("utf-8", "strict") is not None
    assert len(refusal) < 2000


def test_the_canaries_can_be_found_by_their_owners(server: OneServer) -> None:
    server.scope = Scope(namespace="neighbour")
    found = server._runner.run(_found_by_owner(server))
    assert "canary-neighbour-7f3a" in found


async def _found_by_owner(server: OneServer) -> str:
    async with server._client(Scope(namespace="neighbour")) as client:
        return json.dumps((await client.call_tool("Retrieve_memory", {"query": "zebra"})).structured_content)
