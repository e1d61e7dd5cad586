"""A run's folder: what it leaves behind, and what it needs to go on from where it was stopped.

.. code-block:: text

    OUT/config.toml                  the resolved configuration
    OUT/metrics.jsonl                every iteration and evaluation
    OUT/start/                       the policy before reinforcement learning, which is the reference as well
    OUT/checkpoints/iteration-00010/ weights, optimizer and state; the newest two are kept
    OUT/best/                        the weights of the best evaluation, where ``grpo.patience`` is set
    OUT/adapter/                     the newest adapter, where ``grpo.rollout_url`` is set: the server reads it
    OUT/…                            at the end the policy itself (config.json, model.safetensors, tokenizer), reports

Whatever is loaded again is written beside its place and then renamed, so that a full disk or a kill leaves what was
there before.
"""

# torch is an extra: where it is installed its types are checked, elsewhere the rest still is
# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from agemem_mcp.errors import ConfigurationError
from agemem_training.reporting.writing import write_atomically

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from pathlib import Path

    from torch import Tensor

_KEPT = 2
_STATE, _WEIGHTS, _OPTIMIZER = "state.json", "weights.safetensors", "optimizer.pt"
CONFIG = "config.toml"


@dataclass(slots=True)
class RunState:
    """Where a run is."""

    iteration: int = 0
    """The last that was done."""
    drawn: dict[str, int] = field(default_factory=dict[str, int])
    """Tasks drawn from each source."""
    best: float | None = None
    """Task success of the best evaluation so far."""
    best_iteration: int = 0
    worse: int = 0
    """Evaluations since then."""
    evaluated: int = 0
    """The iteration after which it was last evaluated."""
    seconds: float = 0.0
    """That it ran, over all its parts."""

    def note(self, success: float) -> bool:
        """Take note of an evaluation; tells whether it is the best so far."""
        self.evaluated = self.iteration
        better = self.best is None or success > self.best
        if better:
            self.best, self.best_iteration, self.worse = success, self.iteration, 0
        else:
            self.worse += 1
        return better


class RunFolder:
    """The folder of one run."""

    def __init__(self, path: Path) -> None:
        """Nothing is made yet."""
        self.path = path

    @property
    def start(self) -> Path:
        """The policy before reinforcement learning."""
        return self.path / "start"

    @property
    def checkpoint_folder(self) -> Path:
        """Where the checkpoints are."""
        return self.path / "checkpoints"

    @property
    def best(self) -> Path:
        """The weights of the best evaluation."""
        return self.path / "best"

    @property
    def adapter(self) -> Path:
        """The adapter that a rollout server reads."""
        return self.path / "adapter"

    def make(self, config: str) -> None:
        """Make the folder, with the run's configuration in it.

        Raises:
            ConfigurationError: it cannot be made, or there is a run in it already.
        """
        self.check_new()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.note_config(config)
        except OSError as error:
            msg = f"The folder {self.path} cannot be made ({error}). Name another one with --out."
            raise ConfigurationError(msg) from error

    def note_config(self, config: str) -> None:
        """Write what the run goes on with: for people, who may change it, and beside the checkpoints as it was used.

        Raises:
            OSError: it cannot be written.
        """
        self.checkpoint_folder.mkdir(exist_ok=True)
        for place in (self.checkpoint_folder / CONFIG, self.path / CONFIG):
            write_atomically(place, config)

    def used_config(self) -> Path:
        """Where what the run was made with so far is written."""
        used = self.checkpoint_folder / CONFIG
        return used if used.is_file() else self.path / CONFIG

    def check_new(self) -> None:
        """Refuse a folder that a run is in.

        Raises:
            ConfigurationError: there is one.
        """
        if (self.path / CONFIG).exists():
            msg = (
                f"There is a run in {self.path} already. Go on with it by --resume {self.path}, or name another --out."
            )
            raise ConfigurationError(msg)

    def save(self, state: RunState, weights: Mapping[str, Tensor], optimizer: Mapping[str, Any]) -> Path:
        """Write a checkpoint; when this fails, the one before it is as it was.

        Raises:
            ConfigurationError: it cannot be written; the text says so.
        """
        folder = self.checkpoint_folder / f"iteration-{state.iteration:05d}"
        try:
            with replaced(folder) as unfinished:
                _save_weights(weights, unfinished / _WEIGHTS)
                torch.save(dict(optimizer), unfinished / _OPTIMIZER)
                (unfinished / _STATE).write_text(json.dumps(asdict(state)), encoding="utf-8")
        except _NOT_WRITTEN as error:
            msg = f"The checkpoint {folder} cannot be written ({error}). {self.what_is_kept()} Make room first."
            raise ConfigurationError(msg) from error
        for old in self.checkpoints()[:-_KEPT]:
            shutil.rmtree(old, ignore_errors=True)
        return folder

    def save_best(self, weights: Mapping[str, Tensor]) -> None:
        """Write the weights of the best evaluation so far.

        Raises:
            ConfigurationError: they cannot be written; those before them are whole.
        """
        try:
            with replaced(self.best) as unfinished:
                _save_weights(weights, unfinished / _WEIGHTS)
        except _NOT_WRITTEN as error:
            msg = f"The weights {self.best} cannot be written ({error}). {self.what_is_kept()} Make room first."
            raise ConfigurationError(msg) from error

    def checkpoints(self) -> list[Path]:
        """Those that are whole, oldest first."""
        return sorted(one for one in self.checkpoint_folder.glob("iteration-*") if (one / _STATE).is_file())

    def newest(self) -> Path | None:
        """The newest checkpoint."""
        found = self.checkpoints()
        return found[-1] if found else None

    def what_is_kept(self) -> str:
        """Tells people what a run that failed can go on from."""
        last = self.newest()
        if last is None and not self.start.is_dir():
            return f"Nothing was saved; --resume {self.path} begins anew."
        if last is None:
            return f"No iteration was saved; --resume {self.path} starts reinforcement learning anew."
        return (
            f"The last good checkpoint is {last.name}: go on from it by --resume {self.path}. To go on with other "
            "settings, change its config.toml and add --force."
        )


@contextmanager
def replaced(folder: Path) -> Generator[Path]:
    """A folder to write to that takes the place of another one once all is written."""
    unfinished, old = folder.with_name(f".{folder.name}"), folder.with_name(f".old-{folder.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    unfinished.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint_state(folder: Path) -> tuple[RunState, dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint: state, weights, optimizer.

    Raises:
        ConfigurationError: a file is missing or damaged.
    """
    try:
        state = RunState(**json.loads((folder / _STATE).read_text("utf-8")))
        weights = load_file(folder / _WEIGHTS)
        optimizer: dict[str, Any] = torch.load(folder / _OPTIMIZER, map_location="cpu", weights_only=True)
    except Exception as error:
        msg = f"The checkpoint {folder} cannot be read ({error}). Delete it to resume from the one before."
        raise ConfigurationError(msg) from error
    return state, weights, optimizer


def load_weights(folder: Path) -> dict[str, Tensor]:
    """Read the weights of the best evaluation.

    Raises:
        ConfigurationError: the file is missing or damaged.
    """
    try:
        return load_file(folder / _WEIGHTS)
    except (OSError, SafetensorError) as error:
        msg = f"The weights in {folder} cannot be read ({error})."
        raise ConfigurationError(msg) from error


_NOT_WRITTEN = (OSError, RuntimeError, SafetensorError)
"""Of a full disk each library has a class of its own; torch's is RuntimeError."""


def _save_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: one.detach().cpu().contiguous() for name, one in weights.items()}, path)
