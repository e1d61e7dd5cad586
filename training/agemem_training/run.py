"""A training run from its configuration to its report."""

# torch and accelerate are extras: where they are installed their types are checked, elsewhere the rest still is
# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import resource
import signal
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from transformers.utils.logging import disable_progress_bar

from agemem_mcp.errors import AgeMemError, ConfigurationError
from agemem_policies.manner import Manner
from agemem_training.checkpoints import RunFolder, RunState, load_checkpoint_state
from agemem_training.config import as_toml, differences, load_config
from agemem_training.evaluating import Place, Policy, evaluate
from agemem_training.learner import Learner
from agemem_training.loading import Trainable, load_trainable, save_merged
from agemem_training.reporting.metrics import Cost, Evaluation, Iteration, MetricsFile, Rollouts, Update
from agemem_training.reporting.model_card import write_model_card
from agemem_training.reporting.report import write_report
from agemem_training.reporting.results import AFTER, BEFORE, DURING, Results, Run, installed_versions
from agemem_training.reporting.figures import evaluate_figures
from agemem_training.rewards import RewardSettings
from agemem_training.settings_of import judge_of, rules_of, world_of
from agemem_training.starting import WarmStart, read_gates
from agemem_training.tasks.choosing import open_source, parse_source
from agemem_training.trainer import Draws, Iterated, Setting, Trainer

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path
    from types import FrameType

    from agemem_training.config import RunConfig
    from agemem_training.progress import Progress
    from agemem_training.tasks.recorded import Survey
    from agemem_training.tasks.source import Split, TaskSource

_LEVEL = ":"


class Interrupted(AgeMemError):  # noqa: N818  the tree's names follow the HTTP vocabulary
    """A person ended the run; what was learnt is saved, and the text says how to go on."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the command line asks for beside the configuration."""

    out: Path
    command: str
    resume: bool = False
    force: bool = False
    """Go on although a skill is missing, or a configuration differs."""


