"""``agemem-mcp serve`` over stdio: a pipe between the client and the owner of the data folder.

Bytes go through as they come, one thread for each direction. The owner speaks the protocol.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from agemem_mcp.link.connecting import DaemonNotStarted, LinkError, connect, greeting
from agemem_mcp.link.places import data_dir

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

    from agemem_mcp.link.connecting import Link

_CHUNK = 65536
_SETTLING_S = 15.0
"""How long the owner may take to answer what has begun once the client is gone."""
_OPTIONS = ("--transport", "--data-dir", "--namespace", "--tools")


def options_of(arguments: Sequence[str]) -> dict[str, str] | None:
    """The options of ``serve``, if they ask for a pipe and nothing else; None leaves them to the command line."""
    found: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if name not in _OPTIONS or not (equals or rest):
            return None
        found[name] = value if equals else rest.pop(0)
    return found if found.pop("--transport", "stdio") == "stdio" and "" not in found.values() else None


def serve(options: dict[str, str]) -> int | None:
    """Be a pipe until one side ends; gives the status, or None if this process must serve by itself."""
    folder = data_dir(options.get("--data-dir"))
    hello = greeting("mcp", {name[2:]: value for name, value in options.items() if name != "--data-dir"})
    try:
        link = connect(folder, hello)
    except DaemonNotStarted as error:
        _say(f"{error} Serving within this process.")
        return None
    except LinkError as error:
        _say(f"Error: {error}", plain=True)
        return 1
    except KeyboardInterrupt:
        return 130
    for note in link.notes:
        _say(note)
    return pump(link)


def pump(link: Link) -> int:
    """Pass bytes both ways until the client or the owner ends; gives the status."""
    leaving = threading.Event()
    backwards = threading.Thread(target=_backwards, args=(link, leaving), daemon=True)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupt)
    backwards.start()
    try:
        # Told to end, it does as if the client had.
        with suppress(KeyboardInterrupt):
            from_client(link.connection)
        leaving.set()
        link.connection.shutdown(socket.SHUT_WR)
    except OSError:
        return _lost(link)
    backwards.join(_SETTLING_S)
    return 0


def from_client(connection: socket.socket) -> None:
    """Pass on what comes from stdin, until its end.

    Raises:
        OSError: the other side is gone.
    """
    while chunk := os.read(0, _CHUNK):
        connection.sendall(chunk)


def to_client(connection: socket.socket) -> None:
    """Pass on what comes from the other side to stdout, until its end.

    Raises:
        BrokenPipeError: the client is gone.
        OSError: the other side is gone.
    """
    while chunk := connection.recv(_CHUNK):
        rest = memoryview(chunk)
        while rest:
            rest = rest[os.write(1, rest) :]


def _backwards(link: Link, leaving: threading.Event) -> None:
    try:
        to_client(link.connection)
    except BrokenPipeError:
        # The client is gone. Its last calls are carried out all the same.
        os._exit(0)
    except OSError as error:
        _say(f"The connection to the memory's daemon broke: {error}.")
    if not leaving.is_set():
        # The main thread is blocked on the client's next line, which nobody could answer.
        os._exit(_lost(link))


def _lost(link: Link) -> int:
    _say(
        f"The memory's daemon (process {link.owner.pid}) ended. What it acknowledged is stored. Start this server "
        f"again, which starts a new one; `agemem-mcp daemon logs` may say why it ended."
    )
    return 1


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _say(text: str, *, plain: bool = False) -> None:
    sys.stderr.write(f"{text}\n" if plain else f"agemem-mcp: {text}\n")
    sys.stderr.flush()
