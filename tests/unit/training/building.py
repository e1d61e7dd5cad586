"""Episodes written down call by call, as the environment would record them.

story = Story(task)
story.turn(story.add("mem_1", "Maya lives in Oslo."))
story.stage(REASONING)
story.turn(story.retrieve("mem_1"))
episode = story.answer("Oslo")
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

from agemem_mcp.domain.context import MessageKind, Role
from agemem_mcp.domain.memory import Actor, MemoryEvent, MemoryEventKind, MemoryRecord, Scope
from agemem_policies.memory import Observation
from agemem_policies.policy import ChatMessage, Completion, Prompt
from agemem_policies.protocol import Call, Turn
from agemem_policies.session import ContextMessage
from agemem_policies.steps import Step, StopReason
from agemem_training.record import CONSTRUCTION, DISTRACTION, Episode
from agemem_training.tasks import Change, Fact, Task

Done: TypeAlias = tuple[Call, Observation]
"""A call and what it was answered."""

BUDGET = 1000
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)

OSLO = Fact("Maya lives in Oslo.", ("Maya", "Oslo"))
ROME = Fact("Maya lives in Rome.", ("Maya", "Rome"))
TEA = Fact("Tom drinks green tea.", ("Tom", "tea"))

LIVES = Task(
    "lives", "Where does Maya live?", "Oslo", (OSLO.text,), gold=(OSLO,), facts=(OSLO, TEA), key_items=("Maya",)
)
"""Nothing changes."""
MOVES = Task(
    "moves",
    "Where does Maya live?",
    "Rome",
    (OSLO.text, "Maya moved to Rome."),
    gold=(ROME,),
    facts=(ROME, TEA),
    changes=(Change(OSLO, ROME),),
    key_items=("Maya",),
)
"""A fact is replaced."""
LEAVES = Task(
    "leaves",
    "Where does Maya live?",
    "unknown",
    (OSLO.text, "Forget where Maya lives."),
    facts=(TEA,),
    changes=(Change(OSLO),),
    key_items=("Maya",),
)
"""A fact is taken back, and then nobody knows."""


@dataclass
class Story:
    """Writes an episode down; each call that succeeds also writes the ledger's row."""

    task: Task = LIVES
    episode: Episode = field(init=False)
    heads: dict[str, MemoryRecord] = field(default_factory=dict)
    now_in: int = CONSTRUCTION
    context: list[ContextMessage] = field(default_factory=list)
    shown: list[ContextMessage] | None = None
    """The context as it was before the first call of a turn, where calls changed it."""

    def __post_init__(self) -> None:
        self.episode = Episode(self.task, budget_tokens=BUDGET, max_rounds=8)
        self.stage(CONSTRUCTION)

    def stage(self, number: int) -> None:
        """Go on to a stage; the context is reset between the first and the second."""
        self.now_in = number
        self.episode.sessions[number] = "session-1" if number == CONSTRUCTION else "session-2"
        if number == DISTRACTION:
            self.context.clear()

    def says(self, text: str, role: Role = Role.USER, kind: MessageKind = MessageKind.MESSAGE) -> None:
        """Put a message into the context."""
        self.context.append(ContextMessage(f"msg_{len(self.context)}", role, text, kind))

    def turn(self, *done: Done, tokens: int = 100, think: str = "") -> None:
        """The policy takes a turn; the context holds so many tokens before it."""
        turn = Turn(think, tuple(call for call, _ in done))
        self._step(turn, tuple(observation for _, observation in done), tokens)

    def broken(self, text: str) -> None:
        """The policy writes what is no turn."""
        self._step(None, (Observation("Your turn could not be read.", is_error=True),), 100, text)

    def answer(self, text: str = "Oslo", *, tokens: int = 100, used: int = 200) -> Episode:
        """The policy answers, and the episode ends."""
        self._step(Turn("", answer=text), (), tokens)
        self.says(text, Role.ASSISTANT)
        self.episode.answer = text
        return self.end(StopReason.ANSWER, used=used)

    def end(self, reason: StopReason, *, used: int = 200) -> Episode:
        """The episode ends for a reason."""
        self.episode.stop_reason, self.episode.context_tokens = reason, used
        self.episode.context = tuple(self.context)
        return self.episode

    def add(self, memory_id: str, text: str) -> Done:
        """Add a memory."""
        self.row(MemoryEventKind.ADD, self._record(memory_id, text))
        return self.call("Add_memory", {"content": text}, {"memory_id": memory_id, "duplicate": False, "similar": []})

    def add_again(self, memory_id: str) -> Done:
        """Add a text that is stored already, with other metadata: the server writes an update of the same text."""
        record = self.heads[memory_id]
        self.row(MemoryEventKind.UPDATE, replace(record, version=record.version + 1, metadata={"again": True}))
        result = {"memory_id": memory_id, "duplicate": True, "similar": []}
        return self.call("Add_memory", {"content": record.content}, result)

    def update(self, memory_id: str, text: str) -> Done:
        """Update a memory; with its own text nothing is written."""
        before = self.heads[memory_id]
        if before.content != text:
            self.row(MemoryEventKind.UPDATE, replace(before, version=before.version + 1, content=text))
        result = {"memory_id": memory_id, "previous_content": before.content}
        return self.call("Update_memory", {"memory_id": memory_id, "content": text}, result)

    def delete(self, memory_id: str) -> Done:
        """Delete a memory."""
        before = self.heads[memory_id]
        self.row(MemoryEventKind.DELETE, replace(before, version=before.version + 1, deleted=True))
        arguments = {"memory_id": memory_id, "confirmation": True}
        return self.call("Delete_memory", arguments, {"memory_id": memory_id, "deleted": True})

    def retrieve(self, *memory_ids: str) -> Done:
        """Retrieve memories; they enter the context as one message."""
        self._begin()
        found = [{"memory_id": one, "content": self.heads[one].content} for one in memory_ids]
        if found:
            lines = [f"[{one['memory_id']}] (2026-01-01) {one['content']}" for one in found]
            self.says("\n".join(lines), Role.TOOL, MessageKind.RETRIEVED)
        return self.call("Retrieve_memory", {"query": "?"}, {"memories": found, "context": {"tokens": 150}})

    def filter(self, *texts: str, left: int = 100) -> Done:
        """Remove the messages with these texts from the context."""
        self._begin()
        self.context = [message for message in self.context if message.content not in texts]
        removed = [{"message_id": text} for text in texts]
        return self.call("Filter_context", {"criteria": "?"}, {"removed": removed, "context": {"tokens": left}})

    def summarise(self, text: str, *, left: int = 100) -> Done:
        """Put a summary in the place of the context."""
        self._begin()
        self.context.clear()
        self.says(text, Role.TOOL, MessageKind.SUMMARY)
        result = {"summary": text, "replaced": ["msg_0"], "context": {"tokens": left}}
        return self.call("Summary_context", {"span": "all"}, result)

    def call(self, name: str, arguments: dict[str, Any], result: dict[str, Any]) -> Done:
        """A call that succeeded."""
        return Call(name, arguments), Observation("done", result)

    def fails(self, name: str, **arguments: Any) -> Done:
        """A call that was refused: no row, no result."""
        return Call(name, arguments), Observation("refused", is_error=True)

    def background(self, memory_id: str, text: str) -> None:
        """A memory that is there before the episode."""
        self.row(MemoryEventKind.ADD, self._record(memory_id, text), Actor.ENVIRONMENT)

    def row(self, kind: MemoryEventKind, record: MemoryRecord, actor: Actor = Actor.POLICY) -> None:
        """Write a row of the ledger."""
        self.heads[record.memory_id] = record
        seq = len(self.episode.events) + 1
        session = self.episode.sessions[self.now_in]
        event = MemoryEvent(seq, kind, actor, session, NOON + timedelta(seconds=seq), record)
        self.episode.events = (*self.episode.events, event)

    def _record(self, memory_id: str, text: str) -> MemoryRecord:
        return MemoryRecord(Scope(), memory_id, 1, text, None, {}, NOON, NOON)

    def _begin(self) -> None:
        """Keep what the turn's prompt showed before a call changes the context."""
        if self.shown is None:
            self.shown = list(self.context)

    def _step(self, turn: Turn | None, observations: tuple[Observation, ...], tokens: int, text: str = "") -> None:
        self._begin()
        shown = tuple(ChatMessage(message.role.value, message.content) for message in self.shown or ())
        self.shown = None
        index = len(self.episode.steps)
        step = Step(index, Prompt(shown), Completion(text), turn, observations, tokens, stage=self.now_in)
        self.episode.steps.append(step)
