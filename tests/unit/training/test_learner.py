"""Updates: the same however a batch is cut up, refused where a number is wrong, with the frozen start as reference."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

WHY = "training needs torch, transformers, accelerate and peft: `pip install 'agemem-mcp[train]'`"
for extra in ("torch", "transformers", "accelerate", "peft"):
    pytest.importorskip(extra, reason=WHY)

import torch  # noqa: E402  after the skip
from safetensors.torch import load_file  # noqa: E402  as above
from tests.unit.training import learning  # noqa: E402  as above
from tests.unit.training.learning import learned, learner, rows, tiny_model  # noqa: E402  as above
from tests.unit.training.processes import in_two_processes  # noqa: E402  as above

from agemem_mcp.errors import ConfigurationError  # noqa: E402  as above
from agemem_training.loading import recompute_activations  # noqa: E402  as above
from agemem_training.loss import NotFinite, action_logprobs  # noqa: E402  as above
from agemem_training.rows import padded  # noqa: E402  as above

if TYPE_CHECKING:
    from agemem_training.learner import Learner


def weights(one: Learner) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in one.model.named_parameters()}


def assert_close(mine: dict[str, torch.Tensor], yours: dict[str, torch.Tensor], *, atol: float = 1e-6) -> None:
    assert mine.keys() == yours.keys()
    for name, weight in mine.items():
        torch.testing.assert_close(weight, yours[name], atol=atol, rtol=0, msg=name)


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("adapter", [False, True])
def test_many_micro_batches_make_the_update_of_one(adapter: bool) -> None:
    batches = learning.global_batches()
    cut, whole = (
        learner(tiny_model(adapter=adapter, fresh=False), micro_batch_tokens=tokens) for tokens in (64, 100_000)
    )
    mine, yours = learned(cut, batches), learned(whole, batches)
    assert_close(weights(cut), weights(whole))
    for one, other in zip(mine, yours, strict=True):
        for name in ("loss", "kl", "entropy", "gradient_norm", "ratio_max", "tokens", "learning_rate"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-5, abs=1e-6), name


def test_the_learning_rate_rises_and_then_stays() -> None:
    one = learner(tiny_model(), learning_rate=0.01, warmup=2)
    assert [update.learning_rate for update in learned(one, [rows(2)] * 3)] == [0.005, 0.01, 0.01]


def test_the_learning_rate_falls_to_the_share_that_is_left_in_the_last_iteration() -> None:
    one = learner(tiny_model(), learning_rate=0.01, warmup=2, iterations=4, final_share=0.2)
    rates = [update.learning_rate for update in learned(one, [rows(2)] * 5)]
    assert rates == pytest.approx([0.005, 0.01, 0.006, 0.002, 0.002])


@pytest.mark.parametrize("adapter", [False, True])
def test_the_reference_is_the_policy_as_it_was(adapter: bool) -> None:
    batch = rows(3)
    data = padded(batch)
    ids, actions, attention = (torch.from_numpy(one) for one in (data.ids_B_T, data.is_action_B_T, data.attention_B_T))
    model = tiny_model(adapter=adapter)
    with torch.no_grad():
        first = action_logprobs(model, ids, actions, attention_B_T=attention).logprobs_B_T
    one = learner(model)
    kls = [update.kl for update in learned(one, [batch] * 3)]
    assert kls[0] == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        now = action_logprobs(one.model, ids, actions, attention_B_T=attention).logprobs_B_T
        with one._as_reference() as reference:
            again = action_logprobs(reference, ids, actions, attention_B_T=attention).logprobs_B_T
    torch.testing.assert_close(again, first)
    assert float((now - first).abs().max()) > 0.01
    step = torch.from_numpy(data.weights_B_T)
    gap = first - now
    assert one.update(batch, iteration=4).kl == pytest.approx(float((step * (gap.exp() - gap - 1)).sum()), rel=1e-4)
    assert (kls[2] or 0) > 0


def test_of_a_model_with_an_adapter_the_adapter_alone_moves() -> None:
    one = learner(tiny_model(adapter=True))
    before = weights(one)
    learned(one, [rows(4)] * 2)
    changed = moved(before, weights(one))
    assert changed
    assert all("lora_" in name for name in changed)
    assert set(one.trained()) == {name for name in before if "lora_" in name}


def test_without_a_kl_term_there_is_no_second_model() -> None:
    one = learner(tiny_model(), beta=0.0)
    assert one._reference is None
    assert learned(one, [rows(2)])[0].kl is None


def test_figures_are_of_what_was_learnt_from_though_some_groups_are_left_out() -> None:
    batch = rows(3)
    halved = [replace(row, weights_T=[weight / 2 for weight in row.weights_T]) for row in batch]
    whole, part = (learner(tiny_model(), beta=0.0).update(one, iteration=1) for one in (batch, halved))
    assert part.entropy == pytest.approx(whole.entropy, rel=1e-5)
    assert part.loss == pytest.approx(whole.loss / 2, rel=1e-5)


def test_an_iteration_without_rows_does_no_harm() -> None:
    one = learner(tiny_model())
    before = weights(one)
    update = one.update([], iteration=1)
    assert (update.loss, update.tokens, update.gradient_norm) == (0, 0, 0)
    assert not moved(before, weights(one))


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_a_number_that_is_none_is_refused_and_nothing_moves(beta: float) -> None:
    one = learner(tiny_model(), beta=beta)
    learned(one, [rows(3)])
    before = weights(one)
    bad = rows(5)
    bad[1].logprobs_T[-1] = math.nan
    with pytest.raises(NotFinite, match="trajectory 1, the log-probability noted when it was sampled"):
        one.update(bad, iteration=2)
    assert not moved(before, weights(one))
    good, fresh = one.update(rows(3), iteration=2), learner(tiny_model(), beta=beta)
    assert good == learned(fresh, [rows(3)] * 2)[-1]  # what was summed up before the error is forgotten


def test_a_gradient_that_overflows_is_refused_and_nothing_moves() -> None:
    one = learner(tiny_model(), max_grad_norm=1e-3, beta=0.0)
    before = weights(one)
    batch = rows(2)
    for row in batch:
        row.advantage = 3e38
    with pytest.raises(NotFinite, match="Nothing was updated"):
        one.update(batch, iteration=7)
    assert not moved(before, weights(one))


def test_where_memory_runs_out_the_setting_to_lower_is_named() -> None:
    model = tiny_model()

    class Greedy(torch.nn.Module):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return hidden + torch.empty(2**60, dtype=torch.uint8)[0]

    model.model.norm = Greedy()
    with pytest.raises(ConfigurationError, match=r"grpo\.micro_batch_tokens"):
        learner(model, beta=0.0).update(rows(2), iteration=1)


def test_dropout_is_off_in_updates_so_that_ratios_are_those_of_the_policy_that_sampled() -> None:
    model = tiny_model()
    model.config.attention_dropout = 0.5
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    one, plain = learner(model), learner(tiny_model())
    assert learned(one, [rows(4)]) == learned(plain, [rows(4)])


def test_gradient_checkpointing_changes_no_update() -> None:
    model = tiny_model()
    recompute_activations(model)
    one, plain = learner(model), learner(tiny_model())
    # Layers recompute in the training mode alone, so without it nothing would be tested here.
    assert (one._trains, plain._trains) == (True, False)
    learned(one, [rows(4)])
    learned(plain, [rows(4)])
    assert_close(weights(one), weights(plain))


def test_weights_that_were_kept_are_put_back_and_the_reference_stays() -> None:
    one = learner(tiny_model())
    kept = {name: weight.detach().clone() for name, weight in one.trained().items()}
    learned(one, [rows(3)])
    one.load(kept)
    assert not moved(kept, weights(one))
    with pytest.raises(ConfigurationError, match="another model"):
        one.load({"lm_head.weight": torch.zeros(1)})


def test_two_processes_agree_with_each_other_and_with_one(tmp_path: Path) -> None:
    # 11 and 3 rows of 14: the processes have different numbers of micro-batches.
    in_two_processes(Path(learning.__file__), str(tmp_path), "11")
    for kind in learning.KINDS:
        alone = learner(tiny_model(adapter=kind == "adapter", fresh=False))
        updates = learned(alone, learning.global_batches())
        first, second = (load_file(tmp_path / f"{kind}-{rank}.safetensors") for rank in (0, 1))
        assert not moved(first, second)
        assert_close(first, {name: weight.detach() for name, weight in alone.trained().items()}, atol=2e-6)
        told: list[list[dict[str, Any]]] = [
            json.loads((tmp_path / f"{kind}-{rank}.json").read_text()) for rank in (0, 1)
        ]
        assert told[0] == told[1]
        for mine, update in zip(told[0], updates, strict=True):
            for name, value in mine.items():
                assert value == pytest.approx(getattr(update, name), rel=1e-5, abs=1e-6), name
