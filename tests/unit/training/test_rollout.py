"""Many episodes at once on the real server: repeatable, in order, and none waits for ever for another."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.training.untrained import SYSTEM, chatty_model, mini_tokenizer, saved

from agemem_mcp.domain.memory import MemoryEventKind
from agemem_mcp.errors import ProviderError, StoreError
from agemem_policies.steps import StopReason
from agemem_training.environment import Rules
from agemem_training.rollout import roll_out
from agemem_training.sampling import TurnSampler
from agemem_training.tasks import Task
from agemem_training.worlds import WorldSettings, in_process

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from agemem_mcp.domain.memory import MemoryEvent
    from agemem_policies.memory import MemoryTools
    from agemem_policies.policy import Completion
    from agemem_training.record import Episode
    from agemem_training.rollout import Rollouts
    from agemem_training.sampling import Asked
    from agemem_training.worlds import World

RULES = Rules(system=SYSTEM, recalled=2, max_rounds=6, answer_tokens=0)
TASKS = [
    Task(
        f"task-{number}",
        "Where does Tom live?",
        "unknown",
        ("Tom likes tea.", "Hello", "Tom works at Nexcorp.", "Martek works here.")[: number % 4 + 1],
        distractors=("Rain is expected in Kelton.",) * (number % 2),
    )
    for number in range(4)
]


@pytest.fixture(scope="module")
def model() -> Any:
    return chatty_model()


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> WorldSettings:
    folder = saved(chatty_model(), tmp_path_factory.mktemp("tokenizer"))
    return WorldSettings(
        budget_tokens=400, tokenizer=str(folder / "tokenizer.json"), ids="sequential", extra={"embedding": "none"}
    )


def sampler_of(model: Any, **options: Any) -> TurnSampler:
    options = {"max_tokens": 10} | options
    return TurnSampler(model, mini_tokenizer(), frozenset({mini_tokenizer().eos_token_id}), **options)


async def rolled(
    model: Any,
    settings: WorldSettings,
    tasks: Sequence[Task] = tuple(TASKS),
    *,
    per_task: int = 2,
    seed: int = 0,
    cohorts: int = 2,
) -> Rollouts:
    """Rollouts on a server of their own; a rollout that hangs fails."""
    async with asyncio.timeout(60), in_process(settings, seed=3) as world:
        return await roll_out(tasks, sampler_of(model), world, RULES, per_task=per_task, seed=seed, cohorts=cohorts)


def turns_of(episode: Episode) -> list[Completion]:
    """What was shown, what was written, and how probable it was."""
    return [step.completion for step in episode.steps]


async def test_the_policy_does_all_that_the_tests_need(model: Any, settings: WorldSettings) -> None:
    done = await rolled(model, settings)
    stops = {one.stop_reason for one in done.episodes}
    assert stops == {StopReason.ANSWER, StopReason.MAX_ROUNDS}
    assert len({len(one.steps) for one in done.episodes}) > 2
    events = [event.kind for one in done.episodes for event in one.events]
    assert events.count(MemoryEventKind.ADD) > 3


async def test_the_same_seed_gives_the_same_episodes_to_the_last_bit(model: Any, settings: WorldSettings) -> None:
    first, second = [await rolled(model, settings) for _ in range(2)]
    for one, other in zip(first.episodes, second.episodes, strict=True):
        assert turns_of(one) == turns_of(other)
        assert [step.prompt for step in one.steps] == [step.prompt for step in other.steps]
        assert (one.stop_reason, one.answer) == (other.stop_reason, other.answer)
        assert [event.record.memory_id for event in one.events] == [event.record.memory_id for event in other.events]
    assert (first.read_tokens, first.written_tokens) == (second.read_tokens, second.written_tokens)


async def test_another_seed_gives_other_episodes(model: Any, settings: WorldSettings) -> None:
    first, second = await rolled(model, settings), await rolled(model, settings, seed=1)
    written = [[turn.text for one in done.episodes for turn in turns_of(one)] for done in (first, second)]
    assert written[0] != written[1]


async def test_results_come_in_the_order_of_the_tasks_and_those_of_a_task_differ(
    model: Any, settings: WorldSettings
) -> None:
    done = await rolled(model, settings, per_task=3)
    assert [one.task.task_id for one in done.episodes] == [task.task_id for task in TASKS for _ in range(3)]
    for start in range(0, 12, 3):
        written = {tuple(turn.text for turn in turns_of(one)) for one in done.episodes[start : start + 3]}
        assert len(written) > 1


async def test_cohorts_change_what_is_sampled_together_and_not_what_is_sampled(
    model: Any, settings: WorldSettings
) -> None:
    """Guaranteed are each trajectory's draws; log-probabilities differ in the order in which numbers are added.

    So tokens could differ where a draw falls within such an error of a boundary. Ids of memories do not differ: random
    ones are drawn for each scope by itself, sequential ones count within it.
    """
    one, two = [await rolled(model, settings, cohorts=count) for count in (1, 2)]
    for first, second in zip(one.episodes, two.episodes, strict=True):
        assert first.stop_reason == second.stop_reason
        for turn, other in zip(turns_of(first), turns_of(second), strict=True):
            assert (turn.prompt_ids, turn.action_ids) == (other.prompt_ids, other.action_ids)
            assert turn.logprobs == pytest.approx(other.logprobs, abs=1e-4)


async def test_steps_count_what_the_model_read_and_wrote(model: Any, settings: WorldSettings) -> None:
    done = await rolled(model, settings)
    turns = [turn for one in done.episodes for turn in turns_of(one)]
    assert done.written_tokens == sum(len(turn.action_ids) for turn in turns)
    assert 0 < done.read_tokens < sum(len(turn.prompt_ids) for turn in turns)
    assert 0 < done.sampling_s < done.seconds


async def test_one_trajectory_is_a_rollout_as_well(model: Any, settings: WorldSettings) -> None:
    done = await rolled(model, settings, TASKS[:1], per_task=1, cohorts=2)
    assert len(done.episodes) == 1


@dataclass
class Watched:
    """A world that notes which scopes are opened; one may be out of reach in the end, and one may never open."""

    inner: World
    out_of_reach: str = ""
    closed: str = ""
    opened: list[str] = field(default_factory=list)

    @asynccontextmanager
    async def tools(self, namespace: str) -> AsyncGenerator[MemoryTools]:
        self.opened.append(namespace)
        if namespace == self.closed:
            await asyncio.Event().wait()
        async with self.inner.tools(namespace) as tools:
            yield tools

    async def events(self, namespace: str) -> tuple[MemoryEvent, ...]:
        if namespace == self.out_of_reach:
            msg = "the ledger is out of reach"
            raise StoreError(msg)
        return await self.inner.events(namespace)


async def test_every_namespace_is_used_once(model: Any, settings: WorldSettings) -> None:
    async with in_process(settings, seed=3) as inner:
        world = Watched(inner)
        await roll_out(TASKS, sampler_of(model), world, RULES, per_task=2)
        await roll_out(TASKS, sampler_of(model), world, RULES, per_task=2, name="again")
    assert len(world.opened) == len(set(world.opened)) == 16
    assert {one.partition("-")[0] for one in world.opened} == {"rollout", "again"}


@pytest.mark.parametrize("cohorts", [1, 2])
async def test_a_memory_that_fails_one_episode_ends_all_and_hangs_none(
    model: Any, settings: WorldSettings, cohorts: int
) -> None:
    sampler = sampler_of(model)
    async with asyncio.timeout(60), in_process(settings, seed=3) as inner:
        with pytest.raises(ExceptionGroup) as caught:
            await roll_out(TASKS, sampler, Watched(inner, "rollout-1"), RULES, per_task=2, cohorts=cohorts)
        # The sampler and the memory can be used again.
        again = await roll_out(TASKS, sampler, inner, RULES, per_task=2, cohorts=cohorts, name="again")
    assert caught.group_contains(StoreError, match="out of reach")
    assert len(again.episodes) == 8


class Breaking(TurnSampler):
    """A sampler that fails in one of its batches, or in those with one of the trajectories."""

    fails_at: int = -1
    error: Exception = ProviderError("Memory ran out.")
    batches: list[list[int]]

    def sample(self, asked: Sequence[Asked]) -> list[Completion]:
        self.batches.append([one.number for one in asked])
        if len(self.batches) - 1 == self.fails_at:
            raise self.error
        return super().sample(asked)


def breaking(model: Any, fails_at: int, error: Exception) -> Breaking:
    sampler = Breaking(model, mini_tokenizer(), frozenset({mini_tokenizer().eos_token_id}), max_tokens=10)
    sampler.fails_at, sampler.error, sampler.batches = fails_at, error, []
    return sampler


@pytest.mark.parametrize(
    "error", [ProviderError("Memory ran out."), RuntimeError("Memory ran out.")], ids=["expected", "unexpected"]
)
async def test_a_sampler_that_fails_ends_all_episodes_and_none_is_kept(
    model: Any, settings: WorldSettings, error: Exception
) -> None:
    sampler = breaking(model, 2, error)
    async with asyncio.timeout(60), in_process(settings, seed=3) as world:
        with pytest.raises(ExceptionGroup) as caught:
            await roll_out(TASKS, sampler, world, RULES, per_task=2, cohorts=2)
        # Of the other cohort at most the batch that was under way.
        assert len(sampler.batches) <= 4
        again = await roll_out(TASKS, sampler, world, RULES, per_task=2, cohorts=2, name="again")
    assert caught.group_contains(ProviderError, match=r"Memory ran out\.")
    assert len(again.episodes) == 8


async def test_a_cohort_is_sampled_together_and_those_that_have_ended_are_not_waited_for(
    model: Any, settings: WorldSettings
) -> None:
    sampler = breaking(model, -1, ProviderError())
    async with asyncio.timeout(60), in_process(settings, seed=3) as world:
        done = await roll_out(TASKS, sampler, world, RULES, per_task=2, cohorts=2)
    for members in (set(range(4)), set(range(4, 8))):
        batches = [batch for batch in sampler.batches if members & set(batch)]
        assert batches[0] == sorted(members)
        for number, batch in enumerate(batches):
            assert batch == [one for one in sorted(members) if len(done.episodes[one].steps) > number]


async def test_turns_are_not_sampled_for_episodes_that_were_given_up(model: Any, settings: WorldSettings) -> None:
    sampler = breaking(model, -1, ProviderError())
    async with asyncio.timeout(60), in_process(settings, seed=3) as inner:
        # The second cohort waits for its last member when an episode of the first one fails.
        world = Watched(inner, out_of_reach="rollout-1", closed="rollout-7")
        with pytest.raises(ExceptionGroup):
            await roll_out(TASKS, sampler, world, RULES, per_task=2, cohorts=2)
        await asyncio.sleep(0)
    assert sampler.batches
    assert all(number < 4 for batch in sampler.batches for number in batch)


async def test_rollouts_that_are_cancelled_end_at_once(model: Any, settings: WorldSettings) -> None:
    sampler = breaking(model, -1, ProviderError())
    async with in_process(settings, seed=3) as world:
        rolling = asyncio.create_task(roll_out(TASKS, sampler, world, RULES, per_task=2))
        while len(sampler.batches) < 2:  # noqa: ASYNC110  a thread counts, and sets no event
            await asyncio.sleep(0)
        rolling.cancel()
        with pytest.raises(asyncio.CancelledError):
            async with asyncio.timeout(60):
                await rolling
    # Of each cohort at most the batch that was under way: none is made of those who were given up.
    assert len(sampler.batches) <= 4
