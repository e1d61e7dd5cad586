"""Supervised training of the mini policy on repeats, drills and demonstrated episodes."""

# torch and transformers are extras: where they are installed their types are checked, elsewhere the rest still is
# pyright: reportMissingImports=false, reportUnknownVariableType=false

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from agemem_policies.local.chat_ids import ChatEncoder
from agemem_policies.policy import Completion
from agemem_training.environment import run_episode
from agemem_training.mini.demonstrator import EXPERT, NOISY, Demonstrator
from agemem_training.mini.drills import drill
from agemem_training.mini.renaming import Renamer
from agemem_training.rows import Row, merged_rows
from agemem_training.supervised import Supervised, batches
from agemem_training.worlds import opened

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agemem_policies.steps import Step
    from agemem_training.config import WarmStartConfig
    from agemem_training.environment import Rules
    from agemem_training.record import Episode
    from agemem_training.supervised import Fit
    from agemem_training.tasks.source import Split
    from agemem_training.tasks.synthetic import Stories
    from agemem_training.worlds import WorldSettings

    OnFit = Callable[[str, int, int, Fit], None]
    """Told the phase, the step, the steps in all and the fit."""

HABITS = {"expert": EXPERT, "noisy": NOISY}
_AT_ONCE = 32
_SHARED_WORDS = 0.7
"""Share of the rows of repeats whose phrases are made of the same words."""


async def demonstrate(  # noqa: PLR0913  what demonstrations are made of
    stories: Stories,
    count: int,
    world: WorldSettings,
    rules: Rules,
    *,
    habits: str,
    seed: int,
    split: Split = "train",
    first: int = 0,
) -> list[Episode]:
    """Demonstrated episodes on the real server.

    Args:
        stories: what they are about.
        count: how many.
        world: the server's settings.
        rules: of the episodes.
        habits: the demonstrator's, ``expert`` or ``noisy``.
        seed: of the stories, and of what the demonstrator leaves to chance.
        split: of the stories; nothing is learnt from those that are held out, only the demonstrator itself measured.
        first: the number of the first story.
    """
    episodes: list[Episode] = []
    for start in range(first, first + count, _AT_ONCE):
        numbers = range(start, min(start + _AT_ONCE, first + count))
        tasks = [stories.task(split, seed=seed, number=number) for number in numbers]
        async with opened(world, seed=seed + start) as memory:
            policies = [
                Demonstrator(
                    task,
                    HABITS[habits],
                    random.Random(f"{seed} {task.task_id}"),  # noqa: S311  habits, no secrets
                    budget_tokens=world.budget_tokens,
                )
                for task in tasks
            ]
            episodes += await asyncio.gather(
                *(
                    run_episode(task, policy, memory, rules, namespace=f"shown-{number}", seed=seed)
                    for number, task, policy in zip(numbers, tasks, policies, strict=True)
                )
            )
    return episodes


