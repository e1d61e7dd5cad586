"""The mini policy's model: a SmolLM3 of a million parameters."""

# transformers is an extra: where it is installed its types are checked, elsewhere the rest still is
# pyright: reportMissingImports=false, reportUnknownVariableType=false

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, SmolLM3Config, SmolLM3ForCausalLM

if TYPE_CHECKING:
    from agemem_training.config import ModelConfig

_POSITIONS = 4096


def build_model(config: ModelConfig, tokenizer: Any, *, seed: int) -> Any:  # noqa: ANN401  transformers' classes have no common type
    """A model with random weights.

    A SmolLM3, because of the well-known decoders it alone has layers without positions (NoPE): what is copied is found
    by what stands around it, however far away. And transformers takes the tokenizer that lies beside such a checkpoint,
    while to one that calls itself a Qwen2 it gives that family's.

    Args:
        config: its size.
        tokenizer: its vocabulary.
        seed: of the weights.
    """
    torch.manual_seed(seed)
    shape = SmolLM3Config(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        intermediate_size=2 * config.hidden_size,
        no_rope_layers=[int(layer < config.rope_layers) for layer in range(config.layers)],
        use_sliding_window=False,
        max_position_embeddings=_POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )
    model = SmolLM3ForCausalLM(shape)
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model
