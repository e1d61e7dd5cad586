"""Prompts as text files. Any of them can be replaced by a file of the same name in a folder of one's own."""

from __future__ import annotations

import json
import re
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from agemem_mcp.domain.operations import SIX, input_schema, tool_name
from agemem_mcp.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from agemem_mcp.domain.operations import Operation

NAMES = ("agent", "memory", "format", "judge_answer", "judge_memory")


def load_prompt(name: str, folder: Path | None = None) -> str:
    """The text of a prompt.

    Args:
        name: one of :data:`NAMES`, or ``summarise``, which is the server's own.
        folder: holds ``NAME.txt`` files that replace those shipped; what it lacks is taken from there.

    Raises:
        ConfigurationError: a file cannot be read.
    """
    if folder is not None and (path := folder / f"{name}.txt").is_file():
        try:
            return path.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            msg = f"The prompt {path} cannot be read ({error}). It must be a text file in UTF-8."
            raise ConfigurationError(msg) from error
    package = "agemem_mcp.prompts" if name == "summarise" else "agemem_policies.prompts"
    return resources.files(package).joinpath(f"{name}.txt").read_text("utf-8").strip()


@cache
def function_of(operation: type[Operation]) -> dict[str, Any]:
    """An operation as a function for a model; the session is the agent's business.

    Made once: generating a schema takes as long as all else that comes before a model's first token.
    """
    schema = input_schema(operation)
    schema["properties"].pop("session_id", None)
    schema["required"] = [name for name in schema.get("required", []) if name != "session_id"]
    return {"name": tool_name(operation), "description": operation.description, "parameters": schema}


def _about(text: str, offered: set[str]) -> str:
    """The text without those of its points ("- …") that speak of tools which are not offered."""
    everything = {tool_name(operation) for operation in SIX}
    first, *points = re.split(r"\n(?=- )", text)
    kept = [point for point in points if not any(name in point for name in everything - offered)]
    return "\n".join([first, *kept])


def agent_prompt(
    operations: Sequence[type[Operation]],
    *,
    native: bool,
    client_tools: Sequence[dict[str, Any]] = (),
    folder: Path | None = None,
) -> str:
    """The agent's system prompt.

    Args:
        operations: the memory tools it has; generated from their definitions.
        native: the model is told of its tools beside the prompt, and calls them itself.
        client_tools: further functions (``{"name", "description", "parameters"}``), which the client runs.
        folder: see :func:`load_prompt`.

    Raises:
        ConfigurationError: a file cannot be read.
    """
    parts = [load_prompt("agent", folder)]
    if operations:
        parts.append(_about(load_prompt("memory", folder), {tool_name(operation) for operation in operations}))
    if not native:
        functions = [*(function_of(operation) for operation in operations), *client_tools]
        listed = "\n".join(json.dumps(function, ensure_ascii=False) for function in functions)
        tools = f"Your tools, one to a line:\n{listed}" if functions else "You have no tools: answer at once."
        parts += [tools, load_prompt("format", folder)]
    return "\n\n".join(parts)
