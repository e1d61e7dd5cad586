"""Drills: short exchanges that need one skill each, in just the form of an episode, made without a server.

A policy learns to copy from many short examples, not from a few long ones; of those a machine makes thousands in a
second. Their names are those of the ``train`` split and others that belong to none (`practice_tails`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias, cast

from agemem_mcp.server.render import ADVICE_ON_SIMILAR
from agemem_policies.policy import ChatMessage
from agemem_policies.protocol import Call, Turn, render
from agemem_training.mini.demonstrator import EXPERT
from agemem_training.tasks.synthetic.language import (
    CHANGED,
    OPENINGS,
    RELATIONS,
    RUMOURS,
    SMALL_TALK,
    TOPICS,
    TWO_HOPS,
    UNKNOWN,
    about_tokens,
    draw_value,
    practice_opening,
    practice_rumour,
    practice_sentence,
    wording,
)
from agemem_training.tasks.synthetic.names import draw_names, draw_practice_names
from agemem_training.tasks.synthetic.stories import sentence

if TYPE_CHECKING:
    import random

    from agemem_training.tasks.source import Split
    from agemem_training.tasks.synthetic.language import Relation, ValueKind
    from agemem_training.tasks.synthetic.names import NameKind

Skill: TypeAlias = Literal["add", "update", "delete", "answer", "unknown", "two hops", "small talk", "clear"]

_WEIGHTS: dict[Skill, float] = {
    "add": 3, "update": 3, "delete": 2, "answer": 4, "unknown": 1, "two hops": 4, "small talk": 1, "clear": 1.5,
}  # fmt: skip
_RELATIONS = tuple(RELATIONS.values())
_PLAIN_CHANGES = 0.4
_SHUFFLED = 0.05
"""Share of the hits whose best one is not the right one: the server has it first in all of an expert's 512 look-ups."""
_SHOWN_UNASKED = 0.5
"""Share of the questions and of the small talk that memories are shown with."""
_IN_A_CHAT = 0.3
"""Share of the questions and of the changes that come after other messages."""
_SHOWN_AGAIN = 0.6
"""Share of the other memories among hits that are known already, once some are."""
_TOLD_THERE = 0.6
"""Share of the changes after other messages whose fact was told there."""
_SUMMARISED = 0.5
"""Share of the contexts on one topic that are cleared by a summary; without a topic all are."""
_CLOSE = 2
"""So many memories, at most, a drill's server names as close to a new one."""
_CHATTER = 0.3
"""Share of the small talk that is on no topic."""
_FULL_OF_FACTS = 0.3
"""Share of the full contexts that hold facts, not small talk."""
_OK = Turn("nothing new", answer="ok")
_DONE = Turn("done", answer="ok")
_SUMMARY = Turn("too much", (Call("Summary_context", {"span": "all", "summary": "small talk"}),))
_IN_DISTRACTORS: dict[str, ValueKind] = {"t": "town", "c": "firm", "f": "food", "p": "person"}
_PRACTISED = 0.3
"""Share of what is said in drills of the ``train`` split whose words are in no order."""


class _Drawn(dict[str, str]):
    """What stands in a distractor's places: a value of their kind, drawn when it is asked for."""

    def __init__(self, rng: random.Random, split: Split) -> None:
        super().__init__()
        self._rng = rng
        self._split: Split = split

    def __missing__(self, letter: str) -> str:
        return draw_value(self._rng, _IN_DISTRACTORS[letter], self._split)


@dataclass(frozen=True, slots=True)
class Exchange:
    """A turn, and what it comes after."""

    shown: tuple[ChatMessage, ...]
    turn: str


@dataclass(frozen=True, slots=True)
class _Known:
    """A fact."""

    relation: Relation
    subject: str
    value: str

    @property
    def text(self) -> str:
        return self.relation.state(self.subject, self.value)

    @property
    def thought(self) -> str:
        return self.text.removesuffix(".")


