"""One row's tokens as text, piece by piece, up to a stop string."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container

    from agemem_policies.local.chat_ids import ChatTokenizer

STOPS = ("</tool_call>", "</answer>")
"""A turn of the agent ends with one of these; what a model writes after it is not its business."""
_TAIL = max(map(len, STOPS)) - 1
_UNFINISHED = "\ufffd"


class TextStream:
    """Decodes tokens as they come, and never tells half a character.

    A token is decoded together with those of the piece before it: what a token looks like can depend on its
    neighbour on the left (a space, the first bytes of a character), but not on more than that.
    """

    def __init__(self, tokenizer: ChatTokenizer, silent_ids: Container[int]) -> None:
        """Nothing has come yet.

        Args:
            tokenizer: of the model.
            silent_ids: tokens that are no text.
        """
        self._tokenizer = tokenizer
        self._silent_ids = silent_ids
        self._ids: list[int] = []
        """Those of the last piece, then those that were not told yet."""
        self._told = 0
        """How many of them were told."""
        self._pieces: list[str] = []
        self._tail = ""
        self.stopped = False
        """Whether a stop string has come; the text ends with it."""

    @property
    def text(self) -> str:
        """All pieces so far together."""
        return "".join(self._pieces)

    def feed(self, token_id: int) -> str:
        """Take the next token.

        Returns:
            The text that it completes; empty while a character is unfinished, or if the token is no text.
        """
        if token_id in self._silent_ids:
            return ""
        self._ids.append(token_id)
        piece = self._untold()
        # a stop string may have begun in earlier pieces
        ends = [place + len(stop) for stop in STOPS if (place := (self._tail + piece).find(stop)) >= 0]
        if ends:
            self.stopped = True
            piece = piece[: min(ends) - len(self._tail)]
        elif piece.endswith(_UNFINISHED):
            return ""
        self._ids = self._ids[self._told :]
        self._told = len(self._ids)
        return self._tell(piece)

    def finish(self) -> str:
        """Tell what is left when no token follows; a character that stayed unfinished is left out."""
        if self.stopped:
            return ""
        piece = self._untold().rstrip(_UNFINISHED)
        self._told = len(self._ids)
        return self._tell(piece)

    def _untold(self) -> str:
        return self._decoded(self._ids)[len(self._decoded(self._ids[: self._told])) :]

    def _decoded(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, clean_up_tokenization_spaces=False) if ids else ""

    def _tell(self, piece: str) -> str:
        if piece:
            self._pieces.append(piece)
            self._tail = (self._tail + piece)[-_TAIL:]
        return piece
