"""What a run records of itself and tells a person: iterations of all processes, and evaluations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agemem_training.reporting.figures import EpisodeFigures, evaluate_figures, joined_figures
from agemem_training.reporting.metrics import Cost, Evaluation, Iteration, Rollouts, Update

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agemem_training.progress import Progress
    from agemem_training.reporting.metrics import MetricsFile
    from agemem_training.trainer import Iterated


@dataclass(frozen=True, slots=True)
class Part:
    """What one process did of an iteration."""

    figures: EpisodeFigures | None
    """None where it had no task."""
    groups: int
    zero_variance_groups: int
    resampled_groups: int
    written_tokens: int

    @classmethod
    def of(cls, done: Iterated) -> Part:
        """The part that this process did."""
        episodes = done.rollouts.episodes
        return cls(
            evaluate_figures(episodes, done.rewards) if episodes else None,
            done.groups,
            done.zero_variance_groups,
            done.resampled_groups,
            done.rollouts.written_tokens,
        )


@dataclass(slots=True)
class Journal:
    """Writes ``metrics.jsonl`` and the lines on the screen; of several processes only the first has one."""

    metrics: MetricsFile
    progress: Progress
    warm_ups: int = 0
    """Records of the warm start; iterations are counted on from these."""

    def begin(self, iteration: int) -> None:
        """Go on after an iteration: what was recorded of later ones will be recorded anew."""
        self.warm_ups = len(self.metrics.read().of_phase("warm start"))
        self.metrics.truncate(self.warm_ups + iteration)

    def iterated(self, done: Iterated, parts: Sequence[Part], total: int) -> None:
        """Record an iteration.

        Args:
            done: as this process saw it; seconds are its own.
            parts: of all processes.
            total: how many iterations there will be.
        """
        figures = joined_figures([one.figures for one in parts if one.figures is not None])
        means = figures.means()
        updated, rollouts = done.updated, done.rollouts
        self.metrics.append(
            Iteration(
                iteration=self.warm_ups + done.iteration,
                phase="grpo",
                update=Update(
                    loss=updated.loss,
                    gradient_norm=updated.gradient_norm,
                    learning_rate=updated.learning_rate,
                    entropy=updated.entropy,
                    kl=updated.kl,
                    clip_share=updated.clip_share,
                    ratio_max=updated.ratio_max,
                ),
                cost=Cost(
                    tokens_rolled_out=sum(one.written_tokens for one in parts),
                    tokens_trained_on=updated.tokens,
                    rollout_s=rollouts.seconds,
                    environment_s=max(0.0, rollouts.seconds - rollouts.sampling_s),
                    reward_s=done.reward_s,
                    update_s=done.update_s,
                ),
                rollouts=Rollouts(
                    episodes=len(figures),
                    figures=means,
                    zero_variance_share=sum(one.zero_variance_groups for one in parts)
                    / max(1, sum(one.groups for one in parts)),
                    resampled_groups=sum(one.resampled_groups for one in parts),
                ),
            )
        )
        self.progress.iterated(done.iteration, total, reward=means["total"], success=means["success"])

    def evaluated(self, evaluation: Evaluation) -> None:
        """Record an evaluation."""
        self.metrics.append(evaluation)
        figures = evaluation.episodes
        self.progress.measured(
            evaluation.name,
            evaluation.level,
            greedy=evaluation.greedy,
            success=figures.mean("success"),
            n=len(figures),
        )

    def recorded(self, name: str, level: str, iteration: int, *, greedy: bool) -> Evaluation | None:
        """An evaluation that a part of the run before this one made."""
        wanted = (name, level, greedy, self.warm_ups + iteration)
        found = (
            one for one in self.metrics.read().evaluations if (one.name, one.level, one.greedy, one.iteration) == wanted
        )
        return next(found, None)
