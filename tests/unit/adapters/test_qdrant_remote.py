"""What only the remote index has: a server that can be old, unreachable, unwilling or in use by others."""

from __future__ import annotations

import asyncio
import json
import traceback
import warnings
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from qdrant_client import AsyncQdrantClient

from agemem_mcp.adapters.qdrant_remote import QdrantRemoteIndex
from agemem_mcp.errors import AgeMemError, ConfigurationError, StoreError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

API_KEY = "s3cr3t-key"
SETTINGS: dict[str, Any] = {
    "collection": "memories",
    "embedding": "test-model",
    "dimensions": 8,
    "ledger_id": "ledger-1",
}


@asynccontextmanager
async def server_that_answers(status: str, body: dict[str, Any]) -> AsyncGenerator[str]:
    """A real HTTP server with one answer to everything; gives its address."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        data = json.dumps(body).encode()
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n"
        writer.write(f"{head}Connection: close\r\n\r\n".encode() + data)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def refusal(url: str) -> AgeMemError:
    """The error of connecting to ``url``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the client warns of a key without TLS
        with pytest.raises(AgeMemError) as raised:
            await QdrantRemoteIndex.connect(url, api_key=API_KEY, **SETTINGS)
    return raised.value


@pytest.mark.parametrize("status", ["401 Unauthorized", "403 Forbidden"])
async def test_a_refused_api_key_is_a_configuration_error_that_does_not_show_it(status: str) -> None:
    async with server_that_answers(status, {"status": {"error": f"Invalid key {API_KEY}"}}) as url:
        error = await refusal(url)
    assert isinstance(error, ConfigurationError)
    assert "Check the API key" in str(error)
    assert API_KEY not in str(error)


async def test_a_failing_server_is_a_store_error_with_its_words() -> None:
    async with server_that_answers("500 Internal Server Error", {"status": {"error": "disk is full"}}) as url:
        error = await refusal(url)
    assert isinstance(error, StoreError)
    assert "HTTP 500, disk is full" in str(error)


async def test_an_old_server_is_refused_with_both_versions() -> None:
    async with server_that_answers("200 OK", {"title": "qdrant", "version": "1.18.2"}) as url:
        error = await refusal(url)
    assert isinstance(error, ConfigurationError)
    assert "1.18.2" in str(error)
    assert "1.19" in str(error)


async def test_a_server_that_cannot_be_reached_is_a_store_error_without_secrets() -> None:
    async with server_that_answers("200 OK", {}) as url:
        port = url.rpartition(":")[2]
    error = await refusal(f"http://user:hunter2@127.0.0.1:{port}")
    assert isinstance(error, StoreError)
    assert "Qdrant at 127.0.0.1" in str(error)
    shown = "".join(traceback.format_exception(error))
    assert API_KEY not in shown
    assert "hunter2" not in shown


async def opened(client: AsyncQdrantClient, **changed: Any) -> QdrantRemoteIndex:
    """The index through ``client``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # local mode has no payload indexes, and says so
        return await QdrantRemoteIndex.open(client, **{**SETTINGS, **changed})


async def test_a_collection_of_another_program_is_left_alone() -> None:
    client = AsyncQdrantClient(location=":memory:")
    await client.create_collection("memories", vectors_config={})
    with pytest.raises(ConfigurationError, match=r"was not made by agemem-mcp.*choose another collection name"):
        await opened(client)
    await client.close()


async def test_a_collection_of_another_ledger_or_a_newer_schema_is_left_alone() -> None:
    client = AsyncQdrantClient(location=":memory:")
    index = await opened(client)
    await index.flush(9)
    with pytest.raises(ConfigurationError, match="another ledger"):
        await opened(client, ledger_id="ledger-2")
    await client.update_collection("memories", metadata={"schema_version": 3})
    with pytest.raises(ConfigurationError, match="index schema 3"):
        await opened(client)
    assert await index.flushed_seq() == 9
    await client.close()


async def test_a_collection_of_an_older_schema_is_replaced_if_it_is_ours() -> None:
    client = AsyncQdrantClient(location=":memory:")
    await (await opened(client)).flush(9)
    await client.update_collection("memories", metadata={"schema_version": 1})
    for changed, message in (({"ledger_id": "ledger-2"}, "index schema 1"), ({"embedding": "other"}, "index schema 1")):
        with pytest.raises(ConfigurationError, match=message):
            await opened(client, **changed)
    index = await opened(client)
    assert await index.flushed_seq() == 0
    await index.flush(3)
    assert await (await opened(client)).flushed_seq() == 3
    await client.close()


async def test_two_processes_that_start_at_once_share_one_collection() -> None:
    client = AsyncQdrantClient(location=":memory:")
    indexes = await asyncio.gather(*(opened(client) for _ in range(5)))
    await indexes[0].flush(3)
    assert [await index.flushed_seq() for index in indexes] == [3] * 5
    await client.close()


async def test_it_is_not_made_anew_beside_its_collection_and_says_what_to_do() -> None:
    client = AsyncQdrantClient(location=":memory:")
    index = await opened(client)
    with pytest.raises(ConfigurationError, match=r"AGEMEM_QDRANT_COLLECTION to a new name.*nothing is lost"):
        await index.successor(embedding="other-model", dimensions=4)
    with pytest.raises(StoreError, match="no successor"):
        await index.replace_by(index)
    await client.close()


async def test_a_client_that_was_given_stays_open() -> None:
    client = AsyncQdrantClient(location=":memory:")
    await (await opened(client)).close()
    assert await client.collection_exists("memories")
    await client.close()


async def test_a_collection_that_vanishes_is_a_store_error() -> None:
    client = AsyncQdrantClient(location=":memory:")
    index = await opened(client)
    await client.delete_collection("memories")
    with pytest.raises(StoreError, match="count memories in collection 'memories'"):
        await index.count()
    await client.close()
