"""What all commands share: options, logging, tables, JSON, errors."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, TypeVar

import structlog
import typer

from agemem_mcp.domain.memory import Scope
from agemem_mcp.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator, Sequence
    from datetime import datetime

    from rich.console import Console

    from agemem_mcp.settings import Settings

T = TypeVar("T")

DataDir: TypeAlias = Annotated[
    Path | None, typer.Option("--data-dir", help="Folder of the memory (AGEMEM_DATA_DIR).", show_default=False)
]
Namespace: TypeAlias = Annotated[
    str | None, typer.Option("--namespace", help="Namespace (AGEMEM_NAMESPACE).", show_default=False)
]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Limit: TypeAlias = Annotated[
    int | None, typer.Option("--limit", min=1, help="Show at most so many (20; with --json all).", show_default=False)
]
_SHOWN = 20


def start_logging(level: str) -> None:
    """Log to stderr: stdout belongs to the protocol and to answers."""
    number = getattr(logging, level.upper())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            # Plain: the rich one prints local variables, and those hold memories.
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            ),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=number, stream=sys.stderr, format="%(asctime)s [%(levelname)s] %(name)s: %(message)s")


def console(*, stderr: bool = False) -> Console:
    """Where people read; plain when it is not a terminal."""
    from rich.console import Console  # noqa: PLC0415  not every command shows a table

    return Console(stderr=stderr, highlight=False, soft_wrap=stderr)


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's work."""
    resume_garbage_collection()
    return asyncio.run(work)


def resume_garbage_collection() -> None:
    """End the pause that `_entry` began; what was imported by now is never looked at again."""
    gc.freeze()
    gc.enable()


def shown_limit(limit: int | None, *, as_json: bool) -> int | None:
    """The limit of a list: what was asked for, else 20 for people and none for programs."""
    return limit if limit is not None or as_json else _SHOWN


def read_settings(data_dir: Path | None, namespace: str | None) -> tuple[Settings, Scope]:
    """The settings of a command, and the scope it works in."""
    settings = load_settings(data_dir=data_dir, namespace=namespace)
    start_logging(settings.log_level)
    return settings, Scope(namespace=settings.namespace)


def iso(moment: datetime) -> str:
    """A time as the tools write it."""
    return moment.isoformat().replace("+00:00", "Z")


def print_json(value: object) -> None:
    """Print JSON to stdout."""
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2, default=str))


def as_json_line(value: object) -> str:
    """JSON on one line, for a value within a text."""
    return json.dumps(value, ensure_ascii=False)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str) -> None:
    """Print a table for people, or say that there is nothing."""
    from rich.table import Table  # noqa: PLC0415  as above
    from rich.text import Text  # noqa: PLC0415  as above

    if not rows:
        typer.echo(empty)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    console().print(table)


@contextmanager
def progress_bar(what: str) -> Generator[Callable[[int, int], None]]:
    """A bar on stderr for work that may take long; what it yields is told how much is done, and of how much."""
    from rich.progress import Progress  # noqa: PLC0415  as above

    with Progress(console=console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def when(moment: datetime) -> str:
    """A time as people read it, in their own zone."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M")


def fail(text: str) -> None:
    """Print an error and end with status 1."""
    typer.echo(f"Error: {text}", err=True)
    sys.exit(1)
