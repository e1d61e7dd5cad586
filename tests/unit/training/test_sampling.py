"""Turns for many trajectories at once: the same as one by one, and as one forward pass says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from tests.unit.training.untrained import full_pass, mini_tokenizer, prompt_of, saved, wordy_model

from agemem_mcp.errors import ProviderError
from agemem_policies.local import LocalPolicy
from agemem_policies.local.text_stream import STOPS
from agemem_policies.policy import Prompt
from agemem_training.sampling import Asked, TurnSampler

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from agemem_policies.policy import Completion

MESSAGES = (
    "Tom likes tea.",
    "Note that Martek works at Nexcorp. Please note that the boss of Marona is Belik, by the way.",
    "Hello",
    "The door code of Torus is 4711. " * 6,
    "Where does Fenona live?",
)
PROMPTS = [prompt_of(text) for text in MESSAGES]
MAX_TOKENS = 16


@pytest.fixture(scope="module")
def model() -> Any:
    return wordy_model(seed=4)


def sampler_of(model: Any, *, temperature: float = 1.0, **options: Any) -> TurnSampler:
    ends = frozenset({mini_tokenizer().eos_token_id})
    options = {"max_tokens": MAX_TOKENS} | options
    return TurnSampler(model, mini_tokenizer(), ends, temperature=temperature, **options)


class Talks:
    """Trajectories that go on: each has its own chance and what was said in it."""

    def __init__(self, sampler: TurnSampler, texts: Sequence[str] = MESSAGES, *, first: int = 0) -> None:
        self.sampler = sampler
        self.said = [[text] for text in texts]
        self.first = first
        self.chances = [np.random.default_rng([7, first + number]) for number in range(len(texts))]

    def turn(self) -> list[Completion]:
        """Each takes a turn."""
        asked = [
            Asked(self.first + number, prompt_of(*said), self.chances[number]) for number, said in enumerate(self.said)
        ]
        done = self.sampler.sample(asked)
        for said, one in zip(self.said, done, strict=True):
            said += [one.text, f"One more thing: {said[0]}"]
        return done

    def rewrite(self) -> None:
        """Of each context only its beginning is left, and something else follows."""
        self.said = [[said[0], "ok", "What does Tom like?"] for said in self.said]


def assert_belongs(model: Any, done: Completion, *, temperature: float = 1.0) -> None:
    """A turn's log-probabilities are those of one forward pass."""
    wanted = full_pass(model, done, temperature=temperature)
    torch.testing.assert_close(torch.tensor(done.logprobs), wanted, atol=1e-4, rtol=0)


def same_turns(ones: Sequence[Completion], others: Sequence[Completion]) -> None:
    """The same texts and tokens, and the same log-probabilities but for the order in which numbers were added."""
    for one, other in zip(ones, others, strict=True):
        assert (one.text, one.prompt_ids, one.action_ids) == (other.text, other.prompt_ids, other.action_ids)
        assert one.cut_off == other.cut_off
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


async def test_greedy_turns_are_those_of_the_local_policy(model: Any, tmp_path: Path) -> None:
    ours = sampler_of(model, temperature=0).sample(
        [Asked(number, prompt, np.random.default_rng(0)) for number, prompt in enumerate(PROMPTS)]
    )
    policy = LocalPolicy(saved(model, tmp_path / "tiny"), max_tokens=MAX_TOKENS)
    theirs = [await policy.act(prompt) for prompt in PROMPTS]
    await policy.close()
    same_turns(ours, theirs)
    assert len({one.action_ids for one in ours}) > 1
    assert [one.prompt_tokens for one in ours] == [len(one.prompt_ids) for one in ours]


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
@pytest.mark.parametrize("keep", [True, False])
def test_logprobs_are_those_of_one_forward_pass_in_every_turn(model: Any, temperature: float, keep: bool) -> None:
    talks = Talks(sampler_of(model, temperature=temperature, keep=keep))
    for _ in range(3):
        for done in talks.turn():
            assert_belongs(model, done, temperature=temperature or 1.0)
    talks.rewrite()
    for _ in range(2):
        for done in talks.turn():
            assert_belongs(model, done, temperature=temperature or 1.0)


def test_turns_end_at_different_lengths_and_each_says_whether_it_was_cut_off(model: Any) -> None:
    talks = Talks(sampler_of(model), MESSAGES * 3)
    done = [*talks.turn(), *talks.turn()]
    assert {one.cut_off for one in done} == {True, False}
    assert len({len(one.action_ids) for one in done if not one.cut_off}) > 2
    for one in done:
        assert one.completion_tokens == len(one.action_ids) == len(one.logprobs) <= MAX_TOKENS
        ended = one.action_ids[-1] == mini_tokenizer().eos_token_id or one.text.endswith(STOPS)
        assert one.cut_off == (not ended)
        assert not one.cut_off or len(one.action_ids) == MAX_TOKENS
    assert any(one.text.endswith("</answer>") for one in done)


def test_what_is_kept_is_not_read_again(model: Any) -> None:
    sampler = sampler_of(model, temperature=0)
    talks = Talks(sampler)
    first = talks.turn()
    assert sampler.work.read_tokens == sum(len(one.prompt_ids) for one in first)
    second = talks.turn()
    # The last token of a turn was only written; all before it was read.
    known = sum(len(one.prompt_ids) + len(one.action_ids) - 1 for one in first)
    assert sampler.work.read_tokens == sum(len(one.prompt_ids) for one in [*first, *second]) - known
    assert sampler.work.written_tokens == sum(len(one.action_ids) for one in [*first, *second])
    assert sampler.work.seconds > 0


