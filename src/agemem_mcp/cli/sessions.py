"""``agemem-mcp sessions``: look at short-term contexts and bring back what left them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from agemem_mcp.app import open_archive
from agemem_mcp.cli.asking import ask
from agemem_mcp.cli.output import (
    DataDir,
    Json,
    Limit,
    Namespace,
    print_json,
    print_table,
    read_settings,
    shown_limit,
    when,
)
from agemem_mcp.domain.context import MessageState
from agemem_mcp.process import run_async
from agemem_mcp.server.render import iso

if TYPE_CHECKING:
    from agemem_mcp.domain.context import Message, Session

app = typer.Typer(
    help="Look at short-term contexts and bring back what left them.", no_args_is_help=True, rich_markup_mode=None
)
SessionId = Annotated[str, typer.Argument(help="Such as ctx_….")]


@app.command("list")
def list_sessions(
    data_dir: DataDir = None, namespace: Namespace = None, limit: Limit = None, json: Json = False
) -> None:
    """List sessions that have not expired, last used first."""
    settings, scope = read_settings(data_dir, namespace)

    async def work() -> list[Session]:
        async with open_archive(settings) as archive:
            return await archive.sessions.list_sessions(scope, limit=shown_limit(limit, as_json=json))

    found = run_async(work())
    if json:
        print_json(
            [
                {
                    "session_id": one.session_id,
                    "created_at": iso(one.created_at),
                    "used_at": iso(one.used_at),
                    "expires_at": iso(one.expires_at),
                }
                for one in found
            ]
        )
        return
    rows = [(one.session_id, when(one.created_at), when(one.used_at), when(one.expires_at)) for one in found]
    print_table(("session", "created", "used", "expires"), rows, empty="No sessions here.")


@app.command()
def show(
    session_id: SessionId,
    data_dir: DataDir = None,
    namespace: Namespace = None,
    limit: Limit = None,
    all_: Annotated[bool, typer.Option("--all", help="Summarised and filtered messages too.")] = False,
    json: Json = False,
) -> None:
    """Show the messages of a session's context."""
    settings, scope = read_settings(data_dir, namespace)

    async def work() -> list[Message]:
        async with open_archive(settings) as archive:
            return await archive.sessions.messages(scope, session_id)

    messages = [one for one in run_async(work()) if all_ or one.state is MessageState.ACTIVE]
    messages = messages[: shown_limit(limit, as_json=json)]
    if json:
        print_json([_fields(message) for message in messages])
        return
    for message in messages:
        state = "" if message.state is MessageState.ACTIVE else f" ({message.state.value})"
        typer.secho(f"{message.message_id} {message.role.value}{state}, {message.tokens} tokens", bold=True)
        typer.echo(message.content)
    if not messages:
        typer.echo("The context is empty.")


@app.command()
def restore(
    session_id: SessionId,
    message_ids: Annotated[list[str] | None, typer.Argument(help="Which messages; all if left out.")] = None,
    data_dir: DataDir = None,
    namespace: Namespace = None,
    json: Json = False,
) -> None:
    """Bring summarised and filtered messages back into a session's context."""
    settings, _ = read_settings(data_dir, namespace)

    restored = ask(settings, "restore_context", session_id=session_id, message_ids=message_ids or None)
    if json:
        print_json({"session_id": session_id, "restored": restored})
        return
    typer.echo(f"Restored {', '.join(restored)}." if restored else "There was nothing to restore.")


def _fields(message: Message) -> dict[str, Any]:
    return {
        "message_id": message.message_id,
        "role": message.role.value,
        "content": message.content,
        "created_at": iso(message.created_at),
        "state": message.state.value,
        "tokens": message.tokens,
    }
