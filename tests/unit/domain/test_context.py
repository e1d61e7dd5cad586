"""Rounds and spans of a context."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agemem_mcp.domain.context import ContextWindow, Message, MessageKind, Role, rounds_of
from agemem_mcp.errors import InvalidOperation

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ROLES = {"s": Role.SYSTEM, "u": Role.USER, "a": Role.ASSISTANT, "t": Role.TOOL}


def window(roles: str) -> ContextWindow:
    """A context with one message per letter (s, u, a, t)."""
    messages = [
        Message(str(number), ROLES[role], "text", NOW, number, tokens=number) for number, role in enumerate(roles)
    ]
    return ContextWindow(tuple(messages))


def rounds(roles: str) -> list[str]:
    """The rounds, as their messages' numbers."""
    return ["".join(one.message_id for one in messages) for messages in rounds_of(window(roles).messages)]


@pytest.mark.parametrize(
    ("roles", "expected"),
    [
        ("", []),
        ("s", []),
        ("uatauau", ["0123", "45", "6"]),
        ("uu", ["0", "1"]),
        ("atua", ["01", "23"]),
        ("suasua", ["12", "45"]),
        ("tt", ["01"]),
    ],
)
def test_a_round_is_a_user_message_and_what_followed(roles: str, expected: list[str]) -> None:
    assert rounds(roles) == expected


@given(st.text(st.sampled_from("suat"), max_size=9))
def test_rounds_hold_every_message_but_the_systems_once_in_order(roles: str) -> None:
    expected = "".join(str(number) for number, role in enumerate(roles) if role != "s")
    assert "".join(rounds(roles)) == expected


@pytest.mark.parametrize(
    ("span", "expected"), [("all", "12345"), ("1", "5"), ("2", "345"), ("3", "12345"), ("9", "12345")]
)
def test_a_span_is_the_last_rounds(span: str, expected: str) -> None:
    assert "".join(one.message_id for one in window("suauau").span(span)) == expected


@pytest.mark.parametrize("roles", ["", "ss"])
def test_a_context_without_rounds_has_no_span(roles: str) -> None:
    with pytest.raises(InvalidOperation, match="nothing to summarise"):
        window(roles).span("all")


def test_the_tokens_of_a_context_are_those_of_all_its_messages() -> None:
    assert window("suau").tokens == 0 + 1 + 2 + 3


def test_a_summary_opens_a_round_because_it_stands_for_user_messages() -> None:
    talk = [(Role.USER, MessageKind.MESSAGE), (Role.TOOL, MessageKind.SUMMARY), (Role.ASSISTANT, MessageKind.MESSAGE)]
    messages = tuple(
        Message(f"msg_{number}", role, "x", NOW, number, kind=kind) for number, (role, kind) in enumerate(talk, 1)
    )
    summed = ContextWindow(messages)
    assert [[one.message_id for one in round_] for round_ in rounds_of(summed.messages)] == [
        ["msg_1"],
        ["msg_2", "msg_3"],
    ]
