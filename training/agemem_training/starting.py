"""The mini policy from nothing to the start of reinforcement learning, with its skills measured."""

# torch is an extra: where it is installed its types are checked, elsewhere the rest still is
# pyright: reportMissingImports=false, reportUnknownVariableType=false

from __future__ import annotations

import json
import random
import time
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch

from agemem_mcp.errors import ConfigurationError
from agemem_policies.local.checkpoint import eos_ids_of
from agemem_training.loading import Trainable, load_trainable, own_device
from agemem_training.mini.drills import drill
from agemem_training.mini.model import build_model
from agemem_training.mini.renaming import Renamer
from agemem_training.mini.skills import measure_skills
from agemem_training.mini.tokenizer import build_tokenizer
from agemem_training.mini.warm_start import Teacher, demonstrate, warm_up
from agemem_training.reporting.metrics import Cost, Iteration, Update
from agemem_training.reporting.results import SkillGate
from agemem_training.sampling import TurnSampler
from agemem_training.settings_of import rules_of, world_of
from agemem_training.tasks.choosing import parse_source
from agemem_training.tasks.synthetic import Stories

if TYPE_CHECKING:
    from pathlib import Path

    from agemem_training.config import RunConfig, WarmStartConfig
    from agemem_training.progress import Progress
    from agemem_training.record import Episode
    from agemem_training.reporting.metrics import MetricsFile
    from agemem_training.rows import Row
    from agemem_training.supervised import Fit

_VOCABULARY_EPISODES = 32
"""Of each level: what they say are the words that the tokenizer knows."""
_VOCABULARY_DRILLS = 1000
_NOTED_STEPS = 100
"""Updates between two records."""
SKILLS_FILE = "skills.json"
LEAST_TURNS = 40
"""That a skill must be measured by. The rarest one comes 54 to 86 times in 600 drills, other decisions not left out."""
_DRILLS_PER_TURN = 15
"""Who asks for fewer drills is content with fewer turns, of so many drills one."""


