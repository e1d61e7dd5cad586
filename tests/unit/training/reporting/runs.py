"""Records of runs that never were, with the shape of real ones."""

from __future__ import annotations

import math
import random

from agemem_training.reporting import (
    AFTER,
    BEFORE,
    DURING,
    Cost,
    EpisodeFigures,
    Evaluation,
    Iteration,
    Metrics,
    Results,
    Rollouts,
    Run,
    SkillGate,
    Update,
)
from agemem_training.reporting.comparing import COMPONENTS, VARIANTS
from agemem_training.reporting.figures import TOOLS

LEARNED = {
    "success": (0.25, 0.88),
    "total": (0.3, 0.8),
    "tools": (0.8, 0.95),
    "task": (0.3, 0.9),
    "compression": (0.55, 0.7),
    "preventive": (0.9, 0.97),
    "preservation": (0.4, 0.85),
    "context": (0.6, 0.82),
    "storage": (0.7, 0.6),
    "maintenance": (0.2, 0.75),
    "relevance": (0.3, 0.9),
    "memory": (0.4, 0.76),
    "penalty_rounds": (-0.2, -0.01),
    "penalty_overflow": (-0.12, -0.02),
    "penalty_no_effect": (-0.03, -0.01),
    "no_effect_calls": (1.6, 0.4),
    "steps": (14, 18),
    "prompt_tokens": (5200, 6900),
    "calls/Add_memory": (4.4, 4.0),
    "calls/Update_memory": (0.3, 1.2),
    "calls/Delete_memory": (0.1, 0.4),
    "calls/Retrieve_memory": (0.8, 1.6),
    "calls/Summary_context": (0.5, 0.05),
    "calls/Filter_context": (0.4, 1.3),
}
"""Where each figure starts and where it ends."""
NAMES = (
    "total",
    "success",
    "tools",
    *(f"{variant}/{name}" for variant in VARIANTS for name in COMPONENTS),
    *(f"calls/{tool}" for tool in TOOLS),
    "steps",
    "prompt_tokens",
)


def expected(name: str, progress: float) -> float:
    """What a figure is, from 0 before training to 1 after it."""
    plain = "total" if name.endswith("/total") else name if name.startswith("calls/") else name.rpartition("/")[2]
    first, last = LEARNED[plain]
    learned = 1 - math.exp(-4 * progress)
    if name.startswith("paper/"):
        first, last = first + 0.05, last - 0.05
    return first + (last - first) * learned


def warm_start(count: int, first: int = 1) -> list[Iteration]:
    """Iterations of a warm start."""
    return [
        Iteration(
            iteration=first + at,
            phase="warm start",
            update=Update(loss=0.05 + 3 * math.exp(-at / 4), gradient_norm=1.0, learning_rate=1e-3),
            cost=Cost(tokens_trained_on=75_000, update_s=11.0 + at % 3),
        )
        for at in range(count)
    ]


def grpo(count: int, first: int = 1, seed: int = 0) -> list[Iteration]:
    """Iterations of GRPO."""
    rng = random.Random(seed)
    return [_grpo(first + at, at / max(1, count - 1), rng) for at in range(count)]


def evaluation(
    name: str = AFTER, progress: float = 1.0, *, level: str = "L1", greedy: bool = True, n: int = 40, iteration: int = 0
) -> Evaluation:
    """A policy that has come so far, on the tasks of a level."""
    harder = {"L1": 0.0, "L2": 0.1, "L3": 0.3}[level] + (0.0 if greedy else 0.05)
    rng = random.Random(f"{name} {progress} {level} {greedy}")
    columns: dict[str, tuple[float, ...]] = {}
    for figure in NAMES:
        mean = expected(figure, progress) - (harder if figure in {"success", "strict/total"} else 0)
        if figure == "success":
            columns[figure] = tuple(float(rng.random() < mean) for _ in range(n))
        else:
            columns[figure] = tuple(rng.gauss(mean, abs(mean) * 0.2) for _ in range(n))
    kinds = tuple(("asked", "changed", "unknown")[at % 3] for at in range(n))
    episodes = EpisodeFigures(tuple(f"{level}-test-7-{at}" for at in range(n)), kinds, columns)
    return Evaluation(iteration=iteration, name=name, level=level, greedy=greedy, seed=7, episodes=episodes)


def metrics(warm: int = 20, trained: int = 75) -> Metrics:
    """A run, measured before, during and after."""
    iterations = (*warm_start(warm), *grpo(trained, warm + 1))
    last = warm + trained
    evaluations = [
        evaluation(name, progress, level=level, greedy=greedy, iteration=round(warm + trained * progress))
        for level in ("L1", "L2", "L3")
        for greedy in (True, False)
        for name, progress in ((BEFORE, 0.0), (DURING, 0.34), (DURING, 0.67), (AFTER, 1.0))
    ]
    evaluations.append(evaluation("demonstrator", 0.5, level="L2", iteration=last))
    return Metrics(iterations, tuple(evaluations))


def results(recorded: Metrics | None = None) -> Results:
    """All of a run."""
    run = Run(
        name="mini",
        command="agemem-mcp train --preset mini --seed 3",
        seed=3,
        parameters=1_060_000,
        base_model=None,
        versions={"python": "3.11.7", "torch": "2.13.0"},
        wall_s=3_312.4,
        peak_memory_gb=2.31,
        config={"grpo": {"beta": 0.01, "groups": 4}, "out": "runs/mini"},
    )
    gates = (
        SkillGate(skill="names", right=99, n=100, required=0.9),
        SkillGate(skill="second query", right=61, n=100, required=0.9),
    )
    return Results(run=run, metrics=metrics() if recorded is None else recorded, gates=gates)


def _possible(name: str, value: float) -> float:
    if "penalty" in name:
        return min(0.0, value)
    return max(0.0, value) if name.startswith("calls/") or value > 1.2 else max(0.0, min(1.0, value))


def _grpo(iteration: int, progress: float, rng: random.Random) -> Iteration:
    figures = {name: expected(name, progress) for name in NAMES}
    noisy = {name: value + rng.gauss(0, abs(value) * 0.06 + 0.01) for name, value in figures.items()}
    return Iteration(
        iteration=iteration,
        phase="grpo",
        rollouts=Rollouts(
            episodes=32,
            figures={name: _possible(name, value) for name, value in noisy.items()},
            zero_variance_share=0.1 + 0.3 * progress,
            resampled_groups=1,
        ),
        update=Update(
            loss=rng.gauss(0, 0.02),
            gradient_norm=0.8 + rng.random(),
            learning_rate=3e-4,
            entropy=0.5 * math.exp(-2 * progress) + rng.random() * 0.02,
            kl=0.2 * progress + rng.random() * 0.03,
            clip_share=0.0,
            ratio_max=1.001,
        ),
        cost=Cost(
            tokens_rolled_out=9_000,
            tokens_trained_on=60_000,
            rollout_s=4.5 + rng.random(),
            environment_s=0.9 + rng.random() * 0.2,
            reward_s=0.15,
            update_s=5.0 + rng.random(),
        ),
    )
