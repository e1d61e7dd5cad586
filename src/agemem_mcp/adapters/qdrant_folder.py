"""The folder of the embedded index: its lock, its manifest, and setting damaged contents aside.

The folder::

    lock, lock.pid   who has it open: one process at a time
    manifest.json    what it was made with, and how far it is on stable storage
    changed          present while the shard holds changes that no flush has covered
    shard/           Qdrant Edge's own files
"""

from __future__ import annotations

import json
import os
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
_SHARD = "shard"
# Named one by one: nothing else that lies in the folder is ever moved.
_CONTENTS = (_MANIFEST, f"{_MANIFEST}.new", _CHANGED, _SHARD)

log = structlog.get_logger(__name__)


class DamagedIndexError(Exception):
    """The folder holds no index of this ledger that could be used; the adapter makes a new one."""


class Manifest(pydantic.BaseModel):
    """What the index was made with, and how far it is on stable storage."""

    model_config = pydantic.ConfigDict(frozen=True)

    schema_version: Literal[1] = SCHEMA_VERSION
    embedding: str
    dimensions: int | None
    ledger_id: str
    flushed_seq: int = 0
    points: int = 0
    """Entries at the last flush: a shard that lost a segment loads without a word, with fewer."""

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

    @property
    def shard(self) -> Path:
        """Where the shard's files are."""
        return self.directory / _SHARD

    @property
    def is_new(self) -> bool:
        """Whether it holds nothing of an index yet."""
        return not any((self.directory / name).exists() for name in _CONTENTS)

    @property
    def is_changed(self) -> bool:
        """Whether there may be changes that no flush has covered."""
        return (self.directory / _CHANGED).exists()

    def mark_changed(self) -> None:
        """Call before a change: the mark without one is harmless, a change without it looks like damage."""
        (self.directory / _CHANGED).touch()

    def read_manifest(self) -> Manifest:
        """Read what the index was made with.

        Raises:
            DamagedIndexError: there is none, or it makes no sense.
            ConfigurationError: a newer program made the index.
        """
        try:
            raw: Any = json.loads((self.directory / _MANIFEST).read_bytes())
            version = raw["schema_version"]
            if isinstance(version, int) and version > SCHEMA_VERSION:
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

    def write_manifest(self, manifest: Manifest) -> None:
        """Replace the manifest atomically and durably, and clear the mark of :meth:`mark_changed`."""
        temporary = self.directory / f"{_MANIFEST}.new"
        with temporary.open("w", encoding="utf-8") as file:
            file.write(manifest.model_dump_json(indent=2))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.directory / _MANIFEST)
        (self.directory / _CHANGED).unlink(missing_ok=True)
        self._fsync()

    def set_aside(self, reason: str) -> None:
        """Move the index, but not the lock, to a new folder next to this one."""
        target = self.directory.with_name(f"{self.directory.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
        target.mkdir()
        for name in _CONTENTS:
            with suppress(FileNotFoundError):
                (self.directory / name).rename(target / name)
        log.warning("memory_index_set_aside", folder=str(self.directory), moved_to=str(target), reason=reason)

    def release(self) -> None:
        """Give the lock back."""
        self._lock.release()

    def _fsync(self) -> None:
        if os.name == "nt":  # a folder cannot be opened there, and the rename is durable without
            return
        descriptor = os.open(self.directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
