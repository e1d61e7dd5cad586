"""Runs that cannot go on: each says why, what to change, and what it goes on from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

WHY = "training needs torch, transformers, accelerate and peft: `pip install 'agemem-mcp[train]'`"
for extra in ("torch", "transformers", "accelerate", "peft", "matplotlib"):
    pytest.importorskip(extra, reason=WHY)

import torch  # noqa: E402  after the skip
from tests.unit.training.tiny_policy import tiny_run  # noqa: E402  as above

from agemem_mcp.errors import AgeMemError, ConfigurationError, ProviderError  # noqa: E402  as above
from agemem_training.progress import Progress  # noqa: E402  as above
from agemem_training.reporting.metrics import MetricsFile  # noqa: E402  as above
from agemem_training.run import Wishes, train  # noqa: E402  as above
from agemem_training.sampling import TurnSampler  # noqa: E402  as above

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agemem_policies.policy import Completion
    from agemem_training.config import RunConfig
    from agemem_training.sampling import Asked

SHORT: dict[str, Any] = {"grpo": {"iterations": 2, "tasks": 1}, "evaluation": {"every": 5, "final_episodes": 1}}


def run(config: RunConfig, out: Path, *, resume: bool = False) -> Path:
    with Progress(silent=True) as progress:
        return train(config, Wishes(out, "agemem-mcp train", resume=resume), progress, lambda _: None)


def fail_in_the_second_iteration(monkeypatch: pytest.MonkeyPatch, out: Path, error: Exception) -> None:
    """Let sampling fail once the run's first checkpoint is there."""
    sample = TurnSampler.sample

    def failing(self: TurnSampler, asked: Sequence[Asked]) -> list[Completion]:
        if (out / "checkpoints" / "iteration-00001").is_dir():
            raise error
        return sample(self, asked)

    monkeypatch.setattr(TurnSampler, "sample", failing)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), r"Lower grpo\.tasks, grpo\.trajectories"),
        (ProviderError("The chat template takes no tool message."), "takes no tool message"),
        (IndexError("out of range"), r"The model failed: out of range\."),
    ],
)
def test_a_sampler_that_fails_stops_a_run_which_goes_on_from_its_checkpoint(
    error: Exception, said: str, tiny_start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, config = tmp_path / "run", tiny_run(tiny_start, run={"save_every": 1}, **SHORT)
    with monkeypatch.context() as patches:
        fail_in_the_second_iteration(patches, out, error)
        with pytest.raises(AgeMemError, match=f"{said}.*The last good checkpoint is iteration-00001: .*--resume {out}"):
            run(config, out)
    run(config, out, resume=True)
    assert len(MetricsFile(out / "metrics.jsonl").read().of_phase("grpo")) == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("name", ["tokenizer.json", ".report.md.new"])
def test_a_disk_that_fills_says_so_and_the_run_goes_on_when_there_is_room(
    name: str, tiny_start: Path, tmp_path: Path
) -> None:
    out, config = tmp_path / "run", tiny_run(tiny_start, **SHORT)
    out.mkdir()
    (out / name).symlink_to("/dev/full")
    with pytest.raises(ConfigurationError, match=rf"no more room on the disk .*--resume {out}.* Make room first\."):
        run(config, out)
    (out / name).unlink(missing_ok=True)
    run(config, out, resume=True)
    assert (out / "report.json").is_file()
    assert (out / "model.safetensors").is_file()
