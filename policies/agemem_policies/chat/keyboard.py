"""Lines that a person types, with line editing and a history where the platform has them."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from agemem_policies.chat.view import PROMPT

try:
    import readline
except ImportError:  # Windows
    readline = None

if TYPE_CHECKING:
    from pathlib import Path

_KEPT = 1000
_PRIVATE = 0o600


class Keyboard:
    """Reads lines; what was typed is kept in a file that is its owner's alone."""

    def __init__(self, history: Path | None) -> None:
        """Set it up.

        Args:
            history: the file; None to keep nothing.
        """
        self._history = history
        terminal = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb" and "NO_COLOR" not in os.environ
        # Between the two marks stands what takes up no room, for a library that counts columns.
        self._prompt = f"\x01\x1b[1m\x02{PROMPT}\x01\x1b[0m\x02" if terminal and readline is not None else PROMPT

    def __enter__(self) -> Self:
        if readline is not None and self._history is not None:
            with suppress(OSError):
                readline.read_history_file(self._history)
        return self

    def __exit__(self, *_: object) -> None:
        if readline is None or self._history is None:
            return
        with suppress(OSError):
            os.close(os.open(self._history, os.O_CREAT | os.O_WRONLY, _PRIVATE))
            readline.set_history_length(_KEPT)
            readline.write_history_file(self._history)
            self._history.chmod(_PRIVATE)

    def read(self) -> str:
        """The next line.

        Raises:
            EOFError: Ctrl-D.
            KeyboardInterrupt: Ctrl-C.
        """
        if sys.stdout.isatty():
            return input(self._prompt)
        # Where answers go to a file, the prompt is not one of them.
        sys.stderr.write(PROMPT)
        sys.stderr.flush()
        return input()
