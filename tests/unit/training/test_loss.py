"""The objective: by hand on two tokens, and on a tiny model."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from agemem_policies.policy import Completion, Prompt
from agemem_policies.steps import Step
from agemem_training import loss
from agemem_training.loss import LossInputs, LossSettings, NotFinite, action_logprobs, grpo_loss
from agemem_training.rows import merged_rows, padded, step_count

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Literal

    from torch import Tensor

    from agemem_training.loss import LossResult
    from agemem_training.rows import RowBatch

VOCABULARY = 23


def inputs_of(
    logprobs: Sequence[float] | Tensor,
    old: Sequence[float],
    ref: Sequence[float] | None,
    advantage: float,
    steps: Sequence[int],
) -> LossInputs:
    """One row of written tokens alone, in float64."""
    steps_B_T = torch.tensor([steps])
    count = len(set(steps) - {-1})
    weights = [0.0 if one < 0 else 1 / (list(steps).count(one) * count) for one in steps]
    given = logprobs if isinstance(logprobs, torch.Tensor) else torch.tensor(logprobs, dtype=torch.float64)
    return LossInputs(
        logprobs_B_T=given[None],
        old_logprobs_B_T=torch.tensor([old], dtype=torch.float64),
        ref_logprobs_B_T=None if ref is None else torch.tensor([ref], dtype=torch.float64),
        advantages_B_T=torch.full((1, len(steps)), advantage, dtype=torch.float64),
        weights_B_T=torch.tensor([weights], dtype=torch.float64),
        steps_B_T=steps_B_T,
        sources=("task-1/0",),
    )


def k3(logprob: float, ref: float) -> float:
    return math.exp(ref - logprob) - (ref - logprob) - 1


@pytest.mark.parametrize("ratio", ["token", "step"])
def test_loss_and_gradient_of_a_two_token_policy_are_those_by_hand(ratio: Literal["token", "step"]) -> None:
    # A policy over two tokens: p(0) = sigmoid(θ). One step wrote 0 and 1, another 0.
    theta = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    log_p, log_q = torch.nn.functional.logsigmoid(theta), torch.nn.functional.logsigmoid(-theta)
    old, ref, advantage, beta = [-0.5, -0.9, -0.4], [-0.6, -0.8, -0.6], 1.5, 0.1
    inputs = inputs_of(torch.stack([log_p, log_q, log_p]), old, ref, advantage, [0, 0, 1])
    result = grpo_loss(inputs, LossSettings(beta=beta, ratio=ratio))
    result.loss.backward()

    p = 1 / (1 + math.exp(-0.3))
    logs, slopes = [math.log(p), math.log(1 - p), math.log(p)], [1 - p, -p, 1 - p]
    ratios = [math.exp(logs[i] - old[i]) for i in range(3)]
    kls = [k3(logs[i], ref[i]) for i in range(3)]
    kl_slopes = [(1 - math.exp(ref[i] - logs[i])) * slopes[i] for i in range(3)]
    if ratio == "token":
        gains = [ratios[i] * advantage - beta * kls[i] for i in range(3)]
        gain_slopes = [ratios[i] * advantage * slopes[i] - beta * kl_slopes[i] for i in range(3)]
        expected = ((gains[0] + gains[1]) / 2 + gains[2]) / 2
        slope = ((gain_slopes[0] + gain_slopes[1]) / 2 + gain_slopes[2]) / 2
    else:
        both = ratios[0] * ratios[1]
        expected = (both * advantage - beta * (kls[0] + kls[1]) + ratios[2] * advantage - beta * kls[2]) / 2
        slope = (
            both * advantage * (slopes[0] + slopes[1])
            - beta * (kl_slopes[0] + kl_slopes[1])
            + ratios[2] * advantage * slopes[2]
            - beta * kl_slopes[2]
        ) / 2
    assert float(result.loss.detach()) == pytest.approx(-expected)
    assert theta.grad is not None
    assert float(theta.grad) == pytest.approx(-slope)
    assert result.kl == pytest.approx(((kls[0] + kls[1]) / 2 + kls[2]) / 2)


def test_clipping_bounds_what_a_ratio_can_earn() -> None:
    # Ratios of 2 and 1; a gain of 2 is more than the 1.2 that is allowed.
    logprobs = torch.tensor([math.log(0.8), math.log(0.5)], dtype=torch.float64, requires_grad=True)
    inputs = inputs_of(logprobs, [math.log(0.4), math.log(0.5)], None, 1.0, [0, 1])
    result = grpo_loss(inputs, LossSettings(beta=0, clip=0.2))
    assert float(result.loss.detach()) == pytest.approx(-(1.2 + 1) / 2)
    assert (result.clip_share, result.ratio_max) == pytest.approx((0.5, 2.0))
    (gradient,) = torch.autograd.grad(result.loss, logprobs)
    assert gradient.tolist() == pytest.approx([0, -0.5])


def test_clipping_does_not_bound_what_a_ratio_can_cost() -> None:
    inputs = inputs_of([math.log(0.8)], [math.log(0.4)], None, -1.0, [0])
    result = grpo_loss(inputs, LossSettings(beta=0, clip=0.2))
    assert (float(result.loss), result.clip_share) == (pytest.approx(2.0), 0.0)


def test_what_is_masked_has_no_part_in_loss_or_gradient_even_if_it_is_no_number() -> None:
    logprobs = torch.tensor([-0.5, -0.7, float("nan")], dtype=torch.float64, requires_grad=True)
    result = grpo_loss(inputs_of(logprobs, [-0.5, -9, 0], [-0.5, -9, 0], 1.0, [0, -1, -1]))
    (gradient,) = torch.autograd.grad(result.loss, logprobs)
    assert float(result.loss.detach()) == pytest.approx(-1.0)
    assert gradient.tolist() == [-1.0, 0.0, 0.0]


def test_rows_that_only_pad_a_batch_have_a_loss_of_0_to_go_back_from() -> None:
    logprobs = torch.tensor([-0.5], dtype=torch.float64, requires_grad=True)
    result = grpo_loss(inputs_of(logprobs, [0.0], [0.0], 1.0, [-1]), LossSettings(ratio="step"))
    result.loss.backward()
    assert (float(result.loss.detach()), result.ratio_max) == (0.0, 1.0)
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [0.0]


@pytest.mark.parametrize(
    ("which", "what"),
    [
        ("logprobs_B_T", "the policy's log-probability"),
        ("old_logprobs_B_T", "the log-probability noted when it was sampled"),
        ("ref_logprobs_B_T", "the reference's log-probability"),
        ("advantages_B_T", "the objective"),
    ],
)
def test_a_number_that_is_none_stops_the_update_and_names_the_step(which: str, what: str) -> None:
    good = inputs_of([-0.5] * 4, [-0.5] * 4, [-0.5] * 4, 1.0, [0, -1, 1, 1])
    values = getattr(good, which).clone()
    values[0, 3] = float("nan")
    with pytest.raises(NotFinite, match=f"In step 1 of task-1/0, {what} of token 3 is nan"):
        grpo_loss(replace(good, **{which: values}))


def test_a_ratio_without_bounds_is_no_number_either() -> None:
    with pytest.raises(NotFinite, match=r"the objective of token 0 is inf"):
        grpo_loss(inputs_of([-0.1], [-999.0], [-0.1], 1.0, [0]))


def test_a_kl_term_needs_a_reference() -> None:
    with pytest.raises(ValueError, match="reference"):
        grpo_loss(inputs_of([-0.1], [-0.1], None, 1.0, [0]))


def test_the_entropy_is_told_where_it_is_given() -> None:
    inputs = inputs_of([-0.1, -0.1], [-0.1, -0.1], None, 1.0, [0, -1])
    entropies = torch.tensor([[0.5, 9.0]], dtype=torch.float64)
    assert grpo_loss(replace(inputs, entropies_B_T=entropies), LossSettings(beta=0)).entropy == 0.5


def tiny_model(seed: int = 0) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.5,
    )
    return Qwen2ForCausalLM(config).eval()


def trajectory() -> list[Step]:
    """Five steps with actions of unlike length; the context is rewritten once."""
    generator = torch.Generator().manual_seed(1)

    def some(count: int) -> list[int]:
        return torch.randint(0, VOCABULARY, (count,), generator=generator).tolist()

    steps: list[Step] = []
    context = some(4)
    for number, length in enumerate((3, 1, 5, 2, 4)):
        if number == 3:
            context = some(6)
        action = some(length)
        logprobs = tuple(-2.5 - 0.1 * n for n in range(length))
        completion = Completion("", prompt_ids=tuple(context), action_ids=tuple(action), logprobs=logprobs)
        steps.append(Step(number, Prompt(()), completion, None))
        context = [*context, *action, *some(2)]
    return steps


def loss_of(model: Qwen2ForCausalLM, batch: RowBatch, settings: LossSettings) -> LossResult:
    ids, actions = torch.from_numpy(batch.ids_B_T), torch.from_numpy(batch.is_action_B_T)
    attention = torch.from_numpy(batch.attention_B_T)
    logprobs, entropies = action_logprobs(model, ids, actions, attention_B_T=attention)
    with torch.no_grad():
        reference = action_logprobs(tiny_model(seed=7), ids, actions, attention_B_T=attention)
    return grpo_loss(
        LossInputs(
            logprobs_B_T=logprobs,
            old_logprobs_B_T=torch.from_numpy(batch.logprobs_B_T),
            ref_logprobs_B_T=reference.logprobs_B_T,
            advantages_B_T=torch.from_numpy(batch.advantages_B_T),
            weights_B_T=torch.from_numpy(batch.weights_B_T),
            steps_B_T=torch.from_numpy(batch.steps_B_T),
            entropies_B_T=entropies,
        ),
        settings,
    )


@pytest.mark.parametrize("settings", [LossSettings(), LossSettings(clip=0.2), LossSettings(ratio="step")])
def test_merging_steps_into_rows_changes_neither_loss_nor_gradient(settings: LossSettings) -> None:
    steps = trajectory()
    results: list[LossResult] = []
    gradients: list[list[Tensor]] = []
    for merge in (True, False):
        rows = merged_rows(steps, steps_in_batch=step_count(steps), advantage=0.8, merge=merge)
        assert len(rows) == (2 if merge else 5)
        model = tiny_model()
        result = loss_of(model, padded(rows), settings)
        result.loss.backward()
        results.append(result)
        gradients.append([one.grad for one in model.parameters() if one.grad is not None])
    merged, apart = results
    assert float(merged.loss.detach()) == pytest.approx(float(apart.loss.detach()), abs=1e-5)
    assert (merged.kl, merged.entropy, merged.clip_share) == pytest.approx((apart.kl, apart.entropy, apart.clip_share))
    assert gradients[0]
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_the_losses_of_micro_batches_add_up_to_that_of_the_batch() -> None:
    steps = trajectory()
    rows = merged_rows(steps, steps_in_batch=step_count(steps), advantage=-0.3)
    model = tiny_model()
    with torch.no_grad():
        whole = loss_of(model, padded(rows), LossSettings())
        parts = [loss_of(model, padded([row]), LossSettings()) for row in rows]
    assert float(whole.loss) == pytest.approx(sum(float(part.loss) for part in parts), abs=1e-5)
    assert whole.kl == pytest.approx(sum(part.kl for part in parts), rel=1e-4)


def test_logprobs_at_action_positions_are_those_of_the_whole_model() -> None:
    model = tiny_model()
    batch = padded(merged_rows(trajectory(), steps_in_batch=5))
    ids, actions = torch.from_numpy(batch.ids_B_T), torch.from_numpy(batch.is_action_B_T)
    attention = torch.from_numpy(batch.attention_B_T)
    with torch.no_grad():
        found = action_logprobs(model, ids, actions, attention_B_T=attention, temperature=0.7)
        logits = model(input_ids=ids, attention_mask=attention).logits / 0.7
    all_logprobs = logits.log_softmax(-1)
    expected = all_logprobs[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    entropies = -(all_logprobs.exp() * all_logprobs).sum(-1)[:, :-1]
    assert torch.allclose(found.logprobs_B_T[:, 1:], expected.where(actions[:, 1:], torch.zeros(())), atol=1e-5)
    assert torch.allclose(found.entropies_B_T[:, 1:], entropies.where(actions[:, 1:], torch.zeros(())), atol=1e-5)
    assert not found.logprobs_B_T[~actions].any()


def test_logits_are_computed_for_actions_alone() -> None:
    model = tiny_model()
    rows: list[int] = []
    model.lm_head.register_forward_hook(lambda _head, _given, logits: rows.append(logits.numel() // VOCABULARY))
    batch = padded(merged_rows(trajectory(), steps_in_batch=5))
    actions = torch.from_numpy(batch.is_action_B_T)
    action_logprobs(model, torch.from_numpy(batch.ids_B_T), actions)
    assert rows == [int(actions.sum())]
    # And afterwards for all again.
    model(input_ids=torch.zeros((1, 9), dtype=torch.long))
    assert rows[-1] == 9


@pytest.mark.parametrize("at_once", [1, 4 * VOCABULARY, 14 * VOCABULARY + 1])
def test_taking_some_logits_at_a_time_changes_neither_loss_nor_gradient(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = padded(merged_rows(trajectory(), steps_in_batch=5, advantage=0.8))
    whole, parted = tiny_model(), tiny_model()
    expected = loss_of(whole, batch, LossSettings())
    expected.loss.backward()
    taken: list[int] = []
    plain = loss._of_logits

    def counted(logits_N_V: Tensor, ids_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        taken.append(len(ids_N))
        return plain(logits_N_V, ids_N, temperature)

    monkeypatch.setattr(loss, "LOGITS_AT_ONCE", at_once)
    monkeypatch.setattr(loss, "_of_logits", counted)
    found = loss_of(parted, batch, LossSettings())
    found.loss.backward()
    assert max(taken) == max(1, at_once // VOCABULARY)
    assert float(found.loss.detach()) == pytest.approx(float(expected.loss.detach()), abs=1e-6)
    assert (found.kl, found.entropy) == pytest.approx((expected.kl, expected.entropy))
    for one, other in zip(parted.parameters(), whole.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.allclose(one.grad, other.grad, atol=1e-6)


def test_what_follows_an_action_changes_nothing() -> None:
    model = tiny_model()
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    actions = torch.tensor([[False, True, False, False, False]])
    with torch.no_grad():
        first = action_logprobs(model, ids, actions)
        ids[0, 2:] = 9
        assert torch.equal(action_logprobs(model, ids, actions).logprobs_B_T, first.logprobs_B_T)


def test_a_row_cannot_begin_with_an_action() -> None:
    with pytest.raises(ValueError, match="first token"):
        action_logprobs(tiny_model(), torch.tensor([[1, 2]]), torch.tensor([[True, False]]))