@dataclass(frozen=True)
class Teacher:
    """Makes rows of what a policy of this tokenizer should write."""

    tokenizer: Any
    system: str
    budget_tokens: int = 512
    """T_max of the contexts that are shown."""

    def rows_of(self, episodes: Sequence[Episode]) -> list[Row]:
        """The rows of demonstrated episodes."""
        encoder = ChatEncoder(self.tokenizer, {self.tokenizer.eos_token_id})
        rows: list[Row] = []
        for episode in episodes:
            steps = [self._with_ids(step, encoder) for step in episode.steps]
            rows += merged_rows(steps, steps_in_batch=1, source=episode.task.task_id)
        return rows

    def repeat_row(self, rng: random.Random) -> Row:
        """Random phrases, two or three times each; to be written is what comes again, but for its beginning.

        Most have their words in common, so that more than one word tells which phrase is being repeated: so do the
        memories among which the right one is to be found.
        """
        words, shown = self._words, 1
        if rng.random() < _SHARED_WORDS:
            words, shown = rng.sample(words, rng.randint(8, 20)), 3
        phrases = [rng.choices(words, k=shown + rng.randint(1, 5)) for _ in range(rng.randint(3, 8))]
        order = [number for number in range(len(phrases)) for _ in range(rng.randint(2, 3))]
        rng.shuffle(order)
        row, seen = Row(), set[int]()
        for number in order:
            phrase = phrases[number]
            row.read(phrase[:shown] if number in seen else phrase)
            if number in seen:
                self._write(row, phrase[shown:], 0)
            seen.add(number)
        return row

    @cached_property
    def _words(self) -> list[int]:
        """All tokens but those that frame messages, in a fixed order."""
        return sorted(number for word, number in self.tokenizer.get_vocab().items() if not word.startswith("<|"))

    def drill_row(self, encoder: ChatEncoder, rng: random.Random) -> Row:
        """A drill as one row."""
        row = Row()
        for number, exchange in enumerate(drill(rng, system=self.system, budget_tokens=self.budget_tokens)):
            row.read(encoder.encode(exchange.shown)[len(row) :])
            self._write(row, self._ids(exchange.turn), number)
        return row

    def _write(self, row: Row, ids: list[int], number: int) -> None:
        row.ids_T += ids
        row.steps_T += [number] * len(ids)
        row.logprobs_T += [0.0] * len(ids)
        row.weights_T += [1.0] * len(ids)

    def _with_ids(self, step: Step, encoder: ChatEncoder) -> Step:
        text = step.completion.text
        ids = Completion(
            text, prompt_ids=tuple(encoder.encode(step.prompt.messages)), action_ids=tuple(self._ids(text))
        )
        return replace(step, completion=ids)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def warm_up(  # noqa: PLR0913  what it stands on
    model: Any,  # noqa: ANN401  transformers' model classes have no common type
    teacher: Teacher,
    demonstrations: Sequence[Row],
    config: WarmStartConfig,
    *,
    seed: int,
    on_fit: OnFit,
) -> None:
    """Train a model on repeats, then on drills, then on drills and episodes in turn.

    Repeats are random phrases that come two or three times. They hardly get a model to copy them; but one that began
    with 800 updates on them learns from drills what another one needs four times as many for (`LOG.md`).

    Args:
        model: with random weights, or others.
        teacher: of the model's tokenizer.
        demonstrations: rows of episodes; each is used many times, renamed.
        config: how long, and how.
        seed: of drills, renamings and batches.
        on_fit: told how it goes.

    Raises:
        NotFinite: the loss is NaN or infinite.
    """
    rng = random.Random(f"warm start {seed}")  # noqa: S311  drills, no secrets
    renamer = Renamer(teacher.tokenizer)
    encoder = ChatEncoder(teacher.tokenizer, {teacher.tokenizer.eos_token_id})

    def renamed() -> Row:
        row = rng.choice(demonstrations)
        return replace(row, ids_T=renamer.renamed(row.ids_T, rng))

    repeats = batches(lambda: teacher.repeat_row(rng), rng, max_tokens=config.batch_tokens)
    drills = batches(lambda: teacher.drill_row(encoder, rng), rng, max_tokens=config.batch_tokens)
    episodes = batches(renamed, rng, max_tokens=config.batch_tokens)
    phases = (
        ("repeats",) * config.repeat_steps + ("drills",) * config.drill_steps + ("episodes",) * config.episode_steps
    )
    learning = Supervised(
        model,
        learning_rate=config.learning_rate,
        muon_learning_rate=config.muon_learning_rate,
        steps=len(phases),
    )
    for number, phase in enumerate(phases):
        rows = repeats if phase == "repeats" else drills
        if phase == "episodes" and rng.random() >= config.drill_share:
            rows = episodes
        weight = 0.0 if phase == "repeats" else config.observation_weight
        on_fit(phase, number + 1, len(phases), learning.step(next(rows), observation_weight=weight))
