"""The current shard of the embedded index with its folder and manifest. Synchronous, for one thread at a time."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import structlog

from agemem_mcp.adapters import qdrant_payload as shared
from agemem_mcp.adapters.qdrant_folder import DamagedIndexError, IndexFolder, Manifest, OutdatedIndexError
from agemem_mcp.adapters.qdrant_shard import Shard, translated
from agemem_mcp.errors import ConfigurationError, StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from agemem_mcp.domain.memory import IndexedVersion, IndexEntry, MemoryRecord

log = structlog.get_logger(__name__)


MAX_CHANGED_POINTS = 50_000
"""Changes that are kept account of while the shard is being optimised: about 8 MB."""


class Store:
    """One generation of the index, and what is known of it."""

    def __init__(self, folder: IndexFolder, manifest: Manifest, shard: Shard) -> None:
        self.folder = folder
        self.manifest = manifest
        self.shard = shard
        self.unoptimised = manifest.unoptimised

    def apply(self, upserts: Sequence[IndexEntry], deletes: Sequence[MemoryRecord]) -> None:
        """Upsert, then delete."""
        entries = shared.latest(upserts)
        self.shard.apply(entries, deletes)
        self.unoptimised += len(entries)

    def clear(self) -> None:
        """Delete all points."""
        self.shard.clear()
        self.unoptimised = 0
        self.flush(0)

    def flush(self, seq: int) -> None:
        """Make it durable that everything up to ``seq`` is applied."""
        self.shard.flush()
        reached = {"flushed_seq": seq, "points": self.shard.points, "unoptimised": self.unoptimised}
        self.manifest = self.manifest.model_copy(update=reached)

    def count(self) -> int:
        """Number of points."""
        return self.shard.count()

    def page(self, offset: str | None) -> tuple[list[IndexedVersion], str | None]:
        """See :meth:`Shard.page`."""
        return self.shard.page(offset)

    def close(self) -> None:
        """Close the shard."""
        self.shard.close()


class SuccessorStore(Store):
    """A generation that is still being filled; closing it removes it."""

    @classmethod
    def create(cls, folder: IndexFolder, wanted: Manifest) -> SuccessorStore:
        """Make an empty one beside the others."""
        path = folder.new_shard()
        try:
            shard = Shard.create(path, wanted.dimensions)
        except BaseException:
            folder.remove_shard(path)
            raise
        return cls(folder, wanted.model_copy(update={"shard": path.name}), shard)

    def finish(self) -> Manifest:
        """Flush what was applied; what the manifest is to say once this generation is current."""
        self.flush(self.manifest.flushed_seq)
        return self.manifest

    def close(self) -> None:
        """Close the shard and remove it."""
        try:
            super().close()
        finally:
            self.folder.remove_shard(self.shard.path)


class CurrentStore(Store):
    """The generation that the manifest names; holds the folder's lock."""

    changed_points: set[str] | None = None
    """Points changed since a copy was taken; None when there is no copy, or it can no longer follow."""
    optimise_at = 0
    """How many entries must have been put in before optimising is thought of again."""

    @classmethod
    def open(cls, directory: Path, wanted: Manifest, *, rebuild: bool) -> CurrentStore:
        """Lock the folder and load its shard, or create one."""
        try:
            folder = IndexFolder(directory)
            try:
                return _loaded(folder, wanted, rebuild=rebuild) or _created(folder, wanted)
            except BaseException:
                folder.release()
                raise
        except OSError as error:
            msg = (
                f"The memory index in {directory} cannot be used: {error}. Make the folder writable or choose another."
            )
            raise ConfigurationError(msg) from error

    def apply(self, upserts: Sequence[IndexEntry], deletes: Sequence[MemoryRecord]) -> None:
        """Upsert, then delete."""
        self._mark_changed()
        if self.changed_points is not None:
            # Before the change, which may fail half-way.
            records = [*(entry.record for entry in upserts), *deletes]
            self.changed_points.update(shared.record_point_id(record) for record in records)
            if len(self.changed_points) > MAX_CHANGED_POINTS:
                self.changed_points = None
        super().apply(upserts, deletes)

    def clear(self) -> None:
        """Delete all points."""
        self._mark_changed()
        super().clear()

    def flush(self, seq: int) -> None:
        """Flush the shard first: a manifest ahead of it would hide lost entries from the replay."""
        super().flush(seq)
        with translated(self.shard.path, "flushed"):
            self.folder.write_manifest(self.manifest)

    def become(self, shard: Shard, manifest: Manifest) -> Path:
        """Put another shard, already flushed, in the place of this one; returns the old one's folder.

        Raises:
            StoreError: the manifest could not be replaced; nothing has changed.
        """
        with translated(self.shard.path, "replaced"):
            self.folder.write_manifest(manifest)
        old, self.shard, self.manifest = self.shard, shard, manifest
        self.unoptimised, self.optimise_at = manifest.unoptimised, 0
        with suppress(StoreError):  # the new one serves all the same
            old.close()
        return old.path

    def close(self) -> None:
        """Close the shard, then give the lock back."""
        try:
            super().close()
        finally:
            self.folder.release()

    def _mark_changed(self) -> None:
        with translated(self.shard.path, "changed"):
            self.folder.mark_changed()


