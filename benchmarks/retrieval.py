"""Recall of what answers a question, stored and asked through the MCP tools.

    python benchmarks/retrieval.py [--hotpotqa FILE] [--locomo FILE] [--json OUT]

HotpotQA: every sentence of every question's paragraphs becomes one memory (content = the sentence, metadata =
its title and the question's number), all in one namespace. Each question is then retrieved with, filtered by
its number. A sentence that stands in two questions is stored once, with both numbers.

LoCoMo: every turn becomes one memory, "Speaker: text [shares caption of the image]", metadata = number and time
of its session, with the session as the ``agemem/session_id`` of the call. Three forms:

* ``locomo``: each conversation in a namespace of its own, in order.
* ``locomo mixed``: all conversations in one namespace, stored turn by turn in rotation.
* ``locomo long``: twelve turns of a session to a memory, some 270 words: more than the model reads.

recall@k is the share of what supports the answer among the first k hits, mean over the questions; top_k is 10.
LoCoMo's category 5 (what cannot be answered as asked) is counted apart.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import itertools
import json
import re
import statistics
import sys
import tempfile
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcp.client.client import Client

from agemem_mcp.app import service_gate
from agemem_mcp.domain.memory import Scope
from agemem_mcp.server.tools import MemoryServer
from agemem_mcp.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Iterator

TOP_K = 10
CHUNK = 12
UNANSWERABLE = 5


@dataclass(slots=True)
class Question:
    """What is asked, and what supports the answer."""

    text: str
    wanted: set[str]
    """Keys of memories."""
    category: int = 0
    metadata_filter: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(slots=True)
class Memory:
    """What is stored."""

    keys: list[str]
    """What questions may want it by."""
    content: str
    metadata: dict[str, Any]
    session_id: str | None = None


class Server:
    """The tools in this process, for one namespace."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.ids: dict[str, str] = {}

    async def call(self, tool: str, session_id: str | None = None, **arguments: Any) -> dict[str, Any]:
        """Call a tool; returns its structured answer."""
        meta: Any = {"agemem/session_id": session_id} if session_id else None
        result = await self.client.call_tool(tool, arguments, meta=meta)
        if result.is_error:
            raise RuntimeError(result.content)
        return result.structured_content or {}

    async def store(self, memories: Iterable[Memory]) -> float:
        """Store all; returns mean milliseconds."""
        started = time.perf_counter()
        count = 0
        for count, one in enumerate(memories, 1):  # noqa: B007  the last number is the count
            added = await self.call("Add_memory", one.session_id, content=one.content, metadata=one.metadata)
            self.ids |= {key: str(added["memory_id"]) for key in one.keys}
        return (time.perf_counter() - started) * 1000 / max(count, 1)

    async def ask(self, questions: list[Question]) -> list[tuple[Question, list[str], float]]:
        """Each question with the ids found and milliseconds."""
        answers: list[tuple[Question, list[str], float]] = []
        for one in questions:
            started = time.perf_counter()
            found = await self.call("Retrieve_memory", query=one.text, top_k=TOP_K, metadata_filter=one.metadata_filter)
            elapsed_ms = (time.perf_counter() - started) * 1000
            answers.append((one, [hit["memory_id"] for hit in found["memories"]], elapsed_ms))
        return answers


