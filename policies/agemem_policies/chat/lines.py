"""What a chat shows, as lines: operations, the meter, how a run ended. Foreign text is made harmless here.

What a model writes and what a memory says may hold anything, also what a terminal would obey. Everything of
theirs goes through :func:`harmless_text`, and is printed as rich's ``Text``, never as markup.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.text import Text

from agemem_mcp.domain.text import preview
from agemem_policies.steps import StopReason

if TYPE_CHECKING:
    from agemem_policies.memory import Observation
    from agemem_policies.protocol import Call

# Controls of both sets but newline and tab, characters that turn the direction of writing, and halves of characters.
_OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_NARROWEST = 16
"""Columns that a quoted text gets even where there is no room."""
_WIDEST = 200
"""Characters of a quoted text where no terminal limits it."""
_NAMED = 3
"""So many hits are named one by one."""
_METER_COLUMNS = 24
_WARN_FROM = 0.8
"""The share of the budget from which the server warns as well."""

_STYLES = {
    "Add_memory": ("+", "green", "content"),
    "Update_memory": ("~", "yellow", "content"),
    "Delete_memory": ("-", "red", ""),
    "Retrieve_memory": ("?", "cyan", "query"),
    "Summary_context": ("*", "magenta", ""),
    "Filter_context": ("/", "blue", "criteria"),
}
"""Symbol, colour, and which argument says what it is about."""

_STOPPED = {
    StopReason.CLIENT_CALLS: "it called a tool that this chat does not have",
    StopReason.MAX_ROUNDS: "it took as many turns as it may without an answer",
    StopReason.MAX_CALLS: "it called tools as often as it may without an answer",
    StopReason.MAX_TOKENS: "it used as many tokens as it may without an answer",
    StopReason.MAX_SECONDS: "its time is up",
    StopReason.REPEATED_CALLS: "it made the same calls again and again",
    StopReason.CONTEXT_OVERFLOW: "the conversation does not fit into its context any more. /new begins another, and "
    "--overflow says what is to be done then",
}


def harmless_text(text: str) -> str:
    """The text without what a terminal would obey; newlines and tabs stay."""
    return _OBEYED.sub("", text.replace("\r\n", "\n"))


def one_line(text: str, limit: int) -> str:
    """The beginning of a foreign text on one line."""
    return preview(harmless_text(text), limit)


def operation_line(call: Call, observation: Observation, *, width: int | None, arrow: str = "→") -> Text:
    """What an operation did, on one line.

    Args:
        call: as the model wrote it.
        observation: what it was answered.
        width: columns there are; None where no terminal limits them.
        arrow: what stands before the outcome.
    """
    symbol, colour, about = _STYLES.get(call.name, ("!", "red", ""))
    quoted = str(call.arguments.get(about) or "") if about else ""
    if observation.is_error:
        symbol, colour = "!", "red"
        outcome = one_line(observation.text, max(_NARROWEST, width // 2) if quoted and width is not None else _WIDEST)
    else:
        outcome = _outcome(call.name, observation.structured)
    name = one_line(call.name, 40)
    plain = _shown_argument(call)
    line = Text().append(f"{symbol} ", style=f"bold {colour}").append(name, style=colour)
    if plain:
        line.append(f" {plain}")
    ending = f" {arrow} {outcome}" if outcome else ""
    if quoted:
        room = _WIDEST if width is None else width - cell_len(line.plain) - cell_len(ending) - 3
        line.append(f' "{_fitting(quoted, max(_NARROWEST, room))}"')
    line.append(ending, style="dim")
    if width is not None:
        line.truncate(width, overflow="ellipsis")
    return line


def _fitting(text: str, columns: int) -> str:
    """The beginning of a text that takes up no more than so many columns."""
    shown = one_line(text, columns)
    while cell_len(shown) > columns:
        shown = one_line(text, len(shown) - 1)
    return shown


def _shown_argument(call: Call) -> str:
    """The argument that is short and no prose."""
    name = {"Update_memory": "memory_id", "Delete_memory": "memory_id", "Summary_context": "span"}.get(call.name)
    return "" if name is None else one_line(str(call.arguments.get(name, "")), 30)


def _outcome(name: str, result: dict[str, Any]) -> str:
    if name == "Add_memory":
        return f"{result['memory_id']}, which was there already" if result["duplicate"] else str(result["memory_id"])
    if name == "Update_memory":
        return f"version {result['version']}"
    if name == "Retrieve_memory":
        ids = [str(one["memory_id"]) for one in result["memories"]]
        return f"{len(ids)} found" if len(ids) > _NAMED else ", ".join(ids) or "nothing found"
    if name == "Summary_context":
        return f"{_messages(len(result['replaced']))} became one"
    return f"{_messages(len(result['removed']))} left the context" if name == "Filter_context" else ""


def _messages(count: int) -> str:
    return "1 message" if count == 1 else f"{count} messages"


def meter(tokens: int, budget_tokens: int, *, ascii_only: bool = False) -> Text:
    """How full a context is, as a bar and in words."""
    share = tokens / budget_tokens if budget_tokens else 1.0
    full = min(_METER_COLUMNS, round(share * _METER_COLUMNS))
    style = "dim" if share < _WARN_FROM else "yellow" if share < 1 else "bold red"
    done, left = ("#", "-") if ascii_only else ("━", "─")
    bar = Text(done * full + left * (_METER_COLUMNS - full), style=style)
    return bar.append(f" {tokens:,} of {budget_tokens:,} tokens ({share:.0%})")


def stopped(reason: StopReason | None) -> str | None:
    """A sentence about a run that ended without an answer; None for one that has another end."""
    why = None if reason is None else _STOPPED.get(reason)
    return None if why is None else f"Stopped: {why}."
