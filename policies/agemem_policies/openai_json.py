"""JSON of which nothing is certain, read as what it should be."""

from __future__ import annotations

import json
from typing import Any, cast

from agemem_mcp.errors import ProviderError


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
