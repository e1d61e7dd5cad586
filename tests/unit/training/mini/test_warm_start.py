"""The warm start: real demonstrations, rows that say what should be written, and a model that begins to learn it."""

from __future__ import annotations

import random
from functools import cache
from typing import TYPE_CHECKING

import pytest
from tests.unit.training.untrained import SYSTEM, mini_tokenizer

from agemem_mcp.domain.memory import Actor, MemoryEventKind
from agemem_policies.local.chat_ids import ChatEncoder
from agemem_policies.protocol import parse
from agemem_policies.steps import StopReason
from agemem_training.config import ModelConfig, WarmStartConfig
from agemem_training.environment import Rules
from agemem_training.mini.model import build_model
from agemem_training.mini.warm_start import Teacher, demonstrate, warm_up
from agemem_training.rows import NO_STEP, Row
from agemem_training.tasks.synthetic import Stories
from agemem_training.worlds import WorldSettings

if TYPE_CHECKING:
    from agemem_training.record import Episode
    from agemem_training.supervised import Fit

RULES = Rules(system=SYSTEM, recalled=2, max_rounds=60, answer_tokens=0)
WORLD = WorldSettings(budget_tokens=4000, tokenizer="estimate", ids="sequential", extra={"embedding": "none"})


async def shown(*, count: int = 6, habits: str = "expert", seed: int = 1) -> list[Episode]:
    return await demonstrate(Stories("L2"), count, WORLD, RULES, habits=habits, seed=seed)


@cache
def teacher() -> Teacher:
    return Teacher(mini_tokenizer(), SYSTEM)


def encoder() -> ChatEncoder:
    return ChatEncoder(mini_tokenizer(), {mini_tokenizer().eos_token_id})


def written(row: Row) -> str:
    """All that a row says should be written."""
    return mini_tokenizer().decode([one for one, step in zip(row.ids_T, row.steps_T, strict=True) if step != NO_STEP])


async def test_demonstrations_come_from_the_real_server() -> None:
    episodes = await shown()
    assert [one.task.task_id for one in episodes] == [f"L2-train-1-{number}" for number in range(6)]
    kinds = [event.kind for one in episodes for event in one.events if event.actor is Actor.POLICY]
    assert {MemoryEventKind.ADD, MemoryEventKind.UPDATE} <= set(kinds)
    for episode in episodes:
        assert episode.stop_reason is StopReason.ANSWER
        assert episode.context_tokens > 0
        assert episode.budget_tokens == 4000
        # What the ledger holds is what the episode's observations say.
        added = [event.record.memory_id for event in episode.events if event.kind is MemoryEventKind.ADD]
        told = [one.text for step in episode.steps for one in step.observations if one.text.startswith("Stored as ")]
        named = [text.splitlines()[0].removeprefix("Stored as ").removesuffix(".") for text in told]
        assert named == added[-len(told) :]
        seen = any(one.content.startswith("<retrieved_memories>") for one in episode.steps[-1].prompt.messages)
        # Where the answer was taken back there may be nothing left to be found.
        assert seen or not episode.task.gold


async def test_an_expert_answers_rightly_where_memories_are_found() -> None:
    episodes = await shown(count=12)
    assert sum(one.answer == one.task.answer for one in episodes) >= 11


async def test_the_seed_decides_what_is_shown() -> None:
    first, second, other = await shown(habits="noisy"), await shown(habits="noisy"), await shown(habits="noisy", seed=2)

    def texts(episodes: list[Episode]) -> list[str]:
        return [step.completion.text for one in episodes for step in one.steps]

    assert texts(first) == texts(second) != texts(other)


async def test_rows_of_demonstrations_say_just_what_was_demonstrated() -> None:
    episodes = await shown(count=3)
    for episode in episodes:
        rows = teacher().rows_of([episode])
        assert "".join(map(written, rows)) == "".join(step.completion.text for step in episode.steps)
        assert {row.source for row in rows} == {episode.task.task_id}
        # Stage 2 begins a context of its own.
        assert 2 <= len(rows) < len(episode.steps)
        last = list(encoder().encode(episode.steps[-1].prompt.messages))
        assert rows[-1].ids_T[: len(last)] == last


