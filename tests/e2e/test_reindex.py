"""Making the index anew: beside clients that go on working, for another model, after it was lost."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

from tests.e2e.raw_client import RawClient

from agemem_mcp.adapters.assets import AssetStore

if TYPE_CHECKING:
    from pathlib import Path

OTHER = "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2"
"""Another model that fastembed knows. What is loaded under its name are the files we have, of the same dimensions."""


async def test_a_memory_is_reindexed_for_another_model_while_it_serves(
    full_place: Any, tools_of: Any, assets_dir: Path
) -> None:
    files = full_place.root / "other-model"
    shutil.copytree(AssetStore(assets_dir).model_dir, files)
    (files / "model.onnx").rename(files / "model_optimized.onnx")
    other = {"AGEMEM_EMBEDDING": OTHER, "AGEMEM_EMBEDDING_PATH": str(files)}
    async with full_place.stdio() as client:
        call = tools_of(client)
        for number in range(40):
            await call("Add_memory", content=f"Parcel {number} stands in shelf {number * 7}.")
        reindexing = full_place.start("reindex", "--json", env=other, stdout=subprocess.PIPE)
        while reindexing.status is None:
            found = await call("Retrieve_memory", query="Where is parcel 7?", top_k=3)
            assert "Parcel 7 stands in shelf 49." in [one["content"] for one in found["memories"]]
            await call("Add_memory", content=f"Came in meanwhile: {found['session_id']}.")
            await asyncio.sleep(0.01)
        assert reindexing.status == 0, reindexing.log
        done = json.loads(reindexing.stdout.read())
        assert done["embedding"] == OTHER
        found = await call("Retrieve_memory", query="Where is parcel 7?", top_k=3)
        assert found["memories"][0]["content"] == "Parcel 7 stands in shelf 49."
    checked = full_place.run("doctor", "--deep", "--json", **other)
    assert checked.status == 0, checked.out
    full_place.end_daemon()
    async with full_place.stdio(**other) as client:
        found = await tools_of(client)("Retrieve_memory", query="Where is parcel 7?", top_k=3)
        assert found["memories"][0]["content"] == "Parcel 7 stands in shelf 49."


async def test_a_memory_nobody_serves_is_reindexed_by_the_command(full_place: Any, tools_of: Any) -> None:
    async with full_place.stdio() as client:
        await tools_of(client)("Add_memory", content="The key is under the blue pot.")
    full_place.end_daemon()
    words = {"AGEMEM_EMBEDDING": "none"}
    assert full_place.run("reindex", "--json", **words).json() == {"embedding": "none", "memories": 1}
    async with full_place.stdio(**words) as client:
        found = await tools_of(client)("Retrieve_memory", query="blue pot key")
        assert found["search"] == "lexical"
        assert [one["content"] for one in found["memories"]] == ["The key is under the blue pot."]


async def test_a_comparison_finds_what_the_index_lacks_and_reindexing_mends_it(place: Any, tools_of: Any) -> None:
    async with place.stdio() as client:
        await tools_of(client)("Add_memory", content="Known to the index of then.")
    place.end_daemon()
    shutil.copytree(place.data / "index", place.root / "older")
    async with place.stdio() as client:
        for number in range(3):
            await tools_of(client)("Add_memory", content=f"Came later, number {number}.")
    place.end_daemon()
    # An index that claims more than it holds: nothing of ours leaves one like that behind.
    newer = json.loads((place.data / "index" / "manifest.json").read_text(encoding="utf-8"))
    shutil.rmtree(place.data / "index")
    shutil.copytree(place.root / "older", place.data / "index")
    manifest = json.loads((place.data / "index" / "manifest.json").read_text(encoding="utf-8"))
    manifest["flushed_seq"] = newer["flushed_seq"]
    (place.data / "index" / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    checked = place.run("doctor", "--deep")
    assert checked.status == 1
    assert "3 missing, 0 stale, 0 surplus" in " ".join(checked.out.split())
    assert "agemem-mcp reindex" in checked.out
    assert place.run("reindex", "--json").json() == {"embedding": "none", "memories": 4}
    assert place.run("doctor", "--deep").status == 0
    async with RawClient(place) as client:
        found = await client.call(1, "Retrieve_memory", query="came later number", top_k=10)
        assert len(found["memories"]) >= 3


async def test_an_open_memory_does_not_change_between_a_model_and_words_alone(place: Any, tools_of: Any) -> None:
    async with place.stdio() as client:
        await tools_of(client)("Add_memory", content="x")
        said = place.run("reindex", AGEMEM_EMBEDDING="").error()
        assert "agemem-mcp daemon stop" in said
        found = await tools_of(client)("Retrieve_memory", query="x")
        assert [one["content"] for one in found["memories"]] == ["x"]
