"""Three-stage stories at three levels, without end.

Stage 1 tells facts among small talk, some of which later messages change or take back; stage 2 talks about something
else, with rumours about the very people; stage 3 asks.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agemem_mcp.errors import ConfigurationError
from agemem_training.tasks.synthetic.language import (
    RELATIONS,
    RUMOURS,
    SMALL_TALK,
    TOPICS,
    TWO_HOPS,
    UNKNOWN,
    draw_value,
    openings,
    wording,
)
from agemem_training.tasks.synthetic.names import FOODS, draw_names
from agemem_training.tasks.task import Change, Fact, Task

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from agemem_training.tasks.source import Split
    from agemem_training.tasks.synthetic.language import Relation, TwoHops, ValueKind
    from agemem_training.tasks.synthetic.names import NameKind

_NAMES: dict[NameKind, int] = {"person": 14, "firm": 10, "town": 10}
"""So many a story has at hand: enough for the longest at these levels, and each split has as many."""
_TRIES = 200
"""To draw a value that the story does not use yet."""
_OF_SOMEBODY_KNOWN = 0.4
"""Share of the further facts that are about somebody of whom one is told already."""
_CHANGES_TAKEN_BACK = 0.4
"""Share of the changes of what is not asked for that leave nothing true instead."""
_TAKEN_BACK_IN_TRAINING = 4
"""So many times as often questions of the ``train`` split ask for what was taken back: so that a policy does not
unlearn to say that it does not know. It is not enough (`LOG.md`)."""
_WITH_RUMOUR = 0.5
"""Share of the distractors."""


@dataclass(frozen=True, slots=True)
class Difficulty:
    """What a story is made of."""

    facts: tuple[int, int] = (3, 4)
    """So many are told, at least and at most; those of a question among them."""
    small_talk: tuple[int, int] = (1, 2)
    changes: tuple[int, int] = (0, 0)
    """So many facts are changed or taken back later."""
    two_hops: float = 0.0
    """Share of the questions that take two facts."""
    taken_back: float = 0.0
    """Share of the questions that ask for a fact which was taken back: nobody knows. More often in training."""
    asked_changed: float = 0.5
    """Share of the other questions that ask for what was changed, where something was."""
    distractors: tuple[int, int] = (2, 3)
    sentences: tuple[int, int] = (1, 2)
    """Of a distractor, a rumour aside."""
    background: tuple[int, int] = (0, 6)
    """Memories of others that are there already."""


LEVELS = {
    "L1": Difficulty(),
    "L2": Difficulty(facts=(3, 4), small_talk=(0, 1), changes=(1, 2), taken_back=0.04),
    "L3": Difficulty(
        facts=(3, 4),
        small_talk=(0, 1),
        changes=(1, 1),
        two_hops=0.4,
        taken_back=0.04,
        distractors=(10, 12),
        sentences=(3, 4),
    ),
}
"""L1: facts and small talk, one-hop questions. L2: changes too. L3: two-hop questions too, and distractors that
overflow the window of the mini preset."""


@dataclass(frozen=True, slots=True)
class _Told:
    """A fact of a story."""

    relation: Relation
    subject: str
    value: str

    @property
    def text(self) -> str:
        return self.relation.state(self.subject, self.value)

    @property
    def fact(self) -> Fact:
        return Fact(self.text, (self.subject, self.relation.mark, self.value))


@dataclass(slots=True)
class _Story:
    """A story being told."""

    split: Split
    rng: random.Random
    names: dict[NameKind, list[str]]
    """Those not used yet."""
    told: list[_Told] = field(default_factory=list["_Told"])
    """As they are at first."""
    now: dict[tuple[str, str], str] = field(default_factory=dict[tuple[str, str], str])
    """(subject, relation) → value at the end; without those taken back."""
    values: set[str] = field(default_factory=set[str])
    """Of all facts, those that were changed later included: no two have the same one, so none can be mistaken."""

    def name(self, kind: NameKind) -> str:
        """Somebody or something new."""
        if not self.names[kind]:
            raise _too_long(kind)
        return self.names[kind].pop()

    def value(self, relation: Relation) -> str:
        """A new value."""
        value = self._drawn(relation)
        self.values.add(value)
        return value

    def _drawn(self, relation: Relation) -> str:
        match relation.value:
            case "person" | "firm" | "town" as kind:
                return self.name(kind)
            case kind:
                for _ in range(_TRIES):
                    value = draw_value(self.rng, kind, self.split)
                    if value not in self.values:
                        return value
                raise _too_long(kind)


def _too_long(kind: ValueKind) -> ConfigurationError:
    return ConfigurationError(f"A story this long needs more values of the kind {kind!r} than there are; tell less.")


class Stories:
    """A source of stories of one level."""

    def __init__(self, level: str = "L1", difficulty: Difficulty | None = None) -> None:
        """Choose what they are like.

        Args:
            level: a name for reports; one of :data:`LEVELS`, unless a difficulty is given.
            difficulty: what a story is made of.

        Raises:
            ConfigurationError: there is no such level.
        """
        if difficulty is None and level not in LEVELS:
            msg = f"There is no level {level!r} of synthetic stories. There are {', '.join(LEVELS)}."
            raise ConfigurationError(msg)
        self.level = level
        self.difficulty = difficulty or LEVELS[level]

    def tasks(self, split: Split, *, seed: int) -> Iterator[Task]:
        """Stories without end, the same ones for the same seed."""
        number = 0
        while True:
            yield self.task(split, seed=seed, number=number)
            number += 1

    def task(self, split: Split, *, seed: int, number: int) -> Task:
        """One of them."""
        rng = random.Random(f"{split} {self.level} {seed} {number}")  # noqa: S311  stories, no secrets
        return _told_as_task(rng, split, self.level, self.difficulty, f"{self.level}-{split}-{seed}-{number}")


def _told_as_task(rng: random.Random, split: Split, level: str, wanted: Difficulty, task_id: str) -> Task:
    story = _Story(split, rng, {kind: draw_names(rng, kind, split, count) for kind, count in _NAMES.items()})
    two_hops = rng.random() < wanted.two_hops
    hops = rng.choice(TWO_HOPS) if two_hops else None
    asked = _facts(story, wanted, hops)
    changes: Mapping[_Told, str | None] = _changes(story, wanted, asked)
    often_taken_back = wanted.taken_back * (_TAKEN_BACK_IN_TRAINING if split == "train" else 1)
    taken_back = hops is None and rng.random() < often_taken_back and wanted.changes[1] > 0
    if taken_back:
        changes = {asked[0]: None}
    messages = _messages(story, wanted, changes)
    gold = [] if taken_back else [_present(story, one) for one in asked]
    questions = asked[0].relation.questions if hops is None else hops.questions
    query = rng.choice(wording(questions, split)).format(s=asked[0].subject)
    kind = "taken back" if taken_back else "two hops" if hops else "changed" if asked[0] in changes else "one hop"
    return Task(
        task_id=task_id,
        query=query,
        answer=UNKNOWN if taken_back else gold[-1].value,
        messages=tuple(messages),
        distractors=tuple(_distractors(story, wanted)),
        gold=tuple(one.fact for one in gold),
        facts=tuple(_present(story, one).fact for one in story.told if (one.subject, one.relation.name) in story.now),
        changes=tuple(
            Change(old.fact, None if new is None else _Told(old.relation, old.subject, new).fact)
            for old, new in changes.items()
        ),
        background=tuple(_background(story, wanted)),
        key_items=(asked[0].subject,),
        labels={"level": level, "kind": kind},
    )


def _facts(story: _Story, wanted: Difficulty, hops: TwoHops | None) -> list[_Told]:
    """Draw the story's facts; gives those that are asked for."""
    rng = story.rng
    asked: list[_Told] = []

    def tell(relation: Relation, subject: str) -> _Told:
        told = _Told(relation, subject, story.value(relation))
        story.told.append(told)
        story.now[told.subject, relation.name] = told.value
        return told

    one_hop = [relation for relation in RELATIONS.values() if relation.about == "person"]
    if hops is not None:
        first, second = RELATIONS[hops.first], RELATIONS[hops.second]
        asked.append(tell(first, story.name("person")))
        asked.append(tell(second, asked[0].value))
    else:
        asked.append(tell(rng.choice(one_hop), story.name("person")))
    count = rng.randint(*wanted.facts)
    while len(story.told) < count:
        relation = rng.choice(list(RELATIONS.values()))
        # Often somebody of whom something is known already: then a name alone does not find the right memory.
        known = [one.subject for one in story.told if one.relation.about == relation.about]
        subject = rng.choice(known) if known and rng.random() < _OF_SOMEBODY_KNOWN else None
        if subject is None or (subject, relation.name) in story.now:
            subject = story.name(relation.about)
        tell(relation, subject)
    rng.shuffle(story.told)
    return asked


