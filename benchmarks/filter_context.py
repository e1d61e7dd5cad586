"""How well Filter_context's scores find the messages that criteria mean.

Two measurements, both counted over messages (micro): on HotpotQA, criteria name one to three
distractor paragraphs by title, the messages are the question's paragraphs without titles, and
exactly those distractors should go; on ``filter_no_shared_words.json``, criteria share no content
word with what they mean. Weights and thresholds were chosen on HotpotQA's training sample and the
set's even items; the development sample and the odd items only report.

    python benchmarks/filter_context.py --data DIR [--model DIR] [--tune] [--json OUT]
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import random
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from py_rust_stemmers import SnowballStemmer  # pyright: ignore[reportAttributeAccessIssue]
from rich.console import Console
from rich.table import Table

from agemem_mcp.adapters.embedding import FastEmbedEmbedder, VectorCache
from agemem_mcp.app import asset_store
from agemem_mcp.domain.modes import FilterMode
from agemem_mcp.service.relevance import DEFAULT_THETA, similarities
from agemem_mcp.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    Scorer: TypeAlias = Callable[[str, Sequence[str], Sequence[str]], Awaitable[list[float]]]
    """Criteria, their topics (known to baselines alone) and messages to one score per message."""

HERE = Path(__file__).parent
WRITTEN = HERE / "filter_no_shared_words.json"
_CACHED_TEXTS = 200_000
SAMPLES = {"train": "train_100.json", "dev": "dev_distractor_100.json"}
CRITERIA_PER_QUESTION = 3
SEED = 0

STOP_WORDS = """
a about an and any anything are as at be by for from in into is it its my not of on or s something that the their this
to was were what which with you your
"""


def _listed(topics: Sequence[str], last: str) -> str:
    return f"{', '.join(topics[:-1])} {last} {topics[-1]}" if len(topics) > 1 else topics[0]


PHRASINGS: Mapping[str, Callable[[Sequence[str]], str]] = {
    "A; B; C": "; ".join,
    "A, B and C": lambda topics: _listed(topics, "and"),
    "anything about A, B or C": lambda topics: f"anything about {_listed(topics, 'or')}",
    "messages about A and B and C": lambda topics: f"messages about {' and '.join(topics)}",
    "Irrelevant paragraphs ...": lambda topics: (
        f"Irrelevant paragraphs about {_listed(topics, 'and')} that do not help to answer the question."
    ),
    "lines": lambda topics: "Remove messages about:\n" + "\n".join(f"- {topic}" for topic in topics),
    "a, b and c (lower case)": lambda topics: _listed(topics, "and").lower(),
}


@dataclass(frozen=True, slots=True)
class Case:
    """One context, what should leave it, and what must not."""

    topics: tuple[str, ...]
    texts: tuple[str, ...]
    wanted: frozenset[int]
    protected: frozenset[int]


@dataclass(frozen=True, slots=True)
class Figures:
    """Counted over the messages of all cases; ``macro_f1`` is the mean over cases."""

    precision: float
    recall: float
    f1: float
    macro_f1: float
    protected_removed: float


def hotpotqa_cases(path: Path) -> list[Case]:
    """Three random criteria per question; supporting paragraphs are the protected ones."""
    cases: list[Case] = []
    for question in json.loads(path.read_text(encoding="utf-8")):
        supporting = {title for title, _ in question["supporting_facts"]}
        titles = [title for title, _ in question["context"]]
        texts = tuple(" ".join(one.strip() for one in sentences) for _, sentences in question["context"])
        distractors = [number for number, title in enumerate(titles) if title not in supporting]
        for draw in range(CRITERIA_PER_QUESTION):
            chance = random.Random(f"{SEED}:{question['_id']}:{draw}")
            chosen = chance.sample(distractors, min(chance.randint(1, 3), len(distractors)))
            protected = frozenset(range(len(titles))) - frozenset(distractors)
            cases.append(Case(tuple(titles[number] for number in chosen), texts, frozenset(chosen), protected))
    return cases


def written_cases(part: int, *, named: bool = False, meant_only: bool = False) -> list[Case]:
    """Every second item of the written set; all that is not meant counts as protected.

    Args:
        part: 0 for the even items (tuning), 1 for the odd ones (reporting).
        named: add a meant message that does use the criteria's words, so that others must not be
            taken for unmeant because they do not.
        meant_only: leave the other messages out.
    """
    cases: list[Case] = []
    for item in json.loads(WRITTEN.read_text(encoding="utf-8"))[part::2]:
        meant = [*item["meant"], *([f"A note on {item['criteria']}: nothing new this week."] if named else [])]
        texts = (*meant, *([] if meant_only else item["others"]))
        wanted = frozenset(range(len(meant)))
        cases.append(Case((item["criteria"],), texts, wanted, frozenset(range(len(texts))) - wanted))
    return cases


def shared_words() -> list[str]:
    """Items of the written set whose criteria share a stem with a message they mean; none should."""
    stemmer = SnowballStemmer("english")

    def stems(text: str) -> set[str]:
        return {stemmer.stem_word(word) for word in re.findall(r"\w+", text.lower()) if word not in STOP_WORDS.split()}

    return [
        f"{item['criteria']!r} and {message!r} share {shared}"
        for item in json.loads(WRITTEN.read_text(encoding="utf-8"))
        for message in item["meant"]
        if (shared := stems(item["criteria"]) & stems(message))
    ]


async def score_cases(
    cases: Sequence[Case], phrase: Callable[[Sequence[str]], str], scorer: Scorer
) -> list[list[float]]:
    """Scores of every case's messages."""
    return [await scorer(phrase(case.topics), case.topics, case.texts) for case in cases]


