"""Supervised training: it learns, from what it should, and says when it cannot."""

from __future__ import annotations

import random
from itertools import islice
from typing import Any

import pytest
import torch
from tests.unit.training.untrained import mini_tokenizer, wordy_model

from agemem_training.loss import NotFinite
from agemem_training.rows import Row
from agemem_training.supervised import Supervised, batches


def row_of(shown: str, written: str) -> Row:
    row = Row()
    row.read(ids_of(shown))
    ids = ids_of(written)
    row.ids_T += ids
    row.steps_T += [0] * len(ids)
    row.logprobs_T += [0.0] * len(ids)
    row.weights_T += [1.0] * len(ids)
    return row


def ids_of(text: str) -> list[int]:
    return mini_tokenizer()(text, add_special_tokens=False)["input_ids"]


ROWS = [row_of("Tom likes", "tea and coffee"), row_of("Marona lives in Kelton. Where does", "Marona live")]


def learning_of(model: Any, *, steps: int = 100) -> Supervised:
    return Supervised(model, learning_rate=1e-2, muon_learning_rate=2e-2, steps=steps)


def gradients_of(model: Any) -> list[torch.Tensor]:
    return [torch.zeros_like(one) if one.grad is None else one.grad.clone() for one in model.parameters()]


def stepped(rows: list[Row], *, observation_weight: float) -> tuple[float, list[torch.Tensor]]:
    """Loss and gradients of a fresh model's first step."""
    model = wordy_model()
    fit = learning_of(model).step(rows, observation_weight=observation_weight)
    return fit.loss, gradients_of(model)


def by_hand(rows: list[Row], *, observation_weight: float) -> tuple[float, list[torch.Tensor]]:
    """The same, row by row and token by token; the loss is that of what should be written."""
    model = wordy_model()
    terms: list[torch.Tensor] = []
    weights: list[float] = []
    written: list[float] = []
    for row in rows:
        logprobs = model(torch.tensor([row.ids_T])).logits[0].log_softmax(-1)
        for place in range(1, len(row)):
            terms.append(-logprobs[place - 1, row.ids_T[place]])
            weights.append(observation_weight + (row.steps_T[place] >= 0))
            written += [float(terms[-1].detach())] if row.steps_T[place] >= 0 else []
    loss = torch.stack([weight * term for weight, term in zip(weights, terms, strict=True)]).sum() / sum(weights)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    return sum(written) / len(written), gradients_of(model)


def test_a_fixed_batch_is_learnt_by_heart() -> None:
    learning = learning_of(wordy_model())
    fits = [learning.step(ROWS) for _ in range(60)]
    assert fits[0].loss > 3
    assert fits[-1].loss < 0.1
    assert (fits[0].accuracy, fits[-1].accuracy) == (0.0, 1.0)
    assert fits[0].tokens == sum(map(len, ROWS))


@pytest.mark.parametrize("observation_weight", [0.0, 0.1, 1.0])
def test_loss_and_gradient_are_those_of_the_weighted_mean_over_tokens(observation_weight: float) -> None:
    loss, gradients = stepped(ROWS, observation_weight=observation_weight)
    wanted_loss, wanted = by_hand(ROWS, observation_weight=observation_weight)
    assert loss == pytest.approx(wanted_loss, abs=1e-5)
    for one, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_what_is_shown_after_all_that_was_written_has_no_part_in_anything() -> None:
    altered = [Row(list(one.ids_T), list(one.steps_T), list(one.logprobs_T), list(one.weights_T)) for one in ROWS]
    altered[0].read(ids_of("likes pizza"))
    loss, gradients = stepped(altered, observation_weight=0.0)
    wanted_loss, wanted = stepped(ROWS, observation_weight=0.0)
    assert loss == pytest.approx(wanted_loss, abs=1e-5)
    for one, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_a_loss_that_is_no_number_changes_nothing_and_names_the_step() -> None:
    model = wordy_model()
    learning = learning_of(model)
    learning.step(ROWS)
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    before = [one.clone() for one in model.parameters()]
    with pytest.raises(NotFinite, match="supervised step 2 is nan"):
        learning.step(ROWS)
    for one, other in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=0, equal_nan=True)


def test_learning_rates_rise_and_in_the_end_fall() -> None:
    model = wordy_model()
    learning = learning_of(model, steps=200)
    rates: list[float] = []
    for _ in range(200):
        learning.step(ROWS[:1])
        rates.append(learning._optimizers[1].param_groups[0]["lr"])
    assert rates[:50] == sorted(rates[:50])
    assert max(rates) == rates[49] == rates[120] == pytest.approx(1e-2)
    assert rates[150:] == sorted(rates[150:], reverse=True)
    assert rates[-1] < 1e-3


def test_the_embedding_is_no_matrix_to_muon() -> None:
    model = wordy_model()
    muon, other = learning_of(model)._optimizers
    trained = [id(one) for optimizer in (muon, other) for group in optimizer.param_groups for one in group["params"]]
    assert sorted(trained) == sorted(map(id, model.parameters()))
    assert id(model.get_input_embeddings().weight) in [id(one) for one in other.param_groups[0]["params"]]


class Numbered:
    """Makes rows of random length that can be told apart."""

    def __init__(self, lengths: tuple[int, int]) -> None:
        self.rng = random.Random(3)
        self.lengths = lengths
        self.made = 0

    def __call__(self) -> Row:
        self.made += 1
        length = self.rng.randint(*self.lengths)
        return Row([0] * length, [0] * length, [0.0] * length, [1.0] * length, source=str(self.made))


def sizes_of(lengths: tuple[int, int]) -> tuple[list[list[Row]], list[int]]:
    """Batches, and how many tokens each has with its padding."""
    given = list(islice(batches(Numbered(lengths), random.Random(0), max_tokens=300), 300))
    return given, [len(batch) * max(map(len, batch)) for batch in given]


@pytest.mark.parametrize("lengths", [(5, 60), (5, 400)])
def test_a_batch_has_no_more_tokens_than_it_may_unless_two_rows_have(lengths: tuple[int, int]) -> None:
    given, sizes = sizes_of(lengths)
    assert all(size <= 300 or len(batch) == 2 for batch, size in zip(given, sizes, strict=True))


@pytest.mark.parametrize("lengths", [(5, 60), (5, 400), (90, 90)])
def test_a_batch_has_rows_of_like_length_as_many_as_fit_and_at_least_two(lengths: tuple[int, int]) -> None:
    for batch in sizes_of(lengths)[0]:
        # As many rows as there were room for if all were as short as the shortest.
        assert 2 <= len(batch) <= max(2, 300 // min(map(len, batch)))
        assert list(map(len, batch)) == sorted(map(len, batch))


def test_every_row_is_used_and_none_of_them_twice() -> None:
    numbered = Numbered((5, 60))
    used = [row.source for batch in islice(batches(numbered, random.Random(0), max_tokens=300), 600) for row in batch]
    assert len(used) == len(set(used))
    # What is left over is in the pool, which is filled up as soon as half of it is used.
    assert numbered.made - len(used) <= 600
    # Of the first pool nearly all have had their turn by then.
    early = {str(number) for number in range(1, 401)}
    assert len(early & set(used)) > 390
