"""``agemem-mcp reindex``: make the index anew from the ledger."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import typer

from agemem_mcp.app import service_gate
from agemem_mcp.cli.asking import NoOwner, ask
from agemem_mcp.cli.output import DataDir, Json, print_json, progress_bar, read_settings
from agemem_mcp.errors import StoreError
from agemem_mcp.owner.owned import owned
from agemem_mcp.owner.owner import Owner
from agemem_mcp.process import run_async

if TYPE_CHECKING:
    from collections.abc import Callable

    from agemem_mcp.service.gate import Progress
    from agemem_mcp.settings import Settings

app = typer.Typer(add_completion=False, rich_markup_mode=None)
_WHAT = "Making the index anew"


@app.command()
def reindex(data_dir: DataDir = None, json: Json = False) -> None:
    """Make the index anew from the ledger, for the embedding model that is configured (AGEMEM_EMBEDDING).

    Clients go on working meanwhile; if it is interrupted, everything stays as it was.
    """
    settings, _ = read_settings(data_dir, None)
    with progress_bar(_WHAT) as show:

        def report(_text: str, done: float, total: float | None) -> None:
            show(int(done), int(total or 0))

        try:
            result = _by_owner(settings, report)
        except NoOwner:
            result = _in_this_process(settings, report)
    if json:
        print_json(result)
        return
    typer.echo(f"The index holds {result['memories']:,} memories, made with {result['embedding']}.")


def _by_owner(settings: Settings, report: Callable[[str, float, float | None], None]) -> dict[str, Any]:
    """Have the process do it that owns the memory: it serves from the old index until the new one is complete."""
    result: dict[str, Any] = ask(settings, "reindex", start=False, on_progress=report)
    return result


def _in_this_process(settings: Settings, report: Callable[[str, float, float | None], None]) -> dict[str, Any]:
    """Own the memory for as long as it takes. Clients that come meanwhile are served here, and wait."""
    with owned(settings) as locked:
        if not locked:
            msg = f"The memory in {settings.data_dir} cannot be opened by this process. See `agemem-mcp doctor`."
            raise StoreError(msg)
        gate = service_gate(settings, locked=True, rebuild_index=True)
        owner = Owner(settings, gate, kind="reindex")
        result: dict[str, Any] = {}

        async def tell(progress: Progress) -> None:
            await asyncio.sleep(0)
            report(progress.text, progress.done, progress.total)

        async def work() -> None:
            service = await gate.service(tell)
            result.update(embedding=settings.embedding, memories=await service.long_term.count())

        run_async(owner.run(also=work))
    return result
