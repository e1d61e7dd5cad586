"""What a run will need, before it is started.

Activations of a micro-batch of T tokens, of L layers, in bytes. A is the width of all heads together, I that of the
feed-forward part, N the sum of the widths of a layer's norms, in that of its adapted layers' inputs, V the vocabulary:

.. code-block:: text

    stored   L·T·H·h                            with gradient checkpointing: what each layer is given
    layer    T·(12·N + 20·A + 16·I)             float32
             T·(14·N + 10·A +  8·I)             float32 weights, bfloat16 arithmetic
             T·( 4·N +  8·A +  6·I + 4·in)      bfloat16 weights, an adapter in float32, which copies what it is given
    logits   20·T·V                             themselves and all that is made of them
             2·h·T·V + 20·LOGITS_AT_ONCE        where they are more than that: the rest is made of some at a time
    passing  12·T·I                             gradients within a layer, on the way back
    in all   stored + max(layer + passing, logits)      with gradient checkpointing
             L·layer + max(passing, logits)             without

    h        2 where weights are bfloat16, else 4; bfloat16 arithmetic on float32 weights also copies these: 2 each

Terms of the layers are those of norms in float32, a gated feed-forward part and attention that keeps no scores, as
Llama, Qwen and Mistral have them. T is that of `grpo.micro_batch_tokens`, or of a row as long as the context if that is
longer. Logits are counted as if the policy had written all tokens, which is the most there can be.
"""

# torch and transformers are extras: where they are installed their types are checked, elsewhere the rest still is
# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from agemem_policies.local.checkpoint import first_line
from agemem_training.loading import located
from agemem_training.loss import LOGITS_AT_ONCE
from agemem_training.mini.model import build_model

if TYPE_CHECKING:
    from agemem_training.config import ModelConfig, RunConfig

_BYTES = {"float32": 4, "bfloat16": 2}
_TRAINED_BYTES = 4 + 8
"""Of a weight that is trained, beside itself: its gradient and AdamW's two moments, in float32."""
_VOCABULARY = 1000
"""About that many words has the tokenizer of a policy from scratch."""
_LOGIT_BYTES = 20
"""Of one, from what the model gives to a log-probability, an entropy and the gradient; measured."""


_PASSING_BYTES = 12
"""Of a feed-forward part's inner number, for gradients that come and go; measured."""


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
    """Of one micro-batch, at most, about."""

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
    # What is trained is kept in float32, whatever the arithmetic.
    weights = total * _BYTES[config.model.dtype] + trained * _BYTES["float32"] if adapter else total * _BYTES["float32"]
    return Estimate(
        parameters=total,
        trained_parameters=trained,
        weights_bytes=weights,
        reference_bytes=weights if config.grpo.beta and not adapter else 0,
        optimizer_bytes=trained * _TRAINED_BYTES,
        activations_bytes=activations_bytes(
            model, config.model, max(config.grpo.micro_batch_tokens, config.environment.budget_tokens)
        ),
    )


def activations_bytes(model: Any, config: ModelConfig, tokens: int) -> int:  # noqa: ANN401  as below
    """What an update keeps for the gradient, at its peak: see the top of this file.

    Args:
        model: without an adapter; may be without weights.
        config: how it is trained.
        tokens: of a micro-batch.
    """
    shape = model.config.get_text_config()
    adapter = config.lora_rank is not None
    mixed = config.dtype == "bfloat16" and not adapter
    held = 4 if mixed else _BYTES[config.dtype]
    logits = tokens * shape.vocab_size
    # Where all are taken at once, what is made of them holds the two already.
    themselves = 2 * held * logits if logits > LOGITS_AT_ONCE else 0
    of_logits = themselves + _LOGIT_BYTES * min(logits, LOGITS_AT_ONCE)
    layer, passing = tokens * _layer_bytes(model, config), tokens * _PASSING_BYTES * shape.intermediate_size
    casts = 2 * sum(one.numel() for one in model.parameters()) if mixed else 0
    if config.gradient_checkpointing:
        stored = shape.num_hidden_layers * tokens * shape.hidden_size * held
        return casts + stored + max(layer + passing, of_logits)
    return casts + shape.num_hidden_layers * layer + max(passing, of_logits)


def _layer_bytes(model: Any, config: ModelConfig) -> int:  # noqa: ANN401  as below
    """Of one token in one layer."""
    shape = model.config.get_text_config()
    head = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    heads, inner = head * shape.num_attention_heads, shape.intermediate_size
    first = {name: one for name, one in model.named_modules() if ".layers.0." in name}
    norms = sum(
        heads if one.weight.numel() == head else one.weight.numel()
        for one in first.values()
        if type(one).__name__.endswith("Norm")
    )
    if config.lora_rank is not None:
        copied = sum(one.in_features for name, one in first.items() if name.rpartition(".")[2] in config.lora_targets)
        return _BYTES[config.dtype] * (4 * heads + 3 * inner) + 4 * norms + 4 * copied
    if config.dtype == "bfloat16":
        return 14 * norms + 10 * heads + 8 * inner
    return 12 * norms + 20 * heads + 16 * inner


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