def _changes(story: _Story, wanted: Difficulty, asked: list[_Told]) -> dict[_Told, str | None]:
    """Which facts change, and to what; None for one that is taken back."""
    rng = story.rng
    change_asked = rng.random() < wanted.asked_changed
    count = rng.randint(*wanted.changes)
    others = [one for one in story.told if one not in asked]
    rng.shuffle(others)
    # The last of the facts asked for: to change the first of two hops would cut it off from the second.
    chosen = ([asked[-1]] if change_asked else []) + others
    changes: dict[_Told, str | None] = {}
    for one in chosen[:count]:
        taken_back = one not in asked and rng.random() < _CHANGES_TAKEN_BACK
        changes[one] = None if taken_back else story.value(one.relation)
    return changes


def _messages(story: _Story, wanted: Difficulty, changes: Mapping[_Told, str | None]) -> list[str]:
    rng, split = story.rng, story.split
    plain = openings(split, change=False)
    lines: list[tuple[float, str]] = []
    for place, told in enumerate(story.told):
        lines.append((place, rng.choice(plain) + told.text))
        if told not in changes:
            continue
        new = changes[told]
        # After the fact itself, and after at least one other message where there is one.
        when = rng.uniform(place + 1, len(story.told) + 1)
        if new is None:
            lines.append((when, rng.choice(plain) + told.relation.denied.format(s=told.subject, v=told.value)))
            del story.now[told.subject, told.relation.name]
        else:
            lines.append((when, rng.choice(openings(split, change=True)) + told.relation.state(told.subject, new)))
            story.now[told.subject, told.relation.name] = new
    small = rng.sample(wording(SMALL_TALK, split), rng.randint(*wanted.small_talk))
    lines += [(rng.uniform(-1, len(story.told) + 1), text) for text in small]
    return [sentence(text) for _, text in sorted(lines)]


