r"""The objective of step-wise GRPO (AgeMem, section 3.4 and appendix A.3).

Maximised is

.. code-block:: text

    J(θ) = 1/|E| Σ_{t in E} [ rho_t·A_t - β·D_KL(π_θ ‖ π_ref) ]      rho_t = π_θ(a_t|s_t) / π_old(a_t|s_t)

over the steps E of all trajectories in a batch. Here, over the tokens i of each step's action, n_t of them:

.. code-block:: text

    ratio="token"   J = 1/|E| Σ_t 1/n_t Σ_i [ rho_ti·A_t - β·kl_ti ]      rho_ti = exp(δ_ti)
    ratio="step"    J = 1/|E| Σ_t [ rho_t·A_t - β·Σ_i kl_ti ]             rho_t  = exp(Σ_i δ_ti)
    δ_ti  = logπ_θ(a_ti) - logπ_old(a_ti)
    kl_ti = exp(d) - d - 1,   d = logπ_ref(a_ti) - logπ_θ(a_ti)

The loss is -J. Deviations:

* ``ratio="token"`` (the default) takes the ratio token by token and the mean over a step's tokens. The paper's ratio
  of whole actions is ``ratio="step"``: its gradient grows with a step's length, and the product of many ratios
  overflows or vanishes as soon as rollouts are a little off-policy.
* D_KL is estimated from the sampled tokens by k3 (Schulman, 2020): never negative, unbiased where rho is 1, and no sum
  over the vocabulary. Differentiated as it stands, as GRPO does, its gradient on-policy is that of D_KL(π_ref ‖ π_θ).
* ``clip`` bounds the ratio as PPO does, ``min(rho·A, clip(rho, 1 - ε, 1 + ε)·A)``. Off by default: the paper's
  objective has none, and with one update per rollout rho is 1.
* 1/|E| and 1/n_t stand in the weights (`rows.py`), so that the losses of micro-batches add up to that of the batch.
"""

# torch is an extra: where it is installed its types are checked, elsewhere the rest still is
# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import torch
from torch.utils.checkpoint import checkpoint

from agemem_mcp.errors import AgeMemError

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from torch import Tensor


LOGITS_AT_ONCE = 2**26
"""So many go from logits to log-probabilities together; a policy from scratch never has as many."""


class NotFinite(AgeMemError):  # noqa: N818  the tree's names follow the HTTP vocabulary
    """A number that an update is computed from is NaN or infinite; no weight was changed."""


@dataclass(frozen=True, slots=True)
class LossSettings:
    """What is maximised."""

    beta: float = 0.1
    """Weight of the KL term; 0 needs no reference."""
    clip: float | None = None
    """ε of PPO's clipping; None for none."""
    ratio: Literal["token", "step"] = "token"


@dataclass(frozen=True, slots=True)
class LossInputs:
    """B rows of T tokens; what stands where ``weights_B_T`` is 0 is not looked at."""

    logprobs_B_T: Tensor
    """Of the policy that is trained; its gradient is wanted."""
    old_logprobs_B_T: Tensor
    """Of the policy that sampled."""
    ref_logprobs_B_T: Tensor | None
    """Of the reference policy; may be None if β is 0."""
    advantages_B_T: Tensor
    weights_B_T: Tensor
    """``1/(n_t·|E|)`` for a token of a step, 0 for what was not sampled."""
    steps_B_T: Tensor
    """Which step of its trajectory a token belongs to."""
    entropies_B_T: Tensor | None = None
    sources: Sequence[str] = ()
    """Which trajectory each row is of, for error messages."""


@dataclass(frozen=True, slots=True)
class LossResult:
    """Of a micro-batch; all but ``ratio_max`` add up over those of a batch."""

    loss: Tensor
    """Scalar, -J."""
    kl: float
    """Estimated KL to the reference per token, the mean of each step weighing the same."""
    clip_share: float
    """Of the tokens (or steps), weighed alike: how many the clipping took the gradient from."""
    entropy: float
    """Per token, weighed alike; 0 if it was not given."""
    ratio_max: float
    """Largest rho; far from 1 with one update per rollout means that the log-probabilities do not belong together."""