def test_a_drill_is_one_row_in_which_every_turn_is_to_be_written() -> None:
    rng = random.Random(1)
    for _ in range(50):
        row = teacher().drill_row(encoder(), rng)
        assert 1 <= len(_turns(row)) <= 18
        assert len(row.ids_T) == len(row.steps_T) == len(row.logprobs_T) == len(row.weights_T)
        # A row begins with the system prompt, and ends with what is to be written.
        assert row.steps_T[0] == NO_STEP
        assert row.steps_T[-1] == max(row.steps_T)


def _turns(row: Row) -> list[str]:
    """The turns of a row, each in the form of the protocol."""
    turns: list[str] = []
    for number in range(max(row.steps_T) + 1):
        ids = [one for one, step in zip(row.ids_T, row.steps_T, strict=True) if step == number]
        turns.append(mini_tokenizer().decode(ids))
        parse(turns[-1], strict=True)
    return turns


def test_of_a_phrase_that_comes_again_all_but_the_first_word_is_to_be_written() -> None:
    rng = random.Random(5)
    for _ in range(50):
        row = teacher().repeat_row(rng)
        counted = sum(step != NO_STEP for step in row.steps_T)
        assert 0 < counted < len(row) / 1.5
        for place, step in enumerate(row.steps_T):
            if step == NO_STEP:
                continue
            # The word before it and it itself stood next to each other earlier.
            pair = row.ids_T[place - 1 : place + 1]
            assert any(row.ids_T[at : at + 2] == pair for at in range(place - 1))


def config_of(*, repeat_steps: int = 2, drill_steps: int = 3, episode_steps: int = 4) -> WarmStartConfig:
    return WarmStartConfig(
        repeat_steps=repeat_steps, drill_steps=drill_steps, episode_steps=episode_steps, batch_tokens=300
    )


async def test_each_step_is_told_with_its_phase_and_the_same_seed_gives_the_same_fits() -> None:
    rows = teacher().rows_of(await shown(count=3))
    told: list[list[tuple[str, int, int, Fit]]] = []
    for seed in (0, 0, 1):
        fits: list[tuple[str, int, int, Fit]] = []
        model = build_model(ModelConfig(hidden_size=32, layers=1, heads=2), mini_tokenizer(), seed=0)
        warm_up(model, teacher(), rows, config_of(), seed=seed, on_fit=lambda *one, fits=fits: fits.append(one))
        told.append(fits)
    assert [one[:3] for one in told[0]] == [
        (phase, number + 1, 9) for number, phase in enumerate(["repeats"] * 2 + ["drills"] * 3 + ["episodes"] * 4)
    ]
    assert all(fit.loss > 0 and fit.tokens > 0 and 0 <= fit.accuracy <= 1 for *_, fit in told[0])
    assert told[0] == told[1]
    assert told[0] != told[2]


async def test_drills_are_learnt_from() -> None:
    fits: list[Fit] = []
    model = build_model(ModelConfig(hidden_size=32, layers=1, heads=2), mini_tokenizer(), seed=0)
    config = config_of(repeat_steps=0, drill_steps=150, episode_steps=0)
    warm_up(model, teacher(), [], config, seed=0, on_fit=lambda *one: fits.append(one[3]))
    assert len(fits) == 150
    # The frames of turns are learnt in no time; names are not.
    assert fits[0].accuracy < 0.1
    assert sum(one.accuracy for one in fits[-5:]) / 5 > 0.3
    assert fits[-1].loss < fits[0].loss / 2


async def test_where_all_but_episodes_is_left_out_their_names_are_still_exchanged() -> None:
    rows = teacher().rows_of(await shown(count=1))[:1]
    fits: list[Fit] = []
    model = build_model(ModelConfig(hidden_size=32, layers=1, heads=2), mini_tokenizer(), seed=0)
    config = WarmStartConfig(repeat_steps=0, drill_steps=0, episode_steps=2, drill_share=0, batch_tokens=64)
    before = list(rows[0].ids_T)
    warm_up(model, teacher(), rows, config, seed=0, on_fit=lambda *one: fits.append(one[3]))
    # Two copies of the one row that there is, and the row itself is left as it was.
    assert [one.tokens for one in fits] == [2 * len(rows[0])] * 2
    assert rows[0].ids_T == before


def test_habits_that_nobody_has_are_refused_by_the_configuration() -> None:
    with pytest.raises(ValueError, match="habits"):
        WarmStartConfig.model_validate({"habits": "lazy"})
