"""How a checkpoint wants to be used: what its prompt is and what is done for it, as it was trained.

A checkpoint's folder may hold ``agent.json`` with these; chats and the chat endpoint follow it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, cast

from pydantic import TypeAdapter, ValidationError

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
    recalled: int | None = None
    """Hits that are retrieved for it with each message."""
    window_tokens: int | None = None
    """What it can take in."""
    answer_tokens: int | None = None
    """What a turn of it needs."""
    frame_tokens: int | None = None
    """What its chat template puts around a message."""
    own_summaries: bool | None = None
    """Whether it can write a summary when it is asked for one."""

    def applied_to(self, options: AgentOptions) -> AgentOptions:
        """The options as this policy needs them."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        return replace(options, **given)

    def save(self, folder: Path) -> None:
        """Write it into a checkpoint's folder."""
        (folder / FILE).write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


_READ = TypeAdapter(Manner)


def manner_of(folder: Path) -> Manner:
    """What a checkpoint's folder says; a folder without the file wants nothing in particular.

    Raises:
        ConfigurationError: the file is there and cannot be used.
    """
    path = folder / FILE
    if not path.is_file():
        return Manner()
    try:
        return _READ.validate_json(path.read_bytes(), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise _unusable(path, f"{'.'.join(map(str, first['loc'])) or 'the whole'}: {first['msg']}") from error
    except OSError as error:
        raise _unusable(path, str(error)) from error


def _unusable(path: Path, reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"{path} does not say how the policy is used ({reason}). Take it away, or put the trained one back."
    )


def options_for(policy: Policy, options: AgentOptions) -> AgentOptions:
    """The options of an agent as the policy needs them."""
    manner = getattr(policy, "manner", None)
    return options if manner is None else cast("Manner", manner).applied_to(options)
