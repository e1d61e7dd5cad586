"""What an OpenAI-compatible endpoint says when it does not answer, and whether to ask again."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any

from agemem_mcp.errors import ProviderError
from agemem_policies.openai_json import as_list, as_object, as_text

_PASSING = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, HTTPStatus.TOO_MANY_REQUESTS}
_UNREADABLE = {HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY}
_OPTIONAL = ("stream_options", "max_tokens", "temperature")
"""Fields without which, or under another name, some endpoints take a request that they refused."""


class EndpointError(ProviderError):
    """One request failed; tells whether and when another may not.

    Args:
        message: what is wrong and what to do.
        passing: whether the same request may be answered later.
        status: the HTTP status, where there is one.
        wait_s: how long the endpoint asks to be left alone.
        refused: fields of the request that the endpoint names in its complaint.
    """

    def __init__(
        self,
        message: str,
        *,
        passing: bool = False,
        status: int | None = None,
        wait_s: float | None = None,
        refused: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(message)
        self.passing = passing
        self.status = status
        self.wait_s = wait_s
        self.refused = refused


def refusal(where: str, status: int, complaint: str, *, retry_after: str | None = None) -> EndpointError:
    """What an HTTP status means.

    Args:
        where: the address that was asked.
        status: the status it answered.
        complaint: what it said with it, fit to be shown.
        retry_after: its header of that name.
    """
    named = (name for name in _OPTIONAL if re.search(rf"\b{name}\b", complaint))
    return EndpointError(
        f"{where} answered {status}{f' ({complaint})' if complaint else ''}. {_advice(status)}",
        passing=status in _PASSING or status >= HTTPStatus.INTERNAL_SERVER_ERROR,
        status=status,
        wait_s=waiting_time_s(retry_after),
        refused=frozenset(named) if status in _UNREADABLE else frozenset(),
    )


def _advice(status: int) -> str:
    match status:
        case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN:
            return "Check the API key, and that it may use this model."
        case HTTPStatus.NOT_FOUND:
            return "Check the model's name and the URL, which usually ends in /v1."
        case HTTPStatus.TOO_MANY_REQUESTS:
            return "Try again later, ask less often, or check the account's limits."
        case _ if status < HTTPStatus.BAD_REQUEST:
            return "Give the URL that answers itself, without redirections."
        case _ if status in _PASSING or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return "Try again later; the endpoint's own log may tell more."
        case _:
            return "Check the model's name and options, and that the conversation fits into its context."


def complaint_of(body: dict[str, Any], text: str) -> str:
    """What an endpoint complains about, in its own words.

    Args:
        body: the JSON that it sent, empty if it sent none.
        text: what it sent, which is shown where nothing in the JSON is known to be a complaint.
    """
    error = body.get("error")
    details = [
        # FastAPI's form. It repeats the whole request beside these, which says nothing about what is wrong.
        " ".join([*map(as_text, as_list(detail.get("loc"))), as_text(detail.get("msg"))])
        for detail in map(as_object, as_list(body.get("detail")))
    ]
    said = [
        as_text(as_object(error).get("message")) or as_text(error) or as_text(body.get("message")),
        as_text(as_object(error).get("param")),
        as_text(body.get("detail")) or "; ".join(filter(None, details)),
    ]
    return " ".join((": ".join(filter(None, said)) or text).split())


def waiting_time_s(retry_after: str | None) -> float | None:
    """Seconds that a ``Retry-After`` header asks for: it holds a number of them or a date (RFC 9110, 10.2.3)."""
    if retry_after is None:
        return None
    try:
        wait_s = float(retry_after)
    except ValueError:
        try:
            date = parsedate_to_datetime(retry_after)
            wait_s = (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError, OverflowError):
            return None
    return max(wait_s, 0.0) if math.isfinite(wait_s) else None
