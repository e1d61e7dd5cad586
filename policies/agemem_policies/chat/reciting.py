"""A chat without a person: what is said was given beforehand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agemem_mcp.cli.output import print_json
from agemem_mcp.errors import AgeMemError

if TYPE_CHECKING:
    from agemem_policies.chat.background import Background
    from agemem_policies.chat.command import Wishes
    from agemem_policies.chat.conversation import Conversation
    from agemem_policies.chat.view import View
    from agemem_policies.events import Event

NEW = "A new conversation. What is in long-term memory stays."


def recite(wishes: Wishes, conversation: Conversation, background: Background, view: View) -> None:
    """Say what was given, one message after the other, and show it or print it as JSON.

    Raises:
        AgeMemError: the model or the memory failed; what went before was printed.
    """
    try:
        _say_all(wishes, conversation, background, None if wishes.as_json else view)
    except AgeMemError:
        view.settle()
        raise
    finally:
        if wishes.as_json and conversation.exchanges:
            print_json(conversation.fields())


def _say_all(wishes: Wishes, conversation: Conversation, background: Background, view: View | None) -> None:
    messages = wishes.messages or []

    def heard(event: Event) -> None:
        if view is not None:
            view.heard(event)

    for message in messages:
        if view is not None and (wishes.tour or len(messages) > 1):
            view.typed(message)
        if wishes.tour and message == "/new":
            conversation.begin_anew()
            if view is not None:
                view.note(NEW)
            continue
        run = background.wait_for(lambda said=message: conversation.say(said, heard))
        run.raise_for_error()
        if view is not None:
            view.ended(run)
