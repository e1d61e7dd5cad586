"""One update of the policy from rows of a batch, on one process or several."""

# torch and accelerate are extras: where they are installed their types are checked, elsewhere the rest still is
# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import copy
import math
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch

from agemem_mcp.errors import ConfigurationError
from agemem_policies.local.checkpoint import is_out_of_memory
from agemem_training.loss import LossInputs, LossResult, LossSettings, NotFinite, action_logprobs, grpo_loss
from agemem_training.rows import Row, packed, padded

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from accelerate import Accelerator
    from torch import Tensor

    from agemem_training.config import GrpoConfig


@dataclass(frozen=True, slots=True)
class Updated:
    """What an update was like; sums over all processes where they differ."""

    loss: float
    gradient_norm: float
    """Before it was clipped."""
    learning_rate: float
    kl: float | None
    """To the reference; None where nothing is compared with it."""
    entropy: float
    clip_share: float
    ratio_max: float
    tokens: int
    """That went through the model, prompts included, padding not."""


class Learner:
    """Policy, reference and optimizer."""

    def __init__(self, model: Any, accelerator: Accelerator, config: GrpoConfig) -> None:  # noqa: ANN401  transformers' model classes have no common type
        """Set it up; the reference is the policy as it is now.

        Args:
            model: a causal language model, perhaps with a LoRA adapter: with the adapter off it is the reference.
            accelerator: places the model, and joins the processes.
            config: of the updates.
        """
        self._accelerator = accelerator
        self._config = config
        self._settings = LossSettings(config.beta, config.clip, config.ratio)
        # Dropout would make the log-probabilities those of another policy than the one that sampled. Only recomputing
        # activations asks for the training mode.
        self._trains = any(getattr(one, "gradient_checkpointing", False) for one in model.modules())
        self._reference: Any = None
        if config.beta and not _has_adapter(model):
            self._reference = copy.deepcopy(model).eval().requires_grad_(requires_grad=False).to(accelerator.device)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            trained, lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.99)
        )
        self._model, self.optimizer = cast("tuple[Any, Any]", accelerator.prepare(model, optimizer))

    @property
    def model(self) -> Any:  # noqa: ANN401  as above
        """The policy, without what joins the processes."""
        return self._accelerator.unwrap_model(self._model)

    def update(self, rows: Sequence[Row], *, iteration: int) -> Updated:
        """Take one step.

        Args:
            rows: of this process, with weights that sum to 1 over all processes.
            iteration: from 1; the learning rate rises over the first ones and then falls, if it is to.

        Raises:
            NotFinite: a number is NaN or infinite; no weight was changed.
            ConfigurationError: memory ran out; the text names the setting to lower.
        """
        self.optimizer.zero_grad()
        self._model.train(self._trains)
        try:
            results = self._backward_of_all(packed(rows, max_tokens=self._config.micro_batch_tokens))
        finally:
            self._model.eval()
        norm = float(self._accelerator.clip_grad_norm_(self._model.parameters(), self._config.max_grad_norm) or 0.0)
        if not math.isfinite(norm):
            msg = f"The gradient of iteration {iteration} is {norm}. Nothing was updated. Lower grpo.learning_rate."
            raise NotFinite(msg)
        rate = self._rate(iteration)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with _memory_error():
            self.optimizer.step()
        sums = self.over_processes(
            sum(float(one.loss.detach()) for one in results),
            sum(one.kl for one in results),
            sum(one.entropy for one in results),
            sum(one.clip_share for one in results),
            sum(map(len, rows)),
            sum(sum(row.weights_T) for row in rows),
        ).sum(0)
        ratio_max = float(self.over_processes(max(one.ratio_max for one in results)).max())
        loss, kl, entropy, clip_share, tokens, weight = sums.tolist()
        # Without a KL groups of equal rewards are left out, so that the weights of the others do not sum to 1.
        share = 1 / weight if weight else 0.0
        told = kl * share if self._config.beta else None
        return Updated(loss, norm, rate, told, entropy * share, clip_share * share, ratio_max, int(tokens))

    def _rate(self, iteration: int) -> float:
        config = self._config
        risen = min(1.0, iteration / max(1, config.warmup))
        done = max(0, iteration - config.warmup) / max(1, config.iterations - config.warmup)
        return config.learning_rate * risen * (1 - (1 - config.final_share) * min(1.0, done))

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Put back weights as :meth:`trained` gave them; the reference stays.

        Raises:
            ConfigurationError: they are those of another model.
        """
        own = self.trained()
        if own.keys() != weights.keys() or any(own[name].shape != one.shape for name, one in weights.items()):
            msg = "The checkpoint's weights are those of another model: model.* or its LoRA adapter was changed."
            raise ConfigurationError(msg)
        with torch.no_grad():
            for name, one in weights.items():
                own[name].copy_(one)

    def trained(self) -> dict[str, Tensor]:
        """The weights that are trained, by name."""
        return {name: one for name, one in self.model.named_parameters() if one.requires_grad}

    def _backward_of_all(self, batches: list[list[Row]]) -> list[LossResult]:
        # Every process goes through its model equally often: else those that are done would wait for ever.
        count = max(1, int(self.over_processes(len(batches)).max()))
        results: list[LossResult] = []
        for number in range(count):
            batch = batches[number] if number < len(batches) else [_nothing()]
            last = number == count - 1
            with nullcontext() if last else self._accelerator.no_sync(self._model), _memory_error():
                results.append(self._backward(batch))
        return results

    def _backward(self, rows: list[Row]) -> LossResult:
        device = self._accelerator.device
        batch = padded(rows)

        def tensor(array: Any) -> Tensor:  # noqa: ANN401  arrays of several types
            return torch.from_numpy(array).to(device)

        ids_B_T, is_action_B_T = tensor(batch.ids_B_T), tensor(batch.is_action_B_T)
        attention_B_T = tensor(batch.attention_B_T)
        asked: dict[str, Any] = {"attention_B_T": attention_B_T, "temperature": self._config.temperature}
        reference_B_T: Tensor | None = None
        if self._config.beta:
            with torch.no_grad(), self._accelerator.autocast(), self._as_reference() as reference:
                reference_B_T = action_logprobs(reference, ids_B_T, is_action_B_T, **asked).logprobs_B_T
        now = action_logprobs(self._model, ids_B_T, is_action_B_T, **asked)
        result = grpo_loss(
            LossInputs(
                logprobs_B_T=now.logprobs_B_T,
                old_logprobs_B_T=tensor(batch.logprobs_B_T),
                ref_logprobs_B_T=reference_B_T,
                advantages_B_T=tensor(batch.advantages_B_T),
                weights_B_T=tensor(batch.weights_B_T),
                steps_B_T=tensor(batch.steps_B_T),
                entropies_B_T=now.entropies_B_T,
                sources=batch.sources,
            ),
            self._settings,
        )
        # The gradients of the processes are averaged; what is wanted is their sum.
        self._accelerator.backward(result.loss * self._accelerator.num_processes)
        return result

    def _as_reference(self) -> AbstractContextManager[Any]:
        return nullcontext(self._reference) if self._reference is not None else _adapter_off(self.model)

    def over_processes(self, *values: float) -> Tensor:
        """The values of all processes, [P, N], in float64."""
        mine = torch.tensor([values], dtype=torch.float64, device=self._accelerator.device)
        return cast("Tensor", self._accelerator.gather(mine))


def _has_adapter(model: Any) -> bool:  # noqa: ANN401  as above
    return hasattr(model, "disable_adapter")


@contextmanager
def _adapter_off(model: Any) -> Generator[Any]:  # noqa: ANN401  as above
    training = model.training
    with model.eval().disable_adapter():
        yield model
    model.train(training)


def _nothing() -> Row:
    """A row without an action: it gives a loss of 0, with a gradient of 0."""
    row = Row()
    row.read([0, 0])
    return row


@contextmanager
def _memory_error() -> Generator[None]:
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        msg = (
            "Memory ran out in an update. Lower grpo.micro_batch_tokens, or set model.gradient_checkpointing, "
            'model.dtype = "bfloat16" or model.lora_rank.'
        )
        raise ConfigurationError(msg) from error