@dataclass(slots=True)
class _Scene:
    """A drill being written: its stock of names that were not used yet, and what was said."""

    rng: random.Random
    split: Split
    system: str
    budget_tokens: int
    names: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    ids: list[str] = field(default_factory=list[str])
    """Not taken yet."""
    stored: dict[_Known, str] = field(default_factory=dict["_Known", str])
    """What the memory is known to hold, and under which id."""
    date: str = ""
    said: list[ChatMessage] = field(default_factory=list[ChatMessage])
    told_there: list[_Known] = field(default_factory=list["_Known"])
    """Facts that were told and stored in this drill."""
    exchanges: list[Exchange] = field(default_factory=list[Exchange])

    def __post_init__(self) -> None:
        rng = self.rng
        kinds: dict[NameKind, int] = {"person": 14, "firm": 10, "town": 10}
        self.names = {kind: self._drawn(kind, count) for kind, count in kinds.items()}
        first = rng.randrange(1, 70)
        self.ids = [f"mem_{first + place}" for place in rng.sample(range(29), 29)]
        self.date = f"{rng.randrange(2024, 2031)}-{rng.randrange(1, 13):02d}-{rng.randrange(1, 29):02d}"
        self.said = [ChatMessage("system", self.system)]

    def fact(self, relation: Relation | None = None, subject: str | None = None) -> _Known:
        relation = relation or self.rng.choice(_RELATIONS)
        subject = subject or self._name(relation.about)
        value = relation.value
        if value in {"person", "firm", "town"}:
            return _Known(relation, subject, self._name(value))
        return _Known(relation, subject, draw_value(self.rng, value, self.split))

    def _name(self, kind: str) -> str:
        """A name that was not used yet, while there are any."""
        stock = self.names[kind]
        return stock.pop() if stock else self._drawn(cast("NameKind", kind), 1)[0]

    def _drawn(self, kind: NameKind, count: int) -> list[str]:
        if self.split == "train":
            return draw_practice_names(self.rng, kind, count)
        return draw_names(self.rng, kind, self.split, count)

    def hear(self, *texts: str) -> None:
        self.said += [ChatMessage("user", text) for text in texts]

    def write(self, turn: Turn) -> None:
        text = render(turn)
        self.exchanges.append(Exchange(tuple(self.said), text))
        self.said.append(ChatMessage("assistant", text))

    def hits(self, fact: _Known | None, count: int, *, like: _Known | None = None) -> str | None:
        """Show memories, one of them the fact, most often as the first; gives its id.

        Args:
            fact: None to show none in particular.
            count: of the memories.
            like: one of the others is like this; by default like the fact.
        """
        facts = [fact] if fact else []
        while len(facts) < count:
            known = [one for one in self.stored if one not in facts]
            if known and (self.rng.random() < _SHOWN_AGAIN or not self.ids):
                facts.append(self.rng.choice(known))
            elif (like or fact) and len(facts) == (fact is not None):
                facts.append(self._like(like or cast("_Known", fact)))
            else:
                facts.append(self.fact())
        if self.rng.random() < _SHUFFLED:
            self.rng.shuffle(facts)
        lines = "\n".join(f"[{self.id_of(one)}] ({self.date}, fact) {one.text}" for one in facts)
        self.hear(f"<retrieved_memories>\n{lines}\n</retrieved_memories>")
        return self.id_of(fact) if fact else None

    def id_of(self, fact: _Known) -> str:
        """Under which the memory holds a fact."""
        if fact not in self.stored:
            self.stored[fact] = self.ids.pop()
        return self.stored[fact]

    def hits_of_environment(self, fact: _Known | None) -> None:
        """In a chat memories are shown with everything that is said, in episodes only with what is told."""
        if self.rng.random() < _SHOWN_UNASKED:
            self.hits(fact, self.rng.randint(1, 2))

    def _like(self, fact: _Known) -> _Known:
        """Another fact that is easily taken for it: of the same subject, or of the same kind."""
        relations = [one for one in _RELATIONS if one.about == fact.relation.about and one is not fact.relation]
        if relations and self.rng.random() < 0.5:  # noqa: PLR2004  half of each
            return self.fact(self.rng.choice(relations), fact.subject)
        return self.fact(fact.relation)

    def known(self) -> _Known:
        """A fact that the memory holds; perhaps one that was told here."""
        told = self.told_there
        return self.rng.choice(told) if told and self.rng.random() < _TOLD_THERE else self.fact()

    def told(self, openings: dict[str, tuple[str, ...]], text: str) -> None:
        opening = practice_opening(self.rng) if self._practises() else self.rng.choice(wording(openings, self.split))
        self.hear(sentence(opening + text))

    def asked(self, questions: dict[str, tuple[str, ...]], subject: str) -> None:
        if self._practises():
            text = practice_opening(self.rng) + self.rng.choice(questions["practice"])
        else:
            text = self.rng.choice(wording(questions, self.split))
        self.hear(text.format(s=subject))

    def _practises(self) -> bool:
        return self.split == "train" and self.rng.random() < _PRACTISED

    def talked(self) -> str | None:
        """Something that tells no fact is said, though it may look like one; gives the criteria for its topic."""
        rng, split = self.rng, self.split
        if rng.random() < _CHATTER:
            self.hear(rng.choice(wording(SMALL_TALK, split)))
            return None
        criteria, texts = rng.choice(list(TOPICS.values()))
        count, rumour = rng.randint(1, 4), rng.choice(wording(RUMOURS, split))
        if practised := self._practises():
            said, rumour = [practice_sentence(rng) for _ in range(count)], practice_rumour(rng)
        else:
            said = rng.choices(wording(texts, split), k=count)
        if rng.random() < 0.5:  # noqa: PLR2004  as distractors do
            said.append(rumour)
        self.hear(" ".join(one.format_map(_Drawn(rng, split)) for one in said))
        return None if practised else criteria

    @property
    def used(self) -> float:
        """How full the context is, about."""
        return about_tokens(one.content for one in self.said) / self.budget_tokens

    def observed(self, text: str) -> None:
        self.hear(f"<tool_response>\n{text}\n</tool_response>")


