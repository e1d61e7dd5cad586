"""Names of ways to work that settings, rules and results share."""

from __future__ import annotations

from enum import StrEnum


class FilterMode(StrEnum):
    """How ``Filter_context`` compares criteria and messages."""

    HYBRID = "hybrid"
    """Shared words first, meaning of each sentence beside it."""
    LEXICAL = "lexical"
    """Shared words alone; what remains where no embedding model is configured."""
    PAPER = "paper"
    """Cosine of the whole criteria and the whole message (AgeMem, section 3.2)."""
