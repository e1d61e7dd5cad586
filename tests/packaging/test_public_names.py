"""What the three packages offer to others, and what the README must tell about."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from agemem_mcp.settings import setting_rows

ROOT = Path(__file__).parents[2]
EXPORTED: dict[str, list[str]] = {
    "agemem_mcp": ["__version__"],
    "agemem_policies": [
        *(
            "Agent",
            "AgentOptions",
            "Call",
            "ChatMessage",
            "Completion",
            "Limits",
            "MemoryOperation",
            "Policy",
            "Prompt",
        ),
        *("ProtocolViolation", "ScriptedPolicy", "Step", "StopReason", "Trajectory", "Turn", "parse", "render"),
    ],
    "agemem_training": ["MemoryOperation"],
}


@pytest.mark.parametrize("package", EXPORTED)
def test_a_package_exports_what_is_pinned_here(package: str) -> None:
    module = importlib.import_module(package)
    assert sorted(module.__all__) == EXPORTED[package]
    assert all(hasattr(module, name) for name in module.__all__)


def test_every_setting_stands_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    missing = [name for name, _, _ in setting_rows() if f"`{name}`" not in readme]
    assert missing == []
