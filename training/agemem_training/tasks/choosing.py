"""Which tasks a few words stand for: ``hotpotqa:PATH``, ``recorded:DIR`` or ``synthetic:LEVEL``."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, cast, get_args

from agemem_mcp.domain.memory import Scope
from agemem_mcp.errors import ConfigurationError
from agemem_training.tasks.hotpotqa import HotpotQATasks
from agemem_training.tasks.recorded import RecordedTasks, read_recording, survey
from agemem_training.tasks.source import Split
from agemem_training.tasks.synthetic import LEVELS, Stories

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agemem_training.tasks.recorded import Survey
    from agemem_training.tasks.source import TaskSource

SourceKind: TypeAlias = Literal["hotpotqa", "recorded", "synthetic"]

FORMS = (
    "Write hotpotqa:PATH for HotpotQA's file, recorded:DIR or recorded:DIR?namespace=NAME for what a memory server "
    f"recorded in its data folder, or synthetic:LEVEL ({', '.join(LEVELS)}) for generated stories."
)
_NAMED: dict[SourceKind, str] = {"hotpotqa": "file", "recorded": "data folder", "synthetic": "level"}
_OPTION = re.compile(r"\?(?P<name>\w+)=(?P<value>[^?]*)$")


@dataclass(frozen=True, slots=True)
class SourceChoice:
    """What tasks come from."""

    kind: SourceKind
    place: str
    """The file, the folder or the level."""
    namespace: str = Scope().namespace
    """Of ``recorded`` alone."""

    @property
    def path(self) -> Path:
        """The file or the folder."""
        return Path(self.place).expanduser()


def parse_source(text: str) -> SourceChoice:
    """Read the words that name a source of tasks.

    Raises:
        ConfigurationError: they have none of the three forms; the message shows these.
    """
    kind, colon, rest = text.strip().partition(":")
    if not colon or kind not in get_args(SourceKind):
        msg = f"{text!r} names no source of tasks.{_meant(kind, get_args(SourceKind))} {FORMS}"
        raise ConfigurationError(msg)
    kind = cast("SourceKind", kind)
    option = _OPTION.search(rest) if kind == "recorded" else None
    place = (rest if option is None else rest[: option.start()]).strip()
    if not place:
        msg = f"{text!r} names no {_NAMED[kind]}. {FORMS}"
        raise ConfigurationError(msg)
    if kind == "synthetic" and place not in LEVELS:
        msg = f"There is no level {place!r}.{_meant(place.upper(), list(LEVELS))} Levels are {', '.join(LEVELS)}."
        raise ConfigurationError(msg)
    if option is None:
        return SourceChoice(kind, place)
    if option["name"] != "namespace" or not option["value"]:
        msg = f"{option[0]!r} is no option of recorded tasks.{_meant(option['name'], ['namespace'])} {FORMS}"
        raise ConfigurationError(msg)
    return SourceChoice(kind, place, option["value"])


async def open_source(choice: SourceChoice, *, show: Callable[[Survey], None]) -> TaskSource:
    """Open what was chosen.

    Args:
        choice: as :func:`parse_source` gives it.
        show: told what would be taken of a recording before any task is made of it; raises to refuse.

    Raises:
        ConfigurationError: there is no such file or folder, or it does not hold what it should.
        StoreError: a ledger cannot be read.
    """
    match choice.kind:
        case "hotpotqa":
            return HotpotQATasks(choice.path)
        case "recorded":
            recording = await read_recording(choice.path, namespace=choice.namespace)
            show(survey(recording))
            return RecordedTasks(recording)
        case "synthetic":
            return Stories(choice.place)


async def open_to_train(text: str, *, show: Callable[[Survey], None]) -> TaskSource:
    """Open a source by the words that name it, and draw a task of each split: better now than hours later.

    Raises:
        ConfigurationError: see :func:`parse_source` and :func:`open_source`; or a split has no tasks.
        StoreError: a ledger cannot be read.
    """
    source = await open_source(parse_source(text), show=show)
    for split in get_args(Split):
        next(iter(source.tasks(split, seed=0)))
    return source


def _meant(given: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(given, known, n=1)
    return f" Did you mean {close[0]}?" if close else ""
