"""Tasks made from this server's own ledger: what was once remembered is told again, and asked about.

It takes three steps, so that nobody learns from a memory unseen: :func:`read_recording` reads one namespace of one data
folder, beside a running server and without changing anything; :func:`survey` tells what would be taken of it, to be
shown; :func:`make_tasks` makes the tasks of what was read, and of nothing else.

One session is one task, a long one several of :data:`LONGEST` operations each, as an episode's turns are bounded:

* messages: the texts that the policy or the user added, changed or brought back in it, in order. A deletion is told as
  "This is no longer true: …", since what set it off is not in the ledger.
* background: the texts, as they were before, of older memories that the session changed.
* changes: each text that was replaced or deleted in it, and what holds instead at the session's end.
* query: a cloze (:mod:`~agemem_training.tasks.cloze`) of the last text told that still holds at the session's end.
* distractors: memories of other sessions of the same split that share the most words with it and not the answer.

Rows without a session (from the command line) count as one session a day. Sessions that touched the same memory fall
into the same split. Left out are memories that the user deleted or that have expired: they were to be forgotten.

Limits: the ledger holds what was stored, not what was said, so a story has no chatter in it and each message is worth
storing; it mirrors the policy that stored it, mistakes included; and a session whose texts give no cloze gives no task.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, get_args

from agemem_mcp.app import open_archive
from agemem_mcp.domain.memory import Actor, MemoryEventKind, Scope
from agemem_mcp.domain.text import preview
from agemem_mcp.settings import load_settings
from agemem_training.tasks.cloze import INVITATION, cloze, fact_of
from agemem_training.tasks.key_items import key_items
from agemem_training.tasks.source import Split, in_order, split_of
from agemem_training.tasks.task import Change, Task

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from agemem_mcp.domain.memory import MemoryEvent

DISTRACTORS = 5
"""At most, per task; as in the released code."""
LONGEST = 10
"""Operations, and so messages, of one task: each takes a turn or two of an episode's ``max_rounds``."""
_PREVIEWS = 5
_WORD = re.compile(r"\w{4,}")


@dataclass(frozen=True, slots=True)
class Recording:
    """What was read of a ledger, and may be learnt from."""

    where: str
    """Folder and namespace, for messages."""
    histories: dict[str, list[MemoryEvent]]
    """Every version of each memory, oldest first, by the memory's id."""
    withheld: int
    """Memories that are not among them: the user deleted them, or they have expired."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What would be taken of a recording."""

    where: str
    sessions: int
    memories: int
    changes: int
    """Updates and deletions."""
    withheld: int
    first_at: datetime | None
    last_at: datetime | None
    tasks: dict[Split, int]
    previews: tuple[str, ...]
    """How the texts stored last begin."""

    def __str__(self) -> str:
        """As it is shown to a person."""
        period = f", {self.first_at:%Y-%m-%d} to {self.last_at:%Y-%m-%d}" if self.first_at and self.last_at else ""
        split = ", ".join(f"{count:,} {name}" for name, count in self.tasks.items())
        lines = [
            f"From {self.where}: {self.memories:,} memories of {self.sessions:,} sessions{period}.",
            f"{self.changes:,} changes and deletions; left out: {self.withheld:,} deleted by the user, or expired.",
            f"They make {sum(self.tasks.values()):,} tasks ({split}). The texts stored last:",
            *(f"  {line}" for line in self.previews or ["none"]),
        ]
        return "\n".join(lines)


