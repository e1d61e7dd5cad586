"""Models of other kinds than the one that most tests use: their memories differ, and so does who may join when."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from agemem_policies.local import LocalPolicy
from agemem_policies.policy import ChatMessage, Prompt

WHY = "a model in this process needs torch and transformers: `pip install 'agemem-mcp[local]'`"
torch = pytest.importorskip("torch", reason=WHY)
transformers = pytest.importorskip("transformers", reason=WHY)

from tests.unit.policies.local.tiny_checkpoint import write_model  # noqa: E402  after the skip

if TYPE_CHECKING:
    from pathlib import Path

WIDTHS: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
MODELS: dict[str, dict[str, Any]] = {
    "Llama": WIDTHS,
    "Mistral": WIDTHS | {"sliding_window": 16, "num_key_value_heads": 2},
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512},
    "Mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
    "Lfm2": WIDTHS | {"layer_types": ["conv", "full_attention"], "num_key_value_heads": 2},
}


@pytest.mark.parametrize("kind", MODELS)
async def test_every_kind_of_model_says_alone_and_in_a_batch_what_transformers_says(tmp_path: Path, kind: str) -> None:
    folder = write_model(tmp_path / "tiny", getattr(transformers, f"{kind}Config"), **MODELS[kind])
    policy = LocalPolicy(folder, max_tokens=24)
    prompts = [Prompt((ChatMessage("user", text),)) for text in ("hello", "a longer question about tea", "é")]
    together = await asyncio.gather(*map(policy.act, prompts))
    alone = [await policy.act(prompt) for prompt in prompts]
    await policy.close()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    for one, other in zip(together, alone, strict=True):
        ids = torch.tensor([one.prompt_ids])
        given = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24, pad_token_id=0
        )
        assert one.action_ids == other.action_ids == tuple(given[0, ids.shape[1] :].tolist())
