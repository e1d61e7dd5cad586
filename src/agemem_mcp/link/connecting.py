"""Connecting to the owner of a data folder, starting a daemon if there is none."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from agemem_mcp._version import __version__
from agemem_mcp.link.places import LOG, START_LOCK, Owner, proof, read_owner

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Generator

PROTOCOL = 1
_PREFIX = "AGEMEM_"
_GREETING_S = 20.0
"""How long the owner may take to answer a greeting; it may be importing what it needs."""
_STARTING_S = 60.0
_POLL_S = 0.01
_LARGEST_LOG = 1024 * 1024


class LinkError(Exception):
    """The owner turned the client away, or none could be started; the text says what to do."""


class NoOwner(Exception):  # noqa: N818  a state more than an error
    """Nobody answers for the folder, or whoever did is about to end: start again."""


class DaemonNotStarted(LinkError):  # noqa: N818  as above
    """No daemon could be started for the folder; a server within this process can still tell its client why."""


class Link:
    """A connection to the owner that has been let in."""

    def __init__(self, connection: socket.socket, owner: Owner, notes: list[str]) -> None:
        self.connection = connection
        self.owner = owner
        self.notes = notes
        """What the client should know, such as settings that differ from the owner's."""


def greeting(purpose: str, options: dict[str, str] | None = None) -> dict[str, Any]:
    """The first line of a connection: what belongs to the client.

    Args:
        purpose: ``mcp`` or ``control``.
        options: settings given on the command line, such as ``{"namespace": "work"}``.
    """
    settings = {name.upper(): value for name, value in os.environ.items() if name.upper().startswith(_PREFIX) and value}
    # Every client that reached this folder named it, in whatever spelling.
    settings.pop(f"{_PREFIX}DATA_DIR", None)
    settings |= {f"{_PREFIX}{name.upper()}": value for name, value in (options or {}).items()}
    return {"agemem": PROTOCOL, "purpose": purpose, "version": __version__, "settings": settings}


def connect(folder: str, hello: dict[str, Any], *, start: bool = True) -> Link:
    """Reach the owner of a data folder.

    Args:
        folder: the data folder, absolute.
        hello: see :func:`greeting`.
        start: start a daemon if nobody owns the folder.

    Raises:
        LinkError: the owner turned the client away.
        DaemonNotStarted: there is none and none could be started.
        NoOwner: there is none, and none was to be started.
    """
    try:
        return _greet(folder, hello)
    except NoOwner:
        if not start:
            raise
    with _only_starter(folder):
        end = time.monotonic() + _STARTING_S
        daemon: subprocess.Popen[Any] | None = None
        said_from = 0
        while True:
            # Tried first: another client may have started one while this one waited for its turn.
            try:
                return _greet(folder, hello)
            except NoOwner:
                pass
            if daemon is None:
                daemon, said_from = _start(folder)
            elif daemon.poll() is not None:
                raise DaemonNotStarted(_last_words(folder, said_from, daemon.returncode))
            elif time.monotonic() > end:
                msg = f"The daemon of {folder} (process {daemon.pid}) does not answer. See `agemem-mcp daemon logs`."
                raise DaemonNotStarted(msg)
            time.sleep(_POLL_S)


def read_line(connection: socket.socket, buffer: bytearray) -> bytes | None:
    """The next line without its end; what follows it stays in ``buffer``. None when the other side is gone."""
    while True:
        end = buffer.find(b"\n")
        if end >= 0:
            line = bytes(buffer[:end])
            del buffer[: end + 1]
            return line
        chunk = connection.recv(65536)
        if not chunk:
            return None
        buffer += chunk


