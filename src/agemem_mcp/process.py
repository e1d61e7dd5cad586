"""What every process of ours does at its start: logging, and garbage collection after importing."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from typing import TYPE_CHECKING, Any, TypeVar

import structlog

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")


def start_logging(level: str) -> None:
    """Log to stderr: stdout belongs to the protocol and to answers."""
    number = getattr(logging, level.upper())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            # Plain: the rich one prints local variables, and those hold memories.
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            ),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=number, stream=sys.stderr, format="%(asctime)s [%(levelname)s] %(name)s: %(message)s")


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Run a process's work, once everything it needs at first is imported."""
    resume_garbage_collection()
    return asyncio.run(work)


def resume_garbage_collection() -> None:
    """End the pause that `_entry` or `daemon` began; what was imported by now is never looked at again."""
    gc.freeze()
    gc.enable()
