from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from processes import end_all, memory, working_on

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="read from /proc")

WAITING = "print('ready', flush=True); input()"


def started(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_what_names_a_folder_is_counted_and_ended_and_nothing_else(tmp_path: Path) -> None:
    by_argument = started(str(tmp_path / "mine"))
    by_environment = started(environment={"BENCHMARK_FOLDER": str(tmp_path / "mine" / "deeper")})
    other = started(str(tmp_path / "other"))
    everyone = [by_argument, by_environment, other]
    try:
        assert working_on(tmp_path / "mine") == sorted([by_argument.pid, by_environment.pid])
        taken = memory(tmp_path / "mine")
        assert taken is not None
        assert taken.processes == 2
        assert 0 < taken.pss_mb <= taken.rss_mb

        end_all(tmp_path / "mine")
        assert by_argument.wait() != 0
        assert by_environment.wait() != 0
        assert other.poll() is None
        assert memory(tmp_path / "mine") is None
    finally:
        for process in everyone:
            with process:
                process.kill()
