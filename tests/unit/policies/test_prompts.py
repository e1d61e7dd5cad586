"""Prompts: generated from the operations, and replaceable by files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from agemem_mcp.domain.operations import SIX, tool_name
from agemem_mcp.errors import ConfigurationError
from agemem_policies.prompts import NAMES, agent_prompt, function_of, load_prompt
from agemem_policies.protocol import parse

if TYPE_CHECKING:
    from pathlib import Path


def test_all_prompts_are_there_and_the_summarys_is_the_servers() -> None:
    assert all(len(load_prompt(name)) > 100 for name in NAMES)
    assert "{max_tokens}" in load_prompt("summarise")


def test_a_file_of_ones_own_takes_the_place_of_a_prompt(tmp_path: Path) -> None:
    (tmp_path / "agent.txt").write_text("Be brief.\n", encoding="utf-8")
    prompt = agent_prompt(SIX, native=False, folder=tmp_path)
    assert prompt.startswith("Be brief.\n\nYou have a memory")
    (tmp_path / "agent.txt").write_bytes(b"\xff")
    with pytest.raises(ConfigurationError, match=r"agent\.txt cannot be read"):
        load_prompt("agent", tmp_path)


def test_the_tools_are_those_of_the_operations_without_the_session() -> None:
    prompt = agent_prompt(SIX, native=False, client_tools=[{"name": "get_weather"}])
    for operation in SIX:
        function = function_of(operation)
        assert f'"name": "{tool_name(operation)}", "description": "{operation.description[:20]}' in prompt
        assert "session_id" not in function["parameters"]["properties"]
        assert set(function["parameters"]["required"]) <= set(function["parameters"]["properties"])
    assert '{"name": "get_weather"}' in prompt


def test_a_model_that_is_told_of_its_tools_natively_is_told_no_form() -> None:
    prompt = agent_prompt(SIX, native=True)
    assert "<tool_call>" not in prompt
    assert "with Add_memory" in " ".join(prompt.split())


def test_the_forms_that_the_prompt_shows_can_be_read() -> None:
    shown = load_prompt("format").split("\n\n")
    assert parse(shown[1], strict=True).calls[0].name == "Retrieve_memory"
    assert parse(shown[2], strict=True).answer
