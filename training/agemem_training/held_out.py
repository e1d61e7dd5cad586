"""The evaluations of a run: its policy before, during and after, on tasks that it is not trained on."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import TYPE_CHECKING

from agemem_training.evaluating import Place, Policy, evaluate, evaluate_demonstrator
from agemem_training.measuring_apart import Apart, Measured, measure_apart
from agemem_training.reporting.metrics import Evaluation
from agemem_training.reporting.results import AFTER, BEFORE, DURING
from agemem_training.settings_of import judge_of, pay_of, rules_of, world_of
from agemem_training.tasks.choosing import parse_source
from agemem_training.tasks.synthetic import Stories
from agemem_training.vectors import VectorBoard

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from agemem_mcp.adapters.embedding import VectorCache
    from agemem_training.config import RunConfig
    from agemem_training.journal import Journal
    from agemem_training.loading import Trainable
    from agemem_training.reporting.figures import EpisodeFigures
    from agemem_training.tasks.source import TaskSource


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Measures on each source: on ``validation`` during the run, on ``test`` before and after."""

    config: RunConfig
    sources: Mapping[str, TaskSource]
    journal: Journal
    tokenizer_folder: Path
    """Where the policy's tokenizer is, for a server that counts with it."""
    vectors: VectorCache
    """What was embedded already, in this process."""
    board: VectorBoard = field(default_factory=VectorBoard)
    """And in those that measure."""

    async def measure(self, trainable: Trainable, name: str, iteration: int, *, saved: Path | None = None) -> float:
        """Measure and record; what the run has recorded already is not measured again.

        Before, the demonstrator is measured as well, on the same tasks, where there is to be one.

        Args:
            trainable: the policy.
            name: before, during or after.
            iteration: after which one.
            saved: where the policy is saved, so that several processes can measure it.

        Returns:
            Mean task success of the sources, greedy.
        """
        config = self.config.evaluation
        ways = (True, False) if name != DURING and config.sampled else (True,)
        asked = [Measured(text, greedy) for greedy in ways for text in self.sources]
        compared = self._demonstrated() if name == BEFORE else []
        missing = [one for one in (*asked, *compared) if self._known(name, one, iteration) is None]
        if missing and saved is not None and self.config.processes > 1 and trainable.model.device.type == "cpu":
            await self._measure_apart(saved, missing, name, iteration)
        else:
            for one in missing:
                self._record(name, one, iteration, await self._measured(trainable, one, name))
        found = [self._known(name, one, iteration) for one in asked if one.greedy]
        return fmean(one.episodes.mean("success") for one in found if one is not None)

    def _demonstrated(self) -> list[Measured]:
        habits = self.config.evaluation.demonstrator
        if habits is None:
            return []
        return [
            Measured(text, greedy=True, demonstrator=habits)
            for text, one in self.sources.items()
            if isinstance(one, Stories)
        ]

    async def _measure_apart(self, saved: Path, wanted: list[Measured], name: str, iteration: int) -> None:
        processes = self.config.processes
        self.journal.progress.note(f"measuring {name}, in {processes} processes")
        await measure_apart(
            Apart(self.config, saved, self.sources, "test", self.config.evaluation.final_episodes),
            wanted,
            processes=processes,
            on_measured=lambda one, figures: self._record(name, one, iteration, figures),
            board=self.board,
        )

    def _record(self, name: str, one: Measured, iteration: int, figures: EpisodeFigures) -> None:
        self.journal.evaluated(
            Evaluation(
                iteration=self.journal.warm_ups + iteration,
                name=_called(name, one),
                level=self._level(one.source),
                greedy=one.greedy,
                seed=self.config.seed,
                episodes=figures,
            )
        )

    def _known(self, name: str, one: Measured, iteration: int) -> Evaluation | None:
        """What was measured already: where nothing was learnt, that is also what it is like after."""
        level = self._level(one.source)
        found = self.journal.recorded(_called(name, one), level, iteration, greedy=one.greedy)
        if found is None and name == AFTER and iteration == 0:
            before = self.journal.recorded(BEFORE, level, iteration, greedy=one.greedy)
            if before is not None:
                found = replace(before, name=AFTER)
                self.journal.evaluated(found)
        return found

    async def _measured(self, trainable: Trainable, one: Measured, name: str) -> EpisodeFigures:
        config, source = self.config, self.sources[one.source]
        final = name != DURING
        self.journal.progress.note(
            f"measuring {_called(name, one)}: {self._level(one.source)}, {'greedy' if one.greedy else 'sampled'}"
        )
        episodes = config.evaluation.final_episodes if final else config.evaluation.episodes
        if one.demonstrator is not None and isinstance(source, Stories):
            return await evaluate_demonstrator(
                one.demonstrator, source, self._place(), split="test", seed=config.seed, episodes=episodes
            )
        return await evaluate(
            Policy(trainable.model, trainable.tokenizer, trainable.eos_ids, config.grpo.turn_tokens),
            source,
            self._place(),
            split="test" if final else "validation",
            seed=config.seed,
            episodes=episodes,
            greedy=one.greedy,
        )

    def _place(self) -> Place:
        config = self.config
        world = world_of(config, self.tokenizer_folder, self.vectors)
        return Place(rules_of(config), world, judge_of(config), pay_of(config))

    def _level(self, source: str) -> str:
        """What a source is called in reports: a level of the stories, else the kind and its place's last name."""
        names = [_name(one) for one in self.sources]
        name = _name(source)
        return name if names.count(name) == 1 else source


def _called(name: str, one: Measured) -> str:
    """What a measurement is called in reports."""
    return name if one.demonstrator is None else f"{one.demonstrator} demonstrator"


def _name(source: str) -> str:
    choice = parse_source(source)
    return choice.place if choice.kind == "synthetic" else f"{choice.kind} {choice.path.name}"
