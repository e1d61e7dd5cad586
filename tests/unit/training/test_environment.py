"""Episodes: three stages on a real server, and whatever goes wrong is data."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.training.playing import MOVES, OK, call, first_id, lexical_world, rows

from agemem_mcp.domain.memory import Actor, Scope
from agemem_mcp.errors import ProviderError
from agemem_policies.baselines import NO_MEMORY
from agemem_policies.protocol import Turn
from agemem_policies.rendering import chat_messages
from agemem_policies.scripted import ScriptedPolicy
from agemem_policies.session import ContextMessage, SessionContext
from agemem_policies.steps import StopReason
from agemem_training.config import RunConfig, changed
from agemem_training.environment import Rules, run_episode
from agemem_training.record import CONSTRUCTION, DISTRACTION, REASONING
from agemem_training.reporting.figures import evaluate_figures
from agemem_training.rewards import reward
from agemem_training.settings_of import rules_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from pathlib import Path

    from agemem_mcp.domain.ports import SessionStore
    from agemem_policies.policy import ChatMessage, Completion, OnText, Prompt
    from agemem_policies.scripted import Line
    from agemem_training.record import Episode
    from agemem_training.tasks import Task
    from agemem_training.worlds import InProcessWorld, World

LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
RULES = Rules(system="You manage memory.")
ROME = Turn("", answer="Rome")
ADD_OSLO = call("Add_memory", content="Maya lives in Oslo.")


def update_oslo(prompt: Prompt) -> Turn:
    """Replace what the environment retrieved."""
    return call("Update_memory", memory_id=first_id(prompt, "Maya lives in Oslo."), content="Maya lives in Rome.")


SOLVED: list[Line] = [
    *(ADD_OSLO, OK),
    *(update_oslo, OK),
    *(OK, call("Filter_context", criteria="Zeppelins over the harbour"), OK),
    *(call("Retrieve_memory", query="Where does Maya live?"), ROME),
]
"""All of ``MOVES``."""


@pytest.fixture
async def world(tmp_path: Path) -> AsyncGenerator[InProcessWorld]:
    """A server in this process."""
    async with lexical_world(tmp_path) as world:
        yield world


async def lived(
    world: World, lines: Sequence[Line], *, task: Task = MOVES, namespace: str = "one", **rules: Any
) -> tuple[Episode, ScriptedPolicy]:
    """An episode whose policy follows a script."""
    policy = ScriptedPolicy(lines)
    return await run_episode(task, policy, world, replace(RULES, **rules), namespace=namespace, seed=3), policy


async def store_of(world: InProcessWorld) -> SessionStore:
    """Where the server keeps its contexts."""
    return (await world._gate.service()).short_term._store


def texts(prompt: Prompt) -> list[str]:
    return [message.content for message in prompt.messages]


async def test_an_episode_that_goes_well_ends_with_the_answer_to_the_query(world: InProcessWorld) -> None:
    episode, _ = await lived(world, SOLVED)
    assert (episode.stop_reason, episode.answer, episode.seed) == (StopReason.ANSWER, "Rome", 3)
    assert [step.stage for step in episode.steps] == [1, 1, 1, 1, 2, 2, 2, 3, 3]
    assert [step.index for step in episode.steps] == list(range(9))
    assert [(kind.value, actor, text, stage) for kind, actor, _, _, text, _, _, _, stage in rows(episode)] == [
        ("add", Actor.ENVIRONMENT, "Tom drinks tea.", None),
        ("add", Actor.POLICY, "Maya lives in Oslo.", CONSTRUCTION),
        ("update", Actor.POLICY, "Maya lives in Rome.", CONSTRUCTION),
    ]
    assert episode.context[-1].content == "<think></think><answer>Rome</answer>"
    assert (episode.context_tokens, episode.budget_tokens) == (sum(one.tokens for one in episode.context), 4096)
    assert episode.environment_s > 0


async def test_what_is_read_to_summarise_is_counted_beside_the_steps(world: InProcessWorld) -> None:
    summary = call("Summary_context", span="all")
    lines = [*SOLVED[:5], summary, "They talked of zeppelins.", *SOLVED[6:]]
    episode, policy = await lived(world, lines, own_summaries=True)
    assert episode.answer == "Rome"
    read = [sum(len(one.content.split()) for one in prompt.messages) for prompt in policy.seen]
    assert episode.summary_tokens == read[6] > 0
    [figure] = evaluate_figures([episode], [reward(episode)]).columns["prompt_tokens"]
    assert figure == sum(read)


async def test_the_context_is_new_in_stage_2_and_goes_on_in_stage_3_while_memory_stays(world: InProcessWorld) -> None:
    episode, policy = await lived(world, SOLVED)
    sessions = episode.sessions
    assert sessions[CONSTRUCTION] != sessions[DISTRACTION] == sessions[REASONING]
    assert texts(policy.seen[4]) == ["You manage memory.", MOVES.distractors[0]]
    last = "\n".join(texts(policy.seen[-1]))
    assert "Maya lives in Rome." in last
    assert MOVES.query in last
    assert "Oslo" not in last
    assert all(text not in last for text in MOVES.messages)


async def test_the_query_is_not_shown_before_stage_3(world: InProcessWorld) -> None:
    episode, _ = await lived(world, SOLVED)
    for step in episode.steps:
        assert (MOVES.query in texts(step.prompt)) == (step.stage == REASONING)


async def test_in_stage_1_the_environment_retrieves_with_each_message_and_that_is_no_step(
    world: InProcessWorld,
) -> None:
    episode, policy = await lived(world, SOLVED)
    first, third = texts(policy.seen[0]), texts(policy.seen[2])
    # Nothing is known about the first message; the background is about somebody else.
    assert first == ["You manage memory.", MOVES.messages[0]]
    assert third[-2] == MOVES.messages[1]
    assert third[-1].startswith("<retrieved_memories>\n[mem_")
    assert "Maya lives in Oslo." in third[-1]
    assert all(call.name != "Retrieve_memory" for step in episode.steps[:4] for call in (step.turn or OK).calls)
    assert not any("<retrieved_memories>" in text for prompt in policy.seen[4:7] for text in texts(prompt))
    without, unaided = await lived(world, [*SOLVED[:2], OK], namespace="two", recalled=0)
    assert without.steps[2].prompt.messages[-1].content == MOVES.messages[1]
    assert not any("<retrieved_memories>" in text for prompt in unaided.seen for text in texts(prompt))


async def test_the_sessions_log_says_who_retrieved(world: InProcessWorld) -> None:
    episode, _ = await lived(world, SOLVED)
    store = await store_of(world)
    retrieved = {
        stage: [one["actor"] for one in await store.operations(session) if one["operation"] == "Retrieve_memory"]
        for stage, session in episode.sessions.items()
    }
    assert retrieved == {
        CONSTRUCTION: [Actor.ENVIRONMENT] * 2,
        DISTRACTION: [Actor.POLICY],
        REASONING: [Actor.POLICY],
    }


async def test_an_answer_closes_a_message_and_not_the_stage(world: InProcessWorld) -> None:
    episode, policy = await lived(world, [OK] * 4 + [ROME])
    assert episode.stop_reason is StopReason.ANSWER
    users = [text for text in texts(policy.seen[1]) if not text.startswith("<")]
    assert users == ["You manage memory.", *MOVES.messages]
    assert [step.stage for step in episode.steps] == [1, 1, 2, 2, 3]
    assert episode.answer == "Rome"


async def test_an_answer_of_another_stage_is_none_of_the_episodes(world: InProcessWorld) -> None:
    episode, _ = await lived(world, [OK, OK, OK, *["no turn"] * 30])
    assert (episode.stop_reason, episode.answer) == (StopReason.MAX_ROUNDS, None)


async def test_a_context_that_outgrows_the_window_ends_the_episode_at_once(world: InProcessWorld) -> None:
    long = replace(MOVES, distractors=("Zeppelins rise. " * 1500, "Zeppelins land."))
    episode, policy = await lived(world, SOLVED, task=long)
    assert (episode.stop_reason, episode.answer) == (StopReason.CONTEXT_OVERFLOW, None)
    assert set(episode.sessions) == {CONSTRUCTION, DISTRACTION}
    assert len(policy.seen) == len(episode.steps) == 4
    assert [event.record.content for event in episode.events][-1] == "Maya lives in Rome."
    assert episode.context_tokens > episode.budget_tokens == 4096


async def test_where_the_configuration_says_so_the_oldest_rounds_are_left_out_instead(world: InProcessWorld) -> None:
    config = changed(RunConfig(), environment={"overflow": "truncate_oldest"})
    first, second = "Zeppelins rise. " * 700, "Zeppelins land. " * 700
    long = replace(MOVES, distractors=(first, second))
    episode, policy = await lived(world, [OK, OK, OK, OK, ROME], task=long, overflow=rules_of(config).overflow)
    assert (episode.stop_reason, episode.answer) == (StopReason.ANSWER, "Rome")
    assert episode.context_tokens > episode.budget_tokens
    shown = [text.strip() for text in texts(policy.seen[-1])]
    assert second.strip() in shown
    assert first.strip() not in shown


async def test_the_rounds_of_a_stage_are_counted_over_its_messages(world: InProcessWorld) -> None:
    lines: list[Line] = ["no turn", OK, "no turn", "no turn", OK]
    episode, _ = await lived(world, lines, max_rounds=4)
    assert episode.stop_reason is StopReason.MAX_ROUNDS
    assert [step.stage for step in episode.steps] == [1] * 4
    assert episode.max_rounds == 4
    episode, _ = await lived(world, [*lines, OK, OK, ROME], max_rounds=5, namespace="two")
    assert (episode.stop_reason, [step.stage for step in episode.steps]) == (StopReason.ANSWER, [1] * 5 + [2, 2, 3])


async def test_a_policy_that_fails_is_no_episode(world: InProcessWorld) -> None:
    class Failing(ScriptedPolicy):
        async def act(self, prompt: Prompt, on_text: OnText | None = None) -> Completion:
            if len(self.seen) == 3:
                msg = "The model is gone."
                raise ProviderError(msg)
            return await super().act(prompt, on_text)

    with pytest.raises(ProviderError, match=r"^The model is gone\.$"):
        await run_episode(MOVES, Failing(SOLVED), world, RULES, namespace="one")


async def test_nobody_sees_the_memories_of_another_trajectory(world: InProcessWorld) -> None:
    await lived(world, SOLVED)
    look: list[Line] = [OK, OK, OK, OK, call("Retrieve_memory", query="Where does Maya live?", top_k=50), ROME]
    episode, policy = await lived(world, look, namespace="two")
    assert [event.record.content for event in episode.events] == ["Tom drinks tea."]
    assert not any("Maya lives in" in text for text in texts(policy.seen[-1]) if text.startswith("<retrieved"))


def outcome(episode: Episode) -> tuple[Any, ...]:
    """All that must not depend on what else happens at the time."""
    prompts = [step.prompt for step in episode.steps]
    return prompts, rows(episode), episode.answer, episode.context_tokens


async def test_the_same_seed_and_policy_live_the_same_episodes_however_many_at_once(tmp_path: Path) -> None:
    async def lives(count: int) -> list[tuple[Any, ...]]:
        async with lexical_world(tmp_path, seed=5) as world:
            many = await asyncio.gather(*(lived(world, SOLVED, namespace=f"n{number}") for number in range(count)))
        return [outcome(episode) for episode, _ in many]

    together, again, alone = await lives(8), await lives(8), await lives(1)
    assert together == again
    assert together[0] == alone[0]
    ids = {row[2] for one in together for row in one[1]}
    assert len(ids) == 8 * 2


async def test_the_prompts_of_the_steps_are_what_the_servers_context_held(world: InProcessWorld) -> None:
    store = await store_of(world)
    held: list[tuple[ChatMessage, ...]] = []

    class Looking(ScriptedPolicy):
        """Looks at the server's own context before each turn."""

        async def act(self, prompt: Prompt, on_text: OnText | None = None) -> Completion:
            (session,) = await store.list_sessions(Scope("training", "one"), now=LONG_AGO, limit=1)
            messages = await store.read(lambda reading: reading.messages(session.session_id))
            there = [ContextMessage(one.message_id, one.role, one.content, one.kind) for one in messages]
            held.append(chat_messages(there, native=False))
            return await super().act(prompt, on_text)

    episode = await run_episode(MOVES, Looking(SOLVED), world, RULES, namespace="one")
    assert [step.prompt.messages for step in episode.steps] == held
    async with world.tools("one") as tools:
        context = await SessionContext.resume(tools, episode.sessions[REASONING])
    assert tuple(context.messages) == episode.context
    assert context.tokens == episode.context_tokens


async def test_without_tools_nothing_is_retrieved_either(world: InProcessWorld) -> None:
    episode, policy = await lived(world, [OK, OK, OK, OK, ROME], kit=NO_MEMORY)
    assert episode.answer == "Rome"
    assert not any("<retrieved_memories>" in text for prompt in policy.seen for text in texts(prompt))
