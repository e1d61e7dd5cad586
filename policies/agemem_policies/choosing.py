"""Which policy a text names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agemem_mcp.errors import ConfigurationError
from agemem_policies.scripted import scripted_policy

if TYPE_CHECKING:
    from agemem_policies.policy import Policy


def make_policy(text: str, *, api_key: str | None = None, native: bool = False) -> Policy:
    """The policy that a text names.

    Raises:
        ConfigurationError: it names none.
    """
    del api_key, native
    kind, _, name = text.partition(":")
    if kind != "scripted":
        msg = f"{text!r} is no policy. Write openai:MODEL@URL, hf:PATH or scripted:NAME."
        raise ConfigurationError(msg)
    return scripted_policy(name)
