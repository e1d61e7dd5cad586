"""Writing text that comes in pieces, with words kept whole at the edge of a terminal."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.text import Text

from agemem_policies.chat.lines import harmless_text

if TYPE_CHECKING:
    from rich.console import Console

_PIECES = re.compile(r"\n|[^\S\n]+|\S+")


class Prose:
    """One text, from its first word to :meth:`end`."""

    def __init__(self, console: Console, *, style: str = "") -> None:
        """Set it up.

        Args:
            console: where it is written. Where that is no terminal, lines are as long as they come.
            style: of the whole text.
        """
        self._console = console
        self._style = style
        self._width = console.width if console.is_terminal else None
        self._column = 0
        self._word = ""
        self._space = ""
        """Not written before the next word: a text neither begins nor ends with white space."""
        self.begun = False

    def feed(self, text: str) -> None:
        """Write what is complete of the next piece."""
        for piece in _PIECES.findall(harmless_text(text)):
            if not piece.isspace():
                self._word += piece
                continue
            self._finish_word()
            if self.begun:
                self._space += piece.replace("\t", "    ")

    def end(self) -> None:
        """Write the rest, and end the line."""
        self._finish_word()
        if self.begun:
            self._console.print()

    def _finish_word(self) -> None:
        if not self._word:
            return
        self._write_space()
        self._console.print(Text(self._word, style=self._style), end="", soft_wrap=True)
        self._column += cell_len(self._word)
        if self._width is not None and self._column > self._width:
            # Longer than a line: the terminal broke it where it had to.
            self._column %= self._width
        self._word, self.begun = "", True

    def _write_space(self) -> None:
        breaks = self._space.count("\n")
        kept = self._space.rpartition("\n")[2]
        word = cell_len(self._word)
        if breaks:
            self._console.print("\n" * breaks, end="")
            self._column = 0
        elif self._width is not None and self._column and self._column + len(kept) + word > self._width:
            self._console.print()
            self._column, kept = 0, ""
        self._console.print(Text(kept), end="", soft_wrap=True)
        self._column += len(kept)
        self._space = ""
