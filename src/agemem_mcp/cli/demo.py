"""``agemem-mcp demo``: a small story through all six tools, against a running or an in-process server."""

from __future__ import annotations

import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agemem_mcp.app import service_gate
from agemem_mcp.cli.output import DataDir, Json, print_json
from agemem_mcp.domain.memory import Scope
from agemem_mcp.errors import AgeMemError, ProviderError, StoreError
from agemem_mcp.process import run_async, start_logging
from agemem_mcp.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from mcp.client.client import Client

    from agemem_mcp.settings import Settings

_DEMO_NAMESPACE = "demo"


app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def demo(
    url: Annotated[
        str | None,
        typer.Option(help="A running server, such as http://127.0.0.1:8000/mcp; without it, one in this process."),
    ] = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Show what the six tools do, on a small story in a namespace of its own."""
    settings = load_settings(data_dir=data_dir)
    start_logging(settings.log_level)
    kept = data_dir is not None
    try:
        steps = run_async(_story(settings, url, quiet=json, kept=kept))
    except BaseExceptionGroup as group:
        raise _cause(group, url) from group
    if json:
        print_json(steps)


def _cause(group: BaseException, url: str | None) -> BaseException:
    """What happened; where a server could not be used, an error that says so."""
    from agemem_mcp.server.clients import cause_of  # noqa: PLC0415  slow to import

    error = cause_of(group)
    if url is None or isinstance(error, AgeMemError) or not isinstance(error, Exception):
        return error
    return ProviderError(
        f"No memory server could be used at {url} ({error}). Check that `agemem-mcp serve --transport http` runs "
        f"there, that the URL ends in /mcp, and that AGEMEM_TOKEN is set if that server wants a token."
    )


async def _story(settings: Settings, url: str | None, *, quiet: bool, kept: bool) -> list[dict[str, Any]]:
    async with _client(settings, url, kept=kept) as client:
        teller = _Teller(client, quiet=quiet)
        await _tell(teller)
        return teller.steps


async def _tell(teller: _Teller) -> None:
    teller.say("A new fact is worth keeping:")
    trip = await teller.call(
        "Add_memory",
        content="Maya's flight to Lisbon leaves on 3 May at 07:40.",
        memory_type="event",
        metadata={"title": "Lisbon trip"},
    )
    guest = await teller.call("Add_memory", content="Maya is allergic to peanuts.", memory_type="fact")
    await teller.call("Add_memory", content="Maya's sister Ines lives in Porto.", memory_type="fact")
    teller.say("The flight was moved. The memory is updated, its first version stays in the history:")
    await teller.call(
        "Update_memory",
        memory_id=trip["memory_id"],
        content="Maya's flight to Lisbon leaves on 4 May at 09:15.",
    )
    teller.say("Later, in another conversation. Searching opens a session, and the hits enter its context:")
    found = await teller.call("Retrieve_memory", query="When does Maya fly to Portugal?", top_k=2)
    session = found["session_id"]
    teller.say("The conversation goes on, with some detours:")
    await teller.call(
        "Append_context",
        session_id=session,
        messages=[
            {"role": "user", "content": "Book a table in Lisbon for the evening of her arrival."},
            {"role": "assistant", "content": "Table for two at Tasca do Miguel, 4 May, 20:00, booked under Maya."},
            {"role": "user", "content": "By the way, how do I descale a coffee machine?"},
            {"role": "assistant", "content": "Run the coffee machine twice with citric acid, then twice with water."},
        ],
    )
    teller.say("The detour only takes up room. It is filtered out:")
    await teller.call("Filter_context", criteria="descaling the coffee machine", session_id=session)
    teller.say("The rest is condensed into a summary, written by the model itself:")
    await teller.call(
        "Summary_context",
        span="all",
        summary="Maya flies to Lisbon 4 May 09:15; table for two at Tasca do Miguel, 4 May 20:00.",
        session_id=session,
    )
    await teller.call("Show_context", session_id=session)
    teller.say("Something that turned out to be wrong is deleted (and could be restored):")
    await teller.call("Delete_memory", memory_id=guest["memory_id"], confirmation=True)


class _Teller:
    """Calls tools and shows each call with its answer."""

    def __init__(self, client: Client, *, quiet: bool) -> None:
        self._client = client
        self._quiet = quiet
        self.steps: list[dict[str, Any]] = []

    def say(self, text: str) -> None:
        """Tell what comes next."""
        if not self._quiet:
            typer.echo(f"\n{text}")

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:  # noqa: ANN401  a tool's arguments
        """Call a tool; an error of the tool ends the demo."""
        result = await self._client.call_tool(tool, arguments)
        text = "\n".join(getattr(part, "text", "") for part in result.content)
        if result.is_error:
            raise StoreError(text)
        structured: dict[str, Any] = result.structured_content or {}
        self.steps.append({"tool": tool, "arguments": arguments, "text": text, "result": structured})
        if not self._quiet:
            shown = ", ".join(f"{name}={_short(value)}" for name, value in arguments.items())
            typer.secho(f"  {tool}({shown})", bold=True)
            typer.echo("".join(f"    {line}\n" for line in text.splitlines()), nl=False)
        return structured


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 70 else text[:69] + "…"  # noqa: PLR2004  one line


@asynccontextmanager
async def _client(settings: Settings, url: str | None, *, kept: bool) -> AsyncGenerator[Client]:
    from agemem_mcp.server.clients import client_at, client_in_process  # noqa: PLC0415  slow to import

    if url is not None:
        token = None if settings.token is None else settings.token.get_secret_value()
        async with client_at(url, token=token, namespace=_DEMO_NAMESPACE) as client:
            yield client
        return
    with tempfile.TemporaryDirectory(prefix="agemem-demo-") as folder:
        # The demo leaves nothing behind, unless it was told where.
        here = settings if kept else settings.model_copy(update={"data_dir": Path(folder) / "data"})
        gate = service_gate(here)
        try:
            async with client_in_process(gate, Scope(namespace=_DEMO_NAMESPACE)) as client:
                yield client
        finally:
            await gate.close()