@dataclass(slots=True)
class TrainingRun:
    """One run, or the continuation of one."""

    config: RunConfig
    wishes: Wishes
    progress: Progress
    show: Callable[[Survey], None]
    """Shown what is taken of recorded tasks; raises to refuse."""
    folder: RunFolder = field(init=False)
    metrics: MetricsFile = field(init=False)
    _sources: dict[str, TaskSource] = field(default_factory=dict[str, "TaskSource"])
    _stopped: bool = False
    _warm_ups: int = 0
    """Records of the warm start; iterations are counted on from these."""
    _began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.folder = RunFolder(self.wishes.out)
        self.metrics = MetricsFile(self.wishes.out / "metrics.jsonl")

    async def run(self) -> None:
        """Train, measure, report.

        Raises:
            Interrupted: a person ended it.
            AgeMemError: it cannot be done; the text says what to do.
        """
        disable_progress_bar()
        accelerator = Accelerator(cpu=not torch.cuda.is_available())
        if self.config.threads is not None:
            torch.set_num_threads(self.config.threads)
        set_seed(self.config.seed)
        first = accelerator.is_main_process
        if first:
            self._prepare_folder()
        for text in self.config.tasks.sources:
            self._sources[text] = await open_source(parse_source(text), show=self.show)
        with _interrupts(self._stop):
            if first and not self.wishes.resume:
                await self._start()
            accelerator.wait_for_everyone()
            await self._reinforce(accelerator)
            if first:
                await self._finish()
        accelerator.end_training()

    def _prepare_folder(self) -> None:
        if not self.wishes.resume:
            self.folder.make()
            (self.wishes.out / "config.toml").write_text(as_toml(self.config), encoding="utf-8")
            return
        before = load_config(self.wishes.out / "config.toml")
        if changed := differences(before, self.config):
            listed = "\n  ".join(changed)
            if not self.wishes.force:
                msg = f"This is not the run's configuration. Give --force to go on with another one:\n  {listed}"
                raise ConfigurationError(msg)
            self.progress.note(f"going on with another configuration:\n  {listed}")
            (self.wishes.out / "config.toml").write_text(as_toml(self.config), encoding="utf-8")

    async def _start(self) -> None:
        """The policy before reinforcement learning: its warm start, or what was loaded."""
        if self.config.warm_start is not None:
            warm = WarmStart(self.config, self.progress, self.metrics)
            trainable = await warm.made(self.folder.start)
            failed = [one for one in warm.gates(trainable, self.folder.start) if not one.passed]
            if failed and not self.wishes.force:
                listed = ", ".join(f"{one.skill} {one.right / max(one.n, 1):.2f}" for one in failed)
                msg = (
                    f"The warm start lacks skills that reinforcement learning cannot teach ({listed}; at least "
                    f"{self.config.warm_start.gate} each). Train it longer, or give --force to go on."
                )
                raise ConfigurationError(msg)
        else:
            trainable = load_trainable(self.config.model)
            save_merged(trainable.model, trainable.tokenizer, self.folder.start)
        self._manner().save(self.folder.start)
        await self._measure(trainable, BEFORE, 0, final=True)

    def _manner(self) -> Manner:
        environment = self.config.environment
        return Manner(
            system=environment.system,
            recalled=environment.recalled,
            window_tokens=None if environment.tokenizer == "policy" else environment.budget_tokens,
            answer_tokens=environment.answer_tokens,
            frame_tokens=environment.frame_tokens,
            own_summaries=environment.own_summaries,
        )

    def _trainable(self) -> Trainable:
        """The policy as it starts, ready to be trained."""
        model = self.config.model.model_copy(update={"path": str(self.folder.start)})
        return load_trainable(model)

    async def _reinforce(self, accelerator: Accelerator) -> None:
        trainable = self._trainable()
        if (before := self.folder.newest()) is not None and not self.wishes.resume:
            msg = f"{before} is of another run."
            raise ConfigurationError(msg)
        state = RunState()
        learner = Learner(trainable.model, accelerator, self.config.grpo)
        if before is not None:
            state = _restored(before, learner)
            self.progress.note(f"going on after iteration {state.iteration}")
        if accelerator.is_main_process:
            self._warm_ups = len(self.metrics.read().of_phase("warm start"))
            self.metrics.truncate(self._warm_ups + state.iteration)
        trainer = self._trainer(accelerator, learner, trainable, state)
        total = self.config.grpo.iterations
        try:
            while state.iteration < total:
                began = time.monotonic()
                done = await trainer.iterate(state)
                state.seconds += time.monotonic() - began
                if accelerator.is_main_process:
                    self._note(done, total)
                stop = await self._after(state, learner, trainable, accelerator, total)
                if stop:
                    break
        finally:
            await trainer.close()
        if accelerator.is_main_process:
            save_merged(learner.model, trainable.tokenizer, self.wishes.out)
            self._manner().save(self.wishes.out)

    def _trainer(
        self, accelerator: Accelerator, learner: Learner, trainable: Trainable, state: RunState
    ) -> Trainer:
        setting = Setting(rules_of(self.config), world_of(self.config, self.folder.start))
        weights = self.config.tasks.weights or (1.0,) * len(self._sources)
        draws = Draws(list(self._sources.values()), weights, self.config.seed, list(state.drawn))

        def gather(mine: list[int]) -> list[int]:
            return accelerator.gather(torch.tensor(mine, device=accelerator.device)).tolist()

        return Trainer(
            self.config,
            learner,
            trainable.tokenizer,
            trainable.eos_ids,
            setting,
            draws,
            judge=judge_of(self.config),
            rank=accelerator.process_index,
            processes=accelerator.num_processes,
            gather=gather,
        )

    async def _after(
        self, state: RunState, learner: Learner, trainable: Trainable, accelerator: Accelerator, total: int
    ) -> bool:
        """Measure and save where it is time; tells whether to stop."""
        stop = False
        if accelerator.is_main_process:
            due = state.iteration % self.config.evaluation.every == 0 and state.iteration < total
            if due and not self._stopped:
                current = Trainable(learner.model, trainable.tokenizer, trainable.eos_ids)
                success = await self._measure(current, DURING, state.iteration, final=False)
                stop = self._gets_worse(state, success)
            if self._stopped or stop or state.iteration % self.config.save_every == 0 or state.iteration == total:
                self.folder.save(state, _trained(learner), learner.optimizer.state_dict())
        flags = accelerator.gather(torch.tensor([int(self._stopped), int(stop)], device=accelerator.device))
        if bool(flags.view(-1, 2)[:, 0].any()):
            msg = f"Ended after iteration {state.iteration}, which is saved. Go on by --resume {self.wishes.out}."
            raise Interrupted(msg)
        return bool(flags.view(-1, 2)[0, 1])

    def _gets_worse(self, state: RunState, success: float) -> bool:
        if state.best is None or success > state.best:
            state.best, state.best_iteration, state.worse = success, state.iteration, 0
        else:
            state.worse += 1
        patience = self.config.grpo.patience
        return patience is not None and state.worse >= patience

    async def _measure(self, trainable: Trainable, name: str, iteration: int, *, final: bool) -> float:
        """Measure on held-out tasks and record it; gives the mean task success, greedy."""
        config = self.config.evaluation
        split: Split = "test" if final else "validation"
        episodes = config.final_episodes if final else config.episodes
        policy = Policy(trainable.model, trainable.tokenizer, trainable.eos_ids, self.config.grpo.turn_tokens)
        place = Place(
            rules_of(self.config),
            world_of(self.config, self.folder.start),
            judge_of(self.config),
            RewardSettings(variant=self.config.reward.variant),
        )
        greedy_success: list[float] = []
        for greedy in (True, False) if final and config.sampled else (True,):
            for text, source in self._sources.items():
                level = text.partition(_LEVEL)[2] if text.startswith("synthetic") else text.partition(_LEVEL)[0]
                self.progress.note(f"measuring {name}: {level}, {'greedy' if greedy else 'sampled'}")
                figures = await evaluate(
                    policy, source, place, split=split, seed=self.config.seed, episodes=episodes, greedy=greedy
                )
                self.metrics.append(
                    Evaluation(
                        iteration=self._warm_ups + iteration,
                        name=name,
                        level=level,
                        greedy=greedy,
                        seed=self.config.seed,
                        episodes=figures,
                    )
                )
                self.progress.measured(name, level, greedy=greedy, success=figures.mean("success"), n=len(figures))
                if greedy:
                    greedy_success.append(figures.mean("success"))
        return sum(greedy_success) / len(greedy_success)

    def _note(self, done: Iterated, total: int) -> None:
        figures = evaluate_figures(done.episodes, done.rewards).means()
        updated, rollouts = done.updated, done.rollouts
        self.metrics.append(
            Iteration(
                iteration=self._warm_ups + done.iteration,
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
                    tokens_rolled_out=rollouts.written_tokens,
                    tokens_trained_on=updated.tokens,
                    rollout_s=rollouts.seconds,
                    environment_s=rollouts.seconds - rollouts.sampling_s,
                    reward_s=done.reward_s,
                    update_s=done.update_s,
                ),
                rollouts=Rollouts(
                    episodes=len(done.episodes),
                    figures=figures,
                    zero_variance_share=done.zero_variance_share,
                    resampled_groups=done.resampled,
                ),
            )
        )
        self.progress.iterated(done.iteration, total, reward=figures["total"], success=figures["success"])

    async def _finish(self) -> None:
        """Measure the trained policy, and write report and model card."""
        merged = self.config.model.model_copy(update={"path": str(self.wishes.out), "lora_rank": None})
        trainable = load_trainable(merged)
        metrics = self.metrics.read()
        await self._measure(trainable, AFTER, len(metrics.of_phase("grpo")), final=True)
        results = Results(
            run=Run(
                name=self.config.preset,
                command=self.wishes.command,
                seed=self.config.seed,
                parameters=trainable.parameters,
                base_model=self.config.model.path,
                versions=installed_versions(),
                wall_s=time.monotonic() - self._began,
                peak_memory_gb=_peak_memory_gb(),
                config=self.config.model_dump(mode="json"),
            ),
            metrics=self.metrics.read(),
            gates=read_gates(self.folder.start),
        )
        write_report(results, self.wishes.out)
        write_model_card(results, self.wishes.out)

    def _stop(self) -> None:
        self._stopped = True
        self.progress.note("ending after this iteration; what was learnt will be saved (once more Ctrl-C: at once)")


def _trained(learner: Learner) -> dict[str, Any]:
    """The weights that are trained, by name."""
    return {name: one for name, one in learner.model.named_parameters() if one.requires_grad}


def _restored(folder: Path, learner: Learner) -> RunState:
    """Put weights and optimizer back to where a checkpoint left them."""
    state, weights, optimizer = load_checkpoint_state(folder)
    own = dict(learner.model.named_parameters())
    with torch.no_grad():
        for name, one in weights.items():
            own[name].copy_(one)
    learner.optimizer.load_state_dict(optimizer)
    return state


def _peak_memory_gb() -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


@contextmanager
def _interrupts(stop: Callable[[], None]) -> Generator[None]:
    """The first Ctrl-C lets what is under way be finished and saved; the second one ends at once."""

    def asked(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stop()

    before = signal.signal(signal.SIGINT, asked)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
