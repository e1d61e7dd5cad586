"""The rules of short-term context, on a real session store."""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from agemem_mcp.adapters.system import RandomIds
from agemem_mcp.app import open_service
from agemem_mcp.domain.context import Message, MessageKind, Role
from agemem_mcp.domain.memory import Actor, Scope
from agemem_mcp.domain.operations import (
    AddMemory,
    AppendContext,
    AppendResult,
    FilterContext,
    FilterResult,
    NewMessage,
    RetrieveMemory,
    ShowContext,
    SummaryContext,
    SummaryResult,
    input_schema,
)
from agemem_mcp.errors import InvalidOperation, NotFound

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator

    from agemem_mcp.adapters.system import SteppingClock
    from agemem_mcp.domain.ports import SessionTransaction
    from agemem_mcp.service.memory_service import MemoryService
    from agemem_mcp.settings import Settings

SCOPE = Scope()
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
TALK = {
    "user": "Hello! We are planning a trip to Norway in May 2026 with Ana and her two children.",
    "assistant": "Good. The flight to Oslo leaves at nine and costs 900 crowns for each of you.",
    "tool": "Weather in Oslo: rain until Tuesday, then sun. Hotel Bristol has two rooms left.",
}
SHORT = "Norway trip, May 2026."


class Context:
    """Short-term context with short calls."""

    def __init__(self, service: MemoryService) -> None:
        """Work on a service."""
        self.service = service
        self.short_term = service.short_term

    async def append(
        self, *messages: tuple[Any, str], session_id: str | None = None, scope: Scope = SCOPE
    ) -> AppendResult:
        """Append messages."""
        new = [NewMessage(role=role, content=content) for role, content in messages]
        return await self.short_term.append(scope, AppendContext(messages=new, session_id=session_id), Actor.POLICY)

    async def talk(self, rounds: int = 1) -> str:
        """A session with rounds of three messages."""
        session_id = None
        for number in range(rounds):
            texts = [(role, f"{text} ({number})") for role, text in TALK.items()]
            session_id = (await self.append(*texts, session_id=session_id)).session_id
        assert session_id is not None
        return session_id

    async def summarise(self, session_id: str | None, span: str = "all", summary: str | None = None) -> SummaryResult:
        """Summarise."""
        operation = SummaryContext(span=span, summary=summary, session_id=session_id)
        return await self.short_term.summarise(SCOPE, operation, Actor.POLICY)

    async def filter(self, session_id: str | None, criteria: str) -> FilterResult:
        """Filter."""
        operation = FilterContext(criteria=criteria, session_id=session_id)
        return await self.short_term.filter(SCOPE, operation, Actor.POLICY)

    async def shown(self, session_id: str, scope: Scope = SCOPE) -> list[str]:
        """The ids of the messages in the context."""
        result = await self.short_term.show(scope, ShowContext(session_id=session_id))
        assert result.context.message_count == len(result.messages)
        return [one.message_id for one in result.messages]

    async def restore(self, session_id: str, *message_ids: str) -> list[str]:
        """Restore."""
        return await self.short_term.restore(SCOPE, session_id, message_ids or None, Actor.USER)

    async def put_system_message(self, session_id: str, text: str) -> None:
        """What only a host can do."""
        moment = self.short_term._clock.now()

        def work(store: SessionTransaction) -> None:
            number = store.tally(session_id, "").ever + 1
            store.put_messages(session_id, [Message(f"msg_{number}", Role.SYSTEM, text, moment, number)])

        await self.short_term._store.write(work)


def ids(*numbers: int) -> list[str]:
    """Message ids."""
    return [f"msg_{number}" for number in numbers]


@pytest.fixture
def context(lexical_service: MemoryService) -> Context:
    """Contexts without a model."""
    return Context(lexical_service)


@asynccontextmanager
async def opened(settings: Settings, clock: SteppingClock, **changed: Any) -> AsyncGenerator[Context]:
    """Contexts with other settings."""
    async with open_service(settings.model_copy(update=changed), clock=clock, ids=RandomIds(3)) as service:
        yield Context(service)


async def test_summary_and_filter_without_a_session_are_refused_with_the_way_to_get_one(context: Context) -> None:
    for call in (context.summarise(None), context.filter(None, "x")):
        with pytest.raises(InvalidOperation, match=r"needs a session_id. Retrieve_memory opens"):
            await call


async def test_retrieved_memories_enter_the_context_as_one_message(context: Context) -> None:
    for text in ("Ana likes tea.", "Bo likes tea too."):
        await context.service.apply(SCOPE, AddMemory(content=text, metadata={"title": "Drinks"}, memory_type="fact"))
    result: Any = await context.service.apply(SCOPE, RetrieveMemory(query="tea", metadata_filter={}))
    assert (len(result.memories), result.search, result.context.message_count) == (2, "lexical", 1)
    shown = await context.short_term.show(SCOPE, ShowContext(session_id=result.session_id))
    first = result.memories[0]
    assert shown.messages[0].role == "tool"
    assert f"[{first.memory_id}] (2026-01-01, fact, Drinks) {first.content}" in shown.messages[0].content
    again: Any = await context.service.apply(
        SCOPE, RetrieveMemory(query="nothing of the kind", metadata_filter={}, session_id=result.session_id)
    )
    assert (again.memories, again.context.message_count) == ([], 1)


