"""What the next version of a memory is: merged metadata, its end, restored states."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from agemem_mcp.domain.memory import MemoryRecord
from agemem_mcp.domain.text import check_json
from agemem_mcp.errors import InvalidOperation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agemem_mcp.domain.limits import Retention
    from agemem_mcp.domain.memory import Metadata, Scope
    from agemem_mcp.domain.operations import AddMemory
    from agemem_mcp.domain.ports import Clock


class Versions:
    """Makes the states that an entry goes through.

    ``metadata.expires_at`` is an end given by hand. Without it the end is the type's retention,
    counted from the last change: a record that ends without that key has its end from there.
    """

    def __init__(self, clock: Clock, retention: Retention) -> None:
        self._clock = clock
        self._retention = retention

    def first(self, scope: Scope, memory_id: str, operation: AddMemory, follows: str | None) -> MemoryRecord:
        """The first version of a memory.

        Raises:
            InvalidOperation: ``metadata.expires_at`` is not a time to come.
        """
        now = self._clock.now()
        metadata = without_nulls(operation.metadata)
        return MemoryRecord(
            scope=scope,
            memory_id=memory_id,
            version=1,
            content=operation.content,
            memory_type=operation.memory_type,
            metadata=metadata,
            created_at=now,
            updated_at=now,
            expires_at=self.given_end(metadata) or self._end(operation.memory_type, now),
            follows=follows,
        )

    def changed(
        self, before: MemoryRecord, *, content: str, metadata: Metadata, memory_type: str | None = None
    ) -> MemoryRecord:
        """The next version with metadata merged in (a null removes a key), or ``before`` if nothing differs.

        Where the type has a retention something always differs: the end moves on.

        Raises:
            InvalidOperation: the merged metadata cannot be stored, or ``expires_at`` is not a time to come.
        """
        now = self._clock.now()
        merged = without_nulls({**before.metadata, **metadata})
        after = replace(
            before,
            content=content,
            metadata=check_json(merged, "The merged metadata"),
            memory_type=memory_type if memory_type is not None else before.memory_type,
        )
        if "expires_at" not in merged:
            after = replace(after, expires_at=self._end(after.memory_type, now))
        elif "expires_at" in metadata:
            after = replace(after, expires_at=self.given_end(merged))
        return before if _same(before, after) else replace(after, version=before.version + 1, updated_at=now)

    def repeated(self, existing: MemoryRecord, operation: AddMemory) -> MemoryRecord:
        """The next version of a memory whose text was added again, or ``existing`` if nothing differs."""
        metadata = without_nulls(operation.metadata)
        if "expires_at" in existing.metadata and "expires_at" not in metadata:
            # Asked to remember without an end what was to end: it must not vanish unannounced.
            metadata = {**metadata, "expires_at": None}
        return self.changed(existing, content=existing.content, metadata=metadata, memory_type=operation.memory_type)

    def deleted(self, before: MemoryRecord) -> MemoryRecord:
        """The next version, deleted."""
        return replace(before, version=before.version + 1, updated_at=self._clock.now(), deleted=True)

    def revived(self, head: MemoryRecord, chosen: MemoryRecord) -> MemoryRecord:
        """The next version with the state of ``chosen``, or ``head`` if nothing differs."""
        now = self._clock.now()
        metadata, expires_at = dict(chosen.metadata), chosen.expires_at
        if "expires_at" in metadata and expires_at is not None and expires_at <= now:
            # Restored with its old end it would be gone again at once.
            del metadata["expires_at"]
        if "expires_at" not in metadata:
            expires_at = self._end(chosen.memory_type, now)
        after = replace(
            head,
            content=chosen.content,
            metadata=metadata,
            memory_type=chosen.memory_type,
            expires_at=expires_at,
            deleted=False,
        )
        return head if _same(head, after) else replace(after, version=head.version + 1, updated_at=now)

    def given_end(self, metadata: Mapping[str, object]) -> datetime | None:
        """What ``metadata.expires_at`` says.

        Raises:
            InvalidOperation: it is not a time to come.
        """
        wanted = metadata.get("expires_at")
        if wanted is None:
            return None
        try:
            moment = datetime.fromisoformat(str(wanted).strip())
            moment = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
        except (ValueError, OverflowError) as error:
            msg = f"metadata.expires_at must be an ISO time such as 2027-01-31T12:00:00Z, not {wanted!r}."
            raise InvalidOperation(msg) from error
        if moment <= self._clock.now():
            msg = f"metadata.expires_at {wanted} has already passed. Give a time to come, or leave it out."
            raise InvalidOperation(msg)
        return moment

    def _end(self, memory_type: str | None, now: datetime) -> datetime | None:
        life = self._retention.of(memory_type)
        return None if life is None else now + life


def without_nulls(metadata: Metadata) -> Metadata:
    """Metadata without the keys that are null: models fill in so what they leave out."""
    return {key: value for key, value in metadata.items() if value is not None}


def _same(one: MemoryRecord, other: MemoryRecord) -> bool:
    """Whether nothing differs, also where Python sees no difference: between ``true`` and ``1``."""
    spelled = (json.dumps(record.metadata, sort_keys=True) for record in (one, other))
    return one == other and next(spelled) == next(spelled)
