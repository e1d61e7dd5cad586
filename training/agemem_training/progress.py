"""What a person sees of a run while it goes on: a bar on stderr, and a line for each thing that was done."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as Bar,
)

if TYPE_CHECKING:
    from types import TracebackType

    from rich.progress import TaskID

    from agemem_training.supervised import Fit

_LINE_EVERY = 10
"""Iterations between two lines where there is no terminal."""
_FITS_PER_LINE = 500
"""The same for updates of the warm start."""
_SMOOTH = 0.9


@dataclass
class Progress:
    """Shows a run."""

    console: Console = field(default_factory=lambda: Console(stderr=True, soft_wrap=True))
    silent: bool = False
    """Of several processes, all but one say nothing."""
    _bar: Bar = field(init=False)
    _task: TaskID | None = None
    _phase: str = ""
    _mean: dict[str, float] = field(default_factory=dict[str, float])
    _began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        """Nothing is shown yet."""
        columns = (
            TextColumn("{task.description:<8}"), BarColumn(bar_width=24), TaskProgressColumn(),
            TextColumn("{task.fields[figures]}"), TimeElapsedColumn(), TimeRemainingColumn(),
        )  # fmt: skip
        self._bar = Bar(*columns, console=self.console, disable=self.silent or not self.console.is_terminal)

    def __enter__(self) -> Self:
        """Show the bar."""
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Take it away."""
        self._bar.stop()

    def note(self, text: str) -> None:
        """Say that something begins, or was done."""
        if self.silent:
            return
        minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
        self._bar.console.print(f"[{minutes:02d}:{seconds:02d}] {text}", markup=False, highlight=False)

    def measured(self, name: str, level: str, *, greedy: bool, success: float, n: int) -> None:
        """A policy was measured."""
        self.note(f"{name}, {level}, {'greedy' if greedy else 'sampled'}: task success {success:.3f} of {n}")

    def fitted(self, phase: str, step: int, steps: int, fit: Fit) -> None:
        """An update of the warm start was taken."""
        loss, accuracy = self._smooth("loss", fit.loss), self._smooth("accuracy", fit.accuracy)
        text = f"loss {loss:.3f}  tokens right {accuracy:.3f}"
        self._advance(phase, step, steps, text)
        if not self.console.is_terminal and (step % _FITS_PER_LINE == 0 or step == steps):
            self.note(f"{phase} {step}/{steps}  {text}")

    def iterated(self, iteration: int, iterations: int, *, reward: float, success: float) -> None:
        """An iteration was taken."""
        text = f"reward {self._smooth('reward', reward):+.3f}  task success {self._smooth('success', success):.3f}"
        self._advance("GRPO", iteration, iterations, text)
        if not self.console.is_terminal and (iteration % _LINE_EVERY == 0 or iteration == iterations):
            self.note(f"iteration {iteration}/{iterations}  {text}")

    def _smooth(self, name: str, value: float) -> float:
        self._mean[name] = _SMOOTH * self._mean.get(name, value) + (1 - _SMOOTH) * value
        return self._mean[name]

    def _advance(self, phase: str, done: int, total: int, figures: str) -> None:
        if self._task is None or self._phase != phase:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task, self._phase = self._bar.add_task(phase, total=total, figures=""), phase
        self._bar.update(self._task, completed=done, total=total, figures=figures)
