"""Recall of supporting sentences, stored and asked through the MCP tools.

    python benchmarks/retrieval.py --data FILE [--json OUT]

Every sentence of every question's paragraphs becomes one memory (content = the sentence, metadata =
its title and the question's number). Each question is then retrieved with, filtered by its number,
top_k 10. recall@k is the share of a question's supporting sentences among the first k hits, mean
over the questions. A sentence that stands in two questions is stored once, with both numbers.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mcp.client.client import Client

from agemem_mcp.app import service_gate
from agemem_mcp.domain.memory import Scope
from agemem_mcp.server.tools import MemoryServer
from agemem_mcp.settings import load_settings


async def call(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    result = await client.call_tool(tool, arguments)
    if result.is_error:
        raise RuntimeError(result.content)
    return result.structured_content or {}


async def store(client: Client, questions: list[dict[str, Any]]) -> dict[tuple[int, str, int], str]:
    """Store every sentence; returns the memory id by question number, title and sentence number."""
    ids: dict[tuple[int, str, int], str] = {}
    numbers: dict[str, list[int]] = {}
    for number, question in enumerate(questions):
        for title, sentences in question["context"]:
            for position, sentence in enumerate(sentences):
                if not sentence.strip():
                    continue
                metadata = {"title": title, "question": number}
                added = await call(client, "Add_memory", content=sentence, metadata=metadata)
                memory_id = added["memory_id"]
                ids[number, title, position] = memory_id
                known = numbers.setdefault(memory_id, [])
                if number not in known:
                    known.append(number)
                if len(known) > 1:
                    await call(
                        client, "Update_memory", memory_id=memory_id, content=sentence, metadata={"question": known}
                    )
    return ids


async def ask(
    client: Client, questions: list[dict[str, Any]], ids: dict[tuple[int, str, int], str]
) -> tuple[list[float], list[float], list[float]]:
    """recall@5, recall@10 and milliseconds, by question."""
    at_5: list[float] = []
    at_10: list[float] = []
    times_ms: list[float] = []
    for number, question in enumerate(questions):
        wanted = {ids[number, title, position] for title, position in question["supporting_facts"]}
        started = time.perf_counter()
        found = await call(
            client, "Retrieve_memory", query=question["question"], top_k=10, metadata_filter={"question": number}
        )
        times_ms.append((time.perf_counter() - started) * 1000)
        hits = [one["memory_id"] for one in found["memories"]]
        at_5.append(len(wanted & set(hits[:5])) / len(wanted))
        at_10.append(len(wanted & set(hits[:10])) / len(wanted))
    return at_5, at_10, times_ms


async def measure(data: Path) -> dict[str, Any]:
    questions: list[dict[str, Any]] = json.loads(data.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(prefix="agemem-retrieval-") as folder:
        gate = service_gate(load_settings(data_dir=Path(folder) / "data"))
        server = MemoryServer(gate, scope_of=lambda _: Scope())
        try:
            async with Client(server.mcp) as client:
                started = time.perf_counter()
                ids = await store(client, questions)
                storing_s = time.perf_counter() - started
                at_5, at_10, times_ms = await ask(client, questions, ids)
        finally:
            await server.drain()
            await gate.close()
    return {
        "data": data.name,
        "sha256": hashlib.sha256(data.read_bytes()).hexdigest(),
        "questions": len(questions),
        "memories": len(set(ids.values())),
        "recall@5": round(statistics.mean(at_5), 4),
        "recall@10": round(statistics.mean(at_10), 4),
        "storing_s": round(storing_s, 1),
        "store_ms_mean": round(storing_s * 1000 / len(ids), 2),
        "retrieve_ms_p50": round(statistics.median(times_ms), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="HotpotQA questions, official JSON")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    arguments = parser.parse_args()
    if not arguments.data.exists():
        sys.exit(f"{arguments.data} is not there: give the official HotpotQA JSON with --data.")
    figures = asyncio.run(measure(arguments.data))
    for name, value in figures.items():
        print(f"{name:<16} {value}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