def figures(cases: Sequence[Case], scores: Sequence[Sequence[float]], theta: float) -> Figures:
    """What removing from ``theta`` on gives."""
    removed = [frozenset(number for number, score in enumerate(one) if score >= theta) for one in scores]
    hits = [len(case.wanted & one) for case, one in zip(cases, removed, strict=True)]
    taken = sum(len(one) for one in removed)
    wanted = sum(len(case.wanted) for case in cases)
    protected = sum(len(case.protected) for case in cases)
    return Figures(
        precision=sum(hits) / max(1, taken),
        recall=sum(hits) / max(1, wanted),
        f1=2 * sum(hits) / max(1, taken + wanted),
        macro_f1=float(
            np.mean(
                [2 * hit / (len(one) + len(case.wanted)) for hit, one, case in zip(hits, removed, cases, strict=True)]
            )
        ),
        protected_removed=sum(len(case.protected & one) for case, one in zip(cases, removed, strict=True))
        / max(1, protected),
    )


def best_theta(cases: Sequence[Case], scores: Sequence[Sequence[float]]) -> float:
    """The threshold of the best F1, to two decimals."""
    return max(
        (float(theta) for theta in np.arange(0.02, 1.0, 0.02)), key=lambda theta: figures(cases, scores, theta).f1
    )


def sentences_of(text: str) -> list[str]:
    """A plain sentence splitter, for the baselines."""
    return [one for one in re.split(r"(?<=[.!?])\s+", text) if one.strip()] or [text]


def baselines(embedder: FastEmbedEmbedder) -> Mapping[str, Scorer]:
    """What one would try first. All but the first are told the topics, which the product must find."""

    async def whole_whole(criteria: str, topics: Sequence[str], texts: Sequence[str]) -> list[float]:
        del topics
        return await similarities(criteria, texts, mode=FilterMode.PAPER, embedder=embedder)

    async def topic_whole(criteria: str, topics: Sequence[str], texts: Sequence[str]) -> list[float]:
        del criteria
        return ((await embedder.embed(texts)) @ (await embedder.embed(topics)).T).max(axis=1).tolist()

    async def topic_sentence(criteria: str, topics: Sequence[str], texts: Sequence[str]) -> list[float]:
        del criteria
        vectors = await embedder.embed(topics)
        return [float(((await embedder.embed(sentences_of(text))) @ vectors.T).max()) for text in texts]

    async def word_overlap(criteria: str, topics: Sequence[str], texts: Sequence[str]) -> list[float]:
        del criteria
        words = [set(re.findall(r"\w+", text.lower())) for text in texts]
        wanted = [set(re.findall(r"\w+", topic.lower())) or {""} for topic in topics]
        return [max(len(one & topic) / len(topic) for topic in wanted) for one in words]

    return {
        "whole criteria / whole message": whole_whole,
        "topic / whole message": topic_whole,
        "topic / best sentence": topic_sentence,
        "topic / word overlap": word_overlap,
    }


