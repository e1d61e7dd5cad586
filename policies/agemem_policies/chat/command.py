"""``agemem-mcp chat``: the options, and which kind of chat they ask for."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from agemem_mcp.cli.output import DataDir, Json, Namespace, print_json
from agemem_mcp.errors import AgeMemError, ConfigurationError, InvalidOperation
from agemem_mcp.process import resume_garbage_collection, start_logging
from agemem_mcp.settings import load_settings
from agemem_policies.budget import Overflow

if TYPE_CHECKING:
    from agemem_mcp.settings import Settings
    from agemem_policies.chat.background import Background
    from agemem_policies.chat.conversation import Conversation
    from agemem_policies.chat.places import Place
    from agemem_policies.chat.undoing import Witness
    from agemem_policies.chat.view import View
    from agemem_policies.events import OnEvent
    from agemem_policies.policy import Policy

_TOUR = "scripted:tour"
_FORMS = (
    "Name one with --policy or AGEMEM_POLICY__NAME: openai:MODEL@URL for an OpenAI-compatible endpoint, hf:PATH for a "
    "model on this disk, scripted:NAME for one that is written beforehand (scripted:tour shows what a chat is)."
)

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@dataclass(frozen=True, slots=True)
class _Wishes:
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
    as_json: bool
    show_thoughts: bool


@app.command()
def chat(
    policy: Annotated[
        str | None,
        typer.Option(
            help="openai:MODEL@URL, hf:PATH or scripted:NAME (AGEMEM_POLICY__NAME).",
            show_default=False,
        ),
    ] = None,
    data_dir: DataDir = None,
    namespace: Namespace = None,
    url: Annotated[
        str | None,
        typer.Option(help="Memory of a running server, such as http://127.0.0.1:8000/mcp.", show_default=False),
    ] = None,
    session: Annotated[str | None, typer.Option(help="Go on with this session.", show_default=False)] = None,
    kit: Annotated[str, typer.Option(help="Tools: agemem, agemem_rag, rag or no_memory.")] = "agemem",
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
    settings = load_settings(data_dir=data_dir, namespace=namespace)
    start_logging(settings.log_level)
    name = policy or settings.policy.name
    if not name:
        msg = f"There is no policy to talk with. {_FORMS}"
        raise ConfigurationError(msg)
    passing = name == _TOUR and data_dir is None and namespace is None and url is None
    wishes = _Wishes(
        settings=settings,
        policy=name,
        passing=passing,
        url=url,
        session_id=session,
        kit=kit,
        overflow=overflow,
        strict=strict,
        messages=_given(name, message, as_json=json),
        as_json=json,
        show_thoughts=show_thoughts,
    )
    resume_garbage_collection()
    _run(wishes)


def _given(policy: str, messages: list[str] | None, *, as_json: bool) -> list[str] | None:
    """What is said without asking a person; None to ask one."""
    if messages:
        return messages
    if policy == _TOUR:
        from agemem_policies.scripted import TOUR  # noqa: PLC0415  what a chat needs is loaded once it is wanted

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


def _run(wishes: _Wishes) -> None:
    """Open what is needed, and chat."""
    from anyio.from_thread import start_blocking_portal  # noqa: PLC0415  as above

    from agemem_policies.agent import AgentOptions  # noqa: PLC0415  as above
    from agemem_policies.baselines import kit_named  # noqa: PLC0415  as above
    from agemem_policies.chat.background import Background  # noqa: PLC0415  as above
    from agemem_policies.chat.conversation import Conversation  # noqa: PLC0415  as above
    from agemem_policies.chat.undoing import Witness  # noqa: PLC0415  as above
    from agemem_policies.chat.view import View, terminal  # noqa: PLC0415  as above

    options = AgentOptions(kit=kit_named(wishes.kit), overflow=wishes.overflow, strict=wishes.strict)
    view = View(terminal(), show_thoughts=wishes.show_thoughts)
    policy = _policy(wishes)
    place = _place(wishes)
    with ExitStack() as stack:
        portal = stack.enter_context(start_blocking_portal())
        stack.callback(portal.call, policy.close)
        witness = Witness(stack.enter_context(portal.wrap_async_context_manager(place.tools())))
        background = Background(portal)
        conversation = Conversation(policy, witness, options, wishes.session_id)
        if wishes.session_id is not None:
            _look_up(background, witness, wishes.session_id)
        if wishes.messages is None:
            _talk(place, conversation, witness, background, view)
        else:
            _recite(wishes, conversation, background, view)


def _policy(wishes: _Wishes) -> Policy:
    from agemem_policies.choosing import make_policy  # noqa: PLC0415  as above

    key = wishes.settings.policy.api_key
    return make_policy(
        wishes.policy,
        api_key=None if key is None else key.get_secret_value(),
        native=wishes.settings.policy.native,
    )


def _place(wishes: _Wishes) -> Place:
    from agemem_policies.chat.places import FolderPlace, PassingPlace, ServerPlace  # noqa: PLC0415  as above

    if wishes.url is not None:
        return ServerPlace(wishes.settings, wishes.url)
    return PassingPlace(wishes.settings) if wishes.passing else FolderPlace(wishes.settings)


def _look_up(background: Background, witness: Witness, session_id: str) -> None:
    """Make sure that there is such a session, before anybody says anything."""
    from agemem_policies.session import SessionContext  # noqa: PLC0415  as above

    background.wait_for(lambda: SessionContext.resume(witness, session_id))


def _talk(place: Place, conversation: Conversation, witness: Witness, background: Background, view: View) -> None:
    """With a person."""
    from agemem_policies.chat.keyboard import Keyboard  # noqa: PLC0415  as above
    from agemem_policies.chat.talking import Talk  # noqa: PLC0415  as above
    from agemem_policies.chat.undoing import Undoing  # noqa: PLC0415  as above

    view.say(f"You talk with {conversation.policy.name}. Its memory: {place.title}.")
    view.note("/help lists the commands, /quit ends.")
    undoing = Undoing(place, witness, datetime.now(UTC))
    with Keyboard(place.history) as keyboard:
        Talk(place, conversation, witness, undoing, background, view).go_on(keyboard)
    if conversation.session_id is not None:
        view.note(f"--session {conversation.session_id} goes on with this conversation.")


def _recite(wishes: _Wishes, conversation: Conversation, background: Background, view: View) -> None:
    """Say what was given, one message after the other, until something fails."""
    quiet = wishes.as_json
    on_event: OnEvent = (lambda _: None) if quiet else view.heard
    tour = wishes.policy == _TOUR
    failure: AgeMemError | None = None
    for message in wishes.messages or []:
        if tour and message == "/new":
            conversation.begin_anew()
            if not quiet:
                view.typed(message)
                view.note("A new conversation. What is in long-term memory stays.")
            continue
        if not quiet and (tour or len(wishes.messages or []) > 1):
            view.typed(message)
        try:
            run = background.wait_for(lambda said=message: conversation.say(said, on_event))
        except AgeMemError as error:
            failure = error
            break
        if run.error is not None:
            failure = run.error
            break
        if not quiet:
            view.ended(run)
    if quiet and conversation.exchanges:
        print_json(conversation.fields())
    if failure is not None:
        raise failure
    if not quiet and not wishes.passing:
        view.note(f"--session {conversation.session_id} goes on with this conversation.")
