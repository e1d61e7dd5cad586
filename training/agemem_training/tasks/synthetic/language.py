"""How the stories speak: what facts there are, and in which words each split tells and asks them.

The wording of ``validation`` and ``test`` is not that of ``train``: other openings, other questions, other small talk,
other distractors. Their words are mostly known ones.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from agemem_training.tasks.synthetic.names import FOODS, MONTHS, NameKind, draw_names

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable

    from agemem_training.tasks.source import Split

ValueKind: TypeAlias = Literal["person", "firm", "town", "food", "code", "date"]


@dataclass(frozen=True, slots=True, eq=False)
class Relation:
    """A kind of fact about somebody or something."""

    name: str
    about: NameKind
    value: ValueKind
    sentence: str
    """How the fact is stored."""
    lookup: str
    """What finds it."""
    questions: dict[str, tuple[str, ...]]
    """By split."""
    denied: str
    """How it is taken back."""
    mark: str
    """A word of every sentence that states it, whatever the wording."""

    def state(self, subject: str, value: str) -> str:
        """The sentence about a subject."""
        return self.sentence.format(s=subject, v=value)


def _relation(  # noqa: PLR0913, PLR0917  a row of the table below
    name: str,
    about: NameKind,
    value: ValueKind,
    sentence: str,
    denied: str,
    mark: str,
    direct: str,
    indirect: str,
) -> Relation:
    lookup = sentence.replace("{v}", "").removesuffix(".").strip()
    return Relation(name, about, value, sentence, lookup, _asked(direct, indirect), denied, mark)


def _asked(direct: str, indirect: str) -> dict[str, tuple[str, ...]]:
    """The forms of a question by split: "Where does … live?", and "where … lives" after many openings."""
    return {
        split: tuple(one.format(direct=direct, indirect=indirect) for one in forms) for split, forms in ASKED.items()
    }


ASKED: dict[str, tuple[str, ...]] = {
    "train": (
        "{direct}",
        "{direct}",
        "Tell me {indirect}.",
        "Please tell me {indirect}.",
        "Can you say {indirect}?",
        "Do tell me {indirect}.",
        "I need to know {indirect}.",
        "I forgot {indirect}. Please look it up.",
        "One more thing: {direct}",
        "Now a question: {direct}",
        "Hello again. {direct}",
    ),
    "practice": ("{direct}", "{indirect}.", "{indirect}?"),
    "test": ("Do you know {indirect}?", "Please say {indirect}.", "Hello, one question: {direct}"),
}
"""How a question is put; ``validation`` is asked as ``test`` is, about other names. Those of ``practice`` go after a
`practice_opening`."""

RELATIONS = {
    one.name: one
    for one in (
        _relation(
            "works", "person", "firm", "{s} works at {v}.", "{s} no longer works at {v}.", "works",
            "Where does {s} work?", "where {s} works",
        ),
        _relation(
            "lives", "person", "town", "{s} lives in {v}.", "{s} no longer lives in {v}.", "lives",
            "Where does {s} live?", "where {s} lives",
        ),
        _relation(
            "likes", "person", "food", "{s} likes {v}.", "{s} no longer likes {v}.", "likes",
            "What does {s} like?", "what {s} likes",
        ),
        _relation(
            "boss", "person", "person", "The boss of {s} is {v}.", "The boss of {s} is no longer {v}.", "boss",
            "Who is the boss of {s}?", "who the boss of {s} is",
        ),
        _relation(
            "code", "person", "code", "The door code of {s} is {v}.", "The door code of {s} is no longer {v}.", "code",
            "What is the door code of {s}?", "what the door code of {s} is",
        ),
        _relation(
            "birthday", "person", "date", "The birthday of {s} is {v}.", "The birthday of {s} is not {v}.", "birthday",
            "When is the birthday of {s}?", "when the birthday of {s} is",
        ),
        _relation(
            "based", "firm", "town", "{s} is based in {v}.", "{s} is no longer based in {v}.", "based",
            "Where is {s} based?", "where {s} is based",
        ),
    )
}  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class TwoHops:
    """A question whose answer takes two facts: the value of the first is whom the second is about."""

    first: str
    second: str
    questions: dict[str, tuple[str, ...]]


TWO_HOPS = (
    TwoHops("works", "based", _asked("Where is the firm of {s} based?", "where the firm of {s} is based")),
    TwoHops("boss", "lives", _asked("Where does the boss of {s} live?", "where the boss of {s} lives")),
    TwoHops("boss", "likes", _asked("What does the boss of {s} like?", "what the boss of {s} likes")),
)  # fmt: skip

OPENINGS: dict[str, tuple[str, ...]] = {
    "train": (
        "",
        "",
        "Please note that ",
        "Note that ",
        "By the way, ",
        "For your notes: ",
        "I heard that ",
        "One more thing: ",
        "You should know that ",
        "Hello again. ",
        "Please remember this. ",
        "Today I heard that ",
        "This is for your notes: ",
    ),
    "test": ("Note, please: ", "By the way, I heard that ", "Please note this: ", "Hello, one more thing: "),
}
"""Before a sentence that tells a fact."""
CHANGED: dict[str, tuple[str, ...]] = {
    "train": (
        "Correction: ",
        "That has changed: ",
        "News: ",
        "Please note a change: ",
        "I was wrong: ",
        "Things have changed. Now ",
        "A correction, please: ",
        "By the way, that has changed. ",
        "Hello, there is a change: ",
    ),
    "test": ("Please note the correction: ", "This has changed: ", "News, a change: "),
}
"""Before a sentence that replaces a fact."""
SMALL_TALK: dict[str, tuple[str, ...]] = {
    "train": (
        "Hello, how are you today?",
        "Thank you, that was helpful.",
        "I had a long day at the office.",
        "Let us talk about music for a while.",
        "My phone is slow again.",
        "I need a break and some fresh air.",
        "What a day this has been.",
        "It is too late for more coffee.",
    ),
    "test": (
        "Hello, that was a long day.",
        "I need some music today.",
        "My office is slow again.",
        "Thank you for today.",
    ),
}
TOPICS: dict[str, tuple[str, dict[str, tuple[str, ...]]]] = {
    "news": (
        "city council and local news",
        {
            "train": (
                "The city council of {t} debated the new tram line for hours.",
                "A local newspaper wrote about the old harbour of {t} and the city.",
                "The city mayor of {t} opened a new library hall for local artists.",
            ),
            "test": (
                "The local newspaper of {t} wrote about the city library.",
                "The council of {t} opened the old tram line, local news said.",
            ),
        },
    ),
    "weather": (
        "weather forecast, rain and snow",
        {
            "train": (
                "Heavy rain is expected in {t} over the weekend.",
                "The weather forecast warns of strong wind and snow near {t}.",
                "Snow fell in {t} at night and the rain froze.",
            ),
            "test": (
                "The weekend forecast for {t} is strong rain and wind.",
                "Heavy snow near {t} is expected at night.",
            ),
        },
    ),
    "sport": (
        "football team and sports match",
        {
            "train": (
                "The football team of {t} lost the final match.",
                "Fans of sports celebrated the hockey team of {t}.",
                "The coach of {t} wants a better football team for the next match.",
            ),
            "test": (
                "The hockey team of {t} lost a match, and fans of sports left.",
                "Football fans of {t} celebrated the coach of the team.",
            ),
        },
    ),
    "market": (
        "stock market, shares and profits",
        {
            "train": (
                "Shares of {c} fell on the stock market.",
                "Analysts of the market expect {c} to report higher profits.",
                "Investors bought many shares of {c} on the stock market.",
            ),
            "test": (
                "The stock market expects higher profits of {c}.",
                "Analysts bought shares of {c}, the market report said.",
            ),
        },
    ),
}
"""Topic → how to describe it, and what is said on it."""
RUMOURS: dict[str, tuple[str, ...]] = {
    "train": ("Some say {p} once worked at {c}.", "It is said that a friend of {p} likes {f}."),
    "test": ("It is said that {p} once worked at {c}.",),
}
UNKNOWN = "unknown"
"""The right answer where nothing that was told answers the question (any more)."""


def wording(texts: dict[str, tuple[str, ...]], split: Split) -> tuple[str, ...]:
    """What a split may say."""
    return texts["train" if split == "train" else "test"]


def openings(split: Split, *, change: bool) -> tuple[str, ...]:
    """What may stand before a fact.

    In training either is told in any of the words: a policy to which "Correction:" tells a change looks less at what is
    known already, and takes another split's "Note, please:" for one.

    Args:
        split: of the story.
        change: the fact replaces another.
    """
    if split == "train":
        return (*OPENINGS["train"], *CHANGED["train"])
    return wording(CHANGED if change else OPENINGS, split)


_WORDS = re.compile(r"\w+")
_TOKENS_OF_A_WORD = 1.3
_OPENING_WORDS = sorted(
    {
        word
        for text in (*OPENINGS["train"], *CHANGED["train"], *SMALL_TALK["train"], *ASKED["train"])
        for word in re.findall(r"[A-Za-z]+", text)
        if word not in {"direct", "indirect"}
    }
)


def practice_opening(rng: random.Random) -> str:
    """Words in no order before what a drill says.

    A policy that only ever heard a dozen openings would take another one for something else than an opening.
    """
    return " ".join(rng.choices(_OPENING_WORDS, k=rng.randint(1, 4))) + rng.choice((" ", ", ", ": ", ". "))


_TALK_WORDS = sorted(
    {
        word
        for texts in (SMALL_TALK["train"], *(forms["train"] for _, forms in TOPICS.values()))
        for text in texts
        for word in re.findall(r"\b[a-z]{2,}\b", text)
    }
)


def practice_sentence(rng: random.Random) -> str:
    """Words in no order that tell nothing, with places for a name or two; as for `practice_opening`."""
    words = rng.choices(_TALK_WORDS, k=rng.randint(5, 10))
    words[0] = words[0].capitalize()
    words[rng.randrange(1, len(words))] = rng.choice(("{t}", "{c}"))
    return " ".join(words) + "."


def practice_rumour(rng: random.Random) -> str:
    """What looks like a fact and is none, after words in no order."""
    return practice_opening(rng) + rng.choice(("{p} once worked at {c}.", "a friend of {p} likes {f}."))


def about_tokens(texts: Iterable[str]) -> float:
    """How many tokens texts are for the mini policy, about: a name is two, and a turn's fixed parts are one each."""
    return _TOKENS_OF_A_WORD * sum(len(_WORDS.findall(text)) for text in texts)


def draw_value(rng: random.Random, kind: ValueKind, split: Split) -> str:
    """A value of a kind; those with names come from the split."""
    match kind:
        case "food":
            return rng.choice(FOODS)
        case "code":
            return f"{rng.randrange(10, 100)}{rng.randrange(10, 100)}"
        case "date":
            return f"{rng.randrange(1, 29)} {rng.choice(MONTHS)}"
        case "person" | "firm" | "town":
            return draw_names(rng, kind, split, 1)[0]
