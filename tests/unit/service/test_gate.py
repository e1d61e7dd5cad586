"""A service opened once, in the background, for many who wait."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import pytest

from agemem_mcp.errors import ConfigurationError, StoreError
from agemem_mcp.service.gate import Progress, ServiceGate

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from agemem_mcp.service.memory_service import MemoryService

SERVICE = cast("MemoryService", object())


class Opener:
    """Opens a stand-in for the service, when it is let, and remembers what happened."""

    def __init__(self, *failures: Exception) -> None:
        """Fail as given, then succeed."""
        self.failures = list(failures)
        self.opened = 0
        self.closed = 0
        self.let = asyncio.Event()
        self.note: Callable[[Progress], None] = lambda _: None

    @asynccontextmanager
    async def open(self, note: Callable[[Progress], None]) -> AsyncGenerator[MemoryService]:
        """The service."""
        self.note = note
        self.opened += 1
        await self.let.wait()
        if self.failures:
            raise self.failures.pop(0)
        try:
            yield SERVICE
        finally:
            self.closed += 1


def opener(*failures: Exception, waiting: bool = False) -> tuple[Opener, ServiceGate]:
    """An opener and a gate to it."""
    one = Opener(*failures)
    if not waiting:
        one.let.set()
    return one, ServiceGate(one.open)


async def test_nothing_is_opened_before_it_is_asked_for() -> None:
    one, gate = opener()
    await gate.close()
    assert (one.opened, gate.ready, gate.failed) == (0, False, False)


async def test_the_service_is_opened_once_for_all_who_ask() -> None:
    one, gate = opener()
    assert await asyncio.gather(*(gate.service() for _ in range(5))) == [SERVICE] * 5
    gate.start()
    assert await gate.service() is SERVICE
    assert (one.opened, gate.ready, gate.state) == (1, True, "ready")
    await gate.close()
    assert one.closed == 1


async def test_who_waits_is_told_how_far_things_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agemem_mcp.service.gate._PROGRESS_INTERVAL_S", 0.001)
    one, gate = opener(waiting=True)
    told: list[Progress] = []

    async def report(progress: Progress) -> None:
        told.append(progress)
        one.note(Progress("model: downloading", len(told), 4))
        if len(told) == 4:
            one.let.set()

    assert await gate.service(report) is SERVICE
    assert told[0].text == "opening the memory"
    assert told[3] == Progress("model: downloading", 3, 4)
    assert gate.state == "ready"
    await gate.close()


async def test_while_it_opens_the_state_says_what_it_is_doing() -> None:
    one, gate = opener(waiting=True)
    waiting = asyncio.create_task(gate.service())
    while not one.opened:
        await asyncio.to_thread(str)
    assert (gate.ready, gate.state) == (False, "opening the memory")
    one.note(Progress("model: verifying"))
    assert gate.state == "model: verifying"
    one.let.set()
    await waiting
    await gate.close()


@pytest.mark.parametrize("error", [StoreError("the folder is held"), ZeroDivisionError("bug")])
async def test_a_failure_reaches_all_who_wait_and_the_next_call_tries_again(error: Exception) -> None:
    one, gate = opener(error)
    outcomes = await asyncio.gather(gate.service(), gate.service(), return_exceptions=True)
    assert outcomes == [error, error]
    assert (gate.ready, gate.failed, gate.state) == (False, True, "failed")
    assert await gate.service() is SERVICE
    assert (one.opened, gate.ready, gate.failed) == (2, True, False)
    await gate.close()


async def test_a_failure_nobody_waits_for_makes_no_noise() -> None:
    one, gate = opener(StoreError("held"))
    gate.start()
    while not gate.failed:
        await asyncio.to_thread(str)
    await gate.close()
    assert one.closed == 0


async def test_preparation_runs_in_a_thread_of_its_own_before_opening() -> None:
    one = Opener()
    one.let.set()
    seen: list[Any] = []
    gate = ServiceGate(one.open, prepare=lambda: seen.append((threading.current_thread(), one.opened)))
    await gate.service()
    ((thread, opened),) = seen
    assert thread is not threading.main_thread()
    assert opened == 0
    await gate.close()


async def test_a_preparation_that_fails_is_a_failure_to_open() -> None:
    _, gate = opener()
    gate._prepare = lambda: cast("None", 1 / 0)
    with pytest.raises(ZeroDivisionError):
        await gate.service()
    await gate.close()


async def test_closing_while_it_opens_waits_and_closes_what_was_opened() -> None:
    one, gate = opener(waiting=True)
    gate.start()
    while not one.opened:
        await asyncio.to_thread(str)
    closing = asyncio.create_task(gate.close())
    one.let.set()
    await closing
    assert (one.opened, one.closed) == (1, 1)


@pytest.mark.parametrize("was_open", [False, True])
async def test_after_closing_nobody_is_given_a_service(was_open: bool) -> None:
    one, gate = opener()
    if was_open:
        await gate.service()
    await gate.close()
    with pytest.raises(ConfigurationError, match="shutting down"):
        await gate.service()
    assert one.opened == was_open
    assert not gate.ready
