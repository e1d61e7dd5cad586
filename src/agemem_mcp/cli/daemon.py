"""``agemem-mcp daemon``: the process that holds a memory for all its clients."""

from __future__ import annotations

import time
from collections import deque
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agemem_mcp.adapters.data_folder import DataFolder
from agemem_mcp.cli.asking import NoOwner, ask
from agemem_mcp.cli.output import DataDir, Json, print_json, read_settings
from agemem_mcp.errors import StoreError
from agemem_mcp.link.places import LOG, read_owner

if TYPE_CHECKING:
    from agemem_mcp.settings import Settings

app = typer.Typer(
    help="The process that holds a memory for all its clients.", no_args_is_help=True, rich_markup_mode=None
)
_PATIENCE_S = 30.0
_POLL_S = 0.02


@app.command()
def status(data_dir: DataDir = None, json: Json = False) -> None:
    """Say who serves this memory, and to how many."""
    settings, _ = read_settings(data_dir, None)
    found = _ask(settings, "status")
    if json:
        print_json(found or {"running": False, "data_dir": str(settings.data_dir)})
        return
    if found is None:
        typer.echo(f"No daemon serves {settings.data_dir}. The first client starts one.")
        return
    clients = "1 client" if found["clients"] == 1 else f"{found['clients']} clients"
    typer.echo(f"Process {found['pid']} (release {found['version']}) serves {found['data_dir']} to {clients}.")
    typer.echo(f"Up for {timedelta(seconds=found['seconds'])}; the memory is {found['memory']}.")
    for url in found["http"]:
        typer.echo(f"Also over HTTP at {url}/mcp")


@app.command()
def stop(data_dir: DataDir = None, json: Json = False) -> None:
    """End it once what has begun is done; the next client starts a new one."""
    settings, _ = read_settings(data_dir, None)
    owner = read_owner(str(settings.data_dir))
    found = _ask(settings, "stop")
    if found is not None and owner is not None and not _has_ended(DataFolder(settings.data_dir), owner.pid):
        msg = f"Process {owner.pid} was told to end and has not yet: it may be finishing something long."
        raise StoreError(msg)
    if json:
        print_json({"stopped": found is not None, **(found or {})})
        return
    typer.echo(f"No daemon serves {settings.data_dir}." if found is None else f"Process {found['pid']} has ended.")


@app.command()
def logs(
    data_dir: DataDir = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many of the last lines.")] = 50,
) -> None:
    """Show what the daemon had to say."""
    settings, _ = read_settings(data_dir, None)
    log = Path(settings.data_dir) / LOG
    if not log.exists() or not log.stat().st_size:
        typer.echo(f"Nothing was logged in {log} (AGEMEM_LOG_LEVEL is {settings.log_level}).", err=True)
        return
    with log.open(encoding="utf-8", errors="replace") as file:
        for line in deque(file, maxlen=lines):
            typer.echo(line, nl=False)


def _ask(settings: Settings, do: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = ask(settings, do, start=False)
    except NoOwner:
        return None
    return found


def _has_ended(folder: DataFolder, pid: int) -> bool:
    """Whether it gave the folder's lock back, which it does last, within a while."""
    end = time.monotonic() + _PATIENCE_S
    while folder.lock_pid() == str(pid):
        if time.monotonic() > end:
            return False
        time.sleep(_POLL_S)
    return True
