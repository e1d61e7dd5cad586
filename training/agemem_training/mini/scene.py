"""The scene of a drill: who is in it, what was said, what the memory holds and shows."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING, cast

from agemem_policies.policy import ChatMessage
from agemem_policies.protocol import render
from agemem_training.mini.dates import draw_day
from agemem_training.tasks.synthetic.language import (
    RELATIONS,
    RUMOURS,
    SMALL_TALK,
    TOPICS,
    about_tokens,
    draw_value,
    openings,
    practice_opening,
    practice_rumour,
    practice_sentence,
    wording,
)
from agemem_training.tasks.synthetic.names import draw_names, draw_practice_names
from agemem_training.tasks.synthetic.stories import sentence

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable

    from agemem_policies.protocol import Turn
    from agemem_training.tasks.source import Split
    from agemem_training.tasks.synthetic.language import Relation, ValueKind
    from agemem_training.tasks.synthetic.names import NameKind

_RELATIONS = tuple(RELATIONS.values())
_SHUFFLED = 0.05
"""Share of the hits whose best one is not the right one: the server has it first in all of an expert's 512 look-ups."""
_SHOWN_UNASKED = 0.5
"""Share of the questions and of the small talk that memories are shown with."""
_SHOWN_AGAIN = 0.6
"""Share of the other memories among hits that are known already, once some are."""
_ALIKE = 0.75
"""Share of the other memories among hits that are easily taken for the one in question, where there are such."""
_ALL_OF_TODAY = 0.5
"""Share of the drills whose memories all are of one day."""
_KNOWN_SUBJECT = 0.5
"""Share of what is told that is about somebody of whom something was told before, once there is somebody."""
_TOLD_THERE = 0.6
"""Share of the changes after other messages whose fact was told there."""
_CHATTER = 0.3
"""Share of the small talk that is on no topic."""
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
class Known:
    """A fact."""

    relation: Relation
    subject: str
    value: str

    @property
    def text(self) -> str:
        """As it is stored."""
        return self.relation.state(self.subject, self.value)

    @property
    def thought(self) -> str:
        """As a thought says it."""
        return self.text.removesuffix(".")

    def is_like(self, other: Known) -> bool:
        """Whether it is easily taken for another one: it is about the same subject, or says the same kind of thing."""
        return self.subject == other.subject or self.relation is other.relation


