"""The embedder on a tiny model written on the spot; on the real one where it is installed."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from math import erf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from agemem_mcp.adapters import embedding
from agemem_mcp.adapters.embedding import FastEmbedEmbedder, VectorCache
from agemem_mcp.adapters.minilm_onnx import write_onnx
from agemem_mcp.errors import AssetsMissing, EmbeddingError

if TYPE_CHECKING:
    from collections.abc import Coroutine

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "alice", "likes", "green", "tea", "bob", "moved", "to", "paris"]
WIDTH, HEADS, INNER, LONGEST = 8, 2, 16, 64


def write_tiny_model(folder: Path) -> None:
    """A one-layer BERT with random weights, as published: safetensors, configs and tokenizer."""
    random = np.random.default_rng(0)
    shapes = {
        "embeddings.word_embeddings.weight": (len(WORDS), WIDTH),
        "embeddings.token_type_embeddings.weight": (2, WIDTH),
        "embeddings.position_embeddings.weight": (LONGEST, WIDTH),
    }
    layer = "encoder.layer.0."
    for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
        shapes |= {f"{layer}{name}.weight": (WIDTH, WIDTH), f"{layer}{name}.bias": (WIDTH,)}
    shapes |= {f"{layer}intermediate.dense.weight": (INNER, WIDTH), f"{layer}intermediate.dense.bias": (INNER,)}
    shapes |= {f"{layer}output.dense.weight": (WIDTH, INNER), f"{layer}output.dense.bias": (WIDTH,)}
    for name in ("embeddings.LayerNorm", f"{layer}attention.output.LayerNorm", f"{layer}output.LayerNorm"):
        shapes |= {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}
    head: dict[str, Any] = {}
    body = b""
    for name, shape in shapes.items():
        data = random.normal(size=shape).astype(np.float32).tobytes()
        head[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + body)
    config = {"model_type": "bert", "hidden_act": "gelu", "hidden_size": WIDTH, "num_attention_heads": HEADS}
    config |= {"num_hidden_layers": 1, "layer_norm_eps": 1e-12, "pad_token_id": 0}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(folder / "tokenizer.json"))
    specials = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]"}
    (folder / "special_tokens_map.json").write_text(json.dumps(specials))
    (folder / "tokenizer_config.json").write_text(json.dumps(specials | {"model_max_length": 32}))


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_model(folder)
    write_onnx(folder / "model.safetensors", folder / "config.json", folder / "model.onnx")
    return folder


@pytest.fixture
def model_dir(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine on a loop of its own."""
    return asyncio.run(work)


def reference(folder: Path, token_ids: list[int]) -> np.ndarray:
    """The last hidden states in float64, straight from the formulas of the paper."""
    raw = (folder / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    weights: dict[str, np.ndarray] = {}
    for name, entry in json.loads(raw[8:start]).items():
        begin, end = entry["data_offsets"]
        values = np.frombuffer(raw[start + begin : start + end], np.float32)
        weights[name] = values.reshape(entry["shape"]).astype(np.float64)

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    x = weights["embeddings.word_embeddings.weight"][token_ids] + weights["embeddings.token_type_embeddings.weight"][0]
    x = norm(x + weights["embeddings.position_embeddings.weight"][: len(token_ids)], "embeddings.LayerNorm")
    layer, size = "encoder.layer.0.", WIDTH // HEADS
    query, key, value = (linear(x, f"{layer}attention.self.{part}") for part in ("query", "key", "value"))
    mixed = np.empty_like(x)
    for head in (slice(i * size, (i + 1) * size) for i in range(HEADS)):
        scores = np.exp(query[:, head] @ key[:, head].T / np.sqrt(size))
        mixed[:, head] = scores / scores.sum(-1, keepdims=True) @ value[:, head]
    x = norm(x + linear(mixed, f"{layer}attention.output.dense"), f"{layer}attention.output.LayerNorm")
    wide = linear(x, f"{layer}intermediate.dense")
    wide = wide * 0.5 * (1 + np.vectorize(erf)(wide / np.sqrt(2)))
    return norm(x + linear(wide, f"{layer}output.dense"), f"{layer}output.LayerNorm")


def test_vectors_are_the_normalised_mean_of_what_the_formulas_give(model_dir: Path) -> None:
    vector = run(FastEmbedEmbedder(model_dir).embed(["Alice likes green tea"]))[0]
    expected = reference(model_dir, [2, 4, 5, 6, 7, 3]).mean(0)
    np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=1e-5)