class RecordedTasks:
    """A recording as a :class:`~agemem_training.tasks.source.TaskSource`."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording

    def tasks(self, split: Split, *, seed: int) -> Iterator[Task]:
        """See :meth:`agemem_training.tasks.source.TaskSource.tasks`; divided by sessions."""
        return in_order(make_tasks(self._recording, split), split, seed=seed, where=self._recording.where)


async def read_recording(data_dir: Path, *, namespace: str = Scope().namespace) -> Recording:
    """Read one namespace of a data folder, also while a server has it.

    Args:
        data_dir: the folder; the environment's settings have no say.
        namespace: nothing of any other is read.

    Raises:
        ConfigurationError: there is no memory at that place, or this is no namespace.
        StoreError: the ledger cannot be read.
    """
    settings = load_settings(environment={}, data_dir=data_dir, namespace=namespace)
    scope = Scope(namespace=settings.namespace)
    now = datetime.now(UTC)
    histories: dict[str, list[MemoryEvent]] = {}
    withheld = 0
    async with open_archive(settings) as archive:
        heads = await archive.memories.list_memories(scope, include_deleted=True)
        for head in heads:
            history = await archive.memories.history(scope, head.memory_id)
            # read after the head: a server may have changed it in between
            last = history[-1]
            unwanted = last.actor is Actor.USER if last.record.deleted else not last.record.is_live(now)
            if unwanted:
                withheld += 1
            else:
                histories[head.memory_id] = history
    return Recording(f"{settings.data_dir}, namespace {settings.namespace}", histories, withheld)


def survey(recording: Recording) -> Survey:
    """What would be taken: exactly what :func:`make_tasks` makes tasks of."""
    stories = _stories(recording)
    events = sorted((event for story in stories for event in story.events), key=lambda event: event.seq)
    texts = dict.fromkeys(event.record.content for event in reversed(events))
    return Survey(
        where=recording.where,
        sessions=len({story.session for story in stories}),
        memories=len({event.record.memory_id for event in events}),
        changes=sum(event.kind in (MemoryEventKind.UPDATE, MemoryEventKind.DELETE) for event in events),
        withheld=recording.withheld,
        first_at=events[0].at if events else None,
        last_at=events[-1].at if events else None,
        tasks={split: len(make_tasks(recording, split)) for split in get_args(Split)},
        previews=tuple(preview(text) for text in list(texts)[:_PREVIEWS]),
    )


def make_tasks(recording: Recording, split: Split) -> list[Task]:
    """The tasks of one split, by the order of their sessions in the ledger."""
    stories = [story for story in _stories(recording) if split_of(story.thread) == split]
    texts = _TextsByWord(stories)
    return [task for story in stories if (task := _task(story, texts)) is not None]


@dataclass(slots=True)
class _Story:
    """What was done to long-term memory in one session, or in a part of a long one."""

    session: str
    part: int
    """From 1."""
    thread: str
    """The first of the sessions that are bound together by memories."""
    events: list[MemoryEvent] = field(default_factory=list["MemoryEvent"])
    before: dict[str, str] = field(default_factory=dict[str, str])
    """The texts of older memories before the session changed them, by id."""
    after: dict[str, str] = field(default_factory=dict[str, str])
    """The texts of its memories that hold at its end, by id; the one touched last comes last."""
    touched: set[str] = field(default_factory=set[str])
    """The ids of its memories."""

    def add(self, event: MemoryEvent, earlier: MemoryEvent | None) -> None:
        """Take the next row, and the one before it of the same memory, whoever wrote that."""
        record = event.record
        if record.memory_id not in self.touched and earlier is not None and not earlier.record.deleted:
            self.before[record.memory_id] = earlier.record.content
        self.touched.add(record.memory_id)
        self.events.append(event)
        self.after.pop(record.memory_id, None)
        if not record.deleted:
            self.after[record.memory_id] = record.content


def _stories(recording: Recording) -> list[_Story]:
    """All sessions, in parts that are no longer than a task, by their first rows."""
    rows = [
        (event, earlier)
        for history in recording.histories.values()
        for event, earlier in zip(history, [None, *history], strict=False)
        if event.actor is not Actor.ENVIRONMENT
    ]
    stories: list[_Story] = []
    latest: dict[str, _Story] = {}
    for event, earlier in sorted(rows, key=lambda row: row[0].seq):
        session = event.session_id or f"day-{event.at:%Y-%m-%d}"
        story = latest.get(session)
        if story is None or len(story.events) == LONGEST:
            story = latest[session] = _Story(session, 1 if story is None else story.part + 1, thread=session)
            stories.append(story)
        story.add(event, earlier)
    _bind(stories)
    return stories


def _bind(stories: list[_Story]) -> None:
    """Give the stories that touched the same memory, also by way of others, the same thread."""
    touching: dict[str, list[_Story]] = defaultdict(list)
    for story in stories:
        for memory_id in story.touched:
            touching[memory_id].append(story)
    for together in touching.values():
        threads = {story.thread for story in together}
        if len(threads) > 1:
            first = next(story.thread for story in stories if story.thread in threads)
            for story in stories:
                story.thread = first if story.thread in threads else story.thread


def _task(story: _Story, others: _TextsByWord) -> Task | None:
    """A session as a task; None where nothing in it can be asked about."""
    messages = _messages(story)
    asked = ((text, cloze(text)) for text in reversed(story.after.values()) if text in messages)
    text, question = next(((text, made) for text, made in asked if made is not None), (None, None))
    if text is None or question is None:
        return None
    return Task(
        task_id=f"recorded-{story.session}" if story.part == 1 else f"recorded-{story.session}.{story.part}",
        query=question.question,
        answer=question.answer,
        messages=tuple(messages),
        distractors=others.like(text, without=question.answer, story=story),
        gold=(fact_of(text),),
        facts=tuple(map(fact_of, dict.fromkeys(story.after.values()))),
        changes=_changes(story),
        background=tuple(dict.fromkeys(story.before.values())),
        key_items=key_items(question.question.removeprefix(INVITATION)),
        labels={"source": "recorded"},
    )


def _messages(story: _Story) -> list[str]:
    messages: list[str] = []
    known = dict(story.before)
    for event in story.events:
        memory_id, content = event.record.memory_id, event.record.content
        if event.record.deleted:
            messages.append(f"This is no longer true: {content}")
            known.pop(memory_id, None)
        elif known.get(memory_id) != content:  # else its metadata alone was changed
            messages.append(content)
            known[memory_id] = content
    return messages


def _changes(story: _Story) -> tuple[Change, ...]:
    """Every text that no longer holds at the session's end, and what holds in its place."""
    after = story.after
    texts = [*story.before.items(), *((event.record.memory_id, event.record.content) for event in story.events)]
    return tuple(
        Change(fact_of(text), None if memory_id not in after else fact_of(after[memory_id]))
        for memory_id, text in dict.fromkeys(texts)
        if after.get(memory_id) != text
    )


class _TextsByWord:
    """What the stories of a split hold at their ends, to be found by words of four letters and more."""

    def __init__(self, stories: list[_Story]) -> None:
        self._holding: dict[str, list[tuple[int, str, str]]] = defaultdict(list)
        """Place, memory and text of all that hold a word."""
        places = itertools.count()
        for story in stories:
            for memory_id, text in story.after.items():
                place = next(places)
                for word in _words(text):
                    self._holding[word].append((place, memory_id, text))

    def like(self, text: str, *, without: str, story: _Story) -> tuple[str, ...]:
        """Texts of other memories than a story's that share words with a text; the most alike first, then the oldest.

        Args:
            text: what they shall be like.
            without: what none of them may hold.
            story: whose memories are left out.
        """
        shared = Counter(
            (place, other)
            for word in _words(text)
            for place, memory_id, other in self._holding.get(word, ())
            if memory_id not in story.touched and without.casefold() not in other.casefold()
        )
        alike = sorted(shared, key=lambda one: (-shared[one], one[0]))
        return tuple(dict.fromkeys(other for _, other in alike))[:DISTRACTORS]


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.casefold()))
