"""Nothing is left outside the folders that were named, and nobody is told anything."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def test_embedding_leaves_nothing_in_the_home_folder(assets_dir: Path, tmp_path: Path) -> None:
    """ONNX Runtime would write a device id there, and report to its maker."""
    home = tmp_path / "home"
    home.mkdir()
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("AGEMEM_", "ORT_", "XDG_"))
    }
    environment |= {"HOME": str(home), "AGEMEM_ASSETS_DIR": str(assets_dir)}
    command = [sys.executable, "-m", "agemem_mcp", "demo", "--data-dir", str(tmp_path / "data")]
    outcome = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    assert [str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()] == []
