"""Serving a memory over HTTP, as the process that owns it, or at another one's request."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from agemem_mcp.server.http import HttpListener, HttpOptions, build_app
from agemem_mcp.server.tools import ToolOffer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from agemem_mcp.owner.owner import Owner
    from agemem_mcp.server.extensions import Extend
    from agemem_mcp.settings import Settings

ENTRY_POINT_GROUP = "agemem_mcp.http"
"""Each entry point makes an extension of the HTTP server: called with settings, options, gate and turns, it gives an
:class:`~agemem_mcp.server.extensions.Extension`. So other packages add routes, and nothing imports upward."""


@asynccontextmanager
async def listening(owner: Owner, settings: Settings, *, insecure: bool) -> AsyncGenerator[str]:
    """Serve the owner's memory over HTTP for the length of the context; gives the base URL.

    Args:
        owner: whose memory it is.
        settings: where and how to listen; may be those of another process than the owner's.
        insecure: also beyond this machine without a token.

    Raises:
        ConfigurationError: the address cannot be listened on, or would be open to the network.
    """
    options = HttpOptions(
        host=settings.host,
        port=settings.port,
        namespace=settings.namespace,
        offer=ToolOffer(tools=settings.tools, lives=owner.settings.context.lives),
        token=None if settings.token is None else settings.token.get_secret_value(),
        allowed_hosts=tuple(settings.allowed_hosts),
        insecure=insecure,
    )
    listener = HttpListener(build_app(options, owner.gate, owner.turns, _offered(settings, options)), options)
    owner.listening.append(listener.url)
    try:
        yield listener.url
    finally:
        owner.listening.remove(listener.url)
        await listener.close(process_ends=owner.ending)


def _offered(settings: Settings, options: HttpOptions) -> list[Extend]:
    return [partial(point.load(), settings, options) for point in entry_points(group=ENTRY_POINT_GROUP)]
