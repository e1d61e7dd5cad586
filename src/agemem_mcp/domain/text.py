"""What text and JSON from outside must look like before it is stored or embedded."""

from __future__ import annotations

import hashlib
import math
import unicodedata
from typing import Any, cast

from agemem_mcp.errors import InvalidOperation

MAX_TEXT_BYTES = 64 * 1024
"""Largest text of one memory or message, in UTF-8."""
MAX_METADATA_BYTES = 16 * 1024
"""Largest metadata of one memory, counted over its keys and values."""
MAX_DEPTH = 12
_LARGEST_INTEGER = 2**63 - 1


def check_text(text: str, name: str, *, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """Return ``text`` if it can be stored and read back unchanged.

    Raises:
        InvalidOperation: blank, too long, or with NUL characters or lone surrogates.
    """
    if not text.strip():
        msg = f"{name} must not be empty or blank."
        raise InvalidOperation(msg)
    check_characters(text, name)
    size = len(text.encode())
    if size > max_bytes:
        msg = f"{name} is {size:,} bytes long; at most {max_bytes:,} are allowed. Split it into several parts."
        raise InvalidOperation(msg)
    return text


def check_characters(text: str, name: str) -> str:
    """Return ``text`` if every character of it can be stored.

    Raises:
        InvalidOperation: it holds a NUL character or a lone surrogate.
    """
    if "\x00" in text:
        msg = f"{name} holds a NUL character (\\u0000). Remove it and call again."
        raise InvalidOperation(msg)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        msg = f"{name} holds a lone surrogate (\\u{ord(text[error.start]):04x}). Send whole characters."
        raise InvalidOperation(msg) from error
    return text


def check_json(value: object, name: str) -> Any:  # noqa: ANN401  any JSON value
    """Return ``value`` as plain JSON if it can be stored and read back unchanged.

    Raises:
        InvalidOperation: not JSON, nested too deeply, too large, or with numbers or characters no store keeps.
    """
    budget = [MAX_METADATA_BYTES]
    return _check_node(value, name, 0, budget)


def _check_node(value: object, name: str, depth: int, budget: list[int]) -> Any:  # noqa: ANN401  any JSON value
    if depth > MAX_DEPTH:
        msg = f"{name} is nested more than {MAX_DEPTH} levels deep. Flatten it."
        raise InvalidOperation(msg)
    _spend(budget, _utf8_size(value) if isinstance(value, str) else 8, name)
    if isinstance(value, dict):
        return {
            check_key(key, name, budget): _check_node(item, name, depth + 1, budget)
            for key, item in cast("dict[object, object]", value).items()
        }
    if isinstance(value, list | tuple):
        return [_check_node(item, name, depth + 1, budget) for item in cast("list[object]", value)]
    if isinstance(value, str):
        return check_characters(value, name)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and abs(value) <= _LARGEST_INTEGER:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, int | float):
        msg = f"{name} holds the number {str(value)[:20]}, which cannot be stored. Write it as a string."
        raise InvalidOperation(msg)
    msg = f"{name} must be plain JSON; a {type(value).__name__} is not."
    raise InvalidOperation(msg)


def check_key(key: object, name: str, budget: list[int]) -> str:
    """Return an object's key if it is a storable string that is not blank."""
    if not isinstance(key, str) or not key.strip():
        msg = f"{name} has a key that is not a non-blank string."
        raise InvalidOperation(msg)
    _spend(budget, _utf8_size(key), name)
    return check_characters(key, name)


def _utf8_size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _spend(budget: list[int], size: int, name: str) -> None:
    budget[0] -= size
    if budget[0] < 0:
        msg = f"{name} is larger than {MAX_METADATA_BYTES:,} bytes. Put long text into the content."
        raise InvalidOperation(msg)


def digest(content: str) -> str:
    """A fingerprint of a text, the same for texts that differ only in white space or Unicode form."""
    return hashlib.sha256(" ".join(unicodedata.normalize("NFC", content).split()).encode()).hexdigest()


def preview(text: str, limit: int = 80) -> str:
    """The beginning of a text on one line, at most ``limit`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"
