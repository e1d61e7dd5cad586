"""A policy that does one thing, for tests of what is counted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agemem_policies.policy import Completion

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agemem_training.sampling import Asked


class Always:
    """A sampler that writes the same turn, whatever is asked."""

    def __init__(self, text: str) -> None:
        self._text = text

    def sample(self, asked: Sequence[Asked]) -> list[Completion]:
        return [Completion(self._text) for _ in asked]

    def forget(self) -> None:
        """Nothing is kept."""
