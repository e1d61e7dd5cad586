"""The terms of long-term memory, from the ledger alone: storage and maintenance."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agemem_mcp.domain.memory import Actor, MemoryEventKind
from agemem_training.facts import coverage, held, holds, is_stale, outdated
from agemem_training.record import CONSTRUCTION
from agemem_training.tasks.task import Fact

if TYPE_CHECKING:
    from agemem_mcp.domain.memory import MemoryRecord
    from agemem_training.record import Episode


@dataclass(frozen=True, slots=True)
class Rewriting:
    """What the policy did to an entry that was there."""

    before: str
    after: str | None
    """None if it was deleted."""


@dataclass(slots=True)
class Store:
    """What the rows of a ledger amount to."""

    live: dict[str, MemoryRecord] = field(default_factory=dict[str, "MemoryRecord"])
    """The entries at the end, the oldest first."""
    of_policy: set[str] = field(default_factory=set[str])
    """Ids of entries whose text the policy wrote: added, or changed last by it."""
    rewritings: list[Rewriting] = field(default_factory=list[Rewriting])
    """Of the policy, in order."""

    @property
    def texts(self) -> list[str]:
        """Of all entries at the end."""
        return [record.content for record in self.live.values()]

    @property
    def policy_texts(self) -> list[str]:
        """Of those entries that the policy wrote."""
        return [record.content for memory_id, record in self.live.items() if memory_id in self.of_policy]


def store_of(episode: Episode) -> Store:
    """Replay the ledger of an episode."""
    store = Store()
    heads: dict[str, MemoryRecord] = {}
    for event in episode.events:
        record, before = event.record, heads.get(event.record.memory_id)
        heads[record.memory_id] = record
        changed = before is None or before.deleted or before.content != record.content
        by_policy = event.actor is Actor.POLICY
        if by_policy and before is not None and event.kind is MemoryEventKind.DELETE:
            store.rewritings.append(Rewriting(before.content, None))
        elif by_policy and before is not None and changed and event.kind is MemoryEventKind.UPDATE:
            store.rewritings.append(Rewriting(before.content, record.content))
        if changed and not record.deleted:
            (store.of_policy.add if by_policy else store.of_policy.discard)(record.memory_id)
    if episode.events:
        now = episode.events[-1].at
        store.live = {memory_id: record for memory_id, record in heads.items() if record.is_live(now)}
    return store


def added_in_stage_1(episode: Episode) -> list[str]:
    """The entries that the policy added in stage 1, each with its last text of that stage."""
    session = episode.sessions.get(CONSTRUCTION)
    texts: dict[str, str] = {}
    for event in episode.events:
        if session is None or event.session_id != session:
            continue
        memory_id = event.record.memory_id
        if memory_id in texts or (event.kind is MemoryEventKind.ADD and event.actor is Actor.POLICY):
            texts[memory_id] = event.record.content
    return list(texts.values())


def paper_storage(episode: Episode) -> float:
    """``N_high / max(1, N_total)`` of the entries added in stage 1: high is one that tells a gold fact."""
    added = added_in_stage_1(episode)
    high = sum(any(holds(text, fact) for fact in episode.task.gold) for text in added)
    return high / max(1, len(added))


def strict_storage(episode: Episode) -> float:
    """F1 of precision and coverage over the entries that the policy wrote, as they are at the end."""
    store, task = store_of(episode), episode.task
    others = [record.content for memory_id, record in store.live.items() if memory_id not in store.of_policy]
    wanted = set(task.facts) - held(task.facts, others)
    written = store.policy_texts
    if not wanted and not written:
        return 1.0
    told, good = set(task.facts) - wanted, 0
    for text in written:
        tells = held(task.facts, [text])
        good += bool(tells - told) and not any(is_stale(text, change) for change in outdated(task))
        told |= tells
    precision, covered = good / max(1, len(written)), coverage(wanted, written)
    return 2 * precision * covered / (precision + covered) if precision + covered else 0.0


def paper_maintenance(episode: Episode) -> float:
    """1 if an update or a delete was carried out."""
    return float(bool(store_of(episode).rewritings))


def strict_maintenance(episode: Episode) -> float:
    """Share of the changes that updates or deletes brought into the store; 0 if they lost something true."""
    store, task = store_of(episode), episode.task
    changes = outdated(task)
    still_true = {*task.facts, *(Fact(text) for text in task.background if not any(is_stale(text, c) for c in changes))}
    for rewriting in store.rewritings:
        if held(still_true, [rewriting.before]) - held(still_true, store.texts):
            return 0.0
    made = 0
    for change in changes:
        corrected = any(
            is_stale(one.before, change) and (one.after is None or not is_stale(one.after, change))
            for one in store.rewritings
        )
        stale_left = any(is_stale(text, change) for text in store.texts)
        told = change.new is None or any(holds(text, change.new) for text in store.texts)
        made += corrected and told and not stale_left
    return made / len(changes) if changes else 1.0
