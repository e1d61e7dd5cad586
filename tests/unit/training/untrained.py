"""Policies with the mini tokenizer that were never trained: one that writes words, one that writes turns by chance."""

from __future__ import annotations

import random
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from agemem_policies.policy import ChatMessage, Prompt
from agemem_training.loss import action_logprobs
from agemem_training.mini.drills import drill
from agemem_training.mini.tokenizer import build_tokenizer
from agemem_training.tasks.synthetic.names import FOODS

if TYPE_CHECKING:
    from pathlib import Path

    from agemem_policies.policy import Completion

SYSTEM = "You manage memory."
ADD = '</think><tool_call>[{"name": "Add_memory", "arguments": {"content": "'
CLOSE = '", "memory_type": "fact"}}]</tool_call>'
ANSWER = "</think><answer>"
SUCCESSORS: dict[str, tuple[str, ...]] = {
    "<|assistant|>": ("<think>",),
    "<think>": ("new", "done"),
    "new": (ADD, "new"),
    "done": (ANSWER,),
    ADD: FOODS[:8],
    **dict.fromkeys(FOODS[:8], (CLOSE,)),
    ANSWER: ("ok",),
    "ok": ("</answer>",),
}
"""What follows what in turns that are written by chance: a food is stored, or the message is answered with "ok"."""


@cache
def mini_tokenizer() -> Any:
    """The mini policy's tokenizer, with the words of drills."""
    rng = random.Random("words")
    exchanges = [
        one for _ in range(400) for split in ("train", "test") for one in drill(rng, system=SYSTEM, split=split)
    ]
    return build_tokenizer(
        sorted({text for one in exchanges for text in (one.turn, *(message.content for message in one.shown))})
    )


def wordy_model(*, seed: int = 1) -> Any:
    """A Llama with random weights that writes foods and now and then ends its turn, in attention to all before it."""
    tokenizer = mini_tokenizer()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(_shape(initializer_range=0.15, hidden_size=32, num_attention_heads=4))
    ids = tokenizer.convert_tokens_to_ids([*FOODS, "</answer>", tokenizer.eos_token])
    with torch.no_grad():
        # Logits of 0 for all others, which hardly ever are among the highest.
        weights = torch.zeros_like(model.lm_head.weight)
        weights[ids] = torch.randn(len(ids), 32) * 0.9
        model.lm_head.weight.copy_(weights)
    return _ready(model)


def chatty_model(*, seed: int = 13) -> Any:
    """A Llama that writes turns by :data:`SUCCESSORS`; how probable each is depends a little on all before it."""
    tokenizer = mini_tokenizer()
    model: Any = LlamaForCausalLM(_shape(hidden_size=32, num_attention_heads=2, num_hidden_layers=1))
    layer = model.model.layers[0]
    torch.manual_seed(seed)
    with torch.no_grad():
        # Drawn anew: how many words there are must not change what is drawn.
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
            projection.weight.normal_(0, 0.02)
        layer.self_attn.o_proj.weight.normal_(0, 0.1)
        layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(32)[-1].expand(len(tokenizer), 32))
        model.lm_head.weight.zero_()
        for place, (before, after) in enumerate(SUCCESSORS.items()):
            model.model.embed_tokens.weight[_id(before)] = torch.eye(32)[place]
            for one in after:
                model.lm_head.weight[_id(one), place] = 13 / 32**0.5
    return _ready(model)


def saved(model: Any, folder: Path) -> Path:
    """Write a model and the tokenizer."""
    model.save_pretrained(folder)
    mini_tokenizer().save_pretrained(folder)
    return folder


def prompt_of(*texts: str) -> Prompt:
    """The system prompt, then texts of user and assistant in turn."""
    said = [ChatMessage("assistant" if place % 2 else "user", text) for place, text in enumerate(texts)]
    return Prompt((ChatMessage("system", SYSTEM), *said))


def full_pass(model: Any, done: Completion, *, temperature: float = 1.0) -> torch.Tensor:
    """Log-probabilities of a turn's tokens by one forward pass over prompt and turn."""
    ids_B_T = torch.tensor([[*done.prompt_ids, *done.action_ids]])
    is_action_B_T = torch.zeros_like(ids_B_T, dtype=torch.bool)
    is_action_B_T[:, len(done.prompt_ids) :] = True
    with torch.no_grad():
        passed = action_logprobs(model, ids_B_T, is_action_B_T, temperature=temperature)
    return passed.logprobs_B_T[0, len(done.prompt_ids) :]


def _id(word: str) -> int:
    return mini_tokenizer().get_vocab()[word]


def _shape(**changes: Any) -> LlamaConfig:
    tokenizer = mini_tokenizer()
    shape: dict[str, Any] = {"intermediate_size": 64, "num_hidden_layers": 2, "num_key_value_heads": 2}
    return LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **shape | changes,
    )


def _ready(model: Any) -> Any:
    model.generation_config.do_sample = False
    return model.eval()
