"""Turns as they are written, and what models make of that."""

from __future__ import annotations

import json

import pytest

from agemem_mcp.errors import InvalidOperation
from agemem_policies.protocol import Call, ProtocolViolation, Turn, parse, render

ADD = Call("Add_memory", {"content": "Maya is a nurse."})
LOOK = Call("Retrieve_memory", {"query": "Maya"})


def violation(text: str, *, strict: bool = False, cut_off: bool = False) -> str:
    """Why a text is no turn."""
    with pytest.raises(ProtocolViolation) as raised:
        parse(text, strict=strict, cut_off=cut_off)
    assert str(raised.value).startswith("Your turn could not be read: ")
    assert "<tool_call>[" in str(raised.value)
    return raised.value.reason


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "tolerant"])
@pytest.mark.parametrize(
    "turn",
    [
        Turn("Look first.", (LOOK,)),
        Turn("", (ADD, LOOK)),
        Turn("Done.", answer="Maya is a nurse."),
        Turn("Closing tags are text in JSON.", (Call("Add_memory", {"content": "</tool_call></think><answer>"}),)),
        Turn("Braces and quotes", (Call("Add_memory", {"content": '}]"', "metadata": {"a": [1, None, True]}}),)),
        Turn("An answer\nof lines", answer=" with space around \n"),
    ],
)
def test_what_is_written_is_read_as_the_same(turn: Turn, *, strict: bool) -> None:
    assert parse(render(turn), strict=strict) == turn


def test_a_turn_is_written_as_the_paper_has_it() -> None:
    assert render(Turn("Look.", (LOOK,))) == (
        '<think>Look.</think><tool_call>[{"name": "Retrieve_memory", "arguments": {"query": "Maya"}}]</tool_call>'
    )
    assert render(Turn("Known.", answer="Yes.")) == "<think>Known.</think><answer>Yes.</answer>"


@pytest.mark.parametrize(
    "turn", [Turn("neither"), Turn("both", (ADD,), "x"), Turn("</think>", (ADD,)), Turn("", answer="<ANSWER>")]
)
def test_what_could_not_be_read_back_is_not_written(turn: Turn) -> None:
    with pytest.raises(InvalidOperation):
        render(turn)


BODY = json.dumps({"name": "Retrieve_memory", "arguments": {"query": "Maya"}})


@pytest.mark.parametrize(
    "text",
    [
        f"<tool_call>{BODY}</tool_call>",
        f"<think>t</think><tool_call>[{BODY}]",
        f"<think>t<tool_call>{BODY}</tool_call>",
        f"t</think>\n\n<tool_call>\n{BODY}\n</tool_call>\n",
        f"Sure!\n<think>t</think>\nI will call:\n<tool_call>[{BODY}]</tool_call> Waiting.",
        f"<THINK>t</THINK><Tool_Call>{BODY}</TOOL_CALL>",
        f"<tool_call>```json\n[{BODY}]\n```</tool_call>",
        '<tool_call>{"name": "retrieve_memory", "arguments": "{\\"query\\": \\"Maya\\"}"}</tool_call>',
        '<tool_call>{"name": " RETRIEVE-MEMORY ", "parameters": {"query": "Maya"}}</tool_call>',
        '<tool_call>{"tool": "RetrieveMemory", "args": {"query": "Maya"}}</tool_call>',
        '<tool_call>{"function": {"name": "search_memory", "arguments": {"q": "Maya"}}}</tool_call>',
    ],
)
def test_calls_are_read_as_models_write_them_where_the_meaning_is_clear(text: str) -> None:
    assert parse(text).calls == (LOOK,)
    violation(text, strict=True)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (Call("Clear_context", {"criteria": "tea"}), Call("Filter_context", {"criteria": "tea"})),
        (Call("Summarize_context", {"span": "all"}), Call("Summary_context", {"span": "all"})),
        (
            Call("delete_memory", {"id": "mem_1", "confirmed": True}),
            Call("Delete_memory", {"memory_id": "mem_1", "confirmation": True}),
        ),
        (Call("Store_memory", {"text": "x"}), Call("Add_memory", {"content": "x"})),
        (Call("Update_memory", {"id": "1", "memory_id": "2"}), Call("Update_memory", {"id": "1", "memory_id": "2"})),
        (Call("get_weather", {"id": "1"}), Call("get_weather", {"id": "1"})),
    ],
)
def test_names_that_other_releases_use_are_understood(written: Call, meant: Call) -> None:
    listed = json.dumps([{"name": written.name, "arguments": written.arguments}])
    assert parse(f"<think></think><tool_call>{listed}</tool_call>").calls == (meant,)


