"""What a chat shows: operations, the meter, and foreign text without what a terminal obeys."""

from __future__ import annotations

import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from agemem_mcp.errors import ProviderError
from agemem_policies.chat.lines import harmless_text, meter, one_line, operation_line, stopped
from agemem_policies.chat.prose import Prose
from agemem_policies.chat.view import View
from agemem_policies.events import ContextChanged, Corrected, Observed, Said, Thought
from agemem_policies.memory import Observation
from agemem_policies.protocol import Call
from agemem_policies.steps import StopReason, Trajectory

INFO = {"tokens": 300, "budget_tokens": 8192}


def console(*, terminal: bool = False, width: int = 80, encoding: str = "utf-8") -> Console:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="replace", newline="")
    return Console(file=file, force_terminal=terminal, width=width, highlight=False, markup=False, emoji=False)


def written(to: Console) -> str:
    assert isinstance(to.file, io.TextIOWrapper)
    to.file.flush()
    return to.file.buffer.getvalue().decode(to.file.encoding)  # type: ignore[attr-defined]


def observed(name: str, arguments: dict[str, Any], result: dict[str, Any] | str) -> Observed:
    """A call with its result, or the text of its error."""
    if isinstance(result, str):
        return Observed(Call(name, arguments), Observation(result, is_error=True))
    return Observed(Call(name, arguments), Observation("", result))


def shown(event: Observed, width: int | None = 76) -> str:
    return operation_line(event.call, event.observation, width=width).plain


@pytest.mark.parametrize(
    ("name", "arguments", "result", "line"),
    [
        (
            "Add_memory",
            {"content": "Maya is a nurse."},
            {"memory_id": "mem_1", "duplicate": False},
            '+ Add_memory "Maya is a nurse." → mem_1',
        ),
        (
            "Add_memory",
            {"content": "Maya is a nurse."},
            {"memory_id": "mem_1", "duplicate": True},
            '+ Add_memory "Maya is a nurse." → mem_1, which was there already',
        ),
        (
            "Update_memory",
            {"memory_id": "mem_1", "content": "Maya was a nurse."},
            {"memory_id": "mem_1", "version": 2},
            '~ Update_memory mem_1 "Maya was a nurse." → version 2',
        ),
        ("Delete_memory", {"memory_id": "mem_1"}, {"memory_id": "mem_1"}, "- Delete_memory mem_1"),
        (
            "Retrieve_memory",
            {"query": "nurse"},
            {"memories": [{"memory_id": "mem_1"}, {"memory_id": "mem_2"}]},
            '? Retrieve_memory "nurse" → mem_1, mem_2',
        ),
        (
            "Retrieve_memory",
            {"query": "nurse"},
            {"memories": [{"memory_id": "mem_1"}] * 4},
            '? Retrieve_memory "nurse" → 4 found',
        ),
        ("Retrieve_memory", {"query": "nurse"}, {"memories": []}, '? Retrieve_memory "nurse" → nothing found'),
        (
            "Summary_context",
            {"span": "all"},
            {"replaced": ["msg_1", "msg_2"], "context": INFO},
            "* Summary_context all → 2 messages became one",
        ),
        (
            "Filter_context",
            {"criteria": "coffee"},
            {"removed": [{}], "context": INFO},
            '/ Filter_context "coffee" → 1 message left the context',
        ),
        ("Forget", {"what": "x"}, "There is no tool 'Forget'.", "! Forget → There is no tool 'Forget'."),
        ("Delete_memory", {"memory_id": 7}, "Say which.", "! Delete_memory 7 → Say which."),
    ],
)
def test_each_operation_is_one_line(name: str, arguments: dict[str, Any], result: Any, line: str) -> None:
    assert shown(observed(name, arguments, result)) == line


def test_a_long_text_leaves_room_for_what_came_of_it() -> None:
    event = observed("Add_memory", {"content": "very " * 100}, {"memory_id": "mem_1", "duplicate": False})
    line = shown(event, 60)
    assert line.startswith('+ Add_memory "very very')
    assert line.endswith('…" → mem_1')
    assert cell_len(line) <= 60
    assert len(shown(event, None)) > 200


@given(st.text(), st.text(), st.integers(min_value=30, max_value=120))
def test_whatever_is_written_an_operation_stays_one_line_within_its_width(name: str, content: str, width: int) -> None:
    for event in (
        observed("Add_memory", {"content": content}, {"memory_id": "mem_1", "duplicate": False}),
        observed(name, {"memory_id": content}, content),
    ):
        line = shown(event, width)
        assert cell_len(line) <= width
        assert line.splitlines() == [line]
        assert harmless_text(line) == line


@given(st.text())
def test_what_a_terminal_obeys_is_taken_out(text: str) -> None:
    left = harmless_text(text)
    assert not [one for one in left if one not in "\n\t" and (ord(one) < 32 or 127 <= ord(one) < 160)]
    assert harmless_text(left) == left


def test_escape_sequences_lose_their_power_and_text_stays() -> None:
    assert harmless_text("a\x1b[31mred\x1b]0;title\x07\x9b2Jb") == "a[31mred]0;title2Jb"
    assert harmless_text("one\r\ntwo\rthree\tfour\x7f") == "one\ntwothree\tfour"
    assert harmless_text("\u202egpj.exe\ud800") == "gpj.exe"
    assert harmless_text("día 日本 👩‍⚕️") == "día 日本 👩‍⚕️"
    assert one_line("a\nb\x1b[2J", 80) == "a b[2J"


