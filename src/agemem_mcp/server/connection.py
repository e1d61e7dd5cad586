"""One client over a stream of bytes: lines of JSON-RPC in, lines out.

The SDK's own stdio transport passes over a line that is no message in silence, and whoever sent it
waits forever (clients do send them: one that cuts a text within an emoji writes half a surrogate
pair, which is not JSON). Here such a line is answered. And what one client can pile up is bounded:
a line has a largest length, only so many requests are taken in before some are answered, and answers
that nobody reads stop the reading.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from typing import TYPE_CHECKING, Self, cast

import anyio
import mcp_types as types
from mcp.shared.dispatcher import coerce_request_id
from mcp.shared.jsonrpc_dispatcher import cancelled_request_id_from_params
from mcp.shared.message import SessionMessage
from pydantic import ValidationError

if TYPE_CHECKING:
    from types import TracebackType

    from mcp_types import RequestId

MAX_LINE_BYTES = 4 * 1024 * 1024
"""As over HTTP; no tool takes more than a hundredth of it in one text."""
MAX_UNANSWERED = 32
"""Requests of one client that are worked on or wait for their turn; the next ones stay in its pipe."""
_CHUNK = 65536
_SETTLING_S = 5.0
"""How long requests that have begun may take to be answered once the client is gone or a signal came."""
_HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")
_ID = re.compile(rb'"id"\s*:\s*(-?\d{1,18}|"[^"\\]{1,200}")')


class _Stream:
    """What both directions have in common for the SDK, which closes a stream by leaving it."""

    async def aclose(self) -> None:
        """Nothing to do: the owner of the connection closes it."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        await self.aclose()