async def test_the_callers_summary_takes_the_place_of_the_messages(context: Context) -> None:
    session_id = await context.talk()
    result = await context.summarise(session_id, summary=f" {SHORT}\n")
    assert (result.summary, result.method, result.replaced) == (SHORT, "caller", ids(1, 2, 3))
    shown = await context.short_term.show(SCOPE, ShowContext(session_id=session_id))
    assert [(one.message_id, one.role, one.content) for one in shown.messages] == [("msg_4", "tool", SHORT)]
    assert shown.context == result.context


@pytest.mark.parametrize(
    ("span", "replaced", "left"),
    [
        ("1", ids(7, 8, 9), ids(1, 2, 3, 4, 5, 6, 10)),
        ("2", ids(4, 5, 6, 7, 8, 9), ids(1, 2, 3, 10)),
        ("99", ids(*range(1, 10)), ids(10)),
    ],
)
async def test_a_span_of_the_last_rounds_is_summarised_in_its_place(
    context: Context, span: str, replaced: list[str], left: list[str]
) -> None:
    session_id = await context.talk(3)
    assert (await context.summarise(session_id, span, SHORT)).replaced == replaced
    assert await context.shown(session_id) == left
    await context.append(("user", "Go on."), session_id=session_id)
    assert await context.shown(session_id) == [*left, "msg_11"]


async def test_a_summary_that_saves_nothing_is_refused_and_changes_nothing(context: Context) -> None:
    session_id = (await context.append(("user", "Hello there"))).session_id
    for summary in ("Hello there", "A greeting was exchanged at the very beginning."):
        with pytest.raises(InvalidOperation, match="is not shorter than what it would replace"):
            await context.summarise(session_id, summary=summary)
    assert await context.shown(session_id) == ids(1)


async def test_there_is_nothing_to_summarise_in_an_empty_context(context: Context) -> None:
    result: Any = await context.service.apply(SCOPE, RetrieveMemory(query="tea", metadata_filter={}))
    with pytest.raises(InvalidOperation, match="nothing to summarise"):
        await context.summarise(result.session_id)


async def test_a_host_may_append_system_messages_and_a_policy_may_not(context: Context) -> None:
    operation = AppendContext.model_validate({"messages": [{"role": "system", "content": "Obey."}]})
    with pytest.raises(InvalidOperation, match="must be 'user', 'assistant' or 'tool'"):
        await context.short_term.append(SCOPE, operation, Actor.POLICY)
    result = await context.short_term.append(SCOPE, operation, Actor.ENVIRONMENT)
    assert result.context.message_count == 1
    assert "system" not in json.dumps(input_schema(AppendContext))


async def test_system_messages_are_neither_summarised_nor_filtered(context: Context) -> None:
    session_id = await context.talk()
    await context.put_system_message(session_id, "Norway Oslo")
    assert "msg_4" not in [one.message_id for one in (await context.filter(session_id, "Norway")).removed]
    assert (await context.summarise(session_id, summary=SHORT)).replaced == ids(2, 3)
    assert await context.shown(session_id) == ids(5, 4)


async def test_a_summary_can_be_summarised_with_what_came_after(context: Context) -> None:
    session_id = await context.talk()
    await context.summarise(session_id, summary=SHORT)
    await context.append(("user", TALK["user"]), session_id=session_id)
    assert (await context.summarise(session_id, summary=SHORT)).replaced == ids(4, 5)
    assert await context.shown(session_id) == ids(6)
    assert await context.restore(session_id) == ids(1, 2, 3, 5)
    assert await context.shown(session_id) == ids(1, 2, 3, 5)


