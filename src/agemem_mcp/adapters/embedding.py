"""Embeddings from a local ONNX model, by fastembed, off the event loop.

One worker thread owns the model. It works in rounds of texts of similar length, and calls that arrive
during a round share the next one, so many small calls cost one batch and a long re-embedding does not
hold up a short query for more than about one round.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import queue
import threading
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from agemem_mcp.errors import AgeMemError, AssetsMissing, EmbeddingError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from agemem_mcp.domain.memory import MatrixND, VectorD

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
_DEFAULT_DIMENSIONS = 384
_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_ROUND_TEXTS = 64
_ROUND_CHARS = 16_000
"""Texts of a round times the longest of them: some 0.2-0.4 s on two cores."""
_SIMILAR = 2
"""Texts up to this many times as long as the shortest share its round: padding costs as much as text."""
_SHORT_CHARS = 200
"""Shorter ones all count as alike."""
_MAX_CHARS = 32_768
"""The model reads 256 tokens; without this bound a text of megabytes would be tokenised in full."""
_SPIN_US = "10"
_OLDEST_EVERY = 4
"""One round in so many starts with the oldest call, so that short ones cannot starve a long one."""


@dataclass(slots=True)
class _Job:
    """The texts of one call that the cache does not have."""

    texts: dict[bytes, str]
    future: Future[dict[bytes, VectorD]] = field(default_factory=Future["dict[bytes, VectorD]"])
    left: list[bytes] = field(init=False)
    done: dict[bytes, VectorD] = field(init=False)

    def __post_init__(self) -> None:
        self.done = {}
        self.left = sorted(self.texts, key=lambda key: len(self.texts[key]))


class VectorCache:
    """The vectors used last, by hash of model and text; safe between threads, and between embedders."""

    def __init__(self, size: int = 4096) -> None:
        """It is empty.

        Args:
            size: how many vectors to remember, least recently used ones go first.
        """
        self._size = size
        self._vectors: OrderedDict[bytes, VectorD] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, keys: Sequence[bytes]) -> dict[bytes, VectorD]:
        """Those of the keys that are remembered."""
        with self._lock:
            found = {key: self._vectors[key] for key in keys if key in self._vectors}
            for key in found:
                self._vectors.move_to_end(key)
        return found

    def put(self, vectors: dict[bytes, VectorD]) -> None:
        """Remember vectors."""
        with self._lock:
            self._vectors.update(vectors)
            while len(self._vectors) > self._size:
                self._vectors.popitem(last=False)


class FastEmbedEmbedder:
    """Implements ``Embedder``; loads the model at first use and never touches a network."""

    def __init__(
        self,
        model_dir: Path,
        *,
        model_name: str = DEFAULT_MODEL,
        cache: VectorCache | None = None,
        threads: int | None = None,
        dimensions: int | None = None,
    ) -> None:
        """Nothing is loaded yet.

        Args:
            model_dir: holds model.onnx, config.json and the tokenizer's files.
            model_name: one of fastembed's; decides pooling and normalisation.
            cache: remembers vectors, perhaps for other embedders as well; None for one of its own.
            threads: of ONNX Runtime; None for one per core.
            dimensions: D; None to read it from ``config.json``.
        """
        self._name = model_name
        self._dimensions = dimensions or _hidden_size(model_dir) or _DEFAULT_DIMENSIONS
        self._cache = VectorCache() if cache is None else cache
        self._salt = hashlib.blake2b(f"{model_name}\0{model_dir}".encode(), digest_size=16).digest()
        self._model = _Model(model_dir, model_name, threads, self._dimensions)
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._worker: threading.Thread | None = None
        self._closed = False

    @property
    def name(self) -> str:
        """The model's name."""
        return self._name

    @property
    def dimensions(self) -> int:
        """D, known before the model is loaded."""
        return self._dimensions

    async def embed(self, texts: Sequence[str]) -> MatrixND:
        """Embed texts; rows have unit length, in the order given.

        Args:
            texts: N texts; what the model cannot take in (beyond 256 tokens) is cut off.

        Returns:
            float32 [N, D].

        Raises:
            AssetsMissing: the model's files are not on this machine.
            EmbeddingError: the model failed, or the embedder is closed.
        """
        if self._closed:
            message = "The embedder is closed."
            raise EmbeddingError(message)
        if not texts:
            return np.empty((0, self._dimensions), np.float32)
        keys = [self._key(text) for text in texts]
        vectors = self._cache.get(keys)
        unknown = {key: text[:_MAX_CHARS] for key, text in zip(keys, texts, strict=True) if key not in vectors}
        if unknown:
            vectors |= await asyncio.wrap_future(self._submit(unknown))
        return np.stack([vectors[key] for key in keys])

    async def close(self) -> None:
        """Let the worker finish what it has and release the model; closing twice is harmless."""
        self._closed = True
        worker, self._worker = self._worker, None
        if worker is not None:
            self._queue.put(None)
            await asyncio.to_thread(worker.join)

    def _key(self, text: str) -> bytes:
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16, key=self._salt).digest()

    def _submit(self, texts: dict[bytes, str]) -> Future[dict[bytes, VectorD]]:
        if self._worker is None:
            # daemon: a process that is told to end must not wait for a batch
            self._worker = threading.Thread(target=self._work, name="agemem-embedding", daemon=True)
            self._worker.start()
        job = _Job(texts)
        self._queue.put(job)
        return job.future

    def _work(self) -> None:
        """The worker's life: collect calls, embed a round, hand out what is complete."""
        waiting: list[_Job] = []
        rounds = 0
        closing = False
        while waiting or not closing:
            for job in self._arrivals(block=not waiting and not closing):
                if job is None:
                    closing = True
                elif job.future.set_running_or_notify_cancel():
                    waiting.append(job)
            if not waiting:
                continue
            order = waiting if rounds % _OLDEST_EVERY == 0 else sorted(waiting, key=lambda job: len(job.left))
            rounds += 1
            batch = _next_round(order)
            try:
                vectors = self._model.embed(batch)
            except BaseException as error:  # noqa: BLE001  a panic in Rust is no Exception; the callers must hear of it
                _fail(waiting, batch, error)
            else:
                self._cache.put(vectors)
                _hand_out(waiting, vectors)
            waiting = [job for job in waiting if not job.future.done()]
        self._model.release()

    def _arrivals(self, *, block: bool) -> Iterator[_Job | None]:
        """All calls that wait; blocks for the first one if told to."""
        try:
            yield self._queue.get(block=block)
            while True:
                yield self._queue.get_nowait()
        except queue.Empty:
            return


