"""Checkpoints of a few hundred kilobytes, written on the spot: one with random weights, one that follows a script."""

# torch and transformers are extras; who imports this skips where they are absent
# pyright: reportMissingImports=false

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

if TYPE_CHECKING:
    from pathlib import Path

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BARE = "{% for message in messages %}{{ message.content }}{% endfor %}"
"""A prompt that ends with the last content, so that a script can begin differently for each."""
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|eot|>")
WINDOW = 512


def byte_tokenizer(*, words: tuple[str, ...] = (), template: str | None = CHATML) -> Any:
    """One token per byte, then one for each of the words (ASCII), then the special ones."""
    vocabulary = {spelling: number for number, spelling in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for word in words:
        vocabulary[_in_vocabulary(word)] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(spelling, special=True, normalized=False) for spelling in SPECIAL])
    whole: Any = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=WINDOW
    )
    whole.chat_template = template
    return whole


def write_random(folder: Path, *, template: str | None = CHATML, **changes: Any) -> Path:
    """A Qwen2 with random weights that never ends a turn of its own accord."""
    tokenizer = byte_tokenizer(template=template)
    shape: dict[str, Any] = {
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    shape |= {"num_key_value_heads": 2, "max_position_embeddings": WINDOW, "tie_word_embeddings": False}
    torch.manual_seed(5)
    config = Qwen2Config(vocab_size=len(tokenizer), initializer_range=0.4, **shape | changes)
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        # logits of 0: among hundreds of others never the highest
        model.lm_head.weight[[tokenizer.convert_tokens_to_ids(spelling) for spelling in SPECIAL]] = 0
    return _saved(folder, model, tokenizer)


def write_model(folder: Path, config_class: Any, **shape: Any) -> Path:
    """A model of any kind with large random weights."""
    tokenizer = byte_tokenizer()
    ends: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    torch.manual_seed(5)
    model: Any = AutoModelForCausalLM.from_config(config_class(vocab_size=len(tokenizer), **ends | shape))
    with torch.no_grad():
        for weights in model.parameters():
            if weights.dim() > 1:
                weights.normal_(0, 0.3)
    return _saved(folder, model, tokenizer)


def write_script(
    folder: Path, *scripts: list[str], ends: tuple[str, ...] = ("<|im_end|>",), window: int = WINDOW
) -> Path:
    """A Qwen2 in which each token has one successor, whatever came before.

    Args:
        folder: where to write.
        scripts: tokens (of one byte, of more, or special) that follow each other. The first is that of a prompt, and
            the last is followed by ``<|im_end|>``.
        ends: tokens that the generation config names as ends.
        window: the most tokens of prompt and answer together.
    """
    # in their order, so that the same scripts give the same ids
    words = tuple(dict.fromkeys(spelling for script in scripts for spelling in script if spelling not in SPECIAL))
    tokenizer = byte_tokenizer(words=tuple(word for word in words if len(word) > 1 and word.isascii()), template=BARE)
    successors: dict[int, int] = {}
    for script in scripts:
        ids = [number for spelling in script for number in token_ids(tokenizer, spelling)]
        assert len(set(ids)) == len(ids), "each token has one successor"
        successors |= dict(zip(ids, [*ids[1:], tokenizer.eos_token_id], strict=True))
    size = -(-len(tokenizer) // 4) * 4
    shape: dict[str, Any] = {"hidden_size": size, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4}
    shape |= {"intermediate_size": 4, "num_hidden_layers": 1, "max_position_embeddings": window}
    model: Any = Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), tie_word_embeddings=False, **shape))
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(len(tokenizer), size))
        model.lm_head.weight.zero_()
        for before, after in successors.items():
            model.lm_head.weight[after, before] = 5.0
    model.generation_config.eos_token_id = [tokenizer.convert_tokens_to_ids(spelling) for spelling in ends]
    return _saved(folder, model, tokenizer)


def token_ids(tokenizer: Any, spelling: str) -> list[int]:
    """The token that is spelled like this as a whole, else those of its bytes."""
    known = tokenizer.get_vocab().get(_in_vocabulary(spelling)) if spelling.isascii() else None
    return [known] if known is not None else tokenizer(spelling, add_special_tokens=False)["input_ids"]


def _in_vocabulary(word: str) -> str:
    """As a vocabulary of bytes spells it (ASCII alone)."""
    return word.replace(" ", "Ġ").replace("\n", "Ċ")


def _saved(folder: Path, model: Any, tokenizer: Any) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
