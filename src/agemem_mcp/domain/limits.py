"""How long memories of a type are kept, and how much a scope may hold."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from agemem_mcp.errors import InvalidOperation, QuotaExceeded

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agemem_mcp.domain.memory import Usage

_LIFE = re.compile(r"(\d{1,6})\s*([mhdwy])")
_UNITS = {
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
    "w": timedelta(weeks=1),
    "y": timedelta(days=365),
}
_LONGEST = timedelta(days=36_500)
_REST = "*"
_EXAMPLE = "Write such as event=30d,note=12h,*=2y (m minutes, h hours, d days, w weeks, y years; * every other type)"


@dataclass(frozen=True, slots=True)
class Retention:
    """After what time memories expire that name no ``expires_at`` of their own, by type."""

    lives: Mapping[str, timedelta] = field(default_factory=dict[str, timedelta])
    """By type in lower case; ``*`` stands for the types not named, and for none."""

    @classmethod
    def parse(cls, text: str) -> Retention:
        """Read ``type=life`` pairs separated by commas.

        Raises:
            InvalidOperation: a pair cannot be read or a type comes twice; the text says which.
        """
        lives: dict[str, timedelta] = {}
        for pair in filter(str.strip, text.split(",")):
            name, equals, life = (part.strip() for part in pair.rpartition("="))
            matched = _LIFE.fullmatch(life.lower())
            if not name or not equals or matched is None:
                msg = f"{pair.strip()!r} is no retention. {_EXAMPLE}"
                raise InvalidOperation(msg)
            kept = int(matched[1]) * _UNITS[matched[2]]
            if not timedelta() < kept <= _LONGEST:
                msg = f"{pair.strip()!r} must be more than nothing and at most 100 years. {_EXAMPLE}"
                raise InvalidOperation(msg)
            if _normalised(name) in lives:
                msg = f"{name!r} is given twice. Keep one of the two"
                raise InvalidOperation(msg)
            lives[_normalised(name)] = kept
        return cls(lives)

    def of(self, memory_type: str | None) -> timedelta | None:
        """How long a memory of this type lives; None for ever."""
        named = None if memory_type is None else self.lives.get(_normalised(memory_type))
        return self.lives.get(_REST) if named is None else named


def _normalised(memory_type: str) -> str:
    return memory_type.strip().lower()


@dataclass(frozen=True, slots=True)
class Quota:
    """How much a scope may hold; None for any amount."""

    entries: int | None = None
    bytes: int | None = None
    """UTF-8 bytes of texts and metadata."""

    @property
    def limits(self) -> bool:
        """Whether there is anything to check."""
        return self.entries is not None or self.bytes is not None

    def check(self, namespace: str, used: Usage, *, entries: int, bytes_: int) -> None:
        """Make sure that a scope may grow; shrinking and staying as large is always allowed.

        Args:
            namespace: named in the error.
            used: what the scope holds now.
            entries: by how many it grows.
            bytes_: by how many it grows.

        Raises:
            QuotaExceeded: it would hold more than allowed.
        """
        for what, setting, present, growth, limit in (
            ("memories", "ENTRIES", used.entries, entries, self.entries),
            ("bytes", "BYTES", used.bytes, bytes_, self.bytes),
        ):
            if limit is not None and growth > 0 and present + growth > limit:
                msg = (
                    f"Nothing was stored: namespace {namespace!r} holds {present:,} of at most {limit:,} {what}, and "
                    f"this needs {growth:,} more. Delete what is no longer needed (`agemem-mcp memories duplicates` "
                    f"shows candidates), or raise AGEMEM_QUOTA__{setting}."
                )
                raise QuotaExceeded(msg)