@dataclass(slots=True)
class Scene:
    """A drill being written: its stock of names that were not used yet, and what was said."""

    rng: random.Random
    split: Split
    system: str
    budget_tokens: int
    names: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    ids: list[str] = field(default_factory=list[str])
    """Not taken yet."""
    stored: dict[Known, str] = field(default_factory=dict["Known", str])
    """What the memory is known to hold, and under which id."""
    today: date = date.min
    all_of_today: bool = True
    """Whether all memories are, as in an episode; else each is of any day."""
    days: dict[Known, date] = field(default_factory=dict["Known", date])
    """When a memory was made or changed."""
    said: list[ChatMessage] = field(default_factory=list[ChatMessage])
    told_there: list[Known] = field(default_factory=list["Known"])
    """Facts that were told and stored in this drill."""
    exchanges: list[Exchange] = field(default_factory=list[Exchange])
    learnt: bool = True
    """Whether what is written now is to be learnt; else it only stands in the context."""

    def __post_init__(self) -> None:
        rng = self.rng
        kinds: dict[NameKind, int] = {"person": 14, "firm": 10, "town": 10}
        self.names = {kind: self._drawn(kind, count) for kind, count in kinds.items()}
        first = rng.randrange(1, 70)
        self.ids = [f"mem_{first + place}" for place in rng.sample(range(29), 29)]
        self.today = draw_day(rng)
        self.all_of_today = rng.random() < _ALL_OF_TODAY
        self.said = [ChatMessage("system", self.system)]

    def fact(self, relation: Relation | None = None, subject: str | None = None) -> Known:
        """A new one, about somebody of whom nothing was said unless a subject is given."""
        relation = relation or self.rng.choice(_RELATIONS)
        subject = subject or self._name(relation.about)
        value = relation.value
        if value in {"person", "firm", "town"}:
            return Known(relation, subject, self._name(value))
        return Known(relation, subject, draw_value(self.rng, value, self.split))

    def _name(self, kind: str) -> str:
        """A name that was not used yet, while there are any."""
        stock = self.names[kind]
        return stock.pop() if stock else self._drawn(cast("NameKind", kind), 1)[0]

    def _drawn(self, kind: NameKind, count: int) -> list[str]:
        if self.split == "train":
            return draw_practice_names(self.rng, kind, count)
        return draw_names(self.rng, kind, self.split, count)

    def hear(self, *texts: str) -> None:
        """Somebody says it."""
        self.said += [ChatMessage("user", text) for text in texts]

    def write(self, turn: Turn) -> None:
        """The policy should write this now."""
        text = render(turn)
        if self.learnt:
            self.exchanges.append(Exchange(tuple(self.said), text))
        self.said.append(ChatMessage("assistant", text))

    def hits(self, fact: Known | None, count: int, *, like: Known | None = None) -> str | None:
        """Show memories, one of them the fact, most often as the first; gives its id.

        Args:
            fact: None to show none in particular.
            count: of the memories.
            like: most of the others are like this; by default like the fact.
        """
        facts = [fact] if fact else []
        while len(facts) < count:
            facts.append(self._other(facts, like or fact))
        if self.rng.random() < _SHUFFLED:
            self.rng.shuffle(facts)
        lines = "\n".join(f"[{self.id_of(one)}] ({self._day_of(one)}, fact) {one.text}" for one in facts)
        self.hear(f"<retrieved_memories>\n{lines}\n</retrieved_memories>")
        return self.id_of(fact) if fact else None

    def id_of(self, fact: Known) -> str:
        """Under which the memory holds a fact."""
        if fact not in self.stored:
            self.stored[fact] = self.ids.pop()
        return self.stored[fact]

    def _day_of(self, fact: Known) -> date:
        if self.all_of_today or fact in self.told_there:
            return self.today
        return self.days.setdefault(fact, draw_day(self.rng))

    def change(self, old: Known, new: Known) -> None:
        """The memory holds another fact instead."""
        self.stored[new] = self.stored.pop(old)
        self.days[new] = self.today
        self.told_there = [new if one == old else one for one in self.told_there]

    def forget(self, fact: Known) -> None:
        """The memory no longer holds a fact."""
        del self.stored[fact]
        self.told_there = [one for one in self.told_there if one != fact]

    def hits_of_environment(self, fact: Known | None) -> None:
        """In a chat memories are shown with everything that is said, in episodes only with what is told."""
        if self.rng.random() < _SHOWN_UNASKED:
            self.hits(fact, self.rng.randint(1, 2))

    def _other(self, shown: list[Known], like: Known | None) -> Known:
        """A memory to be shown beside others: one that is known, or a new one; like something, or not."""
        model = like if self.rng.random() < _ALIKE else None
        known = [one for one in self.stored if one not in shown]
        if known and (self.rng.random() < _SHOWN_AGAIN or not self.ids):
            return self.rng.choice([one for one in known if model is not None and one.is_like(model)] or known)
        return self.fact() if model is None else self._like(model, shown)

    def _like(self, fact: Known, shown: list[Known]) -> Known:
        """Another fact that is easily taken for it: of the same subject, or of the same kind."""
        relations = self._untold(fact.subject, fact.relation, [fact, *shown])
        if relations and self.rng.random() < 0.5:  # noqa: PLR2004  half of each
            return self.fact(self.rng.choice(relations), fact.subject)
        return self.fact(fact.relation)

    def _untold(self, subject: str, relation: Relation, more: Iterable[Known] = ()) -> list[Relation]:
        """What may be told of somebody and is not known yet: who has two birthdays has none."""
        told = {one.relation.name for one in (*self.stored, *more) if one.subject == subject}
        return [one for one in _RELATIONS if one.about == relation.about and one.name not in told]

    def news(self) -> Known:
        """A new fact, perhaps about somebody of whom others were told."""
        if self.told_there and self.rng.random() < _KNOWN_SUBJECT:
            before = self.rng.choice(self.told_there)
            if relations := self._untold(before.subject, before.relation):
                return self.fact(self.rng.choice(relations), before.subject)
        return self.fact()

    def known(self) -> Known:
        """A fact that the memory holds; perhaps one that was told here."""
        told = self.told_there
        return self.rng.choice(told) if told and self.rng.random() < _TOLD_THERE else self.fact()

    def told(self, text: str, *, change: bool = False) -> None:
        """A sentence is told, after an opening."""
        practised = self._practises()
        opening = practice_opening(self.rng) if practised else self.rng.choice(openings(self.split, change=change))
        self.hear(sentence(opening + text))

    def asked(self, questions: dict[str, tuple[str, ...]], subject: str) -> None:
        """A question is asked about somebody."""
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
        """A tool answers."""
        self.hear(f"<tool_response>\n{text}\n</tool_response>")
