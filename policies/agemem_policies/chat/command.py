"""``agemem-mcp chat``: the options, and what they ask for."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agemem_mcp.cli.output import DataDir, Json, Namespace
from agemem_mcp.errors import ConfigurationError, InvalidOperation
from agemem_mcp.process import resume_garbage_collection, start_logging
from agemem_mcp.settings import load_settings
from agemem_policies.budget import Overflow

if TYPE_CHECKING:
    from agemem_mcp.settings import Settings

TOUR_POLICY = "scripted:tour"
_FORMS = (
    "Name one with --policy or AGEMEM_POLICY__NAME: openai:MODEL@URL for an OpenAI-compatible endpoint, hf:PATH for a "
    "model on this disk, scripted:NAME for one that is written beforehand (scripted:tour shows what a chat is)."
)

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the command line asks for."""

    settings: Settings
    policy: str
    passing: bool
    """Whether the memory is to vanish with the chat."""
    url: str | None
    session_id: str | None
    kit: str
    overflow: Overflow
    strict: bool
    messages: list[str] | None
    """What is said; None to ask a person."""
    tour: bool
    """Whether they tell a story, in which lines with a slash are commands."""
    as_json: bool
    show_thoughts: bool


@app.command()
def chat(
    policy: Annotated[
        str | None,
        typer.Option(help="openai:MODEL@URL, hf:PATH or scripted:NAME (AGEMEM_POLICY__NAME).", show_default=False),
    ] = None,
    data_dir: DataDir = None,
    namespace: Namespace = None,
    url: Annotated[
        str | None,
        typer.Option(help="Memory of a running server, such as http://127.0.0.1:8000/mcp.", show_default=False),
    ] = None,
    session: Annotated[str | None, typer.Option(help="Go on with this session.", show_default=False)] = None,
    kit: Annotated[str, typer.Option(help="Tools: agemem, agemem_ltm, agemem_rag, rag or no_memory.")] = "agemem",
    overflow: Annotated[
        Overflow, typer.Option(help="What is done when the context does not fit.")
    ] = Overflow.SUMMARISE,
    strict: Annotated[bool, typer.Option("--strict", help="Take only turns in exactly the protocol's form.")] = False,
    message: Annotated[
        list[str] | None, typer.Option(help="Say this and end; repeatable. Or write to stdin.", show_default=False)
    ] = None,
    show_thoughts: Annotated[bool, typer.Option("--show-thoughts", help="Show what it thinks.")] = False,
    json: Json = False,
) -> None:
    """Talk with a model that manages its own memory, and see what it does to it."""
    _forgive_characters()
    settings = load_settings(data_dir=data_dir, namespace=namespace)
    start_logging(settings.log_level)
    name = policy or settings.policy.name
    if not name:
        msg = f"There is no policy to talk with. {_FORMS}"
        raise ConfigurationError(msg)
    wishes = Wishes(
        settings=settings,
        policy=name,
        passing=name == TOUR_POLICY and data_dir is None and namespace is None and url is None,
        url=url,
        session_id=None if session is None else _whole(session),
        kit=kit,
        overflow=overflow,
        strict=strict,
        messages=_given(name, message, as_json=json),
        tour=name == TOUR_POLICY and not message,
        as_json=json,
        show_thoughts=show_thoughts,
    )
    # What a chat needs is loaded once it is wanted: the list of commands loads this file.
    from agemem_policies.chat.running import run  # noqa: PLC0415

    resume_garbage_collection()
    run(wishes)


def _forgive_characters() -> None:
    """Whatever a model writes and whatever is typed: no character that an encoding lacks ends the chat."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        reconfigure: Any = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")


def _whole(text: str) -> str:
    """The text of an argument whose bytes the locale could not read: they stand in it as halves of characters."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _given(policy: str, messages: list[str] | None, *, as_json: bool) -> list[str] | None:
    """What is said without asking a person; None to ask one."""
    if messages:
        return [_whole(one) for one in messages]
    if policy == TOUR_POLICY:
        from agemem_policies.scripted import TOUR  # noqa: PLC0415  as above

        return list(TOUR)
    if not sys.stdin.isatty():
        text = sys.stdin.read()
        if not text.strip():
            msg = "Nothing was said: stdin is empty. Write the message to it, or give --message."
            raise InvalidOperation(msg)
        return [text]
    if as_json:
        msg = "--json is for chats without a person: give --message, or write the message to stdin."
        raise InvalidOperation(msg)
    return None