def product(embedder: FastEmbedEmbedder | None, mode: FilterMode) -> Scorer:
    """What the server runs."""

    async def scorer(criteria: str, topics: Sequence[str], texts: Sequence[str]) -> list[float]:
        del topics
        return await similarities(criteria, texts, mode=mode, embedder=embedder)

    return scorer


def written_sets(part: int) -> Mapping[str, list[Case]]:
    """The written set and two variations of its contexts."""
    return {
        "no shared words": written_cases(part),
        "one message shares the words": written_cases(part, named=True),
        "every message is meant": written_cases(part, meant_only=True),
    }


async def measure(data: Path, embedder: FastEmbedEmbedder, *, tune: bool) -> list[dict[str, Any]]:
    """All rows of the table."""
    rows: list[dict[str, Any]] = []

    def add(split: str, scorer: str, phrasing: str, theta: float, result: Figures) -> None:
        rows.append({"set": split, "scorer": scorer, "criteria": phrasing, "theta": theta, **asdict(result)})

    hotpotqa = {split: hotpotqa_cases(data / name) for split, name in SAMPLES.items()}
    written = {"train": written_sets(0), "dev": written_sets(1)}
    for name, scorer in baselines(embedder).items():
        phrase = PHRASINGS["A; B; C"]
        tuning = await score_cases(hotpotqa["train"], phrase, scorer)
        theta = best_theta(hotpotqa["train"], tuning)
        for split, cases in hotpotqa.items():
            if tune and split == "dev":
                continue
            add(
                f"HotpotQA {split}",
                name,
                "A; B; C",
                theta,
                figures(cases, await score_cases(cases, phrase, scorer), theta),
            )
        if tune:
            continue
        even, odd = written["train"]["no shared words"], written["dev"]["no shared words"]
        own = best_theta(even, await score_cases(even, phrase, scorer))
        add("written, odd", name, "no shared words", own, figures(odd, await score_cases(odd, phrase, scorer), own))
    for mode, model in ((FilterMode.HYBRID, embedder), (FilterMode.LEXICAL, None)):
        scorer = product(model, mode)
        for split in ("train",) if tune else ("train", "dev"):
            for phrasing, phrase in PHRASINGS.items():
                scores = await score_cases(hotpotqa[split], phrase, scorer)
                theta = best_theta(hotpotqa[split], scores) if tune else DEFAULT_THETA[mode]
                add(f"HotpotQA {split}", mode, phrasing, theta, figures(hotpotqa[split], scores, theta))
            for name, cases in written[split].items():
                scores = await score_cases(cases, PHRASINGS["A; B; C"], scorer)
                theta = best_theta(cases, scores) if tune else DEFAULT_THETA[mode]
                add(
                    f"written, {'even' if split == 'train' else 'odd'}",
                    mode,
                    name,
                    theta,
                    figures(cases, scores, theta),
                )
    return rows


def show(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Print the table."""
    table = Table(title="Filter_context")
    for heading in ("set", "scorer", "criteria"):
        table.add_column(heading)
    numbers = ("theta", "precision", "recall", "f1", "macro_f1", "protected_removed")
    for heading in numbers:
        table.add_column(heading.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(row["set"], row["scorer"], row["criteria"], *(f"{row[number]:.3f}" for number in numbers))
    console.print(table)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the two HotpotQA samples")
    parser.add_argument("--model", type=Path, help="folder with the ONNX model; default: where `assets pull` puts it")
    parser.add_argument("--tune", action="store_true", help="training halves alone, each with its best threshold")
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    options = parser.parse_args()
    model: Path = options.model or asset_store(load_settings()).model_dir
    missing = [path for path in (*(options.data / name for name in SAMPLES.values()), model) if not path.exists()]
    if missing:
        print(f"Not found: {', '.join(map(str, missing))}", file=sys.stderr)
        return 2
    if shared := shared_words():
        print("The written set must share no content word:", *shared, sep="\n", file=sys.stderr)
        return 1
    rows = asyncio.run(
        measure(options.data, FastEmbedEmbedder(model, cache=VectorCache(_CACHED_TEXTS)), tune=options.tune)
    )
    show(rows, Console(width=150))
    hashes = {name: hashlib.sha256((options.data / name).read_bytes()).hexdigest() for name in SAMPLES.values()}
    hashes[WRITTEN.name] = hashlib.sha256(WRITTEN.read_bytes()).hexdigest()
    if options.json:
        options.json.write_text(json.dumps({"sha256": hashes, "rows": rows}, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
