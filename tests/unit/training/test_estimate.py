"""The memory that a dry run tells, beside what an update takes, and whether presets fit where they say they do."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any

import pytest

WHY = "training needs torch, transformers, accelerate and peft: `pip install 'agemem-mcp[train]'`"
for extra in ("torch", "transformers", "accelerate", "peft"):
    pytest.importorskip(extra, reason=WHY)

from accelerate import Accelerator  # noqa: E402  as above
from accelerate.state import AcceleratorState  # noqa: E402  as above
from tests.unit.policies.local.tiny_checkpoint import byte_tokenizer  # noqa: E402  as above
from torch.profiler import ProfilerActivity, profile  # noqa: E402  as above
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config  # noqa: E402  as above

from agemem_training import estimate as estimating  # noqa: E402  as above
from agemem_training import loss  # noqa: E402  as above
from agemem_training.config import GrpoConfig, ModelConfig, changed, load_preset  # noqa: E402  as above
from agemem_training.estimate import Estimate, activations_bytes, estimate  # noqa: E402  as above
from agemem_training.learner import Learner  # noqa: E402  as above
from agemem_training.loading import load_trainable  # noqa: E402  as above
from agemem_training.rows import Row  # noqa: E402  as above

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from transformers import PreTrainedConfig

ROWS, TOKENS = 2, 256
FEW_WORDS, MANY_WORDS = 600, 14_000
ADAPTER: dict[str, Any] = {"lora_rank": 4, "dtype": "bfloat16"}


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # So that a small model has many logits.
    for module in (loss, estimating):
        monkeypatch.setattr(module, "LOGITS_AT_ONCE", 2**20)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def written(folder: Path, words: int, inner: int) -> str:
    """A checkpoint of Qwen's form, with a vocabulary that its tokenizer does not need."""
    shape = Qwen2Config(
        vocab_size=words,
        hidden_size=128,
        intermediate_size=inner,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    Qwen2ForCausalLM(shape).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


def row(words: int) -> Row:
    """A row of which the policy wrote all but the first token."""
    ids = [number % words for number in range(TOKENS)]
    count = len(ids) - 1
    row = Row(advantage=1.0)
    row.read(ids[:1])
    row.ids_T += ids[1:]
    row.steps_T += [0] * count
    row.logprobs_T += [-9.0] * count
    row.weights_T += [1 / (count * ROWS)] * count
    return row


def peak_bytes(learner: Learner, rows: list[Row]) -> int:
    """The most that an update held at once, beside what it began with."""
    learner.update(rows, iteration=1)  # leaves gradients and moments behind, which are no activations
    learner.optimizer.zero_grad = lambda: None
    learner.optimizer.step = lambda: None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as measured:
        learner.update(rows, iteration=1)
    events: Any = measured.profiler
    changes = sorted(
        (one.start_ns(), one.nbytes()) for one in events.kineto_results.events() if one.name() == "[memory]"
    )
    return max(accumulate(size for _, size in changes))


@pytest.mark.parametrize(
    ("how", "words", "inner"),
    [
        pytest.param(ADAPTER | {"gradient_checkpointing": True}, MANY_WORDS, 640, id="an adapter, many words"),
        pytest.param(ADAPTER | {"gradient_checkpointing": True}, FEW_WORDS, 2048, id="an adapter, few words"),
        pytest.param(ADAPTER, FEW_WORDS, 640, id="an adapter, without recomputing"),
        pytest.param({}, FEW_WORDS, 640, id="all weights"),
        pytest.param({"dtype": "bfloat16", "gradient_checkpointing": True}, MANY_WORDS, 640, id="half the precision"),
    ],
)
def test_activations_are_estimated_to_a_quarter(how: dict[str, Any], words: int, inner: int, tmp_path: Path) -> None:
    config = ModelConfig(path=written(tmp_path, words, inner), **how)
    model = load_trainable(config).model
    mixed = config.dtype == "bfloat16" and config.lora_rank is None
    if mixed:
        model.float()
    learner = Learner(
        model, Accelerator(cpu=True, mixed_precision="bf16" if mixed else "no"), GrpoConfig(micro_batch_tokens=10**6)
    )
    measured = peak_bytes(learner, [row(words) for _ in range(ROWS)])
    plain = load_trainable(config.model_copy(update={"lora_rank": None})).model
    assert activations_bytes(plain, config, ROWS * TOKENS) == pytest.approx(measured, rel=0.25)


QWEN2_5_7B = Qwen2Config(
    vocab_size=152_064,
    hidden_size=3584,
    intermediate_size=18_944,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
)
QWEN3_4B = Qwen3Config(
    vocab_size=151_936,
    hidden_size=2560,
    intermediate_size=9728,
    num_hidden_layers=36,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    tie_word_embeddings=True,
)


@pytest.mark.parametrize(
    ("preset", "shape", "parameters"),
    [("qwen2.5-7b-hotpotqa", QWEN2_5_7B, 7.6e9), ("qwen3-4b-hotpotqa", QWEN3_4B, 4.0e9)],
)
def test_presets_for_one_card_of_80_gb_fit_it(
    preset: str, shape: PreTrainedConfig, parameters: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimating, "LOGITS_AT_ONCE", 2**26)
    shape.save_pretrained(tmp_path)
    config = changed(load_preset(preset), model={"path": str(tmp_path)})
    found = estimate(config)
    assert isinstance(found, Estimate)
    assert found.parameters == pytest.approx(parameters, rel=0.02)
    # Logits of the paper's vocabulary are more than all layers together keep.
    assert found.activations_bytes > 10e9
    # An update has no keys and values, and a rollout no gradients; a tenth is left to fragments.
    heads, width = shape.num_key_value_heads, getattr(shape, "head_dim", None) or 128
    kept = 2 * 2 * shape.num_hidden_layers * heads * width * config.environment.budget_tokens
    rollout_bytes = found.weights_bytes + config.grpo.tasks * config.grpo.trajectories * kept
    assert max(found.bytes, rollout_bytes) < 0.9 * 80e9
