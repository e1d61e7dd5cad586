"""What all tests share: where the real files are, and a service on real stores."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs
import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from agemem_mcp.adapters.assets import MODEL, TOKENS, AssetStore
from agemem_mcp.adapters.system import RandomIds, SteppingClock
from agemem_mcp.app import open_service
from agemem_mcp.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from agemem_mcp.service.memory_service import MemoryService
    from agemem_mcp.settings import Settings

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # So a shell starts what it runs in the background, and every child inherits it; people's Ctrl-C is not ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Machines are shared and slow at times: a slow example is no failure.
hypothesis_settings.register_profile(
    "agemem", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
hypothesis_settings.load_profile("agemem")


_LONGEST = "test_grpo_learns.py"


def found_assets() -> Path | None:
    """The folder with the real model and tokenizer files, if they were pulled."""
    default = Path(platformdirs.user_cache_dir("agemem-mcp", appauthor=False)) / "assets"
    folder = Path(os.environ.get("AGEMEM_ASSETS_DIR") or default)
    return None if {MODEL, TOKENS} & set(AssetStore(folder).missing()) else folder


if (_found := found_assets()) is not None:
    # For the tests of single adapters, which look there and nowhere else.
    os.environ["AGEMEM_ASSETS_DIR"] = str(_found)


@pytest.fixture(scope="session")
def assets_dir() -> Path:
    """The folder with the real model and tokenizer files."""
    folder = found_assets()
    if folder is None:
        pytest.skip("the model and tokenizer files are not here: run `agemem-mcp assets pull`")
    return folder


@pytest.fixture
def lexical_settings(tmp_path: Path) -> Settings:
    """Settings of a server that needs no files: words alone, estimated tokens."""
    return load_settings(
        data_dir=tmp_path / "data",
        assets_dir=tmp_path / "assets",
        embedding="none",
        context={"tokenizer": "estimate"},
        seed=7,
    )


@pytest.fixture
def full_settings(tmp_path: Path, assets_dir: Path) -> Settings:
    """Settings of a server with the real model and tokenizer."""
    return load_settings(data_dir=tmp_path / "data", assets_dir=assets_dir, seed=7)


@pytest.fixture
def clock() -> SteppingClock:
    """A clock that moves on by a millisecond at each look."""
    return SteppingClock()


@pytest.fixture
async def lexical_service(lexical_settings: Settings, clock: SteppingClock) -> AsyncGenerator[MemoryService]:
    """A service on real stores without a model, with fixed time and ids."""
    async with open_service(lexical_settings, clock=clock, ids=RandomIds(seed=7)) as service:
        yield service


@pytest.fixture
async def full_service(full_settings: Settings, clock: SteppingClock) -> AsyncGenerator[MemoryService]:
    """A service on real stores with the real model, with fixed time and ids."""
    async with open_service(full_settings, clock=clock, ids=RandomIds(seed=7)) as service:
        yield service


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the file that takes longest, so that no other process waits for it at the end."""
    items.sort(key=lambda item: item.path.name != _LONGEST)