def _greet(folder: str, hello: dict[str, Any]) -> Link:
    owner = read_owner(folder)
    if owner is None:
        raise NoOwner
    kind, _, place = owner.address.partition(":")
    try:
        if kind == "unix":
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        else:
            connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except (OSError, AttributeError) as error:
        raise NoOwner from error
    try:
        connection.settimeout(_GREETING_S)
        connection.connect(place if kind == "unix" else ("127.0.0.1", int(place)))
        buffer = bytearray()
        if kind != "unix":
            _check_owner(connection, owner, buffer)
        connection.sendall(json.dumps({**hello, "secret": owner.secret}).encode() + b"\n")
        line = read_line(connection, buffer)
        answer: dict[str, Any] = json.loads(line) if line else {"retry": True}
    except (OSError, ValueError, NoOwner) as error:
        connection.close()
        raise NoOwner from error
    if not answer.get("ok"):
        connection.close()
        # The next owner may have taken the socket's place after the secret of the one before was read.
        if answer.get("retry") or read_owner(folder) != owner:
            raise NoOwner
        raise LinkError(str(answer.get("error")))
    connection.settimeout(None)
    return Link(connection, owner, [str(note) for note in answer.get("notes", [])])


def _check_owner(connection: socket.socket, owner: Owner, buffer: bytearray) -> None:
    """Make sure that the other side knows the secret: a dead owner's port may be another program's by now.

    Raises:
        NoOwner: it does not.
    """
    nonce = os.urandom(16).hex()
    connection.sendall(json.dumps({"nonce": nonce}).encode() + b"\n")
    line = read_line(connection, buffer)
    if not line or json.loads(line).get("proof") != proof(owner.secret, nonce):
        raise NoOwner


@contextmanager
def _only_starter(folder: str) -> Generator[None]:
    """One client at a time starts a daemon; the lock goes with the process that holds it."""
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        descriptor = os.open(os.path.join(folder, START_LOCK), os.O_RDWR | os.O_CREAT, 0o600)
    except OSError:
        # The daemon will say what is wrong with the folder.
        yield
        return
    try:
        if sys.platform == "win32":
            import msvcrt  # noqa: PLC0415  there alone

            # It gives up after ten seconds; the folder's own lock still lets one daemon through.
            with suppress(OSError):
                msvcrt.locking(descriptor, msvcrt.LK_LOCK, 1)
        else:
            import fcntl  # noqa: PLC0415  not there

            # Where a file system knows no locks, the folder's own lock still lets one daemon through.
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


_ALLOCATION = {"MALLOC_TRIM_THRESHOLD_": "1000000"}
"""Has glibc give back what was needed once, such as the model's file while it is read: 40 MB of a daemon's 400."""


def _start(folder: str) -> tuple[subprocess.Popen[Any], int]:
    """Start a daemon that outlives this process; gives it and where in the log its words begin."""
    import subprocess  # noqa: PLC0415  who finds a daemon running does not need it

    log = os.path.join(folder, LOG)
    try:
        if os.path.exists(log) and os.path.getsize(log) > _LARGEST_LOG:
            os.replace(log, f"{log}.1")
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError as error:
        msg = f"No daemon can be started for {folder}: {error.strerror or error}."
        raise DaemonNotStarted(msg) from error
    with os.fdopen(descriptor, "ab") as file:
        said_from = os.path.getsize(log)
        options: dict[str, Any] = {"start_new_session": True}
        if sys.platform == "win32":
            options = {"creationflags": subprocess.DETACHED_PROCESS | subprocess.CREATE_NEW_PROCESS_GROUP}
        try:
            # -P: a module of the same name in whatever folder the client was started in must not be taken for ours.
            daemon = subprocess.Popen(
                [sys.executable, "-P", "-m", "agemem_mcp.daemon"],
                env={**_ALLOCATION, **os.environ, f"{_PREFIX}DATA_DIR": folder},
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=file,
                **options,
            )
        except OSError as error:
            msg = f"No daemon can be started for {folder}: {error.strerror or error}."
            raise DaemonNotStarted(msg) from error
    return daemon, said_from


def _last_words(folder: str, said_from: int, status: int) -> str:
    """Why a daemon ended at once: its error if it said one."""
    try:
        with open(os.path.join(folder, LOG), encoding="utf-8", errors="replace") as file:
            file.seek(said_from)
            said = file.read()
    except OSError:
        said = ""
    errors = [line.removeprefix("Error: ") for line in said.splitlines() if line.startswith("Error: ")]
    return errors[-1] if errors else f"The daemon of {folder} ended at once (status {status}).\n{said.strip()}"
