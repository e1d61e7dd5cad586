"""Reading arguments as models write them: tolerant where the meaning is clear, plain where it is not."""

from __future__ import annotations

import json
from typing import Annotated, TypeAlias, cast

from pydantic import AfterValidator, BeforeValidator, Field

from agemem_mcp.domain.text import MAX_TEXT_BYTES, check_json, check_text
from agemem_mcp.errors import InvalidOperation

MAX_TOP_K = 100
MAX_WORD_BYTES = 256
_TRUE = {"true", "yes", "y", "1"}
_FALSE = {"false", "no", "n", "0", ""}


def text(name: str, *, max_bytes: int = MAX_TEXT_BYTES) -> BeforeValidator:
    """A string that may come as a number, or as a list of strings that then stand one to a line."""

    def read(value: object) -> object:
        if strings := _strings(value):
            value = "\n".join(strings)
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = str(value)
        return check_text(value, name, max_bytes=max_bytes) if isinstance(value, str) else value

    return BeforeValidator(read)


def word(value: object) -> object:
    """An optional word or id; blank means that none was given."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str) and value.strip():
        return check_text(value.strip(), "The argument", max_bytes=MAX_WORD_BYTES)
    return None if isinstance(value, str) else value


def json_object(name: str) -> BeforeValidator:
    """A JSON object that may come as a string of JSON."""

    def read(value: object) -> object:
        if isinstance(value, str):
            try:
                value = json.loads(value) if value.strip() else {}
            except (ValueError, RecursionError) as error:
                msg = f'{name} must be a JSON object such as {{"topic": "travel"}}.'
                raise InvalidOperation(msg) from error
        if value is None:
            return {}
        if not isinstance(value, dict):
            msg = f'{name} must be a JSON object such as {{"topic": "travel"}}.'
            raise InvalidOperation(msg)
        return check_json(cast("object", value), name)

    return BeforeValidator(read)


def flag(value: object) -> object:
    """A boolean that may come as a word or number."""
    word = str(value).strip().lower()
    if word in _TRUE or word in _FALSE:
        return word in _TRUE
    return value


def top_k(value: object) -> object:
    """A whole number from 1 to 100 that may come as text; None means the default."""
    if value is None:
        return 3
    try:
        number = float(value) if isinstance(value, str | int | float) else None
    except (ValueError, OverflowError):
        number = None
    if number is None or not number.is_integer() or not 1 <= number <= MAX_TOP_K:
        msg = f"top_k must be a whole number from 1 to {MAX_TOP_K}."
        raise InvalidOperation(msg)
    return int(number)


def span(value: object) -> object:
    """``all`` (or ``full``), or a positive number as text."""
    word = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip().lower()
    if word in ("all", "full"):
        return "all"
    if word.isascii() and word.isdigit() and len(word) < 10 and int(word) > 0:  # noqa: PLR2004  fits any context
        return str(int(word))
    msg = 'span must be "all" or the number of last rounds to summarise, such as "1" or "3".'
    raise InvalidOperation(msg)


def message_list(value: object) -> object:
    """A list of messages that may come as one message, as texts (then a user's), or as a string of JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = [{"role": "user", "content": value}]
    if strings := _strings(value):
        return [{"role": "user", "content": one} for one in strings]
    return [cast("object", value)] if isinstance(value, dict) else cast("object", value)


def _strings(value: object) -> list[str]:
    """The value if it is a list of strings alone, else nothing."""
    items = cast("list[object]", value) if isinstance(value, list) else []
    strings = [item for item in items if isinstance(item, str)]
    return strings if len(strings) == len(items) else []


SessionId: TypeAlias = Annotated[str | None, BeforeValidator(word)]
NamedSessionId: TypeAlias = Annotated[SessionId, Field(description="From Retrieve_memory.")]
MemoryId: TypeAlias = Annotated[
    str,
    AfterValidator(str.strip),
    text("memory_id"),
    Field(description="From Add_memory or Retrieve_memory."),
]
