"""Episodes on a memory that finds by words: what tests of the environment share."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from agemem_policies.protocol import Call, Turn
from agemem_training.tasks import Task
from agemem_training.worlds import WorldSettings, in_process

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from agemem_policies.policy import Prompt
    from agemem_training.record import Episode
    from agemem_training.worlds import InProcessWorld

LEXICAL: dict[str, Any] = {"embedding": "none"}
OK = Turn("", answer="ok")
MOVES = Task(
    "moves",
    "Where does Maya live?",
    "Rome",
    ("Maya lives in Oslo.", "Maya lives in Rome now."),
    distractors=("Zeppelins rise over the harbour.", "Zeppelins land at the harbour."),
    background=("Tom drinks tea.",),
)


def call(name: str, **arguments: Any) -> Turn:
    """A turn with one call."""
    return Turn("", (Call(name, arguments),))


def first_id(prompt: Prompt, text: str) -> str:
    """The id that the prompt shows before a memory's text."""
    shown = "\n".join(message.content for message in prompt.messages)
    found = re.findall(rf"\[(mem_\w+)\] \([^)]*\)\s+{re.escape(text)}", shown)
    assert found, shown
    return found[-1]


@asynccontextmanager
async def lexical_world(
    folder: Path, *, seed: int = 1, ids: str = "random", budget_tokens: int = 4096
) -> AsyncGenerator[InProcessWorld]:
    """A server in this process that needs no files."""
    settings = WorldSettings(
        budget_tokens=budget_tokens, tokenizer="estimate", ids=ids, folder=folder, extra=dict(LEXICAL)
    )
    async with in_process(settings, seed=seed) as world:
        yield world


def rows(episode: Episode) -> list[tuple[Any, ...]]:
    """What a ledger says was done: by whom, to what, with what outcome, in which stage."""
    stage = {session: number for number, session in sorted(episode.sessions.items(), reverse=True)}
    return [
        (
            *(event.kind, event.actor, event.record.memory_id, event.record.version, event.record.content),
            *(event.record.memory_type, event.record.metadata, event.record.deleted),
            None if event.session_id is None else stage[event.session_id],
        )
        for event in episode.events
    ]