@dataclass(slots=True)
class WarmStart:
    """Makes the policy that reinforcement learning starts from."""

    config: RunConfig
    progress: Progress
    metrics: MetricsFile
    _fits: list[Fit] = field(default_factory=list["Fit"])
    _noted: float = field(default_factory=time.perf_counter)

    def check(self) -> None:
        """Refuse tasks that nobody can demonstrate, before anything is made.

        Raises:
            ConfigurationError: there are such.
        """
        self._stories()

    async def made(self, folder: Path) -> Trainable:
        """Make it, from nothing or from the model that is named, and save it.

        Args:
            folder: where it is saved.

        Raises:
            ConfigurationError: the tasks have no demonstrator, or the model that is named is no mini policy.
            NotFinite: the loss is NaN or infinite.
        """
        warm = self._warm()
        named = self.config.model.model_copy(update={"lora_rank": None})
        begun = None if named.path is None else load_trainable(named)
        if begun is not None and not Renamer(begun.tokenizer).knows_names():
            msg = (
                f"A warm start goes on from a mini policy alone, and {named.path} has another tokenizer. Take "
                "[warm_start] out of the configuration, or name what `agemem-mcp train --preset mini` made."
            )
            raise ConfigurationError(msg)
        tokenizer = await self._tokenizer() if begun is None else begun.tokenizer
        tokenizer.save_pretrained(folder)
        self.progress.note(f"{warm.episodes} demonstrations of each level, on the server")
        shown = await self._demonstrated(warm.episodes, folder)
        environment = self.config.environment
        teacher = Teacher(tokenizer, environment.system or "", environment.budget_tokens)
        rows: list[Row] = teacher.rows_of(shown)
        model = build_model(self.config.model, tokenizer, seed=self.config.seed) if begun is None else begun.model
        # Float32 whatever it will be trained in later: bfloat16 knows no steps so small.
        model.to(own_device(self.config), torch.float32)
        self._noted = time.perf_counter()
        warm_up(model, teacher, rows, warm, seed=self.config.seed, on_fit=self._fitted)
        model.eval()
        model.save_pretrained(folder)
        return Trainable(model, tokenizer, eos_ids_of(model, tokenizer))

    async def _tokenizer(self) -> Any:  # noqa: ANN401  transformers' classes have no common type
        self.progress.note("demonstrations for the vocabulary")
        shown = await self._demonstrated(_VOCABULARY_EPISODES, None)
        return build_tokenizer([*_texts(shown), *self._drilled()])

    def gates(self, trainable: Trainable, folder: Path) -> list[SkillGate]:
        """Measure the copying skills, and note them in the folder."""
        sampler = TurnSampler(
            trainable.model,
            trainable.tokenizer,
            trainable.eos_ids,
            temperature=0.0,
            max_tokens=self.config.grpo.turn_tokens,
        )
        system = self.config.environment.system or ""
        results = measure_skills(sampler, system=system, drills=self._warm().skill_drills, seed=self.config.seed)
        least = min(LEAST_TURNS, max(1, self._warm().skill_drills // _DRILLS_PER_TURN))
        gates = [
            SkillGate(skill=one.skill, right=one.right, n=one.tried, required=self._warm().gate, least=least)
            for one in results
        ]
        (folder / SKILLS_FILE).write_text(json.dumps([asdict(one) for one in gates], indent=2) + "\n", encoding="utf-8")
        for gate in gates:
            self.progress.note(f"skill {gate.skill}: {gate.right / max(gate.n, 1):.3f} of {gate.n}")
        return gates

    def _warm(self) -> WarmStartConfig:
        if self.config.warm_start is None:
            msg = "The configuration has no [warm_start]."
            raise ConfigurationError(msg)
        return self.config.warm_start

    def _stories(self) -> list[Stories]:
        stories: list[Stories] = []
        for text in self.config.tasks.sources:
            choice = parse_source(text)
            if choice.kind != "synthetic":
                msg = (
                    f"Nobody demonstrates {text}: a warm start from scratch is for synthetic tasks alone. Name a model "
                    "that can chat with --model, or take [warm_start] out of the configuration."
                )
                raise ConfigurationError(msg)
            stories.append(Stories(choice.place))
        return stories

    async def _demonstrated(self, count: int, tokenizer_folder: Path | None) -> list[Episode]:
        episodes: list[Episode] = []
        for stories in self._stories():
            episodes += await demonstrate(
                stories,
                count,
                world_of(self.config, tokenizer_folder),
                rules_of(self.config),
                habits=self._warm().habits,
                seed=self.config.seed,
            )
        return episodes

    def _drilled(self) -> list[str]:
        """What drills say: each level has some of these words alone."""
        rng = random.Random(f"words {self.config.seed}")  # noqa: S311  drills, no secrets
        system = self.config.environment.system or ""
        exchanges = [one for _ in range(_VOCABULARY_DRILLS) for one in drill(rng, system=system)]
        return sorted({text for one in exchanges for text in (one.turn, *(message.content for message in one.shown))})

    def _fitted(self, phase: str, step: int, steps: int, fit: Fit) -> None:
        self._fits.append(fit)
        self.progress.fitted(phase, step, steps, fit)
        if step % _NOTED_STEPS == 0 or step == steps:
            now = time.perf_counter()
            self.metrics.append(
                Iteration(
                    iteration=-(-step // _NOTED_STEPS),
                    phase="warm start",
                    update=Update(
                        loss=fmean(one.loss for one in self._fits),
                        gradient_norm=float("nan"),
                        learning_rate=float("nan"),
                    ),
                    cost=Cost(tokens_trained_on=sum(one.tokens for one in self._fits), update_s=now - self._noted),
                )
            )
            self._fits, self._noted = [], now


def read_gates(folder: Path) -> tuple[SkillGate, ...]:
    """The skills as they were measured; none where nobody did."""
    path = folder / SKILLS_FILE
    return tuple(SkillGate(**one) for one in json.loads(path.read_text("utf-8"))) if path.is_file() else ()


def _texts(episodes: list[Episode]) -> list[str]:
    shown = {message.content for one in episodes for step in one.steps for message in step.prompt.messages}
    return sorted(shown | {step.completion.text for one in episodes for step in one.steps})