class Outgoing(_Stream):
    """Messages to the client. Sending waits while the client does not read."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self.unanswered: Counter[RequestId] = Counter()
        """How often each id waits for an answer: a careless client uses one twice."""
        self.answered = asyncio.Event()
        """Set at each answer."""

    async def send(self, item: SessionMessage, /) -> None:
        """Send a message.

        Raises:
            anyio.BrokenResourceError: the client is gone.
        """
        line = item.message.model_dump_json(by_alias=True, exclude_unset=True)
        try:
            self._writer.write(line.encode() + b"\n")
            await self._writer.drain()
        except (ConnectionError, RuntimeError) as error:
            self.give_up()
            raise anyio.BrokenResourceError from error
        finally:
            self._note(item.message)

    def stop_reading(self) -> None:
        """Leave what the client still sends in its pipe."""
        self._writer.transport.pause_reading()  # pyright: ignore[reportAttributeAccessIssue]  the stub's base lacks it

    def give_up(self) -> None:
        """The client is gone: nobody waits for an answer any more."""
        self.unanswered.clear()
        self.answered.set()

    def _note(self, message: object) -> None:
        if isinstance(message, types.JSONRPCResponse | types.JSONRPCError) and message.id is not None:
            self.settled(message.id)

    def settled(self, request_id: RequestId) -> None:
        """A request was answered, or is not to be."""
        known = coerce_request_id(request_id)
        if self.unanswered[known] <= 1:
            del self.unanswered[known]
        else:
            self.unanswered[known] -= 1
        self.answered.set()


class Incoming(_Stream):
    """Messages from the client, until it leaves or :meth:`stop` is called.

    Its end is held back until the requests that have begun are answered.
    """

    def __init__(self, reader: asyncio.StreamReader, outgoing: Outgoing) -> None:
        self._reader = reader
        self._outgoing = outgoing
        self._buffer = bytearray()
        self._stopped = False

    def stop(self) -> None:
        """Take no more messages: the process ends."""
        self._stopped = True
        self._outgoing.stop_reading()
        self._reader.feed_eof()

    async def receive(self) -> SessionMessage | Exception:
        """The next message; raises :class:`anyio.EndOfStream` when there is none."""
        while True:
            await self._below(MAX_UNANSWERED)
            line = await self._line()
            if line is None:
                await self._settle()
                raise anyio.EndOfStream
            if len(line) > MAX_LINE_BYTES:
                await self._outgoing.send(SessionMessage(_too_long(line)))
                continue
            if not line.strip():
                continue
            try:
                message = types.jsonrpc_message_adapter.validate_json(line, by_name=False)
            except ValidationError as error:
                await self._outgoing.send(SessionMessage(_refusal(error, line)))
                continue
            self._note(message)
            return SessionMessage(message)

    async def _line(self) -> bytes | None:
        """The next line; of one that is too long only the beginning. None at the end or when told to stop."""
        searched = 0
        while not self._stopped:
            end = self._buffer.find(b"\n", searched)
            if end >= 0:
                line = bytes(self._buffer[:end])
                del self._buffer[: end + 1]
                return line
            searched = len(self._buffer)
            if searched > MAX_LINE_BYTES:
                head = bytes(self._buffer)
                await self._skip_line()
                return head
            chunk = await self._chunk()
            if not chunk:
                # What a client wrote last may lack its newline.
                rest = bytes(self._buffer)
                self._buffer.clear()
                return rest or None
            self._buffer += chunk
        return None

    async def _skip_line(self) -> None:
        while True:
            self._buffer.clear()
            chunk = await self._chunk()
            _, end, rest = chunk.partition(b"\n")
            if end or not chunk:
                self._buffer += rest
                return

    async def _chunk(self) -> bytes:
        try:
            return await self._reader.read(_CHUNK)
        except OSError:
            self._outgoing.give_up()
            return b""

    def _note(self, message: object) -> None:
        if isinstance(message, types.JSONRPCRequest):
            self._outgoing.unanswered[coerce_request_id(message.id)] += 1
        elif isinstance(message, types.JSONRPCNotification) and message.method == "notifications/cancelled":
            # The SDK does not answer a cancelled request.
            cancelled = cancelled_request_id_from_params(message.params)
            if cancelled is not None:
                self._outgoing.settled(cancelled)

    async def _below(self, limit: int) -> None:
        while self._outgoing.unanswered.total() >= limit:
            self._outgoing.answered.clear()
            await self._outgoing.answered.wait()

    async def _settle(self) -> None:
        """Wait until the requests that have begun are answered, or have had their time."""
        try:
            async with asyncio.timeout(_SETTLING_S):
                await self._below(1)
        except TimeoutError:
            return

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None


def _too_long(head: bytes) -> types.JSONRPCError:
    text = f"This line has more than {MAX_LINE_BYTES // 2**20} MB and was not read. Send less at a time."
    found = _ID.search(head)
    known = None if found is None else cast("int | str", json.loads(found[1]))
    return types.JSONRPCError(jsonrpc="2.0", id=known, error=types.ErrorData(code=types.INVALID_REQUEST, message=text))


def _refusal(error: ValidationError, line: bytes) -> types.JSONRPCError:
    """The answer to a line that is no message, with its id as far as it can be made out."""
    problem = error.errors(include_url=False)[0]
    if problem["type"] == "json_invalid":
        code, text = types.PARSE_ERROR, f"This line cannot be read: {problem['msg']}."
        if _HALF_CHARACTER.search(line.decode("utf-8", "replace")):
            text += " It may hold half of a surrogate pair: send whole characters."
    else:
        code, text = types.INVALID_REQUEST, "This line is not a JSON-RPC 2.0 message."
    return types.JSONRPCError(jsonrpc="2.0", id=_id_of(line), error=types.ErrorData(code=code, message=text))


def _id_of(line: bytes) -> int | str | None:
    """The id of a line that is no message, if Python's more lenient reader can read it."""
    try:
        message: object = json.loads(line)
    except (ValueError, RecursionError):
        return None
    found = cast("dict[str, object]", message).get("id") if isinstance(message, dict) else None
    return found if isinstance(found, int | str) and not isinstance(found, bool) else None
