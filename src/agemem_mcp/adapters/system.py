"""Time and chance: the system's own, and reproducible ones for tests and training."""

from __future__ import annotations

import random
import secrets
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agemem_mcp.domain.memory import Scope

# Crockford's alphabet: no letter that a person or a model could take for another sign.
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_GUESS_ODDS = 4096
_SHORTEST = 4
_HANDLE_LENGTH = 26
"""26 signs of 5 bits each: 130 random bits."""


class SystemClock:
    """The present, to the millisecond."""

    def now(self) -> datetime:
        """The present in UTC."""
        present = datetime.now(UTC)
        return present.replace(microsecond=present.microsecond // 1000 * 1000)


class SteppingClock:
    """Starts at a fixed moment and moves on by a fixed step each time it is read."""

    def __init__(self, start: datetime | None = None, step: timedelta = timedelta(milliseconds=1)) -> None:
        self.moment = start or datetime(2026, 1, 1, tzinfo=UTC)
        self._step = step

    def now(self) -> datetime:
        """The moment, then one step on."""
        moment = self.moment
        self.moment += self._step
        return moment

    def advance(self, by: timedelta) -> None:
        """Move on by any amount."""
        self.moment += by


class RandomIds:
    """Short random memory ids and unguessable handles.

    A memory id has 4 random signs at first and more as the scope grows, so that an id made up by
    a model or mistyped by a person hits an existing entry with a chance below 1 in 4,096.
    """

    def __init__(self, seed: int | None = None) -> None:
        """Draw ids.

        Args:
            seed: makes them reproducible. The ids of a scope's memories then depend on the seed and the scope alone,
                so that scopes which are worked on at once get the same ones each time.
        """
        self._seed = seed
        self._random = secrets.SystemRandom() if seed is None else random.Random(seed)  # noqa: S311  a seed is given

    def memory_id(self, scope: Scope, created_in_scope: int, attempt: int) -> str:
        """``mem_`` and random signs; one more sign for each attempt that proved taken."""
        length = _SHORTEST
        while len(_ALPHABET) ** length < _GUESS_ODDS * (created_in_scope + 1):
            length += 1
        chance = self._random
        if self._seed is not None:
            chance = random.Random(f"{self._seed} {scope.key} {created_in_scope}")  # noqa: S311  as above
        return f"mem_{_signs(chance, length + attempt)}"

    def session_id(self) -> str:
        """``ctx_`` and 130 random bits."""
        return f"ctx_{_signs(self._random, _HANDLE_LENGTH)}"


def _signs(chance: random.Random, count: int) -> str:
    return "".join(chance.choices(_ALPHABET, k=count))


class SequentialIds(RandomIds):
    """``mem_1``, ``mem_2``, … in each scope, for small policies; handles stay unguessable."""

    def memory_id(self, scope: Scope, created_in_scope: int, attempt: int) -> str:  # noqa: ARG002  numbers need none
        """The next number, skipping taken ones."""
        return f"mem_{created_in_scope + 1 + attempt}"
