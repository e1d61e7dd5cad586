"""The mini policy's model: an AFMoE without experts, of a million parameters."""

# transformers is an extra: where it is installed its types are checked, elsewhere the rest still is
# pyright: reportMissingImports=false, reportUnknownVariableType=false

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import AfmoeConfig, AfmoeForCausalLM, GenerationConfig

if TYPE_CHECKING:
    from agemem_training.config import ModelConfig

_POSITIONS = 4096


def build_model(config: ModelConfig, tokenizer: Any, *, seed: int) -> Any:  # noqa: ANN401  transformers' classes have no common type
    """A model with random weights.

    An AFMoE all of whose layers are dense. Like a SmolLM3 it has layers without positions (NoPE), which find what to
    copy by what stands around it, however far away; its normalised queries and keys, its norms before and after each
    part and its gated attention together learn copying and decisions far sooner (`LOG.md`). It gives positions to the
    layers that it calls sliding; the window here is twice as long as the context, so that they see all of it, what
    pads a batch counted too. And transformers takes the tokenizer that lies beside such a checkpoint, while to one that
    calls itself a Qwen2 it gives that family's.

    Args:
        config: its size.
        tokenizer: its vocabulary.
        seed: of the weights.
    """
    torch.manual_seed(seed)
    shape = AfmoeConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        num_hidden_layers=config.layers,
        num_dense_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        head_dim=config.hidden_size // config.heads,
        # Narrow, to pay for the weights of attention's gates: a start stays below 4 MB.
        intermediate_size=5 * config.hidden_size // 3,
        layer_types=[
            "sliding_attention" if layer < config.rope_layers else "full_attention" for layer in range(config.layers)
        ],
        sliding_window=2 * _POSITIONS,
        max_position_embeddings=_POSITIONS,
        tie_word_embeddings=True,
        mup_enabled=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )
    model = AfmoeForCausalLM(shape)
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model
