"""What tests of runs start from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def tiny_start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that is quick to train."""
    for extra in ("torch", "transformers", "accelerate", "peft", "matplotlib"):
        pytest.importorskip(extra, reason="training needs `pip install 'agemem-mcp[train]'`")
    from tests.unit.training.tiny_policy import write_tiny_policy  # noqa: PLC0415  after the skip

    return write_tiny_policy(tmp_path_factory.mktemp("start") / "tiny")
