"""The folder of the embedded index: its lock, its manifest, and its generations of shards.

The folder::

    lock, lock.pid   who has it open: one process at a time
    manifest.json    what it was made with, how far it is on stable storage, and which shard is current
    changed          present while the current shard holds changes that no flush has covered
    shard-1/ …       Qdrant Edge's own files, one folder for each generation

A new generation (optimised, or made with another embedding model) grows beside the current one.
Replacing the manifest makes it current, so a crash leaves the one or the other; the next start
removes what is not current.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import pydantic
import structlog

from agemem_mcp.adapters.data_folder import FolderLock
from agemem_mcp.adapters.qdrant_payload import SCHEMA_VERSION
from agemem_mcp.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

_MANIFEST = "manifest.json"
_CHANGED = "changed"
# Named one by one: nothing else that lies in the folder is ever touched. Index schema 1 had one "shard" alone.
_FILES = (_MANIFEST, f"{_MANIFEST}.new", _CHANGED)
_LOG = "wal"
_SHARD = re.compile(r"shard(?:-([0-9]+))?")

log = structlog.get_logger(__name__)


class DamagedIndexError(Exception):
    """The folder holds no index of this ledger that could be used; the adapter makes a new one."""


class OutdatedIndexError(Exception):
    """An older program made the index; the adapter makes a new one in its place."""


class Manifest(pydantic.BaseModel):
    """What the index was made with, and how far it is on stable storage."""

    model_config = pydantic.ConfigDict(frozen=True)

    schema_version: Literal[2] = SCHEMA_VERSION
    embedding: str
    dimensions: int | None
    ledger_id: str
    shard: str = pydantic.Field(default="shard-1", pattern=r"^shard-[0-9]+$")
    """The folder of the current generation."""
    flushed_seq: int = 0
    points: int = 0
    """Entries at the last flush: a shard that lost a segment loads without a word, with fewer."""
    unoptimised: int = 0
    """How many entries were put in since the shard was last optimised."""
    sizes: dict[str, int] = {}
    """Bytes of the shard's files at the last flush: one that was cut off loads without a word, with less in it."""

    @property
    def made_with(self) -> str:
        """The embedding in words."""
        size = "no vectors" if self.dimensions is None else f"{self.dimensions} dimensions"
        return f"{self.embedding!r} ({size})"


