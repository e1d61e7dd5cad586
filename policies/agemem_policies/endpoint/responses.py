"""Answers as OpenAI's clients read them: whole, or as server-sent events while they are made."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from agemem_policies.endpoint.failures import SESSION_HEADER, Failure
from agemem_policies.endpoint.replies import Operation

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from agemem_policies.endpoint.chats import Running
    from agemem_policies.endpoint.replies import Reply

_KEEP_ALIVE_S = 15.0
"""Some clients and proxies take a longer silence for a broken connection."""
_DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Envelope:
    """What all parts of one answer have in common."""

    model: str
    include_usage: bool = False
    answer_id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def completion(self, reply: Reply) -> dict[str, Any]:
        """The whole answer."""
        message: dict[str, Any] = {"role": "assistant", "content": reply.message.text or None, "refusal": None}
        if reply.message.calls:
            message["tool_calls"] = _calls(reply)
        choice = {"index": 0, "message": message, "finish_reason": reply.finish_reason, "logprobs": None}
        return {
            **self._head("chat.completion", reply.extension["session_id"]),
            "choices": [choice],
            "usage": reply.usage,
            "agemem": reply.extension,
        }

    def chunk(self, session_id: str | None, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        """A piece of the answer."""
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        usage = {"usage": None} if self.include_usage else {}
        return {**self._head("chat.completion.chunk", session_id), "choices": [choice], **usage}

    def ending(self, reply: Reply) -> list[dict[str, Any]]:
        """The last pieces of the answer."""
        session_id = reply.extension["session_id"]
        chunks: list[dict[str, Any]] = []
        if reply.message.calls:
            calls = [{"index": number, **call} for number, call in enumerate(_calls(reply))]
            chunks.append(self.chunk(session_id, {"tool_calls": calls}))
        chunks.append({**self.chunk(session_id, {}, reply.finish_reason), "agemem": reply.extension})
        if self.include_usage:
            head = self._head("chat.completion.chunk", session_id)
            chunks.append({**head, "choices": [], "usage": reply.usage})
        return chunks

    def _head(self, kind: str, session_id: str | None) -> dict[str, Any]:
        head = {"id": self.answer_id, "object": kind, "created": self.created, "model": self.model}
        return {**head, "session_id": session_id}


class ChatResponse(Response):
    """The answer to a request that is being worked on; the work ends when the client goes away."""

    def __init__(self, running: Running, envelope: Envelope, *, stream: bool) -> None:
        """Answer with what comes of ``running``."""
        super().__init__()
        self._running = running
        self._envelope = envelope
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        gone = asyncio.create_task(_gone(receive))
        write = self._write_events if self._stream else self._write_whole
        writing = asyncio.create_task(write(scope, receive, send))
        try:
            await asyncio.wait({gone, writing}, return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                writing.result()
        finally:
            self._running.task.cancel()
            gone.cancel()
            writing.cancel()
            await asyncio.gather(gone, writing, return_exceptions=True)

    async def _write_whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        reply = await self._outcome()
        if isinstance(reply, Failure):
            await reply.response()(scope, receive, send)
            return
        headers = {SESSION_HEADER: reply.extension["session_id"]}
        answer = Response(_json(self._envelope.completion(reply)), headers=headers, media_type="application/json")
        await answer(scope, receive, send)

    async def _write_events(self, scope: Scope, receive: Receive, send: Send) -> None:
        running, envelope = self._running, self._envelope
        begun = {running.session, running.task}
        await asyncio.wait(begun, return_when=asyncio.FIRST_COMPLETED, timeout=_KEEP_ALIVE_S)
        session_id = self._session_id
        if session_id is None and running.task.done() and isinstance(failure := await self._outcome(), Failure):
            await failure.response()(scope, receive, send)
            return
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        if session_id is not None:
            headers[SESSION_HEADER] = session_id
        start = Response(headers=headers, media_type="text/event-stream")
        del start.headers["content-length"]
        await send({"type": "http.response.start", "status": 200, "headers": start.raw_headers})
        await _put(send, _event(envelope.chunk(session_id, {"role": "assistant", "content": ""})))
        while (written := await self._next()) is not None:
            await _put(send, written)
        reply = await self._outcome()
        if isinstance(reply, Failure):
            await _put(send, _event(reply.body) + _DONE, more=False)
            return
        await _put(send, b"".join(map(_event, envelope.ending(reply))) + _DONE, more=False)

    async def _outcome(self) -> Reply | Failure:
        try:
            await asyncio.wait({self._running.task})
            return self._running.task.result()
        except Failure as failure:
            return failure
        except asyncio.CancelledError:
            if not self._running.task.cancelled():
                raise
            return Failure(503, "The server is shutting down. Ask again in a moment.", code="not_available")

    @property
    def _session_id(self) -> str | None:
        """None while the session is busy with another request for long, or the memory is still being opened."""
        return self._running.session.result() if self._running.session.done() else None

    async def _next(self) -> bytes | None:
        """The next bytes of the stream; None when the run has ended."""
        try:
            async with asyncio.timeout(_KEEP_ALIVE_S):
                piece = await self._running.pieces.get()
        except TimeoutError:
            return b": keep-alive\n\n"
        if piece is None:
            return None
        if isinstance(piece, Operation):
            return _comment(piece)
        return _event(self._envelope.chunk(self._session_id, {"content": piece}))


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _put(send: Send, body: bytes, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


def _json(value: dict[str, Any]) -> bytes:
    # Escaped, as a model's text may hold characters that have no bytes.
    return json.dumps(value, separators=(",", ":")).encode()


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + _json(value) + b"\n\n"


def _comment(operation: Operation) -> bytes:
    """One line, whatever a model wrote as the tool's name; JSON is one line by itself."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", operation.name)[:64]
    told: dict[str, Any] = {} if operation.memory_id is None else {"memory_id": operation.memory_id}
    told |= {"arguments": operation.arguments, "is_error": operation.is_error}
    return f": agemem {name} ".encode() + _json(told) + b"\n\n"


def _calls(reply: Reply) -> list[dict[str, Any]]:
    return [
        {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in reply.message.calls
    ]
