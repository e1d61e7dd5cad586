"""Checkpoints: what is saved comes back, two are kept, and one that fails leaves the one before it."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch", reason="training needs torch: `pip install 'agemem-mcp[train]'`")

from tests.unit.training.processes import child_environment  # noqa: E402  after the skip

from agemem_mcp.errors import ConfigurationError  # noqa: E402  as above
from agemem_training.checkpoints import RunFolder, RunState, load_checkpoint_state, load_weights  # noqa: E402  as above

if TYPE_CHECKING:
    from pathlib import Path

_FULL_DISK = """
import resource, sys, torch
from pathlib import Path
from agemem_mcp.errors import ConfigurationError
from agemem_training.checkpoints import RunFolder, RunState

folder, limit, what = RunFolder(Path(sys.argv[1])), int(sys.argv[2]), sys.argv[3]
small, large = {"w": torch.ones(4)}, {"w": torch.ones(100_000)}
optimizer = {"m": torch.ones(4)}
folder.save(RunState(1), small, optimizer)
folder.save_best(small)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    if what == "weights":
        folder.save(RunState(2), large, optimizer)
    elif what == "optimizer":
        folder.save(RunState(2), small, large)
    else:
        folder.save_best(large)
except ConfigurationError as error:
    print(error)
    raise SystemExit(3) from None
"""
"""Files may not grow beyond a limit: to a program the same as a disk that is full."""


def optimizer_state() -> dict[str, Any]:
    weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    (weight**2).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def some_weights(value: float = 1.0) -> dict[str, Any]:
    return {"a.b": torch.full((2, 3), value), "c": torch.tensor([value], dtype=torch.bfloat16)}


def test_state_weights_and_optimizer_come_back_as_they_were(tmp_path: Path) -> None:
    drawn = {"synthetic:L1": 3, "synthetic:L2": 4}
    state = RunState(iteration=7, drawn=drawn, best=0.5, best_iteration=6, worse=1, evaluated=6, seconds=12.5)
    optimizer = optimizer_state()
    folder = RunFolder(tmp_path).save(state, some_weights(), optimizer)
    again, weights, moments = load_checkpoint_state(folder)
    assert again == state
    assert weights.keys() == some_weights().keys()
    assert all(torch.equal(one, some_weights()[name]) for name, one in weights.items())
    assert all(one.dtype == some_weights()[name].dtype for name, one in weights.items())
    assert moments["param_groups"] == optimizer["param_groups"]
    assert torch.equal(moments["state"][0]["exp_avg"], optimizer["state"][0]["exp_avg"])


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for iteration in (2, 9, 10, 100):
        folder.save(RunState(iteration), some_weights(), {})
    assert [one.name for one in folder.checkpoints()] == ["iteration-00010", "iteration-00100"]
    assert folder.newest() == tmp_path / "checkpoints" / "iteration-00100"
    assert sorted(one.name for one in (tmp_path / "checkpoints").iterdir()) == ["iteration-00010", "iteration-00100"]


def test_a_checkpoint_takes_the_place_of_one_of_the_same_iteration(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.save(RunState(1), some_weights(1), {})
    folder.save(RunState(1), some_weights(2), {})
    assert float(load_checkpoint_state(folder.checkpoints()[0])[1]["a.b"][0, 0]) == 2


def test_the_best_weights_are_those_saved_last(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.save_best(some_weights(1))
    folder.save_best(some_weights(2))
    assert float(load_weights(folder.best)["a.b"][0, 0]) == 2
    assert [one.name for one in tmp_path.iterdir()] == ["best"]


@pytest.mark.parametrize(
    ("limit", "what"), [(20_000, "weights"), (20_000, "optimizer"), (20_000, "best"), (0, "weights")]
)
def test_a_disk_that_fills_while_saving_leaves_what_was_there(limit: int, what: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _FULL_DISK, str(tmp_path), str(limit), what]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=child_environment())
    assert done.returncode == 3, done.stderr
    assert "cannot be written" in done.stdout
    assert f"The last good checkpoint is iteration-00001: go on from it by --resume {tmp_path}." in done.stdout
    state, weights, _ = load_checkpoint_state(tmp_path / "checkpoints" / "iteration-00001")
    assert state.iteration == 1
    assert weights["w"].tolist() == load_weights(tmp_path / "best")["w"].tolist() == [1, 1, 1, 1]
    assert [one.name for one in (tmp_path / "checkpoints").iterdir()] == ["iteration-00001"]


@pytest.mark.parametrize("name", ["state.json", "weights.safetensors", "optimizer.pt"])
def test_a_damaged_checkpoint_is_refused_and_named(name: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).save(RunState(1), some_weights(), optimizer_state())
    (folder / name).write_bytes((folder / name).read_bytes()[:20])
    with pytest.raises(ConfigurationError, match=r"iteration-00001 cannot be read .* Delete it to resume from the one"):
        load_checkpoint_state(folder)


def test_best_weights_that_are_damaged_are_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.save_best(some_weights())
    (folder.best / "weights.safetensors").write_bytes(b"x")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_weights(folder.best)


def test_half_a_checkpoint_of_a_run_that_was_killed_is_none(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.save(RunState(1), some_weights(), {})
    (tmp_path / "checkpoints" / ".iteration-00002").mkdir()
    (tmp_path / "checkpoints" / ".iteration-00002" / "weights.safetensors").write_bytes(b"x")
    assert folder.newest() == tmp_path / "checkpoints" / "iteration-00001"
    folder.save(RunState(2), some_weights(), {})
    assert load_checkpoint_state(folder.checkpoints()[-1])[0].iteration == 2


def test_a_folder_with_a_run_is_not_used_for_another(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run").make("seed = 1\n")
    with pytest.raises(ConfigurationError, match=r"There is a run in .* already"):
        RunFolder(tmp_path / "run").make("seed = 2\n")
    assert (tmp_path / "run" / "config.toml").read_text() == "seed = 1\n"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be made"):
        RunFolder(tmp_path / "file" / "run").make("")


def test_the_best_evaluation_is_remembered_and_the_worse_ones_counted() -> None:
    state = RunState()
    noted: list[tuple[bool, int, int]] = []
    for iteration, success in [(2, 0.5), (4, 0.5), (6, 0.4), (8, 0.6)]:
        state.iteration = iteration
        noted.append((state.note(success), state.best_iteration, state.worse))
    assert noted == [(True, 2, 0), (False, 2, 1), (False, 2, 2), (True, 8, 0)]
    assert state.evaluated == 8