def test_rows_are_float32_of_unit_length_in_the_order_given(model_dir: Path) -> None:
    async def scenario() -> None:
        embedder = FastEmbedEmbedder(model_dir)
        texts = ["tea", "alice moved to paris", "bob likes tea", "tea", "\ud800 green"]
        matrix = await embedder.embed(texts)
        assert matrix.dtype == np.float32
        assert matrix.shape == (5, WIDTH)
        np.testing.assert_allclose(np.linalg.norm(matrix, axis=1), 1, atol=1e-6)
        for text, row in zip(texts, matrix, strict=True):
            np.testing.assert_allclose(row, (await FastEmbedEmbedder(model_dir).embed([text]))[0], atol=1e-5)
        assert np.abs(matrix[0] - matrix[1]).max() > 0.01

    run(scenario())


def test_nothing_to_embed_gives_no_rows_and_loads_nothing(tmp_path: Path) -> None:
    assert run(FastEmbedEmbedder(tmp_path / "absent").embed([])).shape == (0, 384)


def test_dimensions_are_known_before_the_model_is_loaded(model_dir: Path, tmp_path: Path) -> None:
    assert FastEmbedEmbedder(model_dir).dimensions == WIDTH
    assert FastEmbedEmbedder(tmp_path / "absent").dimensions == 384
    assert FastEmbedEmbedder(tmp_path / "absent", dimensions=7).dimensions == 7


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What the model was given, round by round."""
    given: list[list[str]] = []
    original = embedding._Model.embed

    def spy(model: embedding._Model, texts: dict[bytes, str]) -> Any:
        given.append(list(texts.values()))
        return original(model, texts)

    monkeypatch.setattr(embedding._Model, "embed", spy)
    return given


def test_a_text_is_embedded_once_within_a_call_and_between_calls(model_dir: Path, rounds: list[list[str]]) -> None:
    async def scenario() -> None:
        embedder = FastEmbedEmbedder(model_dir)
        await embedder.embed(["tea", "tea", "bob"])
        await embedder.embed(["bob", "tea"])

    run(scenario())
    assert rounds == [["tea", "bob"]]


def test_the_cache_forgets_what_was_used_longest_ago(model_dir: Path, rounds: list[list[str]]) -> None:
    async def scenario() -> None:
        embedder = FastEmbedEmbedder(model_dir, cache=VectorCache(2))
        for text in ("tea", "bob", "tea", "paris", "tea", "bob"):
            await embedder.embed([text])

    run(scenario())
    assert rounds == [["tea"], ["bob"], ["paris"], ["bob"]]


def test_embedders_of_the_same_model_alone_share_what_they_remember(
    model_dir: Path, tmp_path: Path, rounds: list[list[str]]
) -> None:
    other = shutil.copytree(model_dir, tmp_path / "other")

    async def scenario() -> None:
        vectors = VectorCache()
        for folder in (model_dir, model_dir, other):
            embedder = FastEmbedEmbedder(folder, cache=vectors)
            await embedder.embed(["tea"])
            await embedder.close()

    run(scenario())
    assert rounds == [["tea"], ["tea"]]


def test_a_row_that_a_caller_changes_does_not_change_the_cache(model_dir: Path) -> None:
    async def scenario() -> None:
        embedder = FastEmbedEmbedder(model_dir)
        first = await embedder.embed(["tea"])
        kept = first.copy()
        first[:] = 0
        np.testing.assert_array_equal(await embedder.embed(["tea"]), kept)

    run(scenario())


def test_calls_that_wait_together_share_a_round(model_dir: Path, rounds: list[list[str]]) -> None:
    async def scenario() -> None:
        embedder = FastEmbedEmbedder(model_dir)
        await asyncio.gather(*(embedder.embed([f"bob {number}"]) for number in range(40)))

    run(scenario())
    assert sum(map(len, rounds)) == 40
    # the first call may set off alone; loading takes longer than all the others need to arrive
    assert len(rounds) <= 3


def test_rounds_hold_few_texts_when_these_are_long() -> None:
    job = embedding._Job({bytes([n]): "x" * 1000 for n in range(50)})
    assert len(embedding._next_round([job])) == 16


def test_a_short_call_is_not_padded_to_the_length_of_a_long_one() -> None:
    short = embedding._Job({b"s": "tea"})
    long = embedding._Job({bytes([n]): "x" * 1000 for n in range(50)})
    assert list(embedding._next_round([short, long]).values()) == ["tea"]


def test_a_text_longer_than_a_whole_round_is_still_taken() -> None:
    assert len(embedding._next_round([embedding._Job({b"l": "x" * 30_000})])) == 1


def test_a_call_that_is_given_up_leaves_the_others_working(model_dir: Path) -> None:
    async def scenario() -> None:
        embedder = FastEmbedEmbedder(model_dir)
        given_up = asyncio.ensure_future(embedder.embed(["alice"]))
        other = asyncio.ensure_future(embedder.embed(["bob"]))
        await asyncio.sleep(0)
        given_up.cancel()
        assert (await other).shape == (1, WIDTH)
        assert (await embedder.embed(["alice"])).shape == (1, WIDTH)

    run(scenario())


def test_missing_files_are_named_with_what_to_do_and_found_once_they_are_there(model_dir: Path) -> None:
    async def scenario() -> None:
        model = (model_dir / "model.onnx").read_bytes()
        (model_dir / "model.onnx").unlink()
        embedder = FastEmbedEmbedder(model_dir)
        with pytest.raises(AssetsMissing, match=r"model\.onnx.*assets pull.*AGEMEM_EMBEDDING=none"):
            await embedder.embed(["tea"])
        (model_dir / "model.onnx").write_bytes(model)
        assert (await embedder.embed(["tea"])).shape == (1, WIDTH)

    run(scenario())


def test_a_truncated_model_is_an_embedding_error_with_what_to_do(model_dir: Path) -> None:
    model = model_dir / "model.onnx"
    model.write_bytes(model.read_bytes()[:2000])
    with pytest.raises(EmbeddingError, match="assets pull"):
        run(FastEmbedEmbedder(model_dir).embed(["tea"]))


def test_a_model_of_another_width_is_refused(model_dir: Path) -> None:
    with pytest.raises(EmbeddingError, match="16 finite numbers"):
        run(FastEmbedEmbedder(model_dir, dimensions=16).embed(["tea"]))


def test_the_models_threads_do_not_keep_others_from_the_processor(model_dir: Path) -> None:
    embedder = FastEmbedEmbedder(model_dir)
    run(embedder.embed(["alice likes tea"]))
    options = embedder._model._loaded.model.model.get_session_options()
    assert options.get_session_config_entry("session.intra_op.spin_duration_us") == "10"
    run(embedder.close())


def test_closing_finishes_what_was_asked_and_refuses_what_comes_after(model_dir: Path) -> None:
    async def scenario() -> None:
        embedder = FastEmbedEmbedder(model_dir)
        asked = asyncio.ensure_future(embedder.embed(["tea"]))
        await asyncio.sleep(0)
        await embedder.close()
        assert (await asked).shape == (1, WIDTH)
        await embedder.close()
        with pytest.raises(EmbeddingError, match="closed"):
            await embedder.embed(["bob"])

    run(scenario())


def test_a_weights_file_that_is_no_bert_is_refused(model_dir: Path, tmp_path: Path) -> None:
    config = json.loads((model_dir / "config.json").read_text())
    (model_dir / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    with pytest.raises(AssetsMissing, match="relu"):
        write_onnx(model_dir / "model.safetensors", model_dir / "config.json", tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


@pytest.fixture(scope="module")
def assets_dir() -> Path:
    """A folder filled by `agemem-mcp assets pull`."""
    folder = os.environ.get("AGEMEM_ASSETS_DIR")
    if not folder:
        pytest.skip("AGEMEM_ASSETS_DIR names no folder with the real model")
    return Path(folder)


def test_the_real_model_finds_the_paraphrase_and_gives_each_text_its_vector_whatever_the_batch(
    assets_dir: Path,
) -> None:
    async def scenario() -> None:
        folder = assets_dir / "models" / "all-MiniLM-L6-v2"
        texts = ["Alice drinks green tea every morning.", "The stock market fell sharply.", "word " * 400, "x"]
        together = await FastEmbedEmbedder(folder).embed(texts)
        assert together.shape == (4, 384)
        query = (await FastEmbedEmbedder(folder).embed(["What does Alice like to drink?"]))[0]
        assert np.argmax(together @ query) == 0
        for text, row in zip(texts, together, strict=True):
            alone = (await FastEmbedEmbedder(folder).embed([text]))[0]
            np.testing.assert_allclose(alone, row, atol=1e-5)

    run(scenario())
