"""Clients that misbehave: the others do not notice, memory stays bounded, nothing is lost."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.raw_client import RawClient, lines, tool_call

BOUND_BYTES = 100 * 2**20
"""More memory than this no client may cost: a line has at most 4 MB, and 32 requests are taken in at once."""


def resident(pid: int) -> int:
    """Memory of a process, in bytes."""
    if sys.platform != "linux":
        pytest.skip("the memory of another process is read on Linux alone")
    pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * 4096


@pytest.fixture
async def daemon(place: Any) -> Any:
    """A place whose daemon runs and holds one memory."""
    async with place.stdio() as client:
        await client.call_tool("Add_memory", {"content": "The key is under the blue pot."})
    return place


async def is_served(place: Any) -> None:
    """Another client is served as ever."""
    async with RawClient(place) as other:
        for number in range(1, 6):
            found = await other.call(number, "Retrieve_memory", query="key blue pot")
            assert [one["content"] for one in found["memories"]][:1] == ["The key is under the blue pot."]


async def test_half_a_line_that_never_ends(daemon: Any) -> None:
    async with RawClient(daemon) as bad:
        half = lines([tool_call(1, "Add_memory", content="Said in two parts.")])
        bad.writer.write(half[:40])
        await bad.writer.drain()
        await is_served(daemon)
        bad.writer.write(half[40:])
        assert (await bad.answer())["result"]["structuredContent"]["duplicate"] is False


async def test_ten_megabytes_in_one_line_are_refused_by_name_and_cost_nobody_else(daemon: Any) -> None:
    before = resident(daemon.holder())
    async with RawClient(daemon) as bad:
        huge = lines([tool_call("the huge one", "Add_memory", content="x" * 10_000_000)])
        sending = asyncio.create_task(_send(bad, huge + lines([tool_call(2, "Add_memory", content="After it.")])))
        await is_served(daemon)
        refused = await bad.answer()
        assert refused["id"] == "the huge one"
        assert "more than 4 MB" in refused["error"]["message"]
        assert (await bad.answer())["result"]["structuredContent"]["content"] == "After it."
        await sending
    assert resident(daemon.holder()) - before < BOUND_BYTES


async def test_thousands_of_calls_whose_answers_nobody_reads(daemon: Any) -> None:
    before = resident(daemon.holder())
    count = 2000
    async with RawClient(daemon) as bad:
        filler = "word " * 2000
        sending = asyncio.create_task(
            _send(
                bad, b"".join(lines([tool_call(n, "Retrieve_memory", query=filler, top_k=1)]) for n in range(1, count))
            )
        )
        await asyncio.sleep(0.5)
        await is_served(daemon)
        assert not sending.done()
        assert resident(daemon.holder()) - before < BOUND_BYTES
        sending.cancel()
    await is_served(daemon)


async def test_leaving_in_the_middle_of_a_call_does_not_undo_it(daemon: Any) -> None:
    bad = RawClient(daemon)
    async with bad:
        bad.writer.write(lines([tool_call(n, "Add_memory", content=f"Left behind {n}.") for n in range(1, 9)]))
        first = await bad.answer()
        bad.writer.transport.abort()
    await is_served(daemon)
    daemon.end_daemon()
    stored = {one["content"] for one in daemon.run("memories", "list", "--json").json()}
    assert first["result"]["structuredContent"]["content"] in stored


async def test_lines_that_are_no_messages_are_each_answered(daemon: Any) -> None:
    async with RawClient(daemon) as bad:
        bad.writer.write(b"not json\n[1, 2]\n\n\x00\xff\n" + lines([{"jsonrpc": "1.0", "id": 5}]))
        answers = [await bad.answer() for _ in range(4)]
        assert [answer["error"]["code"] for answer in answers] == [-32700, -32600, -32700, -32600]
        assert answers[3]["id"] == 5
        assert (await bad.call(6, "Add_memory", content="Still here."))["duplicate"] is False


async def test_ids_that_are_used_twice_cancelled_in_other_words_or_no_ids_at_all(daemon: Any) -> None:
    async with RawClient(daemon) as bad:
        bad.writer.write(lines([tool_call(1, "Show_context", session_id="none")] * 50))
        for _ in range(50):
            assert (await bad.answer())["id"] == 1
        for number in range(100, 180):
            cancelled = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": str(number)}}
            bad.writer.write(lines([tool_call(number, "Add_memory", content=f"Perhaps {number}."), cancelled]))
        nonsense = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": [1]}}
        bad.writer.write(lines([nonsense, tool_call(500, "Add_memory", content="Stored all the same.")]))
        while (await bad.answer())["id"] != 500:
            pass


async def test_a_last_line_without_its_end_is_answered(daemon: Any) -> None:
    async with RawClient(daemon) as bad:
        bad.writer.write(lines([tool_call(1, "Add_memory", content="The last word.")]).rstrip(b"\n"))
        bad.writer.write_eof()
        assert (await bad.answer())["result"]["structuredContent"]["content"] == "The last word."


async def _send(client: RawClient, data: bytes) -> None:
    client.writer.write(data)
    await client.writer.drain()