def drill(
    rng: random.Random,
    *,
    system: str,
    split: Split = "train",
    skill: Skill | None = None,
    budget_tokens: int = 512,
) -> list[Exchange]:
    """Make a drill.

    Args:
        rng: source of chance.
        system: the system prompt.
        split: whose names and wording it uses.
        skill: what it needs; None for any.
        budget_tokens: T_max of the context.
    """
    scene = _Scene(rng, split, system, budget_tokens)
    chosen: Skill = skill or rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
    match chosen:
        case "add":
            for _ in range(rng.randint(1, 3)):
                _add(scene)
        case "update":
            _chat(scene)
            _update(scene)
        case "delete":
            _chat(scene)
            _delete(scene)
        case "small talk":
            _small_talk(scene)
        case "answer":
            _chat(scene)
            _answer(scene)
        case "unknown":
            _chat(scene)
            _unknown(scene)
        case "two hops":
            _chat(scene)
            _two_hops(scene)
        case "clear":
            _clear(scene)
    return scene.exchanges


def _add(scene: _Scene) -> bool:
    """Tells whether the context was cleared after it."""
    fact = scene.fact()
    scene.told(OPENINGS, fact.text)
    if count := scene.rng.randint(0, 2):
        scene.hits(None, count, like=fact)
    scene.write(Turn("new fact", (Call("Add_memory", {"content": fact.text, "memory_type": "fact"}),)))
    scene.observed(_stored(scene, fact))
    scene.told_there.append(fact)
    if scene.used < EXPERT.too_full:
        scene.write(_DONE)
        return False
    scene.write(_SUMMARY)
    return True


