"""A run's folder: what it leaves behind, and what it needs to go on from where it was stopped.

.. code-block:: text

    OUT/config.toml                  the resolved configuration
    OUT/metrics.jsonl                every iteration and evaluation
    OUT/start/                       the policy before reinforcement learning, which is the reference as well
    OUT/checkpoints/iteration-00010/ weights, optimizer and state; the newest two are kept
    OUT/…                            at the end the policy itself (config.json, model.safetensors, tokenizer), reports

A checkpoint is written beside its place and then renamed, so that a full disk or a kill leaves the one before it.
"""

# torch is an extra: where it is installed its types are checked, elsewhere the rest still is
# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from agemem_mcp.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

_KEPT = 2
_STATE, _WEIGHTS, _OPTIMIZER = "state.json", "weights.safetensors", "optimizer.pt"


@dataclass(slots=True)
class RunState:
    """Where a run is."""

    iteration: int = 0
    """The last that was done."""
    drawn: list[int] = field(default_factory=list[int])
    """Tasks drawn from each source."""
    best: float | None = None
    """Task success of the best evaluation so far."""
    best_iteration: int = 0
    worse: int = 0
    """Evaluations since then."""
    seconds: float = 0.0
    """That it ran, over all its parts."""


class RunFolder:
    """The folder of one run."""

    def __init__(self, path: Path) -> None:
        """Nothing is made yet."""
        self.path = path

    @property
    def start(self) -> Path:
        """The policy before reinforcement learning."""
        return self.path / "start"

    def make(self) -> None:
        """Make the folder.

        Raises:
            ConfigurationError: it cannot be made, or there is a run in it already.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            msg = f"The folder {self.path} cannot be made ({error}). Name another one with --out."
            raise ConfigurationError(msg) from error
        if (self.path / "config.toml").exists():
            msg = f"There is a run in {self.path} already. Go on with it by --resume {self.path}, or name another --out."
            raise ConfigurationError(msg)

    def save(self, state: RunState, weights: Mapping[str, Tensor], optimizer: Mapping[str, Any]) -> Path:
        """Write a checkpoint; when this fails, the one before it is as it was.

        Raises:
            ConfigurationError: it cannot be written; the text says so.
        """
        folder = self.path / "checkpoints" / f"iteration-{state.iteration:05d}"
        unfinished = folder.with_name(f".{folder.name}")
        try:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            save_file({name: one.detach().cpu().contiguous() for name, one in weights.items()}, unfinished / _WEIGHTS)
            torch.save(dict(optimizer), unfinished / _OPTIMIZER)
            (unfinished / _STATE).write_text(json.dumps(asdict(state)), encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            unfinished.rename(folder)
        except (OSError, RuntimeError) as error:  # torch has a class of its own for a full disk: RuntimeError
            shutil.rmtree(unfinished, ignore_errors=True)
            last = self.newest()
            kept = "there is none yet" if last is None else f"{last.name} is whole"
            msg = f"The checkpoint {folder} cannot be written ({error}); of those before it {kept}. Make room and resume."
            raise ConfigurationError(msg) from error
        for old in self.checkpoints()[:-_KEPT]:
            shutil.rmtree(old, ignore_errors=True)
        return folder

    def checkpoints(self) -> list[Path]:
        """Those that are whole, oldest first."""
        return sorted(one for one in (self.path / "checkpoints").glob("iteration-*") if (one / _STATE).is_file())

    def newest(self) -> Path | None:
        """The newest checkpoint."""
        found = self.checkpoints()
        return found[-1] if found else None


def load_checkpoint_state(folder: Path) -> tuple[RunState, dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint: state, weights, optimizer.

    Raises:
        ConfigurationError: a file is missing or damaged.
    """
    try:
        state = RunState(**json.loads((folder / _STATE).read_text("utf-8")))
        weights = load_file(folder / _WEIGHTS)
        optimizer: dict[str, Any] = torch.load(folder / _OPTIMIZER, weights_only=True)
    except Exception as error:
        msg = f"The checkpoint {folder} cannot be read ({error}). Delete it to resume from the one before."
        raise ConfigurationError(msg) from error
    return state, weights, optimizer
