"""How a checkpoint wants to be used: what its prompt is and what is done for it, as it was trained.

A checkpoint's folder may hold ``agent.json`` with these; chats and the chat endpoint follow it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, cast

from agemem_mcp.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

    from agemem_policies.agent import AgentOptions
    from agemem_policies.policy import Policy

FILE = "agent.json"


@dataclass(frozen=True, slots=True)
class Manner:
    """What a policy was trained with; None leaves it to whoever uses it."""

    system: str | None = None
    """Its system prompt."""
    recalled: int = 0
    """Hits that are retrieved for it with each message."""
    window_tokens: int | None = None
    """What it can take in."""
    answer_tokens: int | None = None
    """What a turn of it needs."""
    frame_tokens: int | None = None
    """What its chat template puts around a message."""
    own_summaries: bool = True
    """Whether it can write a summary when it is asked for one."""

    def applied_to(self, options: AgentOptions) -> AgentOptions:
        """The options as this policy needs them."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        return replace(options, **given)

    def save(self, folder: Path) -> None:
        """Write it into a checkpoint's folder."""
        (folder / FILE).write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def manner_of(folder: Path) -> Manner:
    """What a checkpoint's folder says; a folder without the file wants nothing in particular.

    Raises:
        ConfigurationError: the file is there and cannot be used.
    """
    path = folder / FILE
    if not path.is_file():
        return Manner()
    try:
        said = json.loads(path.read_text("utf-8"))
        known = {one.name for one in fields(Manner)}
        return Manner(**{name: value for name, value in said.items() if name in known})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        msg = f"{path} does not say how the policy is used ({error}). Take it away, or put the trained one back."
        raise ConfigurationError(msg) from error


def options_for(policy: Policy, options: AgentOptions) -> AgentOptions:
    """The options of an agent as the policy needs them."""
    manner = getattr(policy, "manner", None)
    return options if manner is None else cast("Manner", manner).applied_to(options)
