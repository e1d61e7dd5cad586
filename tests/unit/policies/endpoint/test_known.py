"""Sessions that can be gone on with, and whose turn it is."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agemem_mcp.domain.memory import Scope
from agemem_policies.endpoint.failures import Failure
from agemem_policies.endpoint.known import Known, KnownSessions, OneAtATime

HERE = Scope()
steps = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.sampled_from([b"1", b"2", b"3", None]), st.booleans()), max_size=30
)


@given(steps)
def test_it_knows_what_a_list_of_the_sessions_used_last_knows(taken: list[tuple[str, bytes | None, bool]]) -> None:
    sessions, expected = KnownSessions(most=3), list[Known]()
    for session_id, state, kept in taken:
        expected = [one for one in expected if one.session_id != session_id]
        if kept:
            expected = [*expected, Known(session_id, HERE, state)][-3:]
            sessions.note(expected[-1])
        else:
            sessions.forget(session_id)
        for looked_for in (b"1", b"2", b"3"):
            fitting = [one for one in expected if one.state == looked_for]
            assert sessions.in_state(looked_for) == (fitting[-1] if fitting else None)
        assert [one for one in (sessions.of(HERE, name) for name in "abcdef") if one] == sorted(
            expected, key=lambda one: one.session_id
        )


def test_a_session_is_known_in_its_own_scope_alone() -> None:
    sessions = KnownSessions()
    sessions.note(Known("a", HERE, b"1"))
    assert sessions.of(Scope(namespace="other"), "a") is None


async def test_requests_on_one_session_take_turns_in_their_order() -> None:
    turns, order = OneAtATime(), list[str]()

    async def work(name: str) -> None:
        await turns.begin("s")
        order.append(f"{name} begins")
        await asyncio.sleep(0)
        order.append(f"{name} ends")
        turns.end("s")

    await asyncio.gather(*(work(name) for name in "abc"))
    assert order == [f"{name} {what}" for name in "abc" for what in ("begins", "ends")]
    assert not turns._busy


async def test_another_session_does_not_wait() -> None:
    turns = OneAtATime()
    await turns.begin("s")
    await turns.begin("other")
    turns.end("other")
    assert list(turns._busy) == ["s"]


async def test_who_goes_away_leaves_its_turn_to_the_next() -> None:
    turns = OneAtATime()
    await turns.begin("s")
    gone, next_one = asyncio.ensure_future(turns.begin("s")), asyncio.ensure_future(turns.begin("s"))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    turns.end("s")
    await next_one
    turns.end("s")
    assert not turns._busy


async def test_a_turn_that_comes_in_the_moment_of_going_away_is_passed_on() -> None:
    turns = OneAtATime()
    await turns.begin("s")
    gone, next_one = asyncio.ensure_future(turns.begin("s")), asyncio.ensure_future(turns.begin("s"))
    await asyncio.sleep(0)
    turns.end("s")
    gone.cancel()
    assert isinstance((await asyncio.gather(gone, return_exceptions=True))[0], asyncio.CancelledError)
    await next_one
    turns.end("s")
    assert not turns._busy


async def test_too_many_that_wait_are_refused() -> None:
    turns = OneAtATime(most_waiting=1)
    await turns.begin("s")
    waiting = asyncio.ensure_future(turns.begin("s"))
    await asyncio.sleep(0)
    with pytest.raises(Failure, match="wait for session s already") as refused:
        await turns.begin("s")
    assert refused.value.status == 429
    turns.end("s")
    await waiting