class Tally:
    """Recall and time over questions."""

    def __init__(self, *cutoffs: int) -> None:
        self.cutoffs = cutoffs
        self.shares: dict[int, list[tuple[float, ...]]] = {}
        self.times_ms: list[float] = []
        self.store_ms: list[float] = []
        self.memories = 0

    def add(self, answers: Iterable[tuple[Question, list[str], float]], ids: dict[str, str]) -> None:
        """Count the answers of a namespace."""
        for question, found, elapsed_ms in answers:
            wanted = {ids[key] for key in question.wanted}
            shares = tuple(len(wanted & set(found[:cutoff])) / len(wanted) for cutoff in self.cutoffs)
            self.shares.setdefault(question.category, []).append(shares)
            self.times_ms.append(elapsed_ms)
        self.memories += len(set(ids.values()))

    def figures(self) -> dict[str, Any]:
        """Means over all that was counted."""
        answerable = [one for category, own in self.shares.items() if category != UNANSWERABLE for one in own]
        by_category = {f"category {key}": self._means(self.shares[key]) for key in sorted(self.shares) if key}
        return {
            "questions": len(answerable),
            "memories": self.memories,
            **self._means(answerable),
            **by_category,
            "store_ms_mean": round(statistics.mean(self.store_ms), 2),
            "retrieve_ms_p50": round(statistics.median(self.times_ms), 2),
        }

    def _means(self, shares: list[tuple[float, ...]]) -> dict[str, float]:
        return {
            f"recall@{cutoff}": round(statistics.mean(one[place] for one in shares), 4)
            for place, cutoff in enumerate(self.cutoffs)
        }


