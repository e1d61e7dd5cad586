"""Which policy a few words stand for: ``openai:MODEL@URL``, ``hf:PATH`` or ``scripted:NAME``."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

from agemem_mcp.errors import ConfigurationError
from agemem_policies.openai_chat import Endpoint, OpenAIChatPolicy

if TYPE_CHECKING:
    from agemem_policies.openai_chat import Patience, Sampling
    from agemem_policies.policy import Policy

Kind: TypeAlias = Literal["openai", "hf", "scripted"]

OPENAI_URL = "https://api.openai.com/v1"
FORMS = (
    "Write openai:MODEL@URL for a model behind an OpenAI-compatible endpoint, such as "
    f"openai:qwen2.5:7b@http://localhost:11434/v1 (without @URL it is {OPENAI_URL}), "
    "hf:PATH for a model's files, or scripted:NAME for a policy that needs no model."
)
_NAMED: dict[str, str] = {"openai": "model", "hf": "path", "scripted": "script"}
_HOST = re.compile(r"@(localhost\b|[\w.-]+:\d+(/|$))")
"""Looks like an address whose ``http://`` was forgotten; taken for a model, it would be asked for elsewhere."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What a policy is made from."""

    kind: Kind
    name: str
    """The model, the path or the script."""
    url: str | None = None
    """Of ``openai`` alone."""


def parse_choice(text: str) -> Choice:
    """Read the words that name a policy.

    Raises:
        ConfigurationError: they have none of the three forms; the message shows these.
    """
    kind, colon, rest = text.strip().partition(":")
    if not colon or kind not in _NAMED:
        msg = f"{text!r} is no policy. {FORMS}"
        raise ConfigurationError(msg)
    name, url = rest, None
    if kind == "openai":
        # Models' names hold colons, slashes and the like, and the part before a URL's host may hold an @.
        name, at, address = rest.rpartition("@http")
        name, url = (name, f"http{address}".rstrip("/")) if at else (rest, OPENAI_URL)
    if not name.strip():
        msg = f"{text!r} names no {_NAMED[kind]}. {FORMS}"
        raise ConfigurationError(msg)
    if kind == "openai" and _HOST.search(name):
        msg = f"The URL in {text!r} must begin with http:// or https://. {FORMS}"
        raise ConfigurationError(msg)
    return Choice(cast("Kind", kind), name, url)


def make_policy(
    text: str,
    *,
    api_key: str | None = None,
    native: bool = False,
    sampling: Sampling | None = None,
    patience: Patience | None = None,
) -> Policy:
    """Make the policy that a few words name.

    Args:
        text: as for :func:`parse_choice`.
        api_key: for an endpoint.
        native: whether an endpoint is given tools as functions.
        sampling: how an endpoint's model chooses its words.
        patience: how long and how often an endpoint is asked.

    Raises:
        ConfigurationError: there is no such policy, or what it needs is not installed.
    """
    choice = parse_choice(text)
    if choice.kind == "openai":
        endpoint = Endpoint(choice.url or OPENAI_URL, choice.name, api_key)
        return OpenAIChatPolicy(endpoint, native=native, sampling=sampling, patience=patience)
    if choice.kind == "hf":
        return _local(choice.name)
    return cast("Policy", _attribute("agemem_policies.scripted", "scripted_policy")(choice.name))


def _local(path: str) -> Policy:
    try:
        return cast("Policy", _attribute("agemem_policies.local", "LocalPolicy")(path))
    except ImportError as error:
        msg = f'hf:{path} needs torch and transformers ({error}). Install them: pip install "agemem-mcp[local]"'
        raise ConfigurationError(msg) from error


def _attribute(module: str, name: str) -> Any:  # noqa: ANN401  a class or a function, called at once
    """What a module has by this name; it is imported only here, because torch alone takes seconds."""
    return getattr(importlib.import_module(module), name)