def test_of_a_rewritten_context_only_what_stayed_the_same_is_kept(model: Any) -> None:
    sampler = sampler_of(model)
    talks = Talks(sampler)
    before = talks.turn()
    read = sampler.work.read_tokens
    talks.rewrite()
    after = talks.turn()
    common = sum(_common(one.prompt_ids, other.prompt_ids) for one, other in zip(before, after, strict=True))
    assert common > 0
    assert sampler.work.read_tokens - read <= sum(len(one.prompt_ids) for one in after) - common


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    return next((at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), len(one))


def test_keeping_nothing_gives_the_same_turns(model: Any) -> None:
    keeping, forgetful = Talks(sampler_of(model)), Talks(sampler_of(model, keep=False))
    for _ in range(3):
        same_turns(keeping.turn(), forgetful.turn())
    assert keeping.sampler.work.read_tokens < forgetful.sampler.work.read_tokens


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_a_trajectory_does_not_depend_on_who_else_is_in_the_batch(model: Any, temperature: float) -> None:
    together = Talks(sampler_of(model, temperature=temperature))
    turns = [together.turn() for _ in range(3)]
    for number, text in enumerate(MESSAGES):
        alone = Talks(sampler_of(model, temperature=temperature), [text], first=number)
        same_turns([one[number] for one in turns], [alone.turn()[0] for _ in range(3)])


def test_the_order_in_which_turns_are_asked_for_makes_no_difference_to_any(model: Any) -> None:
    asked = [Asked(number, prompt, np.random.default_rng(number)) for number, prompt in enumerate(PROMPTS)]
    again = [Asked(number, prompt, np.random.default_rng(number)) for number, prompt in enumerate(PROMPTS)]
    same_turns(sampler_of(model).sample(asked), sampler_of(model).sample(again[::-1])[::-1])


def test_the_same_batch_gives_the_same_numbers_to_the_last_bit(model: Any) -> None:
    first, second = Talks(sampler_of(model)), Talks(sampler_of(model))
    assert [first.turn() for _ in range(3)] == [second.turn() for _ in range(3)]


def test_trajectories_with_other_chances_write_other_turns(model: Any) -> None:
    asked = [Asked(number, PROMPTS[0], np.random.default_rng(number)) for number in range(8)]
    assert len({one.text for one in sampler_of(model).sample(asked)}) > 4


def test_tokens_are_drawn_as_often_as_the_model_says(model: Any) -> None:
    count = 3000
    asked = [Asked(number, PROMPTS[0], np.random.default_rng([1, number])) for number in range(count)]
    done = sampler_of(model, temperature=2.0, max_tokens=1, keep=False).sample(asked)
    with torch.no_grad():
        logits = model(torch.tensor([done[0].prompt_ids])).logits[0, -1].float()
    wanted = (logits / 2.0).softmax(-1).numpy()
    drawn = np.bincount([one.action_ids[0] for one in done], minlength=len(wanted)) / count
    # Five standard deviations of a share of so many draws.
    assert np.all(np.abs(drawn - wanted) <= 5 * np.sqrt(wanted * (1 - wanted) / count) + 1 / count)


def test_a_trajectory_that_is_forgotten_is_read_anew(model: Any) -> None:
    sampler = sampler_of(model)
    talks = Talks(sampler, MESSAGES[:2])
    talks.turn()
    sampler.forget(0)
    before = sampler.work.read_tokens
    first, second = talks.turn()
    assert sampler.work.read_tokens - before >= len(first.prompt_ids)
    assert sampler.work.read_tokens - before < len(first.prompt_ids) + len(second.prompt_ids)
    assert_belongs(model, first)
    assert_belongs(model, second)
    sampler.forget(99)


def test_after_an_update_of_the_model_all_must_be_forgotten() -> None:
    model = wordy_model(seed=3)
    sampler = sampler_of(model)
    talks = Talks(sampler, MESSAGES[:3])
    talks.turn()
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(1.1)
    stale = talks.turn()
    with pytest.raises(AssertionError, match="not close"):
        assert_belongs(model, stale[1])
    sampler.forget()
    before = sampler.work.read_tokens
    fresh = talks.turn()
    assert sampler.work.read_tokens - before == sum(len(one.prompt_ids) for one in fresh)
    for done in fresh:
        assert_belongs(model, done)


def test_a_turn_may_be_one_token(model: Any) -> None:
    talks = Talks(sampler_of(model, max_tokens=1))
    for done in [*talks.turn(), *talks.turn()]:
        assert len(done.action_ids) == 1
        assert_belongs(model, done)


def test_a_conversation_without_messages_is_refused_and_the_others_can_go_on(model: Any) -> None:
    sampler = sampler_of(model)
    with pytest.raises(ProviderError, match="no messages"):
        sampler.sample([Asked(0, PROMPTS[0], np.random.default_rng(0)), Asked(1, Prompt(()), np.random.default_rng(0))])
    (done,) = sampler.sample([Asked(0, PROMPTS[0], np.random.default_rng(0))])
    assert_belongs(model, done)
