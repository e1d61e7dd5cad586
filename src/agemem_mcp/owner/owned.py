"""Owning a data folder."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import structlog

from agemem_mcp.adapters.data_folder import DataFolder
from agemem_mcp.errors import AgeMemError

if TYPE_CHECKING:
    from collections.abc import Generator

    from agemem_mcp.settings import Settings

log = structlog.get_logger(__name__)

_PATIENCE_S = 0.5


@contextmanager
def owned(settings: Settings) -> Generator[bool]:
    """Own the settings' data folder for the length of the context, if nobody else does and it can be used."""
    folder = DataFolder(settings.data_dir)
    try:
        folder.check()
        # One that has just said that it ended gives its lock back in a moment.
        lock = folder.lock(patience_s=_PATIENCE_S)
    except AgeMemError as error:
        log.info("the folder is not ours", error=str(error))
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
