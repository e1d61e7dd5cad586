"""The Makefile's targets: what they would run, as ``make`` itself tells."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def commands(*targets: str) -> str:
    """What ``make`` would run."""
    if shutil.which("make") is None:
        pytest.skip("there is no make here")
    return subprocess.run(
        ["make", "--dry-run", "--no-print-directory", *targets], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout


def test_a_warm_start_is_made_in_a_folder_that_no_run_is_in_and_copied_from_there() -> None:
    told = commands("warm-start")
    [out] = re.findall(r"train --preset mini --iterations 0 --out (\S+)", told)
    # It has the second in its name: a folder that a run is in takes no other one.
    assert re.fullmatch(r"runs/warm-start-\d{8}-\d{6}", out)
    assert f"cp {out}/start/* training/agemem_training/data/mini/" in told
    assert not re.search(r"\brm\b", told)
