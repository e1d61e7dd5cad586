"""What a run will need, before it is started."""

# torch and transformers are extras: where they are installed their types are checked, elsewhere the rest still is
# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from agemem_policies.local.checkpoint import first_line
from agemem_training.loading import SHIPPED, shipped_warm_start
from agemem_training.mini.model import build_model

if TYPE_CHECKING:
    from agemem_training.config import RunConfig

_BYTES = {"float32": 4, "bfloat16": 2}
_ADAM_BYTES = 8
"""Two moments in float32."""
_VOCABULARY = 1000
"""About that many words has the tokenizer of a policy from scratch."""
_ACTIVATIONS_PER_LAYER = 34
"""Bytes kept for the backward pass, per token, layer and unit of width, in two-byte numbers (Korthikanti et al. 2022)."""


class _Ids:
    eos_token_id = 1
    pad_token_id = 0

    def __len__(self) -> int:
        return _VOCABULARY


def estimate(config: RunConfig) -> str:
    """Parameters and memory, as text for people; says so where a model cannot be looked at from here."""
    try:
        model = _without_weights(config)
    except Exception as error:  # noqa: BLE001  a hub that is out of reach, a folder that is missing: an estimate fails for no reason of its own
        return f"# parameters: unknown, the model cannot be looked at from here ({first_line(error)})"
    total = sum(one.numel() for one in model.parameters())
    shape = model.config.get_text_config()
    trained = total if config.model.lora_rank is None else _adapter_parameters(model, config)
    size = _BYTES[config.model.dtype]
    weights = total * size
    reference = weights if config.grpo.beta and config.model.lora_rank is None else 0
    optimizer = trained * (_ADAM_BYTES + size)
    per_token = _ACTIVATIONS_PER_LAYER * shape.hidden_size * size // 2
    layers = 1 if config.model.gradient_checkpointing else shape.num_hidden_layers
    activations = config.grpo.micro_batch_tokens * per_token * layers
    lines = [
        f"parameters: {total:,}" + (f", of which {trained:,} are trained" if trained != total else ""),
        f"weights {_gb(weights)}, reference {_gb(reference)}, gradients and optimizer {_gb(optimizer)}, "
        f"activations of a micro-batch about {_gb(activations)}: together about "
        f"{_gb(weights + reference + optimizer + activations)}, keys and values of rollouts aside",
        f"an iteration: {config.grpo.tasks} tasks × {config.grpo.trajectories} trajectories; "
        f"{config.grpo.iterations} iterations",
    ]
    return "\n".join(f"# {line}" for line in lines)


def _without_weights(config: RunConfig) -> Any:  # noqa: ANN401  transformers' model classes have no common type
    with torch.device("meta"):
        if config.model.path is None:
            return build_model(config.model, _Ids(), seed=0)
        path = shipped_warm_start() if config.model.path == SHIPPED else Path(config.model.path).expanduser()
        where = str(path) if path.is_dir() else config.model.path
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(where))


def _adapter_parameters(model: Any, config: RunConfig) -> int:  # noqa: ANN401  as above
    rank = config.model.lora_rank or 0
    return sum(
        rank * (layer.in_features + layer.out_features)
        for name, layer in model.named_modules()
        if name.rpartition(".")[2] in config.model.lora_targets
    )


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size < 1e10 else f"{size / 1e9:.0f} GB"  # noqa: PLR2004  no decimals where they say nothing