class _Model:
    """fastembed's model; used by the worker thread alone."""

    def __init__(self, model_dir: Path, name: str, threads: int | None, dimensions: int) -> None:
        self._model_dir = model_dir
        self._name = name
        self._threads = threads
        self._dimensions = dimensions
        self._loaded: Any = None

    def embed(self, texts: dict[bytes, str]) -> dict[bytes, VectorD]:
        """Embed one round of texts."""
        if self._loaded is None:
            self._loaded = self._load()
        # the tokenizer takes no lone surrogates, which JSON input can contain
        clean = [text.encode("utf-8", "replace").decode("utf-8") for text in texts.values()]
        rows = cast("list[VectorD]", list(self._loaded.embed(clean, batch_size=_ROUND_TEXTS)))
        matrix = np.asarray(rows, dtype=np.float32)
        if matrix.shape != (len(texts), self._dimensions) or not np.isfinite(matrix).all():
            message = (
                f"The model in {self._model_dir} does not give {self._dimensions} finite numbers per text "
                f"(shape {matrix.shape}). Check it with `agemem-mcp doctor`, replace it with `agemem-mcp assets pull`."
            )
            raise EmbeddingError(message)
        # copies: a row that is cached must not keep its whole batch in memory
        return {key: row.copy() for key, row in zip(texts, matrix, strict=True)}

    def release(self) -> None:
        """Free the model's memory."""
        self._loaded = None

    def _load(self) -> Any:  # noqa: ANN401  fastembed is imported here alone
        # half a second to import; servers that never embed do not pay for it
        from fastembed import TextEmbedding  # noqa: PLC0415

        known = {str(one["model"]).lower(): str(one["model_file"]) for one in TextEmbedding.list_supported_models()}
        weights = known.get(self._name.lower())
        if weights is None:
            message = (
                f"fastembed knows no embedding model {self._name!r}. Set AGEMEM_EMBEDDING to one of its models, such "
                f"as {DEFAULT_MODEL}, or to none to search by words alone."
            )
            raise EmbeddingError(message)
        absent = [name for name in (weights, *_FILES) if not (self._model_dir / name).is_file()]
        if absent:
            message = (
                f"The embedding model is not on this machine ({', '.join(absent)} missing in {self._model_dir}). "
                "Run `agemem-mcp assets pull`, or set AGEMEM_EMBEDDING=none to search by words alone."
            )
            raise AssetsMissing(message)
        loaded = TextEmbedding(
            model_name=self._name,
            specific_model_path=str(self._model_dir),
            local_files_only=True,
            threads=self._threads,
            providers=["CPUExecutionProvider"],
            lazy_load=True,
            # fastembed asks its hook for further options only if it was given one: this is the default
            enable_cpu_mem_arena=True,
        )
        model: Any = loaded.model
        model.add_extra_session_options = _spin_briefly
        model.load_onnx_model()
        return loaded


