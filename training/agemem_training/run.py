"""A training run from its configuration to its report."""

# torch and accelerate are extras: where they are installed their types are checked, elsewhere the rest still is
# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
import multiprocessing
import shutil
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list, gather_object, set_seed
from transformers.utils import logging as transformers_logging

from agemem_mcp.errors import AgeMemError, ConfigurationError
from agemem_training.checkpoints import RunFolder, RunState, load_checkpoint_state, load_weights, replaced
from agemem_training.config import SHIPPED, as_toml
from agemem_training.costs import threads_of, watched_memory
from agemem_training.engines import check_server, server_sampler
from agemem_training.held_out import HeldOut
from agemem_training.journal import Journal, Part
from agemem_training.learner import Learner
from agemem_training.loading import Trainable, load_trainable, own_device, save_merged, shipped_warm_start
from agemem_training.processes import OtherEnded, check_shares, is_first, is_launched, joined_by, own_accelerate
from agemem_training.progress import Progress
from agemem_training.reporting.metrics import MetricsFile
from agemem_training.reporting.model_card import write_model_card
from agemem_training.reporting.report import write_report
from agemem_training.reporting.results import AFTER, BEFORE, DURING, Results, Run, installed_versions
from agemem_training.resuming import go_on_with
from agemem_training.settings_of import judge_of, manner_of, rules_of, world_of
from agemem_training.starting import SKILLS_FILE, WarmStart, read_gates
from agemem_training.stopping import Interrupted, full_disks, interrupts, single_errors
from agemem_training.tasks.choosing import open_to_train
from agemem_training.trainer import Draws, Setting, Share, Trainer
from agemem_training.vectors import remembered_vectors
from agemem_training.worlds import opened

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from agemem_mcp.adapters.embedding import VectorCache
    from agemem_training.config import RunConfig
    from agemem_training.costs import MemoryWatch
    from agemem_training.tasks.recorded import Survey
    from agemem_training.tasks.source import TaskSource

_LONGEST_WAIT = timedelta(days=1)
"""Of one process for another: the first one makes the warm start and the evaluations alone."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the command line asks for beside the configuration."""

    out: Path
    command: str
    resume: bool = False
    force: bool = False
    """Go on although a skill is missing, or a configuration differs."""


def train(config: RunConfig, wishes: Wishes, progress: Progress, show: Callable[[Survey], None]) -> Path:
    """Train, measure, report.

    Args:
        config: of the run.
        wishes: where, and whether it goes on with one.
        progress: what a person sees.
        show: shown what is taken of recorded tasks; raises to refuse.

    Returns:
        The run's folder: of several processes the first one's word counts.

    Raises:
        Interrupted: a person ended it.
        AgeMemError: it cannot be done; the text says what to do.
    """
    run = TrainingRun(config, wishes, progress, show)
    try:
        with full_disks(run.folder.what_is_kept), single_errors():
            asyncio.run(run.run())
    except KeyboardInterrupt:
        raise Interrupted(run.how_to_go_on()) from None
    except OtherEnded as error:
        msg = f"{error} {run.folder.what_is_kept()}"
        raise OtherEnded(msg) from error
    return run.folder.path