def grpo_loss(inputs: LossInputs, settings: LossSettings = LossSettings()) -> LossResult:
    """Compute the loss of a micro-batch.

    Raises:
        NotFinite: a log-probability or the objective is NaN or infinite; the text names the step.
        ValueError: β is not 0 and there are no reference log-probabilities.
    """
    if inputs.ref_logprobs_B_T is None and settings.beta:
        msg = "the KL term needs reference log-probabilities"
        raise ValueError(msg)
    active_B_T = inputs.weights_B_T > 0
    logprobs_N = inputs.logprobs_B_T[active_B_T]
    old_N = inputs.old_logprobs_B_T[active_B_T]
    weights_N = inputs.weights_B_T[active_B_T]
    _check(logprobs_N, inputs, "the policy's log-probability")
    _check(old_N, inputs, "the log-probability noted when it was sampled")
    kl_N = torch.zeros_like(logprobs_N)
    if inputs.ref_logprobs_B_T is not None:
        ref_N = inputs.ref_logprobs_B_T[active_B_T]
        _check(ref_N, inputs, "the reference's log-probability")
        kl_N = (ref_N - logprobs_N).exp() - (ref_N - logprobs_N) - 1
    log_ratio_N, kl_weights_N = logprobs_N - old_N, weights_N
    if settings.ratio == "step":
        step_N, tokens_S = _steps_of(inputs.steps_B_T, active_B_T)
        # Each token carries its step's ratio now, and their mean is that once; the KL of a step is the sum, n_t times
        # the mean.
        log_ratio_N = log_ratio_N.new_zeros(len(tokens_S)).index_add(0, step_N, log_ratio_N)[step_N]
        kl_weights_N = weights_N * tokens_S[step_N]
    ratio_N = log_ratio_N.exp()
    gain_N, clipped_N = _gain(ratio_N, inputs.advantages_B_T[active_B_T], settings.clip)
    objective_N = weights_N * gain_N - settings.beta * kl_weights_N * kl_N
    _check(objective_N, inputs, "the objective")
    loss = -objective_N.sum()
    with torch.no_grad():
        entropies = inputs.entropies_B_T
        return LossResult(
            loss=loss,
            kl=float((weights_N * kl_N).sum()),
            clip_share=float((weights_N * clipped_N).sum()),
            entropy=0.0 if entropies is None else float((weights_N * entropies[active_B_T]).sum()),
            ratio_max=float(ratio_N.max()) if len(ratio_N) else 1.0,
        )


def _gain(ratio_N: Tensor, advantages_N: Tensor, clip: float | None) -> tuple[Tensor, Tensor]:
    """rho·A, perhaps clipped, and where the clipping took the gradient away."""
    plain_N = ratio_N * advantages_N
    if clip is None:
        return plain_N, torch.zeros_like(plain_N)
    bounded_N = ratio_N.clamp(1 - clip, 1 + clip) * advantages_N
    return torch.minimum(plain_N, bounded_N), (bounded_N < plain_N).to(plain_N.dtype)


def _steps_of(steps_B_T: Tensor, active_B_T: Tensor) -> tuple[Tensor, Tensor]:
    """Number the steps of a micro-batch; a step never stands in two rows.

    Returns:
        For each active token the number of its step, and for each step how many tokens it has.
    """
    rows_B_T = torch.arange(len(steps_B_T), device=steps_B_T.device)[:, None].expand_as(steps_B_T)
    numbers_N = rows_B_T[active_B_T] * (int(steps_B_T.max()) + 1) + steps_B_T[active_B_T]
    numbers_S = cast("Tensor", numbers_N.unique())
    step_N = torch.searchsorted(numbers_S, numbers_N)
    return step_N, step_N.bincount(minlength=len(numbers_S))


