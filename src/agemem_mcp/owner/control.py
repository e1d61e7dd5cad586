"""What commands ask of the process that owns the memory: one request on a connection, one result.

A request is a line ``{"do": NAME, …}``. The answer is any number of lines ``{"progress": …}`` and
then ``{"result": …}`` or ``{"error": TEXT}``.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import time
from typing import TYPE_CHECKING, Any, cast

import structlog

from agemem_mcp._version import __version__
from agemem_mcp.domain.memory import Actor, Scope
from agemem_mcp.domain.operations import DeleteMemory
from agemem_mcp.errors import AgeMemError, InvalidOperation
from agemem_mcp.server.render import record_fields
from agemem_mcp.service.gate import Progress
from agemem_mcp.service.long_term import Origin

if TYPE_CHECKING:
    from agemem_mcp.owner.owner import Owner
    from agemem_mcp.service.memory_service import MemoryService
    from agemem_mcp.settings import Settings

log = structlog.get_logger(__name__)

_USER = Origin(actor=Actor.USER)
_PROGRESS_INTERVAL_S = 0.2
_PATIENCE_S = 10.0
"""How long a command may take to say what it wants."""


class Control:
    """One command's connection."""

    def __init__(
        self, owner: Owner, settings: Settings, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Set it up.

        Args:
            owner: whose memory it is.
            settings: the command's own; they name the namespace it works in.
            reader: where the request comes from.
            writer: where progress and result go.
        """
        self._owner = owner
        self._settings = settings
        self._scope = Scope(namespace=settings.namespace)
        self._reader = reader
        self._writer = writer
        self._requests = {
            "status": self._status,
            "stop": self._stop,
            "listen": self._listen,
            "search": self._search,
            "restore": self._restore,
            "delete": self._delete,
            "restore_context": self._restore_context,
            "compare": self._compare,
            "reindex": self._reindex,
        }

    async def serve(self) -> None:
        """Answer the request that comes."""
        async with asyncio.timeout(_PATIENCE_S):
            line = await self._reader.readline()
        if not line:
            return
        try:
            answer: dict[str, Any] = {"result": await self._carried_out(line)}
        except AgeMemError as error:
            answer = {"error": str(error)}
        except OSError:
            raise
        except Exception:  # the outermost boundary: the text of a crash stays here
            log.exception("a request failed")
            answer = {"error": "This failed for a reason of the server's own: see `agemem-mcp daemon logs`."}
        await self._say(answer)

    async def _carried_out(self, line: bytes) -> Any:  # noqa: ANN401  each request has a result of its own
        try:
            request = cast("dict[str, Any]", json.loads(line))
            do = self._requests[str(request.pop("do"))]
            inspect.signature(do).bind(**request)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            msg = f"Process {os.getpid()} of release {__version__} cannot read this request."
            raise InvalidOperation(msg) from error
        return await do(**request)

    async def _say(self, message: dict[str, Any]) -> None:
        self._writer.write(json.dumps(message, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
        await self._writer.drain()

    async def _progress(self, progress: Progress) -> None:
        await self._say({"progress": {"text": progress.text, "done": progress.done, "total": progress.total}})

    async def _service(self) -> MemoryService:
        return await self._owner.gate.service(self._progress)

    async def _status(self) -> dict[str, Any]:
        owner = self._owner
        return {
            "running": True,
            "pid": os.getpid(),
            "version": __version__,
            "kind": owner.kind,
            "data_dir": str(owner.settings.data_dir),
            "seconds": round(time.time() - owner.started),
            "clients": owner.mcp_clients,
            "http": list(owner.listening),
            "memory": owner.gate.state,
        }

    async def _stop(self) -> dict[str, Any]:
        self._owner.end()
        return {"pid": os.getpid(), "clients": self._owner.mcp_clients}

    async def _listen(self, *, insecure: bool) -> dict[str, Any]:
        """Serve over HTTP for as long as the command's connection stands."""
        # FastAPI and its server: a daemon whose clients all use stdio never needs them.
        from agemem_mcp.owner.listening import listening  # noqa: PLC0415

        async with listening(self._owner, self._settings, insecure=insecure) as url:
            await self._say({"progress": {"text": url, "done": 0, "total": None}})
            await self._gone_or_ending()
        return {}

    async def _gone_or_ending(self) -> None:
        gone = asyncio.create_task(self._reader.read())
        ending = asyncio.create_task(self._owner.until_ending())
        try:
            await asyncio.wait({gone, ending}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            ending.cancel()

    async def _search(self, *, query: str, limit: int | None) -> list[dict[str, Any]]:
        service = await self._service()
        top_k = limit or max(1, await service.long_term.count())
        hits = await service.long_term.search(self._scope, query, top_k=top_k, metadata_filter={})
        return [{**record_fields(hit.record), "score": round(hit.score, 4)} for hit in hits]

    async def _restore(self, *, memory_id: str, version: int | None) -> dict[str, Any]:
        service = await self._service()
        return record_fields(await service.long_term.restore(self._scope, memory_id, version, _USER))

    async def _delete(self, *, memory_id: str) -> dict[str, Any]:
        service = await self._service()
        operation = DeleteMemory(memory_id=memory_id, confirmation=True)
        return (await service.long_term.delete(self._scope, operation, _USER)).model_dump(mode="json")

    async def _restore_context(self, *, session_id: str, message_ids: list[str] | None) -> list[str]:
        service = await self._service()
        return await service.short_term.restore(self._scope, session_id, message_ids, Actor.USER)

    async def _compare(self) -> dict[str, Any]:
        service = await self._service()
        found = await service.maintenance.compare()
        return {
            "agrees": found.agrees,
            "total": found.total,
            **{name: len(getattr(found, name)) for name in ("missing", "stale", "surplus")},
        }

    async def _reindex(self) -> dict[str, Any]:
        """Make the index anew with the model of the command's settings, which is the owner's from then on."""
        service = await self._service()
        embedding, path = self._settings.embedding, self._settings.embedding_path
        progress = Progress("making the index anew")

        def report(done: int, total: int) -> None:
            nonlocal progress
            progress = Progress("making the index anew", done, total)

        working = asyncio.create_task(
            service.maintenance.reindex(embedding, None if path is None else str(path), report)
        )
        try:
            while not working.done():
                await self._progress(progress)
                await asyncio.wait({working}, timeout=_PROGRESS_INTERVAL_S)
        finally:
            # A command that is interrupted before the exchange leaves everything as it was.
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
            if service.maintenance.embedding == embedding:
                changed = {"embedding": embedding, "embedding_path": path}
                self._owner.settings = self._owner.settings.model_copy(update=changed)
        working.result()
        return {"embedding": embedding, "memories": await service.long_term.count()}
