"""What the chat endpoint adds to a model's first token.

    python benchmarks/endpoint.py [--rounds 200] [--json OUT]

A scripted model, which takes no time of its own, is asked in turn: directly (``ScriptedPolicy.act``), and through a
server process of its own, over one connection that is kept alive, as streams. Each round has a new conversation and its
continuation with the whole history resent. Given are medians in milliseconds from sending the request to the first byte
of the stream, to the first piece of the answer, and to its end; and what the first piece takes longer than directly.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from agemem_policies.policy import ChatMessage, Prompt
from agemem_policies.scripted import scripted_policy

if TYPE_CHECKING:
    from collections.abc import Generator

TARGET_MS = 20.0
_SYSTEM = "You have a memory. " * 200
_WARM_UP = 10


@contextmanager
def server() -> Generator[str]:
    """A server process with the scripted model; gives its address once it is ready."""
    with tempfile.TemporaryDirectory() as folder:
        own = {
            "AGEMEM_DATA_DIR": f"{folder}/data",
            "AGEMEM_ASSETS_DIR": f"{folder}/assets",
            "AGEMEM_EMBEDDING": "none",
            "AGEMEM_CONTEXT__TOKENIZER": "estimate",
            "AGEMEM_POLICY__NAME": "scripted:echo",
        }
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("AGEMEM_")}
        command = [sys.executable, "-m", "agemem_mcp", "serve", "--transport", "http", "--port", "0"]
        process = subprocess.Popen(command, env={**inherited, **own}, stderr=subprocess.PIPE, text=True)
        try:
            assert process.stderr is not None
            line = next(line for line in process.stderr if line.startswith("agemem-mcp serves "))
            url = line.rsplit(" at ", 1)[1].strip().removesuffix("/mcp")
            while not _ready(url):
                time.sleep(0.05)
            yield url
        finally:
            process.terminate()
            process.communicate()


def _ready(url: str) -> bool:
    connection = http.client.HTTPConnection(urlsplit(url).netloc)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    finally:
        connection.close()


async def direct_ms(text: str) -> float:
    """Time to the first piece of the model's text, asked directly."""
    policy = scripted_policy("echo")
    first: list[float] = []
    prompt = Prompt((ChatMessage("system", _SYSTEM), ChatMessage("user", text)))
    began = time.perf_counter()
    await policy.act(prompt, lambda _: first.append(time.perf_counter()))
    return (first[0] - began) * 1000


def streamed(
    connection: http.client.HTTPConnection, messages: list[dict[str, str]], times_ms: dict[str, list[float]]
) -> str:
    """Ask for a stream, note its times, and give the answer."""
    body = json.dumps({"model": "agemem", "messages": messages, "stream": True})
    began = time.perf_counter()

    def note(what: str) -> None:
        times_ms[what].append((time.perf_counter() - began) * 1000)

    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200, response.read()
    text = ""
    begun = False
    while line := response.readline():
        if not begun:
            begun = True
            note("first byte")
        if line.startswith(b"data: {"):
            piece = json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
            if piece and not text:
                note("first piece")
            text += piece
    note("whole answer")
    return text


def measure(rounds: int) -> dict[str, Any]:
    """Medians over the rounds, by kind of request."""
    times: dict[str, dict[str, list[float]]] = {kind: defaultdict(list) for kind in ("new", "continued")}
    direct: list[float] = []
    with server() as url:
        connection = http.client.HTTPConnection(urlsplit(url).netloc)
        for number in range(-_WARM_UP, rounds):
            noted = times if number >= 0 else {kind: defaultdict[str, list[float]](list) for kind in times}
            messages = [{"role": "user", "content": f"This is question {number} of a conversation."}]
            answer = streamed(connection, messages, noted["new"])
            messages.append({"role": "assistant", "content": answer})
            messages.append({"role": "user", "content": "And another question."})
            streamed(connection, messages, noted["continued"])
            direct.append(asyncio.run(direct_ms("And another question.")))
        connection.close()
    medians = {
        kind: {what: round(statistics.median(values), 2) for what, values in kinds.items()}
        for kind, kinds in times.items()
    }
    directly = statistics.median(direct)
    added = {kind: round(one["first piece"] - directly, 2) for kind, one in medians.items()}
    return {"rounds": rounds, "direct_ms": round(directly, 3), "endpoint_ms": medians, "added_ms": added}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = measure(options.rounds)
    print(f"directly: first piece {found['direct_ms']} ms")
    for kind, medians in found["endpoint_ms"].items():
        print(f"{kind}: " + ", ".join(f"{what} {value} ms" for what, value in medians.items()))
        verdict = "met" if found["added_ms"][kind] <= TARGET_MS else "MISSED"
        print(f"  added to the first piece: {found['added_ms'][kind]} ms; at most {TARGET_MS:g}: {verdict}")
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