@contextmanager
def endpoint(answer: Callable[[], str | None]) -> Generator[str]:
    """A chat endpoint on this machine whose every reply is asked for; None is an error 500."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            text = answer()
            self.send_response(200 if text is not None else 500)
            self.end_headers()
            self.wfile.write(json.dumps({"choices": [{"message": {"content": text}}]}).encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class's name
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
            thread.join()


def with_endpoint(settings: Settings, url: str) -> dict[str, Any]:
    """The settings that name an endpoint."""
    return {"summary": settings.summary.model_copy(update={"url": url, "model": "small"})}


@pytest.mark.parametrize(
    ("answers", "method"), [(f"{SHORT}\n", "endpoint"), (None, "extractive"), ("  ", "extractive")]
)
async def test_a_configured_endpoint_writes_the_summary_and_the_text_itself_stands_in_for_it(
    lexical_settings: Settings, clock: SteppingClock, answers: str | None, method: str
) -> None:
    with endpoint(lambda: answers) as url:
        async with opened(lexical_settings, clock, **with_endpoint(lexical_settings, url)) as context:
            session_id = await context.talk(3)
            result = await context.summarise(session_id)
            assert result.method == method
            assert (result.summary == SHORT) is (method == "endpoint")
            assert await context.shown(session_id) == ids(10)


async def test_an_endpoints_summary_that_is_too_long_gives_way_to_the_next(
    lexical_settings: Settings, clock: SteppingClock
) -> None:
    with endpoint(lambda: "blah " * 500) as url:
        async with opened(lexical_settings, clock, **with_endpoint(lexical_settings, url)) as context:
            session_id = await context.talk(3)
            assert (await context.summarise(session_id)).method == "extractive"


async def test_a_context_that_changes_while_it_is_summarised_is_left_as_it_is(
    lexical_settings: Settings, clock: SteppingClock
) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def answer() -> str:
        asked.set()
        go_on.wait()
        return SHORT

    with endpoint(answer) as url:
        async with opened(lexical_settings, clock, **with_endpoint(lexical_settings, url)) as context:
            session_id = await context.talk()

            summary = asyncio.create_task(context.summarise(session_id))
            await asyncio.to_thread(asked.wait)
            await context.filter(session_id, "weather in Oslo")
            go_on.set()
            with pytest.raises(InvalidOperation, match="changed while it was being summarised"):
                await summary
            assert await context.shown(session_id) == ids(1, 2)


async def test_without_model_and_endpoint_the_summary_is_made_of_the_text(context: Context) -> None:
    session_id = await context.talk(2)
    result = await context.summarise(session_id)
    assert result.method == "extractive"
    assert result.context.message_count == 1
    assert "Oslo" in result.summary


async def test_filtering_takes_out_what_the_criteria_name_and_says_what(context: Context) -> None:
    session_id = await context.talk()
    before = (await context.short_term.show(SCOPE, ShowContext(session_id=session_id))).context
    result = await context.filter(session_id, "hotel bristol")
    assert [(one.message_id, one.role) for one in result.removed] == [("msg_3", "tool")]
    assert result.removed[0].preview.startswith("Weather in Oslo")
    assert 0.85 <= result.removed[0].similarity <= 1
    assert result.mode == "lexical"
    assert result.context.tokens < before.tokens
    assert await context.shown(session_id) == ids(1, 2)
    assert (await context.filter(session_id, "quantum physics")).removed == []
    assert (await context.filter((await context.append(("user", "x"))).session_id, "y")).removed == []


async def test_what_left_the_context_can_be_restored_wholly_or_in_part(context: Context) -> None:
    session_id = await context.talk(2)
    await context.filter(session_id, "hotel bristol")
    await context.summarise(session_id, "1", SHORT)
    assert await context.shown(session_id) == ids(1, 2, 7)
    assert await context.restore(session_id, "msg_3", "msg_5") == ids(3, 5)
    assert sorted(await context.shown(session_id)) == ids(1, 2, 3, 5, 7)
    assert await context.restore(session_id, "msg_4") == ids(4)
    assert await context.shown(session_id) == ids(1, 2, 3, 4, 5)
    assert await context.restore(session_id) == ids(6)
    assert await context.shown(session_id) == ids(1, 2, 3, 4, 5, 6)
    assert await context.restore(session_id) == []
    with pytest.raises(NotFound, match="has no message msg_99"):
        await context.restore(session_id, "msg_99")


async def test_what_is_done_to_a_context_is_recorded_with_its_effect(context: Context) -> None:
    session_id = await context.talk()
    await context.filter(session_id, "hotel bristol")
    await context.summarise(session_id, "all", SHORT)
    await context.restore(session_id, "msg_3")
    rows = await context.short_term._store.operations(session_id)
    assert [(row["operation"], row["actor"]) for row in rows] == [
        ("Append_context", "policy"),
        ("Filter_context", "policy"),
        ("Summary_context", "policy"),
        ("restore", "user"),
    ]
    assert rows[1]["effect"]["removed"] == ids(3)
    assert rows[1]["effect"]["tokens_before"] > rows[1]["effect"]["tokens_after"]
    assert (rows[2]["effect"]["replaced"], rows[2]["effect"]["summary"]) == (ids(1, 2), "msg_4")
    assert rows[3]["effect"] == {"restored": ids(3)}


async def test_a_kind_is_kept_with_each_message(context: Context) -> None:
    session_id = await context.talk()
    await context.summarise(session_id, "all", SHORT)
    stored = await context.short_term._store.read(lambda store: store.messages(session_id, active_only=False))
    kinds = [one.kind for one in stored]
    assert sorted(kinds) == [MessageKind.MESSAGE] * 3 + [MessageKind.SUMMARY]