def _spin_briefly(options: Any, _given: object) -> None:  # noqa: ANN401  onnxruntime's own
    """Let ONNX Runtime's threads spin between two operators, but not while others could work.

    With its default of a millisecond they keep the event loop and the clients from the processor: with eight calls
    in flight that takes a sixth of the throughput. Not spinning at all makes a single text a quarter slower.
    """
    options.add_session_config_entry("session.intra_op.spin_duration_us", _SPIN_US)


def _next_round(jobs: Sequence[_Job]) -> dict[bytes, str]:
    """The next texts of the first call, then those of others that are about as long."""
    batch: dict[bytes, str] = {}
    limit = longest = 0
    for job in jobs:
        for key in job.left:
            text = job.texts[key]
            limit = limit or max(_SIMILAR * len(text), _SHORT_CHARS)
            fits = max(longest, len(text)) * (len(batch) + 1) <= _ROUND_CHARS
            if batch and (len(text) > limit or not fits or len(batch) == _ROUND_TEXTS):
                break  # the rest of this call is longer still
            batch[key] = text
            longest = max(longest, len(text))
    return batch


def _hand_out(jobs: Sequence[_Job], vectors: dict[bytes, VectorD]) -> None:
    for job in jobs:
        job.done |= {key: vectors[key] for key in job.left if key in vectors}
        job.left = [key for key in job.left if key not in vectors]
        if not job.left:
            job.future.set_result(job.done)


def _fail(jobs: Sequence[_Job], batch: dict[bytes, str], error: BaseException) -> None:
    """Fail the calls that had a text in the round; the others are tried without them."""
    for job in jobs:
        if any(key in batch for key in job.left):
            shown = error
            if not isinstance(error, AgeMemError):
                shown = EmbeddingError(
                    f"The embedding model failed: {error}. If its files may be damaged, check them with "
                    "`agemem-mcp doctor` and replace them with `agemem-mcp assets pull`."
                )
                shown.__cause__ = error
            job.future.set_exception(shown)


def _hidden_size(model_dir: Path) -> int | None:
    """D as the model's ``config.json`` says; None when there is no readable one yet."""
    try:
        values = cast("dict[str, Any]", json.loads((model_dir / "config.json").read_text(encoding="utf-8")))
        return int(values["hidden_size"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
