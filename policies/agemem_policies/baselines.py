"""The rungs of the paper's ablation (AgeMem, section 4), and one of our own: what an agent may do with memory.

| kit | long-term memory | short-term context |
|---|---|---|
| ``no_memory`` | none | grows |
| ``rag`` | each user message is stored, each step retrieves | grows |
| ``agemem_rag`` | the policy adds, updates, deletes; each step retrieves | grows |
| ``agemem_ltm`` | the policy adds, updates, deletes, retrieves | grows |
| ``agemem`` | the policy adds, updates, deletes, retrieves | the policy summarises and filters |

``agemem_ltm`` is not the paper's: between it and ``agemem`` nothing differs but the tools for the context, so that what
these are worth is not mixed with how retrieval is decided.

A trained policy with ``agemem`` is the last rung; untrained it is "AgeMem, no RL".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agemem_mcp.domain.operations import SIX, AddMemory, DeleteMemory, RetrieveMemory, UpdateMemory
from agemem_mcp.errors import ConfigurationError

if TYPE_CHECKING:
    from agemem_mcp.domain.operations import Operation


@dataclass(frozen=True, slots=True)
class Kit:
    """Which tools a policy has, and what is done for it."""

    name: str
    operations: tuple[type[Operation], ...]
    retrieves: bool = False
    """Before each step what fits the last message is retrieved into the context, not by the policy's decision."""
    remembers: bool = False
    """Each user message is stored as a memory, not by the policy's decision."""


NO_MEMORY = Kit("no_memory", ())
RAG = Kit("rag", (), retrieves=True, remembers=True)
AGEMEM_RAG = Kit("agemem_rag", (AddMemory, UpdateMemory, DeleteMemory), retrieves=True)
AGEMEM_LTM = Kit("agemem_ltm", (AddMemory, UpdateMemory, DeleteMemory, RetrieveMemory))
AGEMEM = Kit("agemem", SIX)
KITS = {kit.name: kit for kit in (AGEMEM, AGEMEM_LTM, AGEMEM_RAG, RAG, NO_MEMORY)}


def kit_named(name: str) -> Kit:
    """The kit of that name.

    Raises:
        ConfigurationError: there is none.
    """
    if name not in KITS:
        msg = f"There is no kit {name!r}. There are {', '.join(KITS)}."
        raise ConfigurationError(msg)
    return KITS[name]
