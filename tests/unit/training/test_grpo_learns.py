"""Step-wise GRPO from the shipped warm start, on the real server: stories it has not seen are answered more often."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

WHY = "training needs torch, transformers, accelerate and peft: `pip install 'agemem-mcp[train]'`"
for extra in ("torch", "transformers", "accelerate", "peft", "matplotlib"):
    pytest.importorskip(extra, reason=WHY)

from agemem_training.config import SHIPPED, changed, load_preset  # noqa: E402  after the skip
from agemem_training.evaluating import Place, Policy, evaluate  # noqa: E402  as above
from agemem_training.loading import load_trainable  # noqa: E402  as above
from agemem_training.progress import Progress  # noqa: E402  as above
from agemem_training.reporting.intervals import difference_interval  # noqa: E402  as above
from agemem_training.run import Wishes, train  # noqa: E402  as above
from agemem_training.settings_of import rules_of, world_of  # noqa: E402  as above
from agemem_training.tasks.synthetic import Stories  # noqa: E402  as above

if TYPE_CHECKING:
    from pathlib import Path

    from agemem_training.config import RunConfig
    from agemem_training.reporting.figures import EpisodeFigures

EPISODES = 120


async def sampled(config: RunConfig, folder: Path) -> EpisodeFigures:
    """Held-out stories, with the policy sampled as it is trained: this shows what it does, and how often."""
    trained = load_trainable(config.model.model_copy(update={"path": str(folder)}))
    policy = Policy(trained.model, trained.tokenizer, trained.eos_ids, config.grpo.turn_tokens)
    place = Place(rules_of(config), world_of(config, folder))
    return await evaluate(policy, Stories("L1"), place, split="test", seed=3, episodes=EPISODES, greedy=False)


@pytest.mark.usefixtures("assets_dir")
def test_grpo_from_the_shipped_warm_start_raises_the_success_on_held_out_stories(tmp_path: Path) -> None:
    config = changed(
        load_preset("mini"),
        run={"seed": 1, "threads": 1, "processes": 1, "warm_start": None},
        model={"path": SHIPPED},
        tasks={"sources": ("synthetic:L1",), "weights": None},
        grpo={"iterations": 8, "final_share": 1.0, "warmup": 2},
        evaluation={"every": 1000, "final_episodes": 1, "sampled": False, "demonstrator": None},
    )
    with Progress(silent=True) as progress:
        out = train(config, Wishes(tmp_path / "run", "agemem-mcp train"), progress, lambda _survey: None)
    before, after = (asyncio.run(sampled(config, folder)) for folder in (out / "start", out))
    gain = difference_interval(before.columns["success"], after.columns["success"])
    assert gain.above_zero, (before.mean("success"), after.mean("success"), gain)
