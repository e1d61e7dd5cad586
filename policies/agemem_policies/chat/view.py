"""Showing a chat as it goes on."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from agemem_policies.chat.lines import harmless_text, meter, one_line, operation_line, stopped
from agemem_policies.chat.prose import Prose
from agemem_policies.events import ContextChanged, Corrected, Observed, Said, Thought

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agemem_policies.events import Event
    from agemem_policies.steps import Trajectory

_INDENT = 2
_LONGEST_CELL = 200
PROMPT = "you> "


class _Terminal(Console):
    """Where people read."""

    def on_broken_pipe(self) -> None:
        """Nobody reads any more (``| head``): what has begun is finished all the same, unseen."""
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def terminal() -> Console:
    """Where people read; plain when it is not a terminal."""
    return _Terminal(highlight=False, markup=False, emoji=False)


class View:
    """Prints what happens."""

    def __init__(self, console: Console, *, show_thoughts: bool = False) -> None:
        """Set it up.

        Args:
            console: see :func:`terminal`.
            show_thoughts: print what the policy thinks, too.
        """
        self.console = console
        self._show_thoughts = show_thoughts
        self._ascii_only = console.options.ascii_only
        self._prose: Prose | None = None
        self._kind: type[Said | Thought] | None = None
        self._answered = False
        self._budget_tokens = 0

    def heard(self, event: Event) -> None:
        """Show what an agent tells."""
        match event:
            case Said() | Thought():
                self._flow(event)
            case Observed():
                self.settle()
                self._answered = False
                width = self.console.width - _INDENT if self.console.is_terminal else None
                arrow = "->" if self._ascii_only else "→"
                line = operation_line(event.call, event.observation, width=width, arrow=arrow)
                self._line(Text(" " * _INDENT).append_text(line))
            case Corrected():
                self.settle()
                self.note(f"{' ' * _INDENT}(asked to write its turn again: {one_line(event.text, 300)})")
            case ContextChanged():
                self._budget_tokens = event.budget_tokens
            case _:
                pass

    def ended(self, trajectory: Trajectory) -> None:
        """Show how a run ended."""
        if trajectory.answer and not self._answered:
            self._flow(Said(trajectory.answer))
        self.settle()
        if (sentence := stopped(trajectory.stop_reason)) is not None:
            self._line(Text(sentence, style="yellow"))
        if self._budget_tokens:
            self.meter(trajectory.context_tokens, self._budget_tokens)
        self._answered = False

    def settle(self) -> None:
        """End the line that is being written."""
        if self._prose is not None:
            self._prose.end()
        self._prose = None

    def broken_off(self) -> None:
        """Show that a run was cancelled."""
        self.settle()
        self._answered = False
        self.note("Cancelled.")

    def failed(self, error: Exception) -> None:
        """Show what went wrong."""
        self.settle()
        self._answered = False
        self._line(Text(f"Error: {harmless_text(str(error))}", style="red"))

    def typed(self, line: str) -> None:
        """Show a line as if a person had typed it."""
        self.console.print()
        self._line(Text(PROMPT, style="bold").append(harmless_text(line), style="not bold"))

    def say(self, text: str) -> None:
        """Print a sentence of the chat's own."""
        self._line(Text(harmless_text(text)))

    def note(self, text: str) -> None:
        """Print something of minor interest."""
        self._line(Text(harmless_text(text), style="dim"))

    def meter(self, tokens: int, budget_tokens: int) -> None:
        """Print how full the context is."""
        bar = meter(tokens, budget_tokens, ascii_only=self._ascii_only)
        self._line(Text(" " * _INDENT).append_text(bar))

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table; its last column takes the room there is."""
        shown = [[one_line(cell, _LONGEST_CELL) for cell in row] for row in (columns, *rows)]
        widths = [max(cell_len(row[number]) for row in shown) for number in range(len(columns) - 1)]
        for row in shown:
            line = Text(style="bold" if row is shown[0] else "")
            for cell, width in zip(row[:-1], widths, strict=True):
                line.append(cell + " " * (width - cell_len(cell) + 2))
            line.append(row[-1])
            if self.console.is_terminal:
                line.truncate(self.console.width, overflow="ellipsis")
            self._line(line)

    def _flow(self, event: Said | Thought) -> None:
        """Go on with what is being said or thought, or begin it."""
        thought = isinstance(event, Thought)
        if thought and not self._show_thoughts:
            return
        if self._prose is None or self._kind is not type(event):
            self.settle()
            self._kind = type(event)
            self._prose = Prose(self.console, style="dim" if thought else "")
        self._prose.feed(event.text)
        self._answered = self._answered or not thought

    def _line(self, line: Text) -> None:
        # Wrapped for a terminal; in a file a line stays one.
        self.console.print(line, soft_wrap=not self.console.is_terminal)
