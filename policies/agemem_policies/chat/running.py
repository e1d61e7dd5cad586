"""A chat from its first line to its last: what it needs is opened, used and closed again."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from anyio.from_thread import start_blocking_portal

from agemem_mcp.errors import InvalidOperation
from agemem_policies.agent import AgentOptions
from agemem_policies.baselines import kit_named
from agemem_policies.chat.background import Background
from agemem_policies.chat.conversation import Conversation
from agemem_policies.chat.keyboard import Keyboard
from agemem_policies.chat.places import FolderPlace, PassingPlace, ServerPlace
from agemem_policies.chat.reciting import recite
from agemem_policies.chat.talking import Talk
from agemem_policies.chat.undoing import Undoing, Witness
from agemem_policies.chat.view import View, terminal
from agemem_policies.session import SessionContext

if TYPE_CHECKING:
    from collections.abc import Generator

    from anyio.from_thread import BlockingPortal

    from agemem_policies.chat.command import Wishes
    from agemem_policies.chat.places import Place
    from agemem_policies.memory import MemoryTools
    from agemem_policies.policy import Policy


def run(wishes: Wishes) -> None:
    """Chat as it is wished.

    Raises:
        AgeMemError: what is needed cannot be opened, or the model or the memory failed in a chat without a person.
    """
    options = AgentOptions(kit=kit_named(wishes.kit), overflow=wishes.overflow, strict=wishes.strict)
    view = View(terminal(), show_thoughts=wishes.show_thoughts)
    policy = _policy(wishes)
    place = _place(wishes)
    with ExitStack() as stack:
        portal = stack.enter_context(start_blocking_portal())
        stack.callback(portal.call, policy.close)

        def connect() -> MemoryTools:
            return stack.enter_context(_connection(portal, place))

        witness = Witness(connect())
        background = Background(portal)
        context = None
        if (session_id := wishes.session_id) is not None:
            context = background.wait_for(lambda: _taken_up(witness, session_id))
        conversation = Conversation(policy, witness, options, session_id)
        if wishes.messages is not None:
            recite(wishes, conversation, background, view)
        else:
            _greet(view, policy, place, context)
            undoing = Undoing(place, witness, datetime.now(UTC))
            with Keyboard(place.history) as keyboard:
                Talk(place, conversation, witness, undoing, background, view, connect).go_on(keyboard)
        if conversation.session_id is not None and not (wishes.as_json or wishes.passing):
            view.note(f"--session {conversation.session_id} goes on with this conversation.")


@contextmanager
def _connection(portal: BlockingPortal, place: Place) -> Generator[MemoryTools]:
    connection = portal.wrap_async_context_manager(place.tools())
    tools = connection.__enter__()
    try:
        yield tools
    finally:
        # One that was lost fails again when it is closed. Whoever needed it was told when it was lost.
        with suppress(Exception):
            connection.__exit__(None, None, None)


def _policy(wishes: Wishes) -> Policy:
    # Imported when it is known that there is a chat: some policies load much.
    from agemem_policies.choosing import make_policy  # noqa: PLC0415

    chosen = wishes.settings.policy
    key = None if chosen.api_key is None else chosen.api_key.get_secret_value()
    return make_policy(wishes.policy, api_key=key, native=chosen.native)


def _place(wishes: Wishes) -> Place:
    if wishes.url is not None:
        return ServerPlace(wishes.settings, wishes.url)
    return PassingPlace(wishes.settings) if wishes.passing else FolderPlace(wishes.settings)


async def _taken_up(tools: MemoryTools, session_id: str) -> SessionContext:
    """What the session holds: there must be one before anybody says anything."""
    try:
        return await SessionContext.resume(tools, session_id)
    except InvalidOperation as error:
        # What a model is told to do about it is nothing for a person.
        why = str(error).partition(" Call ")[0]
        msg = f"{why} `agemem-mcp sessions list` shows those alive; without --session a new one begins."
        raise InvalidOperation(msg) from error


def _greet(view: View, policy: Policy, place: Place, context: SessionContext | None) -> None:
    view.say(f"You talk with {policy.name}. Its memory: {place.title}.")
    if context is not None:
        view.meter(context.tokens, context.budget_tokens)
    view.note("/help lists the commands, /quit ends.")