def sentence(text: str) -> str:
    """Write an article within a sentence small: "By the way, The boss …" → "By the way, the boss …"."""
    for article in ("that The ", ", The ", "Now The "):
        text = text.replace(article, article.replace("The", "the"))
    return text


def _present(story: _Story, told: _Told) -> _Told:
    """A fact as it is at the end."""
    return _Told(told.relation, told.subject, story.now.get((told.subject, told.relation.name), told.value))


def _distractors(story: _Story, wanted: Difficulty) -> list[str]:
    rng, split = story.rng, story.split
    _, texts = TOPICS[rng.choice(list(TOPICS))]
    about = [one.subject for one in story.told if one.relation.about == "person"]
    made: list[str] = []
    for _ in range(rng.randint(*wanted.distractors)):
        sentences = rng.choices(wording(texts, split), k=rng.randint(*wanted.sentences))
        rumour = rng.choice(wording(RUMOURS, split)) if rng.random() < _WITH_RUMOUR else None
        said = [*sentences, rumour] if rumour else sentences
        made.append(
            " ".join(
                one.format(
                    t=draw_value(rng, "town", split),
                    c=draw_value(rng, "firm", split),
                    f=_untold_food(story),
                    p=rng.choice(about),
                )
                for one in said
            )
        )
    return made


def _untold_food(story: _Story) -> str:
    """What nobody in the story likes: a rumour that happened to be true would tell a fact."""
    drawn = story.rng.choice(FOODS)
    return next((food for food in (drawn, *FOODS) if food not in story.values), drawn)


def _background(story: _Story, wanted: Difficulty) -> list[str]:
    rng = story.rng
    made: list[str] = []
    for _ in range(rng.randint(*wanted.background)):
        relation = rng.choice(list(RELATIONS.values()))
        if relation.about == "firm" or relation.value == "person":
            relation = RELATIONS["likes"]
        if not story.names["person"]:
            break
        made.append(relation.state(story.name("person"), draw_value(rng, relation.value, story.split)))
    return made
