"""Facts about people who do not exist, and questions about them: the same ones on every machine.

Fact number i, its person and its question depend on i alone; no chance and no model is involved. What
makes them hard to find by meaning alone is on purpose:

- Names are a given name with a surname, so that every person shares each half with many others, and the
  surnames are put together from syllables, so that many differ in one syllable only.
- Everyone with the same given name is known for the same kind of thing. Only the surname tells them apart.
- A question uses other words than the fact it asks for, apart from the name.

`python benchmarks/corpus.py [NUMBER …]` shows some.
"""

from __future__ import annotations

import sys

MAX_FACTS = 100_000
"""So many people have a name of their own."""

_BLOCK = 10_000
"""Facts in a row that draw from the same 50 given names and 200 surnames: the first 10,000 use every pair of them."""


def _words(text: str) -> list[str]:
    return text.split()


_GIVEN = _words(
    "Alma Bruno Celia Dario Edith Felix Greta Harold Isla Jasper Kaja Levin Maren Nuri Odile Peter Quinn Ruby Silas "
    "Tilda Ulrich Vesna Walter Xandra Yorick Zita Anton Bridget Cosmo Delia Egon Frida George Hedda Ismet Judith "
    "Kenneth Louise Martin Nelly Otto Paula Rasmus Selma Timothy Ursula Valentin Wanda Yves Zora Adrian Beatrice "
    "Conrad Doris Emre Fiona Gustav Helen Ingrid Joseph Karim Leonie Marek Nadia Oliver Petra Ralph Sanja Tobias "
    "Uta Vincent Wendy Xaver Yasmin Zeno Agnes Boris Carla Dennis Elaine Finn Gerda Holger Irma Jacob Clara "
    "Lawrence Mona Nicholas Olga Pascal Ricarda Simon Thelma Urban Viola Wolfgang Yvonne Zachary Astrid"
)
_FRONTS = _words(
    "Alder Birch Crane Dale Elm Falcon Grove Hazel Ivy Jay Kestrel Linden Moss Nettle Otter Pine Quarry Raven Stone "
    "Thrush"
)
_ENDS = _words(
    "bank bourne bridge brook burn bury bush castle church cliff combe cote court cross dale den down end fen fold "
    "gate grave ham haven head hill holm house hurst keep lake land lock man mead mere mill mouth pool port ridge "
    "shaw side smith stead street thorpe wick wright yard"
)

_TOPICS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    (
        "Which drink does {p} prefer?",
        (
            "{p} orders {v} in every café.",
            "{p} asks for {v} when thirsty.",
            "{p} likes a glass of {v} best.",
            "{p} sips {v} all day.",
        ),
        ("rooibos", "espresso", "buttermilk", "elderflower cordial", "hot chocolate", "lemonade", "green tea"),
    ),
    (
        "Which pet lives with {p}?",
        ("{p} adopted a {v}.", "{p} looks after a {v} at home.", "{p} is owner of a {v}.", "{p} feeds the {v} at six."),
        ("greyhound", "tabby cat", "tortoise", "canary", "rabbit", "ferret", "gecko"),
    ),
    (
        "Where does {p} want to go on holiday?",
        (
            "{p} is saving up for a trip to {v}.",
            "For next summer, {p} has booked a flight to {v}.",
            "{p} talks about seeing {v} at last.",
            "{p} hopes to travel to {v} one day.",
        ),
        ("Iceland", "Portugal", "Vietnam", "Peru", "Morocco", "Georgia", "Norway"),
    ),
    (
        "Which musical instrument does {p} play?",
        (
            "{p} practises the {v} every evening.",
            "{p} is heard on the {v} in the orchestra.",
            "{p} took up the {v} as a child.",
            "Lessons on the {v} are given by {p}.",
        ),
        ("cello", "oboe", "accordion", "harp", "trombone", "banjo", "clarinet"),
    ),
    (
        "What can {p} not eat?",
        (
            "{p} gets a rash from {v}.",
            "Please cook without {v} when {p} comes.",
            "{p} is allergic to {v}.",
            "Even a trace of {v} makes {p} ill.",
        ),
        ("peanuts", "shellfish", "celery", "sesame", "strawberries", "mustard", "walnuts"),
    ),
)


def person(i: int) -> str:
    """The name of person ``i`` (0 ≤ i < 100,000); nobody else has it.

    Raises:
        ValueError: there is no such person.
    """
    if not 0 <= i < MAX_FACTS:
        msg = f"There are people 0 to {MAX_FACTS - 1}, not {i}."
        raise ValueError(msg)
    block, row = divmod(i, _BLOCK)
    given, turn = row % 50, row // 50
    # 77 and 200 have no common factor: a given name meets each of its 200 surnames once.
    surname = (77 * turn + 13 * given) % 200
    front, end = divmod(surname, 10)
    return f"{_GIVEN[50 * (block % 2) + given]} {_FRONTS[front]}{_ENDS[end + 10 * (block // 2)]}"


def fact(i: int) -> str:
    """The one fact about person ``i``."""
    _, forms, values = _TOPICS[i % 5]
    return forms[i // 5 % 4].format(p=person(i), v=values[i // 20 % 7])


def question(i: int) -> str:
    """A question that fact ``i`` alone answers."""
    return _TOPICS[i % 5][0].format(p=person(i))


def asked(n: int, stored: int, *, start: int = 0) -> list[int]:
    """Numbers of ``n`` facts to ask for, spread over the first ``stored``; distinct as long as there are enough."""
    step = next(step for step in (7919, 7907, 7901) if stored % step)
    return [(start + k) * step % stored for k in range(n)]


def main() -> None:
    for number in [int(argument) for argument in sys.argv[1:]] or range(10):
        print(f"{number:>6}  {fact(number)}  ·  {question(number)}")


if __name__ == "__main__":
    main()
