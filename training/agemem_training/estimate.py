"""What a run will need, before it is started."""

# torch and transformers are extras: where they are installed their types are checked, elsewhere the rest still is
# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from agemem_policies.local.checkpoint import first_line
from agemem_training.loading import located
from agemem_training.mini.model import build_model

if TYPE_CHECKING:
    from agemem_training.config import RunConfig

_BYTES = {"float32": 4, "bfloat16": 2}
_TRAINED_BYTES = 4 + 8
"""Of a weight that is trained, beside itself: its gradient and AdamW's two moments, in float32."""
_VOCABULARY = 1000
"""About that many words has the tokenizer of a policy from scratch."""
_ACTIVATIONS_PER_LAYER = 34
"""Bytes for the backward pass in two-byte numbers, per token, layer and unit of width (Korthikanti et al., 2022)."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes are of one process; keys and values of rollouts come on top."""

    parameters: int
    trained_parameters: int
    weights_bytes: int
    reference_bytes: int
    """0 where an adapter is trained: with it off, the model is its own reference."""
    optimizer_bytes: int
    """Gradients included."""
    activations_bytes: int
    """Of one micro-batch, about."""

    @property
    def bytes(self) -> int:
        """All of it."""
        return self.weights_bytes + self.reference_bytes + self.optimizer_bytes + self.activations_bytes

    def __str__(self) -> str:
        """For people, as comments of TOML."""
        fewer = self.trained_parameters != self.parameters
        trained = f", of which {self.trained_parameters:,} are trained" if fewer else ""
        return (
            f"# parameters: {self.parameters:,}{trained}\n"
            f"# memory of each process: about {_gb(self.bytes)}, keys and values of rollouts aside\n"
            f"#   (weights {_gb(self.weights_bytes)}, reference {_gb(self.reference_bytes)}, "
            f"gradients and optimizer {_gb(self.optimizer_bytes)},\n"
            f"#   activations of a micro-batch about {_gb(self.activations_bytes)})"
        )


class _Ids:
    eos_token_id = 1
    pad_token_id = 0

    def __len__(self) -> int:
        return _VOCABULARY


def estimate(config: RunConfig) -> Estimate | str:
    """Parameters and memory; where the model cannot be looked at from here, why not."""
    try:
        model = _without_weights(config)
    except Exception as error:  # noqa: BLE001  no estimate is no reason to fail: a hub out of reach, a missing folder
        return first_line(error)
    total = sum(one.numel() for one in model.parameters())
    adapter = config.model.lora_rank is not None
    trained = _adapter_parameters(model, config) if adapter else total
    shape = model.config.get_text_config()
    # What is trained is kept in float32, whatever the arithmetic.
    weights = total * _BYTES[config.model.dtype] + trained * _BYTES["float32"] if adapter else total * _BYTES["float32"]
    layers = 1 if config.model.gradient_checkpointing else shape.num_hidden_layers
    per_token = _ACTIVATIONS_PER_LAYER * shape.hidden_size * _BYTES[config.model.dtype] // 2
    return Estimate(
        parameters=total,
        trained_parameters=trained,
        weights_bytes=weights,
        reference_bytes=weights if config.grpo.beta and not adapter else 0,
        optimizer_bytes=trained * _TRAINED_BYTES,
        activations_bytes=config.grpo.micro_batch_tokens * per_token * layers,
    )


def _without_weights(config: RunConfig) -> Any:  # noqa: ANN401  transformers' model classes have no common type
    if config.model.path is None:
        with torch.device("meta"):
            return build_model(config.model, _Ids(), seed=0)
    where, options = located(config.model)
    shape = AutoConfig.from_pretrained(where, **options)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(shape)


def _adapter_parameters(model: Any, config: RunConfig) -> int:  # noqa: ANN401  as above
    rank = config.model.lora_rank or 0
    return sum(
        rank * (layer.in_features + layer.out_features)
        for name, layer in model.named_modules()
        if name.rpartition(".")[2] in config.model.lora_targets
    )


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size < 1e10 else f"{size / 1e9:.0f} GB"  # noqa: PLR2004  no decimals where they say nothing
