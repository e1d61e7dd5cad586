"""Commands that change something, or search, ask the process that owns the memory; they never open it themselves."""

from __future__ import annotations

import json
from contextlib import closing
from typing import TYPE_CHECKING, Any

from agemem_mcp.errors import AgeMemError, ConfigurationError, StoreError
from agemem_mcp.link.connecting import LinkError, NoOwner, connect, greeting, read_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from agemem_mcp.link.connecting import Link
    from agemem_mcp.settings import Settings


def reach(settings: Settings, *, start: bool = True, **options: str) -> Link:
    """Connect to the owner of the settings' data folder.

    Args:
        settings: name the folder and the namespace.
        start: start a daemon if nobody owns it.
        options: more settings for the owner to know, as the environment would spell them.

    Raises:
        ConfigurationError: the owner turned this process away, or no daemon could be started.
        NoOwner: there is none, and none was to be started.
    """
    try:
        hello = greeting("control", {"namespace": settings.namespace, **options})
        return connect(str(settings.data_dir), hello, start=start)
    except LinkError as error:
        raise ConfigurationError(str(error)) from error


def ask(
    settings: Settings,
    do: str,
    *,
    on_progress: Callable[[str, float, float | None], None] = lambda _text, _done, _total: None,
    start: bool = True,
    **request: Any,  # noqa: ANN401  whatever JSON the request takes
) -> Any:  # noqa: ANN401  the JSON that the request gives
    """Have the owner carry out a request, and give its result.

    Args:
        settings: see :func:`reach`.
        do: the request's name (``owner/control.py``).
        on_progress: hears what is being done, how far it is, and how far it will go.
        start: see :func:`reach`.
        request: its arguments.

    Raises:
        AgeMemError: it was refused, or the owner ended meanwhile.
        NoOwner: there is none, and none was to be started.
    """
    return answer(reach(settings, start=start), {"do": do, **request}, on_progress)


def answer(link: Link, request: dict[str, Any], on_progress: Callable[[str, float, float | None], None]) -> Any:  # noqa: ANN401  as above
    """Send a request over a link and wait for its result; see :func:`ask`."""
    buffer = bytearray()
    with closing(link.connection) as connection:
        try:
            connection.sendall(json.dumps(request).encode() + b"\n")
            while (line := read_line(connection, buffer)) is not None:
                message = json.loads(line)
                if "progress" in message:
                    step = message["progress"]
                    on_progress(step["text"], step["done"], step["total"])
                elif "error" in message:
                    raise AgeMemError(message["error"])
                else:
                    return message["result"]
        except OSError as error:
            raise _gone(link) from error
    raise _gone(link)


def _gone(link: Link) -> StoreError:
    return StoreError(
        f"The process that served the memory ({link.owner.pid}) ended before it answered. `agemem-mcp daemon logs` "
        f"may say why. Try again."
    )


__all__ = ["NoOwner", "answer", "ask", "reach"]