def test_several_blocks_and_objects_one_after_the_other_are_all_calls() -> None:
    add = json.dumps({"name": "Add_memory", "arguments": {"content": "Maya is a nurse."}})
    for text in (
        f"<tool_call>{add}</tool_call><tool_call>{BODY}</tool_call>",
        f"<tool_call>{add}\n{BODY}</tool_call>",
        f"<tool_call>{add}, {BODY},</tool_call>",
    ):
        assert parse(text).calls == (ADD, LOOK)


def test_an_answer_may_lack_its_thought_and_its_end() -> None:
    assert parse("<answer>Yes.</answer>") == Turn(answer="Yes.")
    assert parse("<think>a</think>\n<answer>Yes.") == Turn("a", answer="Yes.")
    assert parse("<think>a</think><answer>3 < 4 <b>") == Turn("a", answer="3 < 4 <b>")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("  \n", "empty"),
        ("Maya is a nurse.", "neither"),
        ("<think>a</think>", "neither"),
        ("<think>never closed", "neither"),
        ("<answer>a</answer><tool_call>[]</tool_call>", "both"),
        ("<answer>a</answer><answer>b</answer>", "several answers"),
        ("<tool_call>[]</tool_call>", "list of calls is empty"),
        ("<tool_call></tool_call>", "list of calls is empty"),
        ("<tool_call>[{]</tool_call>", "not valid"),
        ("<tool_call>[1]</tool_call>", "not a JSON object"),
        ('<tool_call>[{"arguments": {}}]</tool_call>', "no name"),
        ('<tool_call>[{"name": 5, "arguments": {}}]</tool_call>', "no name"),
        ('<tool_call>[{"name": "x", "arguments": [1]}]</tool_call>', "arguments of a call"),
        ('<tool_call>[{"name": "x", "arguments": "[1]"}]</tool_call>', "arguments of a call"),
        (f"<tool_call>{'[' * 100_000}</tool_call>", "longer than"),
        (f"<tool_call>{'[' * 50_000}</tool_call>", "nested too deeply"),
        (f'<tool_call>[{{"name": "x", "arguments": {{"n": {"9" * 5000}}}}}]</tool_call>', "too long a number"),
    ],
)
def test_what_is_no_turn_is_told_with_the_reason_and_the_form(text: str, reason: str) -> None:
    assert reason in violation(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<answer>a</answer>", "does not begin with <think>"),
        ("x <think>a</think><answer>a</answer>", "outside"),
        ("<think>a</think><answer>a</answer> x", "outside"),
        ("<think>a</think><answer>a", "not closed"),
        ("<think>a</think><think>b</think><answer>a</answer>", "not one thought and one action"),
        ("<think>a</think><answer>a<think>b</answer>", "a tag stands within another"),
        ('<think>a</think><tool_call>{"name": "x", "arguments": {}}</tool_call>', "not a JSON array"),
        ('<think>a</think><tool_call>[{"name": "x", "arguments": {}, "id": 1}]</tool_call>', "other keys"),
    ],
)
def test_strictly_only_the_form_itself_is_a_turn(text: str, reason: str) -> None:
    assert reason in violation(text, strict=True)


@pytest.mark.parametrize("action", ["<answer>I would", '<tool_call>[{"name": "Add_memory"'])
def test_a_turn_that_was_cut_off_is_not_taken_for_whole(action: str) -> None:
    assert "cut off" in violation(f"<think>a</think>{action}", cut_off=True)


def test_letters_that_only_look_like_another_case_do_not_make_a_tag() -> None:
    assert "neither" in violation("<thin\u212a>a</thin\u212a>")
    assert parse("\u0130\u0130</think><answer>Yes.</answer>") == Turn("\u0130\u0130", answer="Yes.")
