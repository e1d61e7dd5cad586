"""The other processes of a run: they do their part, and what becomes of them is told."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from agemem_mcp.errors import AgeMemError, ConfigurationError, InvalidOperation
from agemem_training.config import RunConfig, changed, load_preset
from agemem_training.processes import OtherEnded, check_shares, is_first, is_launched, joined_by

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in _NAMES:
        monkeypatch.delenv(name, raising=False)


def note(folder: Path) -> None:
    """Work: write down where this process belongs."""
    (folder / os.environ["RANK"]).write_text(" ".join(os.environ[name] for name in _NAMES))


def refuse(text: str) -> None:
    """Work that cannot be done."""
    raise InvalidOperation(text)


def wait(_: Path) -> None:
    """Work without end."""
    time.sleep(600)


def die(_: Path) -> None:
    """Work that takes too much memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def lose_the_others() -> None:
    """What torch says where another process was expected."""
    msg = "Connection closed by peer"
    raise RuntimeError(msg)


def test_every_process_knows_its_place_and_the_same_meeting_point(tmp_path: Path) -> None:
    with joined_by(2, note, tmp_path):
        assert is_first()
        assert is_launched()
        note(tmp_path)
    places = [(tmp_path / rank).read_text().split() for rank in ("0", "1", "2")]
    assert [place[:4] for place in places] == [["0", "0", "3", "3"], ["1", "1", "3", "3"], ["2", "2", "3", "3"]]
    assert len({tuple(place[4:]) for place in places}) == 1
    assert not is_launched()


def test_more_processes_than_an_iteration_has_tasks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    preset = load_preset("qwen3-4b-hotpotqa")
    check_shares(preset)
    monkeypatch.setenv("WORLD_SIZE", "4")
    check_shares(preset)
    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(ConfigurationError) as refused:
        check_shares(preset)
    assert str(refused.value) == (
        "8 processes share the tasks of an iteration, which are 4 in all: some would do nothing. Raise grpo.tasks to 8 "
        "or more, or lower --num_processes of the launcher to 4."
    )
    check_shares(changed(preset, grpo={"tasks": 8}))


def test_the_processes_that_a_run_starts_itself_are_no_more_than_its_tasks_either() -> None:
    config = RunConfig.model_validate({"processes": 3, "grpo": {"tasks": 2}})
    with pytest.raises(ConfigurationError, match=r"^3 processes .*, or lower processes to 2\.$"):
        check_shares(config)
    # Without reinforcement learning they measure alone.
    check_shares(changed(config, grpo={"iterations": 0}))


def test_processes_that_a_run_starts_itself_have_a_gpu_each() -> None:
    config = RunConfig.model_validate({"processes": 2, "grpo": {"tasks": 2}})
    check_shares(config)
    check_shares(config, gpus=2)
    with pytest.raises(ConfigurationError, match="2 processes want a GPU each, and there are 1 here: lower processes"):
        check_shares(config, gpus=1)


def test_without_others_nothing_changes() -> None:
    with joined_by(0, wait):
        assert not is_launched()
        assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("work", "error", "text"),
    [(refuse, InvalidOperation, "too little"), (die, OtherEnded, r"ended \(exit code -9\).*set processes = 1")],
)
def test_why_another_one_ended_is_told(work: Callable[..., None], error: type[AgeMemError], text: str) -> None:
    with pytest.raises(error, match=text), joined_by(1, work, "too little"):
        lose_the_others()
    assert multiprocessing.active_children() == []


def test_an_error_of_the_first_one_ends_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("agemem_training.processes._LAST_WORDS_S", 0.1)
    with pytest.raises(InvalidOperation, match="mine"), joined_by(2, wait, tmp_path):
        refuse("mine")
    with pytest.raises(RuntimeError, match="closed by peer"), joined_by(1, wait, tmp_path):
        lose_the_others()
    assert multiprocessing.active_children() == []