def _check(values_N: Tensor, inputs: LossInputs, what: str) -> None:
    """Raise an error that names the step if one of the active tokens' values is not a finite number."""
    good_N = torch.isfinite(values_N)
    if bool(good_N.all()):
        return
    bad = int((~good_N).nonzero()[0])
    row, token = (int(one) for one in (inputs.weights_B_T > 0).nonzero()[bad])
    source = inputs.sources[row] if inputs.sources else f"row {row}"
    value = float(values_N[bad].detach())
    msg = (
        f"In step {int(inputs.steps_B_T[row, token])} of {source}, {what} of token {token} is {value}. "
        "Nothing was updated. Lower grpo.learning_rate."
    )
    raise NotFinite(msg)


class ActionLogprobs(NamedTuple):
    """Of B rows of T tokens; 0 for tokens that are no action."""

    logprobs_B_T: Tensor
    entropies_B_T: Tensor
    """Of the distribution each token was drawn from; without gradient."""


def action_logprobs(
    model: torch.nn.Module,
    ids_B_T: Tensor,
    is_action_B_T: Tensor,
    *,
    attention_B_T: Tensor | None = None,
    temperature: float = 1.0,
) -> ActionLogprobs:
    """Log-probabilities of the action tokens.

    Logits are computed for these alone: of a long prompt, those of all positions would take more memory than all else.
    Where they are many, what is made of them is made of some at a time, and again for the gradient: of a vocabulary of
    150,000 it takes 18 bytes a logit beside the logits themselves, which for a whole micro-batch is tens of gigabytes.

    Args:
        model: a causal language model of transformers, also within peft or a data-parallel wrapper: its ``forward`` is
            what is called.
        ids_B_T: tokens.
        is_action_B_T: which ones were sampled; never the first of a row.
        attention_B_T: False for padding.
        temperature: at which they were sampled.

    Raises:
        ValueError: the first token of a row is an action: nothing stands before it.
    """
    if bool(is_action_B_T[:, 0].any()):
        msg = "the first token of a row cannot be an action"
        raise ValueError(msg)
    before_B_T = is_action_B_T.roll(-1, dims=1)
    with _head_only_at(model, before_B_T):
        logits_N_V: Tensor = model(input_ids=ids_B_T, attention_mask=attention_B_T, use_cache=False).logits
    ids_N = ids_B_T[is_action_B_T]
    at_once = max(1, LOGITS_AT_ONCE // logits_N_V.shape[-1])
    if len(ids_N) <= at_once:
        logprobs_N, entropies_N = _of_logits(logits_N_V, ids_N, temperature)
    else:
        parts = [
            cast("tuple[Tensor, Tensor]", checkpoint(_of_logits, *some, temperature, use_reentrant=False))
            for some in zip(logits_N_V.split(at_once), ids_N.split(at_once), strict=True)
        ]
        logprobs_N, entropies_N = (torch.cat(one) for one in zip(*parts, strict=True))
    empty_B_T = torch.zeros(ids_B_T.shape, dtype=logprobs_N.dtype, device=logprobs_N.device)
    return ActionLogprobs(
        empty_B_T.masked_scatter(is_action_B_T, logprobs_N), empty_B_T.masked_scatter(is_action_B_T, entropies_N)
    )


def _of_logits(logits_N_V: Tensor, ids_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities of tokens, and entropies of what they were drawn from."""
    logits_N_V = logits_N_V.float() / temperature
    log_total_N = logits_N_V.logsumexp(-1)
    logprobs_N = logits_N_V.gather(-1, ids_N[:, None])[:, 0] - log_total_N
    with torch.no_grad():
        entropies_N = log_total_N - (logits_N_V.softmax(-1) * logits_N_V).sum(-1)
    return logprobs_N, entropies_N


@contextmanager
def _head_only_at(model: torch.nn.Module, positions_B_T: Tensor) -> Generator[None]:
    """While this holds, the model's head is given the chosen positions alone, as one list."""
    inner: Any = getattr(model, "module", model)
    head: torch.nn.Module = inner.get_output_embeddings()

    def chosen(_head: torch.nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (given[0][positions_B_T],)

    handle = head.register_forward_pre_hook(chosen)
    try:
        yield
    finally:
        handle.remove()