class Namespaces:
    """A service on real stores in a folder of its own."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="agemem-retrieval-")
        self._gate = service_gate(load_settings(data_dir=Path(self._folder.name) / "data"))

    @asynccontextmanager
    async def open(self, namespace: str) -> AsyncGenerator[Server]:
        """The tools for a namespace."""
        server = MemoryServer(self._gate, scope_of=lambda _: Scope(namespace=namespace))
        async with Client(server.mcp) as client:
            yield Server(client)
        await server.drain()

    async def close(self) -> None:
        """Close the service and remove its folder."""
        await self._gate.close()
        self._folder.cleanup()


async def hotpotqa(data: Path, service: Namespaces) -> dict[str, Any]:
    """Supporting sentences."""
    items: list[dict[str, Any]] = json.loads(data.read_text(encoding="utf-8"))
    tally = Tally(5, 10)
    async with service.open("hotpotqa") as server:
        started = time.perf_counter()
        numbers: dict[str, list[int]] = {}
        for number, item in enumerate(items):
            for title, sentences in item["context"]:
                for position, sentence in enumerate(sentences):
                    if not sentence.strip():
                        continue
                    metadata = {"title": title, "question": number}
                    memory_id = (await server.call("Add_memory", content=sentence, metadata=metadata))["memory_id"]
                    server.ids[f"{number}/{title}/{position}"] = memory_id
                    known = numbers.setdefault(memory_id, [])
                    if number not in known:
                        known.append(number)
                    if len(known) > 1:
                        change: dict[str, Any] = {"content": sentence, "metadata": {"question": known}}
                        await server.call("Update_memory", None, memory_id=memory_id, **change)
        tally.store_ms.append((time.perf_counter() - started) * 1000 / len(server.ids))
        questions = [
            Question(
                item["question"],
                {f"{number}/{title}/{position}" for title, position in item["supporting_facts"]},
                metadata_filter={"question": number},
            )
            for number, item in enumerate(items)
        ]
        tally.add(await server.ask(questions), server.ids)
    return tally.figures()


def turns_of(item: dict[str, Any]) -> list[list[Memory]]:
    """The sessions of a conversation, each a list of turns."""
    conversation, sessions = item["conversation"], list[list[Memory]]()
    for number in itertools.count(1):
        if f"session_{number}_date_time" not in conversation:
            return sessions
        # such as "1:56 pm on 8 May, 2023"
        said_at = datetime.strptime(conversation[f"session_{number}_date_time"], "%I:%M %p on %d %B, %Y")  # noqa: DTZ007
        metadata = {"session": number, "said_at": said_at.isoformat()}
        session_id = f"{item['sample_id']}-{number}"
        turns: list[Memory] = []
        for turn in conversation.get(f"session_{number}", []):
            caption = f" [shares {turn['blip_caption']}]" if turn.get("blip_caption") else ""
            content = f"{turn['speaker']}: {turn['text']}{caption}"
            turns.append(Memory([f"{item['sample_id']}/{turn['dia_id']}"], content, metadata, session_id))
        sessions.append(turns)
    return sessions


def chunks_of(turns: list[Memory]) -> list[Memory]:
    """Twelve turns to a memory."""
    groups = [turns[start : start + CHUNK] for start in range(0, len(turns), CHUNK)]
    return [
        Memory(
            [key for one in group for key in one.keys],
            "\n".join(one.content for one in group),
            group[0].metadata,
            group[0].session_id,
        )
        for group in groups
    ]


def questions_of(item: dict[str, Any], known: set[str]) -> list[Question]:
    """Questions with evidence; some evidence strings hold several ids, and one names a turn that is not there."""
    questions: list[Question] = []
    for one in item["qa"]:
        ids = re.findall(r"D\d+:\d+", " ".join(one["evidence"]))
        wanted = {f"{item['sample_id']}/{dia_id}" for dia_id in ids} & known
        if wanted:
            questions.append(Question(one["question"], wanted, one["category"]))
    return questions


async def locomo(data: Path, service: Namespaces, form: str) -> dict[str, Any]:
    """Evidence turns, or the memories that hold them."""
    items: list[dict[str, Any]] = json.loads(data.read_text(encoding="utf-8"))
    conversations = [
        [one for turns in turns_of(item) for one in (chunks_of(turns) if form == "long" else turns)] for item in items
    ]
    if form == "mixed":
        rotation = itertools.chain.from_iterable(itertools.zip_longest(*conversations))
        stores = [("mixed", [one for one in rotation if one is not None], items)]
    else:
        together = zip(items, conversations, strict=True)
        stores = [(f"{form}-{item['sample_id']}", turns, [item]) for item, turns in together]
    tally = Tally(2, 5) if form == "long" else Tally(5, 10)
    for namespace, memories, asked in stores:
        async with service.open(namespace) as server:
            tally.store_ms.append(await server.store(memories))
            questions = [question for item in asked for question in questions_of(item, set(server.ids))]
            tally.add(await server.ask(questions), server.ids)
    return tally.figures()


async def measure(hotpotqa_data: Path | None, locomo_data: Path | None) -> dict[str, dict[str, Any]]:
    results: dict[str, dict[str, Any]] = {}
    if hotpotqa_data is not None:
        service = Namespaces()
        results["hotpotqa"] = {"data": hotpotqa_data.name, "sha256": _sha256(hotpotqa_data)}
        results["hotpotqa"] |= await hotpotqa(hotpotqa_data, service)
        await service.close()
    if locomo_data is not None:
        service = Namespaces()
        for form in ("", "mixed", "long"):
            name = f"locomo {form}".strip()
            results[name] = {"data": locomo_data.name, "sha256": _sha256(locomo_data)}
            results[name] |= await locomo(locomo_data, service, form or "turns")
        await service.close()
    return results


def _sha256(data: Path) -> str:
    return hashlib.sha256(data.read_bytes()).hexdigest()


def _table(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    yield f"{'':<22} {'questions':>9} {'memories':>9}  recall                  store ms  retrieve ms"
    for name, own in results.items():
        yield (
            f"{name:<22} {own['questions']:>9} {own['memories']:>9}  {_recall(own):<23} "
            f"{own['store_ms_mean']:>8} {own['retrieve_ms_p50']:>12}"
        )
        yield from (f"  {key:<41} {_recall(value)}" for key, value in own.items() if key.startswith("category"))


def _recall(own: dict[str, Any]) -> str:
    return "  ".join(f"@{key[7:]} {value:.3f}" for key, value in own.items() if key.startswith("recall@"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hotpotqa", "--data", type=Path, help="HotpotQA questions, official JSON")
    parser.add_argument("--locomo", type=Path, help="LoCoMo conversations, official JSON")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    arguments = parser.parse_args()
    given = [path for path in (arguments.hotpotqa, arguments.locomo) if path is not None]
    if not given or not all(path.exists() for path in given):
        sys.exit("Give the official JSON of HotpotQA with --hotpotqa, of LoCoMo with --locomo, or both.")
    results = asyncio.run(measure(arguments.hotpotqa, arguments.locomo))
    print("\n".join(_table(results)))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
