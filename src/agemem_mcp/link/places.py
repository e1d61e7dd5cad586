"""Where the owner of a data folder is found: a private file names its address and the secret of the day.

In the data folder::

    owner.json   who owns the folder now, where it listens, and the secret that a connection must show
    owner.sock   the Unix socket, unless its path is too long for one
    start.lock   held by whoever starts a daemon, so that many clients start one
    daemon.log   what the daemon has to say (daemon.log.1: what it had to say before)
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass

LOG = "daemon.log"
START_LOCK = "start.lock"
_OWNER = "owner.json"
_SOCKET = "owner.sock"
_LONGEST_SOCKET = 100
"""Bytes of a Unix socket's path; the systems allow 104 (macOS) to 108."""


@dataclass(frozen=True)
class Owner:
    """The process that owns a data folder, as ``owner.json`` tells."""

    pid: int
    version: str
    address: str
    """``unix:PATH`` or ``tcp:PORT`` on 127.0.0.1."""
    secret: str


def default_data_dir() -> str:
    """The platform's folder for a user's data, as ``platformdirs`` names it (which takes 50 ms to import)."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or os.path.expanduser(r"~\AppData\Local")
    elif sys.platform == "darwin":
        base = os.path.expanduser("~/Library/Application Support")
    else:
        base = os.environ.get("XDG_DATA_HOME", "").strip() or os.path.expanduser("~/.local/share")
    return os.path.join(base, "agemem-mcp")


def data_dir(given: str | None) -> str:
    """The data folder of a command: its option, else the environment's, else the platform's; absolute."""
    named = next((value for name, value in os.environ.items() if name.upper() == "AGEMEM_DATA_DIR" and value), None)
    return os.path.abspath(os.path.expanduser(given or named or default_data_dir()))


def socket_path(folder: str) -> str | None:
    """Where the Unix socket of a data folder belongs; None if its path would be too long for one."""
    path = os.path.join(folder, _SOCKET)
    return path if len(os.fsencode(path)) <= _LONGEST_SOCKET else None


def short_socket_path(folder: str) -> str:
    """A path for the socket of a folder whose own path is too long, in a private folder of this user.

    Raises:
        OSError: that folder cannot be made, or is not this user's alone.
    """
    import hashlib  # noqa: PLC0415  the owner alone calls this
    import tempfile  # noqa: PLC0415  as above

    base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    private = os.path.join(base, f"agemem-{os.getuid()}")
    os.makedirs(private, mode=0o700, exist_ok=True)
    found = os.lstat(private)
    if found.st_uid != os.getuid() or found.st_mode & 0o077:
        msg = f"{private} is not this user's alone"
        raise PermissionError(msg)
    name = hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:16]
    return os.path.join(private, f"{name}.sock")


def proof(secret: str, nonce: str) -> str:
    """What only a process that can read the folder's secret can answer to a nonce."""
    import hmac  # noqa: PLC0415  over TCP alone

    return hmac.new(secret.encode(), nonce.encode(), "sha256").hexdigest()


def read_owner(folder: str) -> Owner | None:
    """Who owns the folder, as far as its file tells; the process may be gone."""
    try:
        with open(os.path.join(folder, _OWNER), encoding="utf-8") as file:
            found = json.load(file)
        return Owner(int(found["pid"]), str(found["version"]), str(found["address"]), str(found["secret"]))
    except (OSError, ValueError, LookupError, TypeError):
        return None


def write_owner(folder: str, owner: Owner) -> None:
    """Say who owns the folder, for its user alone.

    Raises:
        OSError: the file cannot be written.
    """
    path = os.path.join(folder, _OWNER)
    descriptor = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(asdict(owner), file)
    os.replace(f"{path}.new", path)


def remove_owner(folder: str, owner: Owner) -> None:
    """Take the file away again, unless another owner has written its own."""
    if read_owner(folder) == owner:
        os.unlink(os.path.join(folder, _OWNER))
