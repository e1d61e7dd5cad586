"""Reading a turn while it is being written: the thought and the answer, piece by piece."""

from __future__ import annotations

from string import ascii_lowercase, ascii_uppercase
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

Part: TypeAlias = Literal["think", "answer"]
_SMALL = str.maketrans(ascii_uppercase, ascii_lowercase)
"""Not ``lower``, which changes the length of some texts."""
_TAGS: tuple[Part, ...] = ("think", "answer")


class TurnStream:
    """Tells what is thought and what is answered as it comes; tags, also in pieces, are never told."""

    def __init__(self, told: Callable[[Part, str], None]) -> None:
        """Set it up.

        Args:
            told: told each piece of text and what it belongs to.
        """
        self._told = told
        self._held = ""
        self._within: Part | None = None

    def feed(self, text: str) -> None:
        """Read the next piece of a turn's text."""
        self._held += text
        while self._step():
            pass

    def close(self) -> None:
        """The turn has ended: what was held back in case it began a tag was text."""
        if self._within is not None and self._held:
            self._told(self._within, self._held)
        self._held = ""

    def _step(self) -> bool:
        """Read up to the next tag; False when more text is needed."""
        tags = [f"<{tag}>" for tag in _TAGS] if self._within is None else [f"</{self._within}>"]
        lowered = self._held.translate(_SMALL)
        places = [(lowered.find(tag), tag) for tag in tags]
        found = min((one for one in places if one[0] >= 0), default=None)
        if found is None:
            keep = max(_beginning(lowered, tag) for tag in tags)
            self._tell(self._held[: len(self._held) - keep])
            self._held = self._held[len(self._held) - keep :]
            return False
        place, tag = found
        self._tell(self._held[:place])
        self._held = self._held[place + len(tag) :]
        self._within = None if self._within is not None else "think" if tag == "<think>" else "answer"
        return True

    def _tell(self, text: str) -> None:
        if self._within is not None and text:
            self._told(self._within, text)


def _beginning(text: str, tag: str) -> int:
    """How many characters at the end of ``text`` may be the beginning of ``tag``."""
    return next((size for size in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:size])), 0)
