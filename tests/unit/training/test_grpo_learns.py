"""Step-wise GRPO from the shipped warm start, on the real server: stories it has not seen are answered more often."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

WHY = "training needs torch, transformers, accelerate and peft: `pip install 'agemem-mcp[train]'`"
for extra in ("torch", "transformers", "accelerate", "peft", "matplotlib"):
    pytest.importorskip(extra, reason=WHY)

from agemem_training.config import SHIPPED, changed, load_preset  # noqa: E402  after the skip
from agemem_training.progress import Progress  # noqa: E402  as above
from agemem_training.reporting.comparing import compare  # noqa: E402  as above
from agemem_training.reporting.metrics import MetricsFile  # noqa: E402  as above
from agemem_training.run import Wishes, train  # noqa: E402  as above

if TYPE_CHECKING:
    from pathlib import Path

EPISODES = 120
ITERATIONS = 14


@pytest.mark.usefixtures("assets_dir")
def test_grpo_from_the_shipped_warm_start_raises_the_success_on_held_out_stories(tmp_path: Path) -> None:
    config = changed(
        load_preset("mini"),
        run={"seed": 1, "warm_start": None},
        model={"path": SHIPPED},
        tasks={"sources": ("synthetic:L2",), "weights": None},
        grpo={"iterations": ITERATIONS, "learning_rate": 1e-3, "warmup": 2},
        evaluation={"every": 1000, "final_episodes": EPISODES, "demonstrator": None},
    )
    with Progress(silent=True) as progress:
        train(config, Wishes(tmp_path / "run", "agemem-mcp train"), progress, lambda _survey: None)
    found = {(one.name, one.greedy): one for one in MetricsFile(tmp_path / "run" / "metrics.jsonl").read().evaluations}
    before, after = found["before", False], found["after", False]
    assert len(after.episodes) == EPISODES
    gain = compare(before, after)["success"].difference
    assert gain.above_zero, (before.episodes.mean("success"), after.episodes.mean("success"), gain)
    assert found["after", True].episodes.mean("success") >= found["before", True].episodes.mean("success")
