"""What tests of runs start from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def tiny_start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that is quick to train."""
    for extra in ("torch", "transformers", "accelerate", "peft", "matplotlib"):
        pytest.importorskip(extra, reason="training needs `pip install 'agemem-mcp[train]'`")
    from tests.unit.training.tiny_policy import write_tiny_policy  # noqa: PLC0415  after the skip

    return write_tiny_policy(tmp_path_factory.mktemp("start") / "tiny")


@pytest.fixture(scope="session")
def whole(tiny_start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four iterations in one go; who changes something changes a copy."""
    from tests.unit.training.running import run  # noqa: PLC0415  after the skip
    from tests.unit.training.tiny_policy import tiny_run  # noqa: PLC0415  as above

    return run(tiny_run(tiny_start), tmp_path_factory.mktemp("runs") / "whole")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As it was before a run."""
    import torch  # noqa: PLC0415  an extra

    yield
    torch.set_num_threads(1)