def _created(folder: IndexFolder, wanted: Manifest) -> CurrentStore:
    path = folder.new_shard()
    manifest = wanted.model_copy(update={"shard": path.name})
    shard = Shard.create(path, manifest.dimensions)
    try:
        # Last: until then, what was current before still is.
        folder.write_manifest(manifest)
    except BaseException:
        shard.close()
        raise
    folder.remove_others(path.name)
    return CurrentStore(folder, manifest, shard)


def _loaded(folder: IndexFolder, wanted: Manifest, *, rebuild: bool) -> CurrentStore | None:
    """What is there, or None if a new index is to be made in its place."""
    if folder.is_new:
        return None
    try:
        manifest = folder.read_manifest()
        if not _fits(folder, manifest, wanted, rebuild=rebuild):
            log.info("memory_index_rebuilt", made_with=manifest.made_with, wanted=wanted.made_with)
            return None
        shard = _undamaged(folder, manifest)
    except OutdatedIndexError as outdated:
        log.info("memory_index_rebuilt", made_with=str(outdated))
        return None
    except DamagedIndexError as damage:
        folder.set_aside(str(damage))
        return None
    folder.remove_others(manifest.shard)
    return CurrentStore(folder, manifest, shard)


def _fits(folder: IndexFolder, manifest: Manifest, wanted: Manifest, *, rebuild: bool) -> bool:
    """Whether the index can be used as it is; False if it is to be replaced, and an error if neither."""
    if manifest.ledger_id != wanted.ledger_id:
        msg = "it belongs to another ledger"
        raise DamagedIndexError(msg)
    if (manifest.embedding, manifest.dimensions) == (wanted.embedding, wanted.dimensions):
        return True
    if rebuild:
        return False
    msg = (
        f"The memory index in {folder.directory} was made with the embedding {manifest.made_with}, but "
        f"{wanted.made_with} is configured. Set AGEMEM_EMBEDDING back to {manifest.embedding!r}, or run "
        "`agemem-mcp reindex`: it makes the index anew from the ledger, and nothing is lost."
    )
    raise ConfigurationError(msg)


def _undamaged(folder: IndexFolder, manifest: Manifest) -> Shard:
    folder.check_sizes(manifest)
    try:
        shard = Shard.load(folder.shard_path(manifest), manifest.dimensions)
    except StoreError as error:
        raise DamagedIndexError(str(error.__cause__ or error)) from error
    if shard.points == manifest.points or folder.is_changed:
        folder.renew_sizes(manifest)
        return shard
    msg = f"it holds {shard.points} entries where {manifest.points} were flushed"
    with suppress(StoreError):
        shard.close()
    raise DamagedIndexError(msg)