@dataclass(slots=True)
class TrainingRun:
    """One run, or the continuation of one."""

    config: RunConfig
    wishes: Wishes
    progress: Progress
    show: Callable[[Survey], None]
    folder: RunFolder = field(init=False)
    _journal: Journal = field(init=False)
    _held_out: HeldOut = field(init=False)
    _sources: dict[str, TaskSource] = field(default_factory=dict[str, "TaskSource"])
    _phase: Literal["start", "learning", "end"] = "start"
    _stopped: bool = False
    _vectors: VectorCache = field(default_factory=remembered_vectors)
    _began: float = field(default_factory=time.monotonic)
    _before_s: float = 0.0
    """That the parts of the run before this one took."""

    def __post_init__(self) -> None:
        """Nothing is made yet."""
        self._use(self.wishes.out)

    def _use(self, out: Path) -> None:
        self.folder = RunFolder(out)
        self._journal = Journal(MetricsFile(out / "metrics.jsonl"), self.progress)
        self._held_out = HeldOut(self.config, self._sources, self._journal, self.folder.start, self._vectors)

    async def run(self) -> None:
        """Train, measure, report: see :func:`train`."""
        check_shares(self.config, torch.cuda.device_count() if own_device(self.config).type == "cuda" else 0)
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        if self.config.threads is not None:
            torch.set_num_threads(self.config.threads)
        with interrupts(self._asked_to_stop), watched_memory() as memory:
            for text in self.config.tasks.sources:
                self._sources[text] = await open_to_train(text, show=self.show)
            if self.config.environment.url is not None:
                # As with tasks: better now than after a warm start.
                async with opened(world_of(self.config, None), seed=0):
                    pass
            if is_first():
                await self._start()
            others = self.config.processes - 1 if self.config.grpo.iterations and not is_launched() else 0
            with joined_by(others, _follow, self.config, self.wishes), own_accelerate():
                self._phase = "learning"
                accelerator = self._joined()
                state = await self._reinforce(accelerator)
                self._phase = "end"
                # What a process holds that another one of the run started, that one sees.
                peaks = gather_object([0.0 if multiprocessing.parent_process() else memory.peak])
                memory.seen = max(memory.seen, sum(peaks))
                accelerator.free_memory()
                accelerator.end_training()
            if is_first():
                await self._finish(state, memory)

    def how_to_go_on(self) -> str:
        """What a person who ended the run at once can do next."""
        if self._phase == "start":
            return (
                "Ended before reinforcement learning began; a warm start is not saved half done. If there is a folder "
                f"{self.folder.path}, --resume {self.folder.path} begins anew with what is missing."
            )
        if self._phase == "end":
            return (
                f"Ended while the trained policy in {self.folder.path} was measured; --resume {self.folder.path} goes "
                "on with that."
            )
        return f"Ended at once. {self.folder.what_is_kept()}"

    def _asked_to_stop(self) -> bool:
        if not is_first():
            return True  # the first process tells the others
        if self._phase != "learning" or self._stopped:
            return False
        self._stopped = True
        self.progress.note("ending after this iteration; what was learnt will be saved (once more Ctrl-C: at once)")
        return True

    def _joined(self) -> Accelerator:
        """Join the other processes, if there are any; all use the first one's folder."""
        accelerator = Accelerator(
            cpu=own_device(self.config).type == "cpu",
            mixed_precision="bf16" if self._mixed else "no",
            kwargs_handlers=[InitProcessGroupKwargs(timeout=_LONGEST_WAIT)],
        )
        if accelerator.num_processes > 1:
            out = [str(self.wishes.out)]
            broadcast_object_list(out)
            if not is_first():
                self._use(Path(out[0]))
        return accelerator

    @property
    def _mixed(self) -> bool:
        # An adapter is small and float32 by itself, beside a model that does not change.
        return self.config.model.dtype == "bfloat16" and self.config.model.lora_rank is None

    async def _start(self) -> None:
        """The policy before reinforcement learning: made, its skills checked, measured."""
        folder = self.folder
        if self.wishes.resume:
            go_on_with(folder, self.config, self._journal, force=self.wishes.force)
        else:
            folder.check_new()
        if not (self.wishes.resume and folder.start.is_dir()):
            await self._make_start()
        failed = [one for one in read_gates(folder.start) if not one.passed]
        if failed and not self.wishes.force and folder.newest() is None:
            listed = ", ".join(map(str, failed))
            msg = (
                f"The warm start lacks skills that reinforcement learning cannot teach ({listed}; at least "
                f"{failed[0].required} each). Train it longer, or go on by --resume {folder.path} --force."
            )
            raise ConfigurationError(msg)
        newest = folder.newest()
        self._journal.begin(0 if newest is None else load_checkpoint_state(newest)[0].iteration)
        start = self._loaded_start(own_device(self.config), adapter=False)
        await check_server(self.config, start, folder.adapter)
        with self._telling_what_is_kept():
            await self._held_out.measure(start, BEFORE, 0, saved=folder.start)

    async def _make_start(self) -> None:
        """Make a warm start, or copy what was named, so that the run stands on nothing outside its folder."""
        config = self.config
        set_seed(config.seed)
        warm = None if config.warm_start is None else WarmStart(config, self.progress, self._journal.metrics)
        trainable: Trainable | None = None
        if warm is not None:
            warm.check()
        else:
            trainable = load_trainable(config.model.model_copy(update={"lora_rank": None}))
        if not self.wishes.resume:
            self.folder.make(as_toml(config))
        self._journal.metrics.truncate(-1)
        with replaced(self.folder.start) as unfinished:
            if warm is not None:
                trainable = await warm.made(unfinished)
                warm.gates(trainable, unfinished)
            elif trainable is not None:
                save_merged(trainable.model, trainable.tokenizer, unfinished)
                if config.model.path == SHIPPED and (skills := shipped_warm_start() / SKILLS_FILE).is_file():
                    shutil.copy(skills, unfinished)
            manner_of(self.config).save(unfinished)

    def _loaded_start(self, device: torch.device, *, adapter: bool) -> Trainable:
        changes: dict[str, Any] = {"path": str(self.folder.start)} | ({} if adapter else {"lora_rank": None})
        trainable = load_trainable(self.config.model.model_copy(update=changes))
        trainable.model.to(device)
        return trainable

    async def _reinforce(self, accelerator: Accelerator) -> RunState:
        set_seed(self.config.seed)
        if (threads := threads_of(self.config)) is not None:
            torch.set_num_threads(threads)
        trainable = self._loaded_start(accelerator.device, adapter=True)
        if self._mixed:
            trainable.model.float()
        learner = Learner(trainable.model, accelerator, self.config.grpo)
        state = self._restored(learner) if self.wishes.resume else RunState()
        self._before_s = state.seconds
        trainer = self._trainer(accelerator, learner, trainable, state)
        total = self.config.grpo.iterations
        try:
            # A run that was stopped had no time for the evaluation that was due.
            await self._evaluate_if_due(accelerator, learner, trainable, state)
            while state.iteration < total and not self._worn_out(state):
                with self._telling_what_is_kept():
                    done = await trainer.iterate(state)
                parts = gather_object([Part.of(done)])
                if accelerator.is_main_process:
                    self._journal.iterated(done, parts, total)
                stopped = bool(learner.over_processes(self._stopped).any())
                if not stopped:
                    await self._evaluate_if_due(accelerator, learner, trainable, state)
                over = stopped or state.iteration == total or self._worn_out(state)
                state.seconds = self._before_s + time.monotonic() - self._began
                if accelerator.is_main_process and (over or state.iteration % self.config.save_every == 0):
                    self.folder.save(state, learner.trained(), learner.optimizer.state_dict())
                if stopped:
                    msg = f"Ended after iteration {state.iteration}. {self.folder.what_is_kept()}"
                    raise Interrupted(msg)
        finally:
            await trainer.close()
        if accelerator.is_main_process:
            self._save_policy(learner, trainable, state)
        return state

    @contextmanager
    def _telling_what_is_kept(self) -> Generator[None]:
        """Where something ends the run, its text also says how to go on."""
        try:
            with single_errors():
                yield
        except AgeMemError as error:
            error.args = (f"{error} {self.folder.what_is_kept()}",)
            raise

    def _restored(self, learner: Learner) -> RunState:
        """Put weights and optimizer back to where the newest checkpoint left them."""
        newest = self.folder.newest()
        if newest is None:
            return RunState()
        state, weights, optimizer = load_checkpoint_state(newest)
        learner.load(weights)
        learner.optimizer.load_state_dict(optimizer)
        for group in learner.optimizer.param_groups:
            group["weight_decay"] = self.config.grpo.weight_decay
        self.progress.note(f"going on after iteration {state.iteration}")
        return state

    def _trainer(self, accelerator: Accelerator, learner: Learner, trainable: Trainable, state: RunState) -> Trainer:
        world = world_of(self.config, self.folder.start, self._vectors)
        server = server_sampler(self.config, trainable, self.folder.adapter)
        setting = Setting(rules_of(self.config), world, judge_of(self.config), server)
        weights = self.config.tasks.weights or (1.0,) * len(self._sources)
        draws = Draws(self._sources, weights, self.config.seed, state.drawn)
        share = Share(
            accelerator.process_index,
            accelerator.num_processes,
            lambda mine: [int(one) for one in learner.over_processes(*mine).flatten().tolist()],
        )
        return Trainer(self.config, learner, trainable, setting, draws, share=share)

    def _worn_out(self, state: RunState) -> bool:
        patience = self.config.grpo.patience
        return patience is not None and state.worse >= patience

    async def _evaluate_if_due(
        self, accelerator: Accelerator, learner: Learner, trainable: Trainable, state: RunState
    ) -> None:
        """Measure where it is time; without patience the last iteration is left to the evaluation at the end."""
        patience, at = self.config.grpo.patience, state.iteration
        last = at >= self.config.grpo.iterations and patience is None
        if not at or at == state.evaluated or at % self.config.evaluation.every or last:
            return
        success = 0.0
        if accelerator.is_main_process:
            current = Trainable(learner.model, trainable.tokenizer, trainable.eos_ids)
            with self._telling_what_is_kept():
                success = await self._held_out.measure(current, DURING, at)
        # The other processes must come to the same conclusions.
        best = state.note(float(learner.over_processes(success)[0, 0]))
        if best and patience is not None and accelerator.is_main_process:
            self.folder.save_best(learner.trained())

    def _save_policy(self, learner: Learner, trainable: Trainable, state: RunState) -> None:
        if self.config.grpo.patience is not None and state.best_iteration not in {0, state.iteration}:
            learner.load(load_weights(self.folder.best))
            self.progress.note(
                f"the policy is that of iteration {state.best_iteration}, the best one on validation tasks"
            )
        model = learner.model
        if self._mixed:
            model.to(torch.bfloat16)
        save_merged(model, trainable.tokenizer, self.folder.path)
        manner_of(self.config).save(self.folder.path)

    async def _finish(self, state: RunState, memory: MemoryWatch) -> None:
        """Measure the policy as it was saved, and report."""
        out = self.folder.path
        trainable = load_trainable(self.config.model.model_copy(update={"path": str(out), "lora_rank": None}))
        trainable.model.to(own_device(self.config))
        with self._telling_what_is_kept():
            await self._held_out.measure(trainable, AFTER, state.iteration, saved=out)
        results = Results(
            run=Run(
                name=self.config.preset,
                command=self.wishes.command,
                seed=self.config.seed,
                parameters=trainable.parameters,
                base_model=self.config.model.path,
                versions=installed_versions(),
                wall_s=self._before_s + time.monotonic() - self._began,
                peak_memory_gb=memory.peak / 1e9,
                config=self.config.model_dump(mode="json"),
            ),
            metrics=self._journal.metrics.read(),
            gates=read_gates(self.folder.start),
        )
        write_report(results, out)
        write_model_card(results, out)


def _follow(config: RunConfig, wishes: Wishes) -> None:
    """What another process of a run does; what is taken of recorded tasks was shown by the first one."""
    with Progress(silent=True) as progress:
        train(config, wishes, progress, lambda _survey: None)
