"""``agemem-mcp doctor``: what is configured, what is missing, what to do."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from agemem_mcp._version import __version__
from agemem_mcp.adapters.data_folder import DataFolder
from agemem_mcp.app import asset_store, needed_assets, open_archive
from agemem_mcp.cli.asking import ask
from agemem_mcp.cli.output import DataDir, Json, print_json, print_table
from agemem_mcp.errors import AgeMemError
from agemem_mcp.process import run_async, start_logging
from agemem_mcp.settings import changed_settings, load_settings, without_secrets

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agemem_mcp.settings import Settings

_PATIENCE_S = 3.0
State = Literal["ok", "note", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    state: State
    found: str
    todo: str = ""


app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def doctor(
    data_dir: DataDir = None,
    deep: Annotated[bool, typer.Option("--deep", help="Read everything: file hashes and database integrity.")] = False,
    as_json: Json = False,
) -> None:
    """Check this installation; status 1 when something must be done."""
    settings = load_settings(data_dir=data_dir)
    start_logging("error")
    findings = [*_program(settings), *_files(settings, deep=deep), *run_async(_memory(settings, deep=deep))]
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        rows = [(one.state, one.what, one.found) for one in findings]
        print_table(("", "what", "found"), rows, empty="")
        for one in findings:
            if one.todo:
                typer.echo(f"→ {one.what}: {one.todo}")
    if any(one.state == "problem" for one in findings):
        raise typer.Exit(1)


def _program(settings: Settings) -> Iterator[Finding]:
    yield Finding("agemem-mcp", "ok", f"{__version__} on Python {platform.python_version()}, {platform.system()}")
    libraries = ("mcp", "qdrant-edge-py", "qdrant-client", "fastembed", "onnxruntime")
    yield Finding("libraries", "ok", ", ".join(f"{name} {version(name)}" for name in libraries))
    changed = changed_settings(settings)
    yield Finding("settings", "ok", ", ".join(f"{name}={value}" for name, value in changed) or "all at their defaults")
    if settings.qdrant_url is not None:
        yield _qdrant(settings.qdrant_url)


def _qdrant(url: str) -> Finding:
    import httpx  # noqa: PLC0415  needed here alone

    shown = without_secrets(url)
    try:
        httpx.get(f"{url.rstrip('/')}/readyz", timeout=_PATIENCE_S).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        todo = "start it, or check AGEMEM_QDRANT_URL; without that setting the embedded index is used"
        return Finding("index", "problem", f"no Qdrant server is ready at {shown} ({type(error).__name__})", todo)
    return Finding("index", "ok", f"a Qdrant server is ready at {shown}")


def _files(settings: Settings, *, deep: bool) -> Iterator[Finding]:
    store = asset_store(settings)
    needed = set(needed_assets(settings))
    missing = needed & set(store.missing())
    if missing:
        todo = "run `agemem-mcp assets pull` (or set AGEMEM_EMBEDDING=none to work by words alone)"
        yield Finding("files", "problem", f"missing: {', '.join(sorted(missing))} in {settings.assets_dir}", todo)
        return
    damaged = store.verify() if deep and needed else []
    if damaged:
        yield Finding(
            "files", "problem", "; ".join(damaged), "run `agemem-mcp assets pull`: it replaces what is damaged"
        )
    else:
        checked = ", hashes checked" if deep else ""
        yield Finding("files", "ok", f"{', '.join(sorted(needed)) or 'none needed'} in {settings.assets_dir}{checked}")


def _index(settings: Settings, folder: DataFolder) -> Iterator[Finding]:
    try:
        manifest = json.loads((folder.index / "manifest.json").read_text(encoding="utf-8"))
        made_with = str(manifest["embedding"])
    except FileNotFoundError:
        return
    except (OSError, ValueError, LookupError, TypeError):
        yield Finding("index", "note", "damaged: the next `serve` sets it aside and rebuilds it from the ledger")
        return
    if made_with == settings.embedding:
        yield Finding("index", "ok", f"made with {made_with}")
    else:
        todo = f"set AGEMEM_EMBEDDING={made_with}, or run `agemem-mcp reindex`: it rebuilds the index from the ledger"
        yield Finding("index", "problem", f"made with {made_with}, but {settings.embedding} is configured", todo)


async def _memory(settings: Settings, *, deep: bool) -> list[Finding]:
    folder = DataFolder(settings.data_dir)
    findings: list[Finding] = []
    if not folder.directory.exists():
        return [Finding("memory", "note", f"{folder.directory} does not exist yet: the first `serve` makes it")]
    try:
        folder.check()
        findings.append(Finding("data folder", "ok", str(folder.directory)))
    except AgeMemError as error:
        return [Finding("data folder", "problem", str(error))]
    try:
        holder = folder.holder()
    except AgeMemError as error:
        return [*findings, Finding("lock", "problem", str(error))]
    if holder is not None:
        findings.append(Finding("in use", "note", f"process {holder} has the folder open"))
    if settings.qdrant_url is None:
        findings += _index(settings, folder)
    if not folder.has_memory:
        return [*findings, Finding("memory", "note", "nothing stored yet")]
    if deep:
        findings += _compared(settings)
    try:
        async with open_archive(settings) as archive:
            count = await archive.ledger.count()
            findings.append(
                Finding("ledger", "ok", f"{count:,} memories, {await archive.ledger.last_seq():,} operations")
            )
            if deep:
                problems = [
                    *await archive.ledger.integrity_problems(),
                    *await archive.session_store.integrity_problems(),
                ]
                todo = "restore a backup, or run `sqlite3 FILE .recover`" if problems else ""
                state: State = "problem" if problems else "ok"
                findings.append(Finding("integrity", state, "; ".join(problems) or "both databases are whole", todo))
    except AgeMemError as error:
        findings.append(Finding("ledger", "problem", str(error)))
    return findings


def _compared(settings: Settings) -> Iterator[Finding]:
    """Have the process that owns the memory compare its index with the ledger."""
    try:
        found = ask(settings, "compare")
    except AgeMemError as error:
        yield Finding("index and ledger", "problem", str(error))
        return
    if found["agrees"]:
        yield Finding("index and ledger", "ok", f"agree on {found['total']:,} memories of all namespaces")
        return
    differences = ", ".join(f"{found[name]:,} {name}" for name in ("missing", "stale", "surplus"))
    todo = "run `agemem-mcp reindex`: it makes the index anew from the ledger, which is right"
    yield Finding("index and ledger", "problem", f"differ in the index: {differences}", todo)