@pytest.mark.parametrize(
    ("tokens", "text", "style"),
    [
        (0, "─" * 24 + " 0 of 8,192 tokens (0%)", "dim"),
        (4096, "━" * 12 + "─" * 12 + " 4,096 of 8,192 tokens (50%)", "dim"),
        (6554, "━" * 19 + "─" * 5 + " 6,554 of 8,192 tokens (80%)", "yellow"),
        (9000, "━" * 24 + " 9,000 of 8,192 tokens (110%)", "bold red"),
    ],
)
def test_the_meter_shows_how_full_a_context_is_and_warns_from_80_percent(tokens: int, text: str, style: str) -> None:
    bar = meter(tokens, 8192)
    assert (bar.plain, bar.style) == (text, style)


def test_a_run_that_ends_without_an_answer_is_explained() -> None:
    explained = [reason for reason in StopReason if stopped(reason) is not None]
    failed = {StopReason.PROVIDER_ERROR, StopReason.MEMORY_ERROR}
    assert set(explained) == set(StopReason) - failed - {StopReason.ANSWER}
    assert stopped(None) is None


def test_an_answer_is_wrapped_between_words_in_a_terminal() -> None:
    there = console(terminal=True, width=20)
    prose = Prose(there)
    for piece in ("  The qui", "ck brown ", "fox jumps", " over\n\nthe", " lazy   dog. "):
        prose.feed(piece)
    prose.end()
    assert written(there) == "The quick brown fox\njumps over\n\nthe lazy   dog.\n"


def test_an_answer_in_a_file_keeps_its_lines() -> None:
    there = console(width=20)
    prose = Prose(there)
    prose.feed("The quick brown fox jumps over\n\tthe lazy dog.\n\n")
    prose.end()
    assert written(there) == "The quick brown fox jumps over\n    the lazy dog.\n"


def test_nothing_said_is_no_line() -> None:
    there = console()
    prose = Prose(there)
    prose.feed(" \n ")
    prose.end()
    assert written(there) == ""


@given(st.lists(st.text()), st.integers(min_value=1, max_value=200))
def test_an_answer_is_the_same_however_it_comes(pieces: list[str], size: int) -> None:
    text = "".join(pieces)
    whole, parts = console(terminal=True, width=30), console(terminal=True, width=30)
    for there, told in ((whole, [text]), (parts, [text[i : i + size] for i in range(0, len(text), size)])):
        prose = Prose(there)
        for one in told:
            prose.feed(one.replace("\r", ""))
        prose.end()
    assert written(whole) == written(parts)


def answered(text: str, tokens: int = 500) -> Trajectory:
    return Trajectory("ctx_1", stop_reason=StopReason.ANSWER, answer=text, context_tokens=tokens)


def test_a_turn_is_shown_as_it_happens() -> None:
    there = console()
    view = View(there)
    view.heard(Thought("Which one?"))
    view.heard(observed("Delete_memory", {"memory_id": "mem_1"}, {"memory_id": "mem_1"}))
    view.heard(Corrected("it is empty"))
    view.heard(ContextChanged(3, 400, 1000))
    view.heard(Said("It is "))
    view.heard(Said("gone."))
    view.ended(answered("It is gone."))
    assert written(there).splitlines() == [
        "  - Delete_memory mem_1",
        "  (asked to write its turn again: it is empty)",
        "It is gone.",
        "  " + "━" * 12 + "─" * 12 + " 500 of 1,000 tokens (50%)",
    ]


def test_thoughts_are_shown_when_they_are_asked_for() -> None:
    there = console()
    view = View(there, show_thoughts=True)
    view.heard(Thought("Easy."))
    view.heard(Said("Yes."))
    view.ended(answered("Yes."))
    assert written(there).splitlines() == ["Easy.", "Yes."]


def test_an_answer_that_did_not_come_in_pieces_is_shown_at_the_end() -> None:
    there = console()
    view = View(there)
    view.heard(Said("Let me look."))
    view.heard(observed("Retrieve_memory", {"query": "x"}, {"memories": []}))
    view.ended(answered("Nothing."))
    view.ended(answered("Nothing again."))
    assert written(there).splitlines() == [
        "Let me look.",
        '  ? Retrieve_memory "x" → nothing found',
        "Nothing.",
        "Nothing again.",
    ]


def test_markup_and_escapes_in_foreign_text_are_text() -> None:
    there = console(terminal=True)
    view = View(there)
    view.heard(Said("[bold]no[/bold] :smile: \x1b[2J"))
    view.heard(observed("Add_memory", {"content": "[red]\x1b[2J"}, {"memory_id": "mem_1", "duplicate": False}))
    view.failed(ProviderError("[blink]\x1b[2J"))
    view.table(("id", "content"), [("mem_1", "[link=x]\x1b[2J")])
    out = written(there)
    assert "[bold]no[/bold] :smile:" in out
    assert all(part in out for part in ("[red]", "[blink]", "[link=x]"))
    assert "\x1b[2J" not in out


def test_a_terminal_of_another_encoding_gets_plain_signs() -> None:
    there = console(encoding="latin-1")
    view = View(there)
    view.heard(observed("Add_memory", {"content": "日本"}, {"memory_id": "mem_1", "duplicate": False}))
    view.meter(500, 1000)
    assert written(there).splitlines() == [
        '  + Add_memory "??" -> mem_1',
        "  ############------------ 500 of 1,000 tokens (50%)",
    ]


def test_columns_of_a_table_are_aligned_and_the_last_is_cut() -> None:
    there = console(terminal=True, width=30)
    View(there).table(("id", "content"), [("mem_1", "日本"), ("m", "word " * 20)])
    lines = written(there).splitlines()
    assert [cell_len(line) <= 30 or "\x1b" in line for line in lines] == [True] * 3
    assert lines[1] == "mem_1  日本"
    assert lines[2].startswith("m      word word")
    assert lines[2].endswith("…")
