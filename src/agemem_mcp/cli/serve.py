"""``agemem-mcp serve``: the MCP server, over stdio or HTTP."""

from __future__ import annotations

import json
import re
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from agemem_mcp.app import service_gate
from agemem_mcp.cli.asking import NoOwner, answer, reach
from agemem_mcp.cli.output import DataDir, Namespace
from agemem_mcp.errors import StoreError
from agemem_mcp.link import pipe
from agemem_mcp.owner.owned import owned
from agemem_mcp.owner.owner import Owner
from agemem_mcp.owner.standard_streams import serve_standard_streams
from agemem_mcp.process import run_async, start_logging
from agemem_mcp.settings import load_settings

if TYPE_CHECKING:
    from agemem_mcp.settings import Settings


class Transport(StrEnum):
    """How clients connect."""

    STDIO = "stdio"
    HTTP = "http"


class Tools(StrEnum):
    """Which tools are offered."""

    SIX = "six"
    ALL = "all"


app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def serve(
    transport: Annotated[Transport, typer.Option(help="How clients connect.")] = Transport.STDIO,
    host: Annotated[str | None, typer.Option(help="HTTP: address (127.0.0.1).", show_default=False)] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="HTTP: port (8000).", show_default=False)] = None,
    data_dir: DataDir = None,
    namespace: Namespace = None,
    tools: Annotated[
        Tools | None, typer.Option(help="'six' leaves out the two context helpers.", show_default=False)
    ] = None,
    allowed_host: Annotated[
        list[str] | None, typer.Option(help="HTTP: a host name clients may use; repeatable.", show_default=False)
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="HTTP: listen beyond this machine without a token.")
    ] = False,
    no_daemon: Annotated[
        bool, typer.Option("--no-daemon", help="stdio: open the memory in this process, not in a daemon.")
    ] = False,
) -> None:
    """Serve the memory to MCP clients."""
    settings = load_settings(
        host=host,
        port=port,
        data_dir=data_dir,
        namespace=namespace,
        tools=None if tools is None else tools.value,
        allowed_hosts=allowed_host or None,
    )
    start_logging(settings.log_level)
    if transport is Transport.HTTP:
        _serve_http(settings, insecure=insecure)
    elif no_daemon:
        _serve_stdio(settings)
    else:
        # The console script is a pipe before it comes here; this is for those who call the command line otherwise.
        options = {"--data-dir": str(settings.data_dir), "--namespace": settings.namespace, "--tools": settings.tools}
        status = pipe.serve(options)
        if status is None:
            _serve_stdio(settings)
        raise typer.Exit(status or 0)


def _serve_stdio(settings: Settings) -> None:
    """Serve stdin and stdout within this process; others can still connect to it while it lives."""
    with owned(settings) as locked:
        gate = service_gate(settings, locked=locked)
        owner = Owner(settings, gate, kind="stdio")
        run_async(owner.run(also=lambda: serve_standard_streams(owner), alone=not locked))


def _serve_http(settings: Settings, *, insecure: bool) -> None:
    with owned(settings) as locked:
        if not locked and _listens_elsewhere(settings, insecure=insecure):
            return
        # FastAPI and its server: stdio must not wait for them.
        from agemem_mcp.owner.listening import listening  # noqa: PLC0415

        owner = Owner(settings, service_gate(settings, locked=locked), kind="http")

        async def serve_http() -> None:
            async with listening(owner, settings, insecure=insecure) as url:
                typer.echo(_how_to_register(url, settings), err=True)
                await owner.until_ending()

        run_async(owner.run(also=serve_http, alone=not locked))


def _listens_elsewhere(settings: Settings, *, insecure: bool) -> bool:
    """Have the process that owns the memory serve it over HTTP while this one runs; False if nobody owns it."""
    given = {"host": settings.host, "port": str(settings.port), "tools": settings.tools}
    given["allowed_hosts"] = ",".join(settings.allowed_hosts)
    try:
        link = reach(settings, start=False, **given)
    except NoOwner:
        return False
    for note in link.notes:
        typer.echo(f"agemem-mcp: {note}", err=True)
    typer.echo(f"Process {link.owner.pid} owns this memory already: it serves HTTP while this command runs.", err=True)
    answer(
        link,
        {"do": "listen", "insecure": insecure},
        lambda url, _, __: typer.echo(_how_to_register(url, settings), err=True),
    )
    msg = f"The process that served the memory ({link.owner.pid}) ended. Start this command again."
    raise StoreError(msg)


def _how_to_register(url: str, settings: Settings) -> str:
    everywhere = settings.host in ("0.0.0.0", "::")  # noqa: S104  compared, not bound
    url = re.sub(r"//(0\.0\.0\.0|\[::\])", "//127.0.0.1", url)
    cursor: dict[str, object] = {"url": f"{url}/mcp"}
    code: dict[str, object] = {"type": "http", **cursor}
    option = ""
    if settings.token is not None:
        cursor["headers"] = code["headers"] = {"Authorization": "Bearer TOKEN"}
        option = ' --header "Authorization: Bearer $AGEMEM_TOKEN"'
    lines = [
        f"agemem-mcp serves {settings.data_dir} at {url}/mcp",
        f"  Claude Code:  claude mcp add --transport http agemem {url}/mcp{option}",
        f"  Cursor:       {json.dumps({'mcpServers': {'agemem': cursor}})} in .cursor/mcp.json",
        f"  VS Code:      {json.dumps({'servers': {'agemem': code}})} in .vscode/mcp.json",
        f"  Check:        curl {url}/readyz",
        f"  Try it:       agemem-mcp demo --url {url}/mcp",
    ]
    if settings.policy.name is not None:
        lines.append(f"  OpenAI:       base_url {url}/v1, model agemem")
    if everywhere and not settings.allowed_hosts:
        lines.append("  From other machines: name this one as they do, with --allowed-host NAME.")
    return "\n".join([*lines, "Stop with Ctrl-C."])
