"""``agemem-mcp memories``: look at long-term memory, search it, restore and delete."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agemem_mcp.app import open_archive
from agemem_mcp.cli.asking import ask
from agemem_mcp.cli.output import (
    DataDir,
    Json,
    Limit,
    Namespace,
    as_json_line,
    print_json,
    print_table,
    read_settings,
    shown_limit,
    when,
)
from agemem_mcp.domain.text import check_text, preview
from agemem_mcp.errors import InvalidOperation
from agemem_mcp.process import run_async
from agemem_mcp.server.render import iso, record_fields

if TYPE_CHECKING:
    from agemem_mcp.domain.memory import MemoryEvent, MemoryRecord

app = typer.Typer(
    help="Look at long-term memory, search it, restore and delete.", no_args_is_help=True, rich_markup_mode=None
)
MemoryId = Annotated[str, typer.Argument(help="Such as mem_7k2f.")]


@app.command("list")
def list_memories(
    data_dir: DataDir = None,
    namespace: Namespace = None,
    limit: Limit = None,
    all_: Annotated[bool, typer.Option("--all", help="Deleted and expired ones too.")] = False,
    json: Json = False,
) -> None:
    """List memories, last changed first."""
    settings, scope = read_settings(data_dir, namespace)

    async def work() -> list[MemoryRecord]:
        async with open_archive(settings) as archive:
            return await archive.memories.list_memories(
                scope, limit=shown_limit(limit, as_json=json), include_deleted=all_
            )

    records = run_async(work())
    if json:
        print_json([record_fields(record) for record in records])
        return
    rows = [(one.memory_id, when(one.updated_at), one.memory_type, preview(one.content, 100)) for one in records]
    columns = ("id", "changed", "type", "content")
    if all_:
        now = datetime.now(UTC)
        states = ["deleted" if one.deleted else "" if one.is_live(now) else "expired" for one in records]
        rows = [(*row, state) for row, state in zip(rows, states, strict=True)]
        columns = (*columns, "state")
    print_table(columns, rows, empty="No memories here yet.")


@app.command()
def search(
    query: Annotated[str, typer.Argument(help="What to look for.")],
    data_dir: DataDir = None,
    namespace: Namespace = None,
    limit: Limit = None,
    json: Json = False,
) -> None:
    """Search memories by meaning and words, best first."""
    settings, _ = read_settings(data_dir, namespace)
    check_text(query, "The query")

    hits = ask(settings, "search", query=query, limit=shown_limit(limit, as_json=json))
    if json:
        print_json(hits)
        return
    rows = [(hit["memory_id"], f"{hit['score']:.2f}", preview(hit["content"], 100)) for hit in hits]
    print_table(("id", "score", "content"), rows, empty="Nothing found.")


@app.command()
def show(memory_id: MemoryId, data_dir: DataDir = None, namespace: Namespace = None, json: Json = False) -> None:
    """Show one memory."""
    settings, scope = read_settings(data_dir, namespace)

    async def work() -> MemoryRecord:
        async with open_archive(settings) as archive:
            return await archive.memories.get(scope, memory_id)

    fields = record_fields(run_async(work()))
    if json:
        print_json(fields)
        return
    for name, value in fields.items():
        shown = value if isinstance(value, str) else "" if value is None else as_json_line(value)
        typer.echo(f"{name + ':':<13} {shown}")


@app.command()
def history(
    memory_id: MemoryId,
    data_dir: DataDir = None,
    namespace: Namespace = None,
    limit: Limit = None,
    json: Json = False,
) -> None:
    """Show every version of a memory and who made it."""
    settings, scope = read_settings(data_dir, namespace)

    async def work() -> list[MemoryEvent]:
        async with open_archive(settings) as archive:
            return await archive.memories.history(scope, memory_id)

    events = run_async(work())[-(shown_limit(limit, as_json=json) or 0) :]
    if json:
        print_json([_event_fields(event) for event in events])
        return
    rows = [
        (one.record.version, one.kind.value, one.actor.value, when(one.at), preview(one.record.content, 80))
        for one in events
    ]
    print_table(("version", "what", "by", "when", "content"), rows, empty="")


@app.command()
def restore(
    memory_id: MemoryId,
    version: Annotated[int | None, typer.Option(help="Which version; the last text if left out.")] = None,
    data_dir: DataDir = None,
    namespace: Namespace = None,
    json: Json = False,
) -> None:
    """Bring back a deleted or expired memory, or an earlier version of one."""
    settings, _ = read_settings(data_dir, namespace)

    record = ask(settings, "restore", memory_id=memory_id, version=version)
    if json:
        print_json(record)
        return
    typer.echo(f"{record['memory_id']} is now version {record['version']}: {preview(record['content'])}")


@app.command()
def delete(
    memory_id: MemoryId,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    data_dir: DataDir = None,
    namespace: Namespace = None,
    json: Json = False,
) -> None:
    """Delete a memory; it stays in the history and can be restored."""
    settings, _ = read_settings(data_dir, namespace)
    if not yes and json:
        msg = "With --json nobody is asked: add --yes to delete."
        raise InvalidOperation(msg)
    if not yes:
        typer.confirm(f"Delete {memory_id}?", abort=True)

    result = ask(settings, "delete", memory_id=memory_id)
    if json:
        print_json(result)
        return
    typer.echo(f"Deleted {memory_id}. `agemem-mcp memories restore {memory_id}` brings it back.")


def _event_fields(event: MemoryEvent) -> dict[str, Any]:
    return {
        "kind": event.kind.value,
        "actor": event.actor.value,
        "session_id": event.session_id,
        "at": iso(event.at),
        **record_fields(event.record),
    }