def _stored(scene: _Scene, fact: _Known) -> str:
    """What the server answers: it names memories that are close to the new one."""
    close = [one for one in scene.stored if one.relation is fact.relation][:_CLOSE]
    head = f"Stored as {scene.id_of(fact)}."
    if not close:
        return head
    lines = [f"- {scene.id_of(one)} (0.{scene.rng.randint(60, 95)}) {one.text}" for one in close]
    return "\n".join([head, ADVICE_ON_SIMILAR, *lines])


def _update(scene: _Scene) -> None:
    old = scene.known()
    new = scene.fact(old.relation, old.subject)
    # Whether something has changed is told by what was known before, not by how it is said.
    scene.told(OPENINGS if scene.rng.random() < _PLAIN_CHANGES else CHANGED, new.text)
    found = scene.hits(old, scene.rng.randint(1, 2))
    arguments = {"memory_id": found, "content": new.text}
    scene.write(Turn(f"{old.thought} {found}", (Call("Update_memory", arguments),)))
    scene.observed(f"Updated {found} (version 2). Before: {old.text}")
    scene.write(_DONE)


def _delete(scene: _Scene) -> None:
    fact = scene.known()
    scene.told(OPENINGS, fact.relation.denied.format(s=fact.subject, v=fact.value))
    found = scene.hits(fact, scene.rng.randint(1, 2))
    arguments = {"memory_id": found, "confirmation": True}
    scene.write(Turn(f"{fact.thought} {found}", (Call("Delete_memory", arguments),)))
    scene.observed(f"Deleted {found}.")
    scene.write(_DONE)


def _small_talk(scene: _Scene) -> None:
    scene.talked()
    scene.hits_of_environment(None)
    scene.write(_OK)


def _clear(scene: _Scene) -> None:
    """Talk, or facts, until the context is so full that it is cleared, unless they end before."""
    if scene.rng.random() < _FULL_OF_FACTS:
        any(_add(scene) for _ in range(scene.rng.randint(2, 9)))
        return
    as_in_chat = scene.rng.random() < _IN_A_CHAT
    for _ in range(scene.rng.randint(2, 14)):
        criteria = scene.talked()
        if as_in_chat:
            scene.hits_of_environment(None)
        if scene.used >= EXPERT.full:
            by_summary = criteria is None or scene.rng.random() < _SUMMARISED
            scene.write(_SUMMARY if by_summary else Turn("too much", (Call("Filter_context", {"criteria": criteria}),)))
            return
        scene.write(_OK)


def _chat(scene: _Scene) -> None:
    """What may stand before it: in a chat, and before a change in stage 1."""
    if scene.rng.random() < _IN_A_CHAT:
        for _ in range(scene.rng.randint(1, 4)):
            scene.rng.choice((_add, _small_talk))(scene)


def _look_up(scene: _Scene, fact: _Known, thought: str = "look up", *, found: bool = True) -> None:
    scene.write(Turn(thought, (Call("Retrieve_memory", {"query": fact.relation.lookup.format(s=fact.subject)}),)))
    scene.hits(fact if found else None, 3, like=fact)


def _answer(scene: _Scene) -> None:
    fact = scene.fact()
    scene.asked(fact.relation.questions, fact.subject)
    scene.hits_of_environment(fact)
    _look_up(scene, fact)
    scene.write(Turn(fact.thought, answer=fact.value))


def _unknown(scene: _Scene) -> None:
    fact = scene.fact()
    scene.asked(fact.relation.questions, fact.subject)
    scene.hits_of_environment(None)
    _look_up(scene, fact, found=False)
    scene.write(Turn("not there", answer=UNKNOWN))


def _two_hops(scene: _Scene) -> None:
    hops = scene.rng.choice(TWO_HOPS)
    first = scene.fact(RELATIONS[hops.first])
    second = scene.fact(RELATIONS[hops.second], first.value)
    scene.id_of(second)
    scene.asked(hops.questions, first.subject)
    scene.hits_of_environment(first)
    _look_up(scene, first)
    _look_up(scene, second, first.thought)
    scene.write(Turn(second.thought, answer=second.value))
