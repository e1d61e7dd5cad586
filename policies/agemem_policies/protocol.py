"""How a turn is written (AgeMem, section 3.1 and appendix A.1), and read back.

    <think>…</think><tool_call>[{"name": …, "arguments": {…}}, …]</tool_call>
    <think>…</think><answer>…</answer>

A turn is a thought and then either calls or an answer, and no text stands outside the tags. :func:`render`
writes exactly that. :func:`parse` reads exactly that when it is strict; else it takes what models make of it as
long as the meaning is clear. What it cannot take raises :class:`ProtocolViolation`, whose text tells the model.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

from agemem_mcp.domain.operations import SIX, tool_name
from agemem_mcp.errors import InvalidOperation

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_TURN_BYTES = 64_000
"""A longer turn is not read: it could not be kept in a context."""

FORMAT = (
    'Write <think>…</think>, then either <tool_call>[{"name": …, "arguments": {…}}]</tool_call> '
    "or <answer>…</answer>, and nothing else."
)

# ASCII: else some letters of other scripts count as another case of these.
_OPEN = re.compile(r"<(think|tool_call|answer)>", re.IGNORECASE | re.ASCII)
_CLOSE = {tag: re.compile(f"</{tag}>", re.IGNORECASE | re.ASCII) for tag in ("think", "tool_call", "answer")}
_TAG = re.compile(r"</?(?:think|tool_call|answer)>", re.IGNORECASE | re.ASCII)
_FENCE = re.compile(r"^\s*```[a-z]*\s*\n?(.*?)\n?\s*```\s*$", re.IGNORECASE | re.DOTALL)
_FIELDS = {tool_name(one): [name for name in one.model_fields if name != "name"] for one in SIX}
_CALLED = {
    "addmemory": "Add_memory",
    "storememory": "Add_memory",
    "savememory": "Add_memory",
    "updatememory": "Update_memory",
    "editmemory": "Update_memory",
    "deletememory": "Delete_memory",
    "removememory": "Delete_memory",
    "retrievememory": "Retrieve_memory",
    "searchmemory": "Retrieve_memory",
    "querymemory": "Retrieve_memory",
    "summarycontext": "Summary_context",
    "summarizecontext": "Summary_context",
    "summarisecontext": "Summary_context",
    "filtercontext": "Filter_context",
    "clearcontext": "Filter_context",
}
"""Names without case and punctuation, those of other releases included."""
_ARGUMENT_CALLED = {
    "memory_id": ("id", "memoryid"),
    "confirmation": ("confirmed", "confirm"),
    "content": ("text", "memory"),
    "query": ("q", "search_query"),
    "top_k": ("k", "limit", "topk"),
    "metadata_filter": ("filter", "filters"),
    "memory_type": ("type",),
    "criteria": ("criterion", "filter_criteria"),
}
_CALL_KEYS = {"name": ("tool", "tool_name", "function"), "arguments": ("parameters", "args", "input")}


class ProtocolViolation(InvalidOperation):
    """A turn that is neither calls nor an answer; the text says why, and how to write one."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"Your turn could not be read: {reason}. {FORMAT}")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Call:
    """One tool call of a turn."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class Turn:
    """What a policy decided: calls, or an answer."""

    think: str = ""
    calls: tuple[Call, ...] = ()
    answer: str | None = None


def render(turn: Turn) -> str:
    """Write a turn; :func:`parse` gives the same turn back.

    Raises:
        InvalidOperation: it has both calls and an answer or neither, or a tag of the protocol stands in its text.
    """
    if bool(turn.calls) == (turn.answer is not None):
        msg = "A turn has either calls or an answer."
        raise InvalidOperation(msg)
    if _TAG.search(turn.think) or _TAG.search(turn.answer or ""):
        msg = "A thought or an answer cannot contain a tag of the protocol."
        raise InvalidOperation(msg)
    thought = f"<think>{turn.think}</think>"
    if turn.answer is not None:
        return f"{thought}<answer>{turn.answer}</answer>"
    return f"{thought}<tool_call>{render_calls(turn.calls)}</tool_call>"


def render_calls(calls: tuple[Call, ...]) -> str:
    r"""The calls as JSON in which no tag can end: ``</`` is written ``<\/``, which JSON reads the same."""
    listed = [{"name": call.name, "arguments": call.arguments} for call in calls]
    return json.dumps(listed, ensure_ascii=False).replace("</", "<\\/")


def parse(text: str, *, strict: bool = False, cut_off: bool = False) -> Turn:
    """Read a turn.

    Args:
        text: what a model wrote.
        strict: take only what :func:`render` writes. Else also: no thought, or one that only ends; text around the
            tags; a last tag that is not closed; one call instead of a list, several blocks of calls, arguments as
            a string of JSON, code fences; tools by other names (``Clear_context``) and arguments too (``id``).
        cut_off: the model was stopped within its turn: a tag that is not closed was not meant to end there.

    Raises:
        ProtocolViolation: it is no turn.
    """
    if len(text) > MAX_TURN_BYTES or len(text.encode("utf-8", "replace")) > MAX_TURN_BYTES:
        reason = f"it is longer than {MAX_TURN_BYTES:,} bytes"
        raise ProtocolViolation(reason)
    if not text.strip():
        reason = "it is empty"
        raise ProtocolViolation(reason)
    blocks, outside = _blocks(text)
    if strict:
        _check_form(blocks, outside)
    elif not any(block.tag == "think" for block in blocks) and (ended := _CLOSE["think"].search(text)) is not None:
        # Some chat templates begin the thought themselves, so that a model only ends it.
        blocks, _ = _blocks(text[ended.end() :])
        blocks.insert(0, _Block("think", text[: ended.start()], closed=True))
    think = "\n".join(block.content for block in blocks if block.tag == "think")
    actions = [block for block in blocks if block.tag != "think"]
    _check_actions(actions, cut_off=cut_off)
    if actions[0].tag == "answer":
        return Turn(think, answer=actions[0].content)
    calls = tuple(call for block in actions for call in _calls(block.content, strict=strict))
    if not calls:
        reason = "its list of calls is empty"
        raise ProtocolViolation(reason)
    return Turn(think, calls)


@dataclass(frozen=True, slots=True)
class _Block:
    """What stands within one pair of tags."""

    tag: Literal["think", "tool_call", "answer"]
    content: str
    closed: bool


def _blocks(text: str) -> tuple[list[_Block], str]:
    """The blocks in their order, and what stands outside of them."""
    blocks: list[_Block] = []
    outside: list[str] = []
    position = 0
    while (opened := _OPEN.search(text, position)) is not None:
        outside.append(text[position : opened.start()])
        tag = cast("Literal['think', 'tool_call', 'answer']", opened[1].lower())
        closing = _CLOSE[tag].search(text, opened.end())
        if closing is not None:
            end, position = closing.span()
        else:
            # A thought that is not closed ends where an action begins.
            action = next((one for one in _OPEN.finditer(text, opened.end()) if one[1].lower() != "think"), None)
            end = position = action.start() if tag == "think" and action is not None else len(text)
        blocks.append(_Block(tag, text[opened.end() : end], closing is not None))
    outside.append(text[position:])
    return blocks, "".join(outside)


def _check_form(blocks: list[_Block], outside: str) -> None:
    if outside.strip():
        reason = "text stands outside the tags"
        raise ProtocolViolation(reason)
    if not blocks or blocks[0].tag != "think":
        reason = "it does not begin with <think>"
        raise ProtocolViolation(reason)
    if [block.tag == "think" for block in blocks] != [True, False]:
        reason = "it is not one thought and one action"
        raise ProtocolViolation(reason)
    if unclosed := next((block for block in blocks if not block.closed), None):
        reason = f"<{unclosed.tag}> is not closed"
        raise ProtocolViolation(reason)
    # Within calls they are text: JSON tells where a string ends.
    if any(_TAG.search(block.content) for block in blocks if block.tag != "tool_call"):
        reason = "a tag stands within another"
        raise ProtocolViolation(reason)


def _check_actions(actions: list[_Block], *, cut_off: bool) -> None:
    tags = {block.tag for block in actions}
    if not actions:
        reason = "it has neither <tool_call> nor <answer>"
        raise ProtocolViolation(reason)
    if len(tags) > 1:
        reason = "it has both a tool call and an answer; call first, and answer when you have seen the results"
        raise ProtocolViolation(reason)
    if cut_off and not actions[-1].closed:
        reason = f"it was cut off within <{actions[-1].tag}>, at the largest length; be shorter"
        raise ProtocolViolation(reason)
    if tags == {"answer"} and len(actions) > 1:
        reason = "it has several answers"
        raise ProtocolViolation(reason)


def _calls(content: str, *, strict: bool) -> Iterator[Call]:
    if strict:
        found = _json(content)
        if not isinstance(found, list):
            reason = "the calls are not a JSON array"
            raise ProtocolViolation(reason)
        items = cast("list[Any]", found)
    else:
        items = _json_values(content)
    for item in items:
        yield _call(item, strict=strict)


def _call(item: Any, *, strict: bool) -> Call:  # noqa: ANN401  any JSON value
    if not isinstance(item, dict):
        reason = "a call is not a JSON object"
        raise ProtocolViolation(reason)
    given = cast("dict[str, Any]", item)
    if strict:
        name, arguments = given.get("name"), given.get("arguments")
        if set(given) != {"name", "arguments"}:
            reason = 'a call has other keys than "name" and "arguments"'
            raise ProtocolViolation(reason)
    else:
        if isinstance(wrapped := given.get("function"), dict):
            given = cast("dict[str, Any]", wrapped)
        given = _renamed(given, _CALL_KEYS)
        name, arguments = given.get("name"), given.get("arguments")
        if isinstance(arguments, str):
            arguments = _json(arguments) if arguments.strip() else None
        if arguments is None:
            arguments = dict[str, Any]()
    if not isinstance(name, str) or not name.strip():
        reason = "a call has no name"
        raise ProtocolViolation(reason)
    if not isinstance(arguments, dict):
        reason = "the arguments of a call are not a JSON object"
        raise ProtocolViolation(reason)
    call = Call(name.strip(), cast("dict[str, Any]", arguments))
    return call if strict else understood(call)


def understood(call: Call) -> Call:
    """The call by the wire names of tool and arguments, where it is clear which ones are meant."""
    name = _CALLED.get(re.sub(r"[\W_]", "", call.name).lower(), call.name)
    if name not in _FIELDS:
        return call
    meant = {field: other for field, other in _ARGUMENT_CALLED.items() if field in _FIELDS[name]}
    return Call(name, _renamed(call.arguments, meant))


def _renamed(given: dict[str, Any], called: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    """The same with other names for a key replaced by the key, unless that is there."""
    names = {other: key for key, others in called.items() for other in others if key not in given}
    return {names.get(key, key): value for key, value in given.items()}


def _json_values(content: str) -> list[Any]:
    """All JSON values of a text, lists taken apart: models write one object, a list, or one object after another."""
    if (fenced := _FENCE.match(content)) is not None:
        content = fenced[1]
    content = content.strip()
    values: list[Any] = []
    position = 0
    while position < len(content):
        try:
            value, position = json.JSONDecoder().raw_decode(content, position)
        except (ValueError, RecursionError) as error:
            raise ProtocolViolation(_why(error)) from error
        values += cast("list[Any]", value) if isinstance(value, list) else [value]
        while position < len(content) and content[position] in " \t\r\n,":
            position += 1
    return values


def _json(text: str) -> Any:  # noqa: ANN401  any JSON value
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProtocolViolation(_why(error)) from error


def _why(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"its JSON is not valid ({error.msg} at character {error.pos + 1})"
    return "its JSON is nested too deeply, or holds too long a number"
