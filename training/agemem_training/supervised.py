"""Supervised training on rows of tokens: what a policy should have written, token by token."""

# torch is an extra: where it is installed its types are checked, elsewhere the rest still is
# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from agemem_training.loss import NotFinite
from agemem_training.rows import padded

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from agemem_training.rows import Row

_WARMUP_STEPS = 50
_FINAL_SHARE = 0.03
"""Of the learning rate, in the last step."""
_POOL = 400
"""Rows that batches are made from: those of like length go together, and little is padding."""


@dataclass(frozen=True, slots=True)
class Fit:
    """How one batch was fitted."""

    loss: float
    """Mean over the tokens that the policy should have written, in nats."""
    accuracy: float
    """Share of them that were the most probable ones."""
    tokens: int


class Supervised:
    """A model and its optimizers: Muon for matrices, AdamW for all else."""

    def __init__(self, model: Any, *, learning_rate: float, muon_learning_rate: float, steps: int) -> None:  # noqa: ANN401  transformers' model classes have no common type
        """Set it up.

        Args:
            model: a causal language model of transformers.
            learning_rate: of AdamW.
            muon_learning_rate: of Muon.
            steps: that will be taken; over the last 30 % the learning rates fall.
        """
        self._model = model
        self._steps = steps
        self._done = 0
        embedding = model.get_input_embeddings().weight
        matrices = [one for one in model.parameters() if one.ndim == 2 and one is not embedding and one.requires_grad]  # noqa: PLR2004  matrices
        chosen = {id(one) for one in matrices}
        others = [one for one in model.parameters() if id(one) not in chosen and one.requires_grad]
        self._optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=muon_learning_rate, weight_decay=0.01, momentum=0.95),
            torch.optim.AdamW(others, lr=learning_rate, weight_decay=0.0, betas=(0.9, 0.98)),
        ]
        self._rates = [muon_learning_rate, learning_rate]

    def step(self, rows: Sequence[Row], *, observation_weight: float = 0.0) -> Fit:
        """Fit one batch.

        Args:
            rows: what was shown and what should have been written.
            observation_weight: how much every token counts; one that should be written counts 1 more.

        Raises:
            NotFinite: the loss is NaN or infinite; no weight was changed.
        """
        batch = padded(rows)
        device = self._model.device
        ids_B_T = torch.from_numpy(batch.ids_B_T).to(device)
        action_B_T = torch.from_numpy(batch.is_action_B_T).to(device)[:, 1:]
        real_B_T = torch.from_numpy(batch.attention_B_T).to(device)[:, 1:]
        wanted_B_T = real_B_T if observation_weight else action_B_T
        self._model.train()
        hidden_B_T_D = self._model.get_decoder()(input_ids=ids_B_T[:, :-1])[0]
        logits_N_V = self._model.get_output_embeddings()(hidden_B_T_D[wanted_B_T]).float()
        targets_N = ids_B_T[:, 1:][wanted_B_T]
        losses_N = torch.nn.functional.cross_entropy(logits_N_V, targets_N, reduction="none")
        is_action_N = action_B_T[wanted_B_T]
        weights_N = is_action_N.float() + observation_weight
        loss = (losses_N * weights_N).sum() / weights_N.sum()
        if not bool(torch.isfinite(loss)):
            msg = (
                f"The loss of supervised step {self._done + 1} is {float(loss.detach())}. Lower "
                "warm_start.learning_rate and warm_start.muon_learning_rate."
            )
            raise NotFinite(msg)
        self._apply(loss)
        with torch.no_grad():
            right_N = logits_N_V.argmax(-1) == targets_N
            accuracy = float(right_N[is_action_N].float().mean())
            return Fit(float(losses_N[is_action_N].mean()), accuracy, sum(map(len, rows)))

    def _apply(self, loss: Tensor) -> None:
        share = self._done / self._steps
        rate = min(1.0, (self._done + 1) / _WARMUP_STEPS) * min(1.0, max(_FINAL_SHARE, (1 - share) / 0.3))
        for optimizer, peak in zip(self._optimizers, self._rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * rate
            optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        for optimizer in self._optimizers:
            optimizer.step()
        self._done += 1


def batches(make: Callable[[], Row], rng: random.Random, *, max_tokens: int) -> Iterator[list[Row]]:
    """Batches of rows of like length, without end.

    Args:
        make: gives one more row.
        rng: source of chance.
        max_tokens: of a batch, padding included; of two rows also more.
    """
    pool: list[Row] = []
    while True:
        if len(pool) < _POOL // 2:
            pool += [make() for _ in range(_POOL)]
            pool.sort(key=len)
        start = rng.randrange(len(pool))
        count = max(2, max_tokens // len(pool[start]))
        start = max(0, min(start, len(pool) - count))
        while count > 2 and count * len(pool[start + count - 1]) > max_tokens:  # noqa: PLR2004  at least two
            count -= 1
        yield pool[start : start + count]
        del pool[start : start + count]
