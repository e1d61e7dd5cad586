"""The mini policy's model: a Llama of a million parameters."""

# transformers is an extra: where it is installed its types are checked, elsewhere the rest still is
# pyright: reportMissingImports=false, reportUnknownVariableType=false

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

if TYPE_CHECKING:
    from agemem_training.config import ModelConfig

_POSITIONS = 4096


def build_model(config: ModelConfig, tokenizer: Any, *, seed: int) -> Any:  # noqa: ANN401  transformers' classes have no common type
    """A model with random weights.

    A Llama, because transformers gives a checkpoint that calls itself a Qwen2 that family's tokenizer, whatever
    tokenizer lies beside it.

    Args:
        config: its size.
        tokenizer: its vocabulary.
        seed: of the weights.
    """
    torch.manual_seed(seed)
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        intermediate_size=2 * config.hidden_size,
        max_position_embeddings=_POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )
    model = LlamaForCausalLM(shape)
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model
