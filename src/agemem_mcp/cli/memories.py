"""``agemem-mcp memories``: look at long-term memory, search and review it, restore and delete."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agemem_mcp.app import open_archive, open_service, open_upkeep
from agemem_mcp.cli.output import (
    DataDir,
    Json,
    Limit,
    Namespace,
    as_json_line,
    iso,
    print_json,
    print_table,
    progress_bar,
    read_settings,
    run_async,
    shown_limit,
    when,
)
from agemem_mcp.domain.memory import Actor
from agemem_mcp.domain.operations import DeleteMemory
from agemem_mcp.domain.text import check_text, preview
from agemem_mcp.errors import InvalidOperation
from agemem_mcp.service.long_term import Origin

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agemem_mcp.domain.memory import MemoryEvent, MemoryRecord
    from agemem_mcp.service.upkeep import Review

app = typer.Typer(
    help="Look at long-term memory, search it, restore and delete.", no_args_is_help=True, rich_markup_mode=None
)
MemoryId = Annotated[str, typer.Argument(help="Such as mem_7k2f.")]
_USER = Origin(actor=Actor.USER)


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
        print_json([_fields(record) for record in records])
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
    settings, scope = read_settings(data_dir, namespace)
    check_text(query, "The query")

    async def work() -> list[dict[str, Any]]:
        async with open_service(settings) as service:
            top_k = shown_limit(limit, as_json=json) or await service.long_term.count()
            hits = await service.long_term.search(scope, query, top_k=max(1, top_k), metadata_filter={})
            return [{**_fields(hit.record), "score": round(hit.score, 4)} for hit in hits]

    hits = run_async(work())
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

    fields = _fields(run_async(work()))
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
def duplicates(
    data_dir: DataDir = None,
    namespace: Namespace = None,
    limit: Limit = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0.1, max=1, help="Similarity of near-duplicates (0.9; without a model 0.8).", show_default=False
        ),
    ] = None,
    stale_days: Annotated[int, typer.Option(min=1, max=36_500, help="Days without a change to be listed.")] = 180,
    json: Json = False,
) -> None:
    """List near-duplicates, and what looks replaced, has ended, ends within a week or is long unchanged."""
    settings, scope = read_settings(data_dir, namespace)

    async def work() -> Review:
        async with open_upkeep(settings) as upkeep:
            with progress_bar("reading memories") as report:
                return await upkeep.review(scope, threshold=threshold, stale=timedelta(days=stale_days), report=report)

    review = run_async(work())
    shown = shown_limit(limit, as_json=json)
    if json:
        print_json(_review_fields(review, shown))
        return
    _print_review(review, shown, stale_days)


@app.command()
def restore(
    memory_id: MemoryId,
    version: Annotated[int | None, typer.Option(help="Which version; the last text if left out.")] = None,
    data_dir: DataDir = None,
    namespace: Namespace = None,
    json: Json = False,
) -> None:
    """Bring back a deleted or expired memory, or an earlier version of one."""
    settings, scope = read_settings(data_dir, namespace)

    async def work() -> MemoryRecord:
        async with open_service(settings) as service:
            return await service.long_term.restore(scope, memory_id, version, _USER)

    record = run_async(work())
    if json:
        print_json(_fields(record))
        return
    typer.echo(f"{record.memory_id} is now version {record.version}: {preview(record.content)}")


@app.command()
def delete(
    memory_id: MemoryId,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    data_dir: DataDir = None,
    namespace: Namespace = None,
    json: Json = False,
) -> None:
    """Delete a memory; it stays in the history and can be restored."""
    settings, scope = read_settings(data_dir, namespace)
    if not yes and json:
        msg = "With --json nobody is asked: add --yes to delete."
        raise InvalidOperation(msg)
    if not yes:
        typer.confirm(f"Delete {memory_id}?", abort=True)

    async def work() -> dict[str, Any]:
        async with open_service(settings) as service:
            operation = DeleteMemory(memory_id=memory_id, confirmation=True)
            return (await service.long_term.delete(scope, operation, _USER)).model_dump(mode="json")

    result = run_async(work())
    if json:
        print_json(result)
        return
    typer.echo(f"Deleted {memory_id}. `agemem-mcp memories restore {memory_id}` brings it back.")


def _fields(record: MemoryRecord) -> dict[str, Any]:
    return {
        "memory_id": record.memory_id,
        "content": record.content,
        "memory_type": record.memory_type,
        "metadata": record.metadata,
        "version": record.version,
        "created_at": iso(record.created_at),
        "updated_at": iso(record.updated_at),
        "expires_at": None if record.expires_at is None else iso(record.expires_at),
        "deleted": record.deleted,
    }


def _event_fields(event: MemoryEvent) -> dict[str, Any]:
    return {
        "kind": event.kind.value,
        "actor": event.actor.value,
        "session_id": event.session_id,
        "at": iso(event.at),
        **_fields(event.record),
    }


def _review_fields(review: Review, shown: int | None) -> dict[str, Any]:
    return {
        "compared": review.compared,
        "by": review.by,
        "threshold": review.threshold,
        "duplicates": [
            {"similarity": round(group.similarity, 4), "memories": [_fields(one) for one in group.memories]}
            for group in review.duplicates[:shown]
        ],
        "replaced": [
            {"similarity": round(one.similarity, 4), "older": _fields(one.older), "newer": _fields(one.newer)}
            for one in review.replaced[:shown]
        ],
        "expired": [_fields(one) for one in review.expired[:shown]],
        "expiring": [_fields(one) for one in review.expiring[:shown]],
        "unchanged": [_fields(one) for one in review.unchanged[:shown]],
    }


def _print_review(review: Review, shown: int | None, stale_days: int) -> None:
    """Print a review for people: a section for each kind of finding, and none for what was not found."""
    measure = "cosine" if review.by == "meaning" else "share of words"
    typer.echo(f"{review.compared:,} memories compared ({measure}). Nothing was changed.")
    groups = [
        [(f"{group.similarity:.2f}" if one is group.memories[0] else "", *_row(one)) for one in group.memories]
        for group in review.duplicates[:shown]
    ]
    _print_section(
        f"Near-duplicates, oldest first ({measure} from {review.threshold:g})",
        ("", "id", "changed", "content"),
        [row for group in groups for row in group],
        len(review.duplicates) - len(groups),
    )
    replaced = [
        (f"{one.similarity:.2f}", *_row(one.older), one.newer.memory_id, preview(one.newer.content, 60))
        for one in review.replaced
    ]
    _print_section(
        "Perhaps replaced by a later one of the same title and type",
        ("", "id", "changed", "content", "by", "which says"),
        replaced[:shown],
        len(replaced[shown:]) if shown else 0,
    )
    for title, records in (
        ("Expired", review.expired),
        ("Expire within a week", review.expiring),
        (f"Not changed for {stale_days} days", review.unchanged),
    ):
        rows = [(*_row(one), "" if one.expires_at is None else when(one.expires_at)) for one in records[:shown]]
        _print_section(title, ("id", "changed", "content", "ends"), rows, len(records) - len(rows))


def _row(record: MemoryRecord) -> tuple[str, str, str]:
    return record.memory_id, when(record.updated_at), preview(record.content, 60)


def _print_section(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], more: int) -> None:
    if not rows:
        return
    typer.secho(f"\n{title}", bold=True)
    print_table(columns, rows, empty="")
    if more:
        typer.echo(f"… and {more:,} more (--limit)")
