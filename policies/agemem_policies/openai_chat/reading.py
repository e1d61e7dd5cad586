"""JSON of which nothing is certain, read as what it should be."""

from __future__ import annotations

import json
from typing import Any, cast

from agemem_mcp.errors import ProviderError

_LARGE = 1e30


def json_object(text: str | bytes, what: str) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        text: what was received.
        what: what it should be, for the message.

    Raises:
        ProviderError: it is none.
    """
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        msg = f"The endpoint sent malformed JSON as {what}. Check that its URL is an OpenAI-compatible one."
        raise ProviderError(msg) from error
    if not isinstance(value, dict):
        msg = f"The endpoint sent no JSON object as {what}. Check that its URL is an OpenAI-compatible one."
        raise ProviderError(msg)
    return cast("dict[str, Any]", value)


def as_object(value: object) -> dict[str, Any]:
    """A JSON object, or an empty one in place of anything else."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def as_list(value: object) -> list[Any]:
    """A JSON array, or an empty one in place of anything else."""
    return cast("list[Any]", value) if isinstance(value, list) else []


def as_text(value: object) -> str:
    """A text, the texts of content parts, or nothing in place of anything else."""
    if isinstance(value, str):
        return value
    texts = (as_object(part).get("text") for part in as_list(value))
    return "".join(text for text in texts if isinstance(text, str))


def json_text(value: object) -> str:
    """Write JSON that was read, as text again.

    Raises:
        ProviderError: it is nested too deeply.
    """
    try:
        return json.dumps(value)
    except RecursionError as error:
        msg = "The endpoint sent JSON that is nested too deeply. Check the model's name."
        raise ProviderError(msg) from error


def as_count(value: object) -> int | None:
    """A number of things, or None in place of anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def as_token_ids(value: object) -> list[int]:
    """Token ids, or none in place of what is no array.

    Raises:
        ProviderError: there is something else among them.
    """
    ids = as_list(value)
    if not all(type(one) is int for one in ids):
        msg = "The endpoint told token ids that are not whole numbers. Ask it without token ids."
        raise ProviderError(msg)
    return ids


def as_logprob(value: object) -> float:
    """A token's log-probability.

    Raises:
        ProviderError: it is no number.
    """
    # Without these bounds an infinity, a NaN or a whole number that no float holds would get through.
    if type(value) in (int, float) and -_LARGE < cast("float", value) < _LARGE:
        return float(cast("float", value))
    msg = "The endpoint told a log-probability that is not a number. Ask it without token ids."
    raise ProviderError(msg)
