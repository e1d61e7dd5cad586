"""``agemem-mcp serve``: the MCP server, over stdio or HTTP."""

from __future__ import annotations

import json
import re
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from agemem_mcp.app import service_gate
from agemem_mcp.cli.output import DataDir, Namespace, resume_garbage_collection, run_async, start_logging
from agemem_mcp.domain.memory import Scope
from agemem_mcp.settings import load_settings

if TYPE_CHECKING:
    from agemem_mcp.server.tools import ToolOffer
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
    if transport is Transport.STDIO:
        from agemem_mcp.server.stdio import serve_stdio  # noqa: PLC0415  HTTP does not need it

        scope = Scope(namespace=settings.namespace)
        run_async(serve_stdio(service_gate(settings), scope=scope, offer=_offer(settings)))
    else:
        _serve_http(settings, insecure=insecure)


def _serve_http(settings: Settings, *, insecure: bool) -> None:
    from agemem_mcp.server.http import HttpOptions, build_app, run  # noqa: PLC0415  stdio must not wait for it

    options = HttpOptions(
        host=settings.host,
        port=settings.port,
        namespace=settings.namespace,
        offer=_offer(settings),
        token=None if settings.token is None else settings.token.get_secret_value(),
        allowed_hosts=tuple(settings.allowed_hosts),
        insecure=insecure,
    )
    resume_garbage_collection()
    application = build_app(options, service_gate(settings))
    run(application, options, announce=lambda url: typer.echo(_how_to_register(url, settings), err=True))


def _offer(settings: Settings) -> ToolOffer:
    from agemem_mcp.server.tools import ToolOffer  # noqa: PLC0415  `--help` must not wait for the SDK

    return ToolOffer(tools=settings.tools, lives=settings.context.lives)


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
    if everywhere and not settings.allowed_hosts:
        lines.append("  From other machines: name this one as they do, with --allowed-host NAME.")
    return "\n".join([*lines, "Stop with Ctrl-C."])