class IndexFolder:
    """One folder, locked from construction until :meth:`release`."""

    def __init__(self, directory: Path) -> None:
        """Lock the folder, making it if need be.

        Raises:
            StoreError: another process holds it.
            OSError: it cannot be written.
        """
        directory = directory.absolute()  # so that it has a name even when given as "."
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._lock = FolderLock(directory, contents="memory index")
        self._marked = False
        self._last_number = max((int(number or 0) for _, number in self._shards()), default=0)

    @property
    def is_new(self) -> bool:
        """Whether it holds nothing of an index yet."""
        return not self._shards() and not any((self.directory / name).exists() for name in _FILES)

    @property
    def is_changed(self) -> bool:
        """Whether there may be changes that no flush has covered."""
        return (self.directory / _CHANGED).exists()

    def mark_changed(self) -> None:
        """Call before a change: the mark without one is harmless, a change without it looks like damage."""
        if not self._marked:
            (self.directory / _CHANGED).touch()
            self._marked = True

    def shard_path(self, manifest: Manifest) -> Path:
        """Where the current generation's files are."""
        return self.directory / manifest.shard

    def new_shard(self) -> Path:
        """A place for another generation; no name is given twice while the folder is held."""
        self._last_number += 1
        return self.directory / f"shard-{self._last_number}"

    def remove_shard(self, path: Path) -> None:
        """Remove a generation that is not current; what cannot be removed now goes at the next start."""
        try:
            shutil.rmtree(path)
        except FileNotFoundError:
            return
        except OSError as error:
            log.warning("memory_index_leftover", folder=str(path), error=str(error))

    def remove_others(self, current: str) -> None:
        """Remove all generations but one: what a crash, or an older program, left behind."""
        for path, _ in self._shards():
            if path.name != current:
                self.remove_shard(path)

    def read_manifest(self) -> Manifest:
        """Read what the index was made with.

        Raises:
            DamagedIndexError: there is none, or it makes no sense.
            OutdatedIndexError: an older program made the index.
            ConfigurationError: a newer program made the index.
        """
        try:
            raw: Any = json.loads((self.directory / _MANIFEST).read_bytes())
            version = int(raw["schema_version"])
            if version < SCHEMA_VERSION:
                msg = f"index schema {version}"
                raise OutdatedIndexError(msg)
            if version > SCHEMA_VERSION:
                msg = (
                    f"The memory index in {self.directory} was made by a newer version of agemem-mcp (index schema "
                    f"{version}, this one knows {SCHEMA_VERSION}). Update agemem-mcp, or move that folder away: the "
                    "index is then rebuilt from the ledger, and nothing is lost."
                )
                raise ConfigurationError(msg)
            return Manifest.model_validate(raw)
        except (OSError, ValueError, LookupError, TypeError) as error:
            msg = f"its manifest cannot be read ({type(error).__name__})"
            raise DamagedIndexError(msg) from error

    def check_sizes(self, manifest: Manifest) -> None:
        """Make sure that no file of the current generation is shorter than it was when it was flushed.

        Raises:
            DamagedIndexError: one is.
        """
        if shorter := self._shorter(manifest):
            name, size = shorter
            msg = f"{name} has {size:,} bytes where {manifest.sizes[name]:,} were flushed"
            raise DamagedIndexError(msg)

    def renew_sizes(self, manifest: Manifest) -> None:
        """Call once the current generation is loaded, which may shorten files: what they held was put elsewhere."""
        if self._shorter(manifest):
            self._replace(manifest)

    def write_manifest(self, manifest: Manifest) -> None:
        """Replace the manifest atomically and durably, and clear the mark of :meth:`mark_changed`.

        The shard it names, and no other, is from now on current.
        """
        self._replace(manifest)
        (self.directory / _CHANGED).unlink(missing_ok=True)
        self._marked = False
        self._fsync()

    def _shorter(self, manifest: Manifest) -> tuple[str, int] | None:
        """A file that is shorter than when it was flushed, and its size."""
        present = _sizes(self.shard_path(manifest))
        found = ((name, present.get(name, 0)) for name, size in manifest.sizes.items() if present.get(name, 0) < size)
        return next(found, None)

    def _replace(self, manifest: Manifest) -> None:
        manifest = manifest.model_copy(update={"sizes": _sizes(self.shard_path(manifest))})
        temporary = self.directory / f"{_MANIFEST}.new"
        with temporary.open("w", encoding="utf-8") as file:
            file.write(manifest.model_dump_json(indent=2))
            file.flush()
            os.fsync(file.fileno())
        # Before the manifest counts: the folder of a new generation must have its name on stable storage.
        self._fsync()
        temporary.replace(self.directory / _MANIFEST)
        self._fsync()

    def set_aside(self, reason: str) -> None:
        """Move the index, but not the lock, to a new folder next to this one."""
        target = self.directory.with_name(f"{self.directory.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
        target.mkdir()
        for name in (*_FILES, *(path.name for path, _ in self._shards())):
            with suppress(FileNotFoundError):
                (self.directory / name).rename(target / name)
        self._marked = False
        log.warning("memory_index_set_aside", folder=str(self.directory), moved_to=str(target), reason=reason)

    def release(self) -> None:
        """Give the lock back."""
        self._lock.release()

    def _shards(self) -> list[tuple[Path, str | None]]:
        """The generations' folders with their numbers; the one of index schema 1 has none."""
        found = ((path, _SHARD.fullmatch(path.name)) for path in self.directory.iterdir())
        return [(path, match[1]) for path, match in found if match]

    def _fsync(self) -> None:
        if os.name == "nt":  # a folder cannot be opened there, and the rename is durable without
            return
        descriptor = os.open(self.directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _sizes(shard: Path) -> dict[str, int]:
    """Bytes of a shard's files that only grow while it is open: without its log, and texts, which tell damage."""
    found: dict[str, int] = {}
    for folder, folders, names in os.walk(shard):
        if _LOG in folders:
            folders.remove(_LOG)
        for name in names:
            if not name.endswith((".json", ".info")):
                path = os.path.join(folder, name)  # noqa: PTH118  pathlib would take longer than looking
                found[os.path.relpath(path, shard)] = os.stat(path).st_size  # noqa: PTH116  as above
    return found
