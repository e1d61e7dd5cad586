"""Ids, handles and clocks."""

from __future__ import annotations

from datetime import UTC, timedelta

import pytest

from agemem_mcp.adapters.system import RandomIds, SequentialIds, SteppingClock, SystemClock
from agemem_mcp.domain.memory import Scope

SIGNS = set("0123456789abcdefghjkmnpqrstvwxyz")


def signs(memory_id: str) -> str:
    """What follows ``mem_``."""
    prefix, _, rest = memory_id.partition("_")
    assert prefix == "mem"
    assert set(rest) <= SIGNS
    return rest


@pytest.mark.parametrize(("created", "length"), [(0, 4), (255, 4), (256, 5), (8_191, 5), (8_192, 6), (1_000_000, 7)])
def test_an_id_guessed_at_random_hits_a_memory_less_than_once_in_4096(created: int, length: int) -> None:
    rest = signs(RandomIds(seed=1).memory_id(Scope(), created, 0))
    assert len(rest) == length
    assert created / 32 ** len(rest) <= 1 / 4096


def test_each_attempt_that_proved_taken_makes_an_id_longer() -> None:
    ids = RandomIds(seed=1)
    assert [len(signs(ids.memory_id(Scope(), 0, attempt))) for attempt in range(3)] == [4, 5, 6]


def test_with_a_seed_a_scopes_ids_do_not_depend_on_what_other_scopes_store_meanwhile() -> None:
    mine, other = Scope(namespace="mine"), Scope(namespace="other")
    alone, among = RandomIds(seed=5), RandomIds(seed=5)
    expected = [alone.memory_id(mine, n, 0) for n in range(5)]
    drawn = [(among.memory_id(other, n, 0), among.memory_id(mine, n, 0)) for n in range(5)]
    assert [pair[1] for pair in drawn] == expected
    assert [pair[0] for pair in drawn] != expected


@pytest.mark.parametrize("source", [RandomIds, SequentialIds])
def test_a_seed_makes_ids_and_handles_reproducible(source: type[RandomIds]) -> None:
    first, second, other = source(seed=5), source(seed=5), source(seed=6)
    assert [first.memory_id(Scope(), n, 0) for n in range(20)] == [second.memory_id(Scope(), n, 0) for n in range(20)]
    handle = first.session_id()
    assert handle == second.session_id()
    assert handle != other.session_id()


def test_without_a_seed_no_two_handles_are_the_same() -> None:
    assert len({RandomIds().session_id() for _ in range(200)}) == 200


def test_a_handle_holds_130_random_bits() -> None:
    prefix, _, rest = RandomIds(seed=1).session_id().partition("_")
    assert prefix == "ctx"
    assert len(rest) * 5 == 130
    # Every sign of the alphabet occurs, so that each one does stand for five bits.
    ids = RandomIds(seed=1)
    assert {sign for _ in range(200) for sign in ids.session_id()[4:]} == SIGNS


def test_sequential_ids_count_from_one_and_skip_taken_ones() -> None:
    ids = SequentialIds()
    assert [ids.memory_id(Scope(), created, 0) for created in range(3)] == ["mem_1", "mem_2", "mem_3"]
    assert ids.memory_id(Scope(), 3, 2) == "mem_6"


def test_the_systems_time_is_utc_to_the_millisecond() -> None:
    now = SystemClock().now()
    assert now.tzinfo is UTC
    assert now.microsecond % 1000 == 0


def test_a_stepping_clock_moves_on_at_each_look_and_when_told() -> None:
    clock = SteppingClock(step=timedelta(seconds=1))
    first = clock.now()
    assert clock.now() - first == timedelta(seconds=1)
    clock.advance(timedelta(days=2))
    assert clock.now() - first == timedelta(days=2, seconds=2)
