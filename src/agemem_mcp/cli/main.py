"""The root command: groups its own commands and those of other packages, and reports errors."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.metadata import entry_points
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from agemem_mcp._version import __version__
from agemem_mcp.cli.output import fail
from agemem_mcp.errors import AgeMemError

ENTRY_POINT_GROUP = "agemem_mcp.commands"
"""Each entry point is a ``typer.Typer``; its name is the command. Loaded only when called or listed."""


_OWN = ("serve", "daemon", "memories", "sessions", "reindex", "assets", "doctor", "demo")
"""Each is a module beside this one with a ``typer.Typer`` named ``app``."""


class _OnDemand(TyperGroup):
    """Loads a command when it is called or listed: `serve` must not wait for what the others import.

    Commands of other packages are found by entry point, so that nothing imports upward.
    """

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ANN401, ARG002  typer's own context
        return [*_OWN, *sorted(_offered())]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ANN401, ARG002  typer's own types
        if cmd_name in _OWN:
            loaded = import_module(f"agemem_mcp.cli.{cmd_name}").app
        elif cmd_name in _offered():
            loaded = _offered()[cmd_name].load()
        else:
            return None
        command = typer.main.get_command(loaded)
        command.name = cmd_name
        return command


def _offered() -> dict[str, Any]:
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}


app = typer.Typer(
    name="agemem-mcp",
    cls=_OnDemand,
    help="Memory for any MCP client: long-term and short-term, managed by six tools.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:  # noqa: FBT001  typer calls it
    if wanted:
        typer.echo(f"agemem-mcp {__version__}")
        raise typer.Exit


@app.callback()
def root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Memory for any MCP client."""


def run() -> None:
    """Run the command line; errors raised on purpose end it with their text and status 1."""
    try:
        app()
    except AgeMemError as error:
        fail(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
