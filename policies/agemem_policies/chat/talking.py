"""The chat with a person: messages, and commands that begin with a slash."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agemem_mcp.errors import AgeMemError
from agemem_policies.chat.lines import one_line
from agemem_policies.chat.reciting import NEW
from agemem_policies.session import SessionContext
from agemem_policies.steps import StopReason

if TYPE_CHECKING:
    from collections.abc import Callable

    from agemem_policies.chat.background import Background
    from agemem_policies.chat.conversation import Conversation
    from agemem_policies.chat.keyboard import Keyboard
    from agemem_policies.chat.places import Place
    from agemem_policies.chat.undoing import Undoing, Witness
    from agemem_policies.chat.view import View
    from agemem_policies.memory import MemoryTools

_LISTED = 20
_HELP = (
    ("/memories [QUERY]", "what is in long-term memory, or what is found there"),
    ("/context", "what the model has before it"),
    ("/undo", "take the last change of long-term memory back"),
    ("/new", "begin a new conversation; long-term memory stays"),
    ("/help", "this list"),
    ("/quit", "end; Ctrl-D does as well"),
)


class Talk:
    """Reads lines and does what they say, until one of them ends it."""

    def __init__(  # noqa: PLR0913, PLR0917  the parts of a chat
        self,
        place: Place,
        conversation: Conversation,
        witness: Witness,
        undoing: Undoing,
        background: Background,
        view: View,
        connect: Callable[[], MemoryTools],
    ) -> None:
        """Set it up.

        Args:
            place: where the memory is.
            conversation: what was said.
            witness: the memory's tools.
            undoing: takes changes back.
            background: where the loop runs.
            view: where all of it is shown.
            connect: connects to the memory anew.
        """
        self._place = place
        self._conversation = conversation
        self._witness = witness
        self._undoing = undoing
        self._background = background
        self._view = view
        self._connect = connect
        self._lost = False
        self._commands: dict[str, Callable[[str], None]] = {
            "/memories": self._memories,
            "/context": self._context,
            "/undo": self._undo,
            "/new": self._new,
            "/help": self._help,
        }

    def go_on(self, keyboard: Keyboard) -> None:
        """Talk until /quit, Ctrl-D, or Ctrl-C twice at the prompt."""
        view = self._view
        interrupted = False
        while True:
            view.console.print()
            try:
                line = keyboard.read()
            except EOFError:
                view.console.print()
                return
            except KeyboardInterrupt:
                view.console.print()
                if interrupted:
                    return
                interrupted = True
                view.note("Ctrl-C once more ends the chat, as /quit does.")
                continue
            interrupted = False
            if line.strip() in ("/quit", "/exit"):
                return
            if line.strip():
                self.do(line)

    def do(self, line: str) -> None:
        """Carry a command out, or say the line to the policy; whatever goes wrong is shown."""
        view = self._view
        try:
            if line.startswith("/"):
                name, _, rest = line.strip().partition(" ")
                command = self._commands.get(name)
                if command is None:
                    view.say(
                        f"There is no command {one_line(name, 40)}. /help lists them; begin with a space to say it."
                    )
                    return
                command(rest.strip())
                return
            if self._lost:
                # Whoever served the memory has ended; another may be there, or is started.
                self._witness.tools = self._connect()
                self._lost = False
            run = self._background.wait_for(lambda: self._conversation.say(line, view.heard))
        except KeyboardInterrupt:
            view.broken_off()
        except AgeMemError as error:
            view.failed(error)
        else:
            self._lost = run.stop_reason is StopReason.MEMORY_ERROR
            if run.error is not None:
                view.failed(run.error)
            else:
                view.ended(run)

    def _memories(self, query: str) -> None:
        place = self._place
        if query:
            found = self._background.wait_for(lambda: place.search(query, _LISTED))
        else:
            found = self._background.wait_for(lambda: place.listed(_LISTED))
        if not found:
            self._view.say("Nothing was found." if query else "There are no memories here yet.")
            return
        self._view.table(
            ("id", "type", "content"), [(one.memory_id, one.memory_type or "", one.content) for one in found]
        )

    def _context(self, _: str) -> None:
        session_id = self._conversation.session_id
        if session_id is None:
            self._view.say("The context is empty: nothing was said in this conversation yet.")
            return
        context = self._background.wait_for(lambda: SessionContext.resume(self._witness, session_id))
        rows = [
            (one.role.value, "" if one.kind.value == "message" else one.kind.value, f"{one.tokens:,}", one.content)
            for one in context.messages
        ]
        self._view.table(("role", "kind", "tokens", "content"), rows)
        self._view.meter(context.tokens, context.budget_tokens)
        self._view.note(f"  session {session_id}")

    def _undo(self, _: str) -> None:
        self._view.say(self._background.wait_for(self._undoing.undo))

    def _new(self, _: str) -> None:
        self._conversation.begin_anew()
        self._view.note(NEW)

    def _help(self, _: str) -> None:
        for name, meaning in _HELP:
            self._view.say(f"  {name:<19}{meaning}")
        self._view.note("  Ctrl-C breaks off what is under way.")
