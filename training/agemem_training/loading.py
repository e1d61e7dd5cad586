"""The policy that is to be trained: a checkpoint, a model of the hub, or the small one that is shipped."""

# torch, transformers and peft are extras: where they are installed their types are checked, elsewhere the rest still is
# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from agemem_policies.local.checkpoint import first_line
from agemem_mcp.errors import ConfigurationError

if TYPE_CHECKING:
    from agemem_training.config import ModelConfig

SHIPPED = "warm-start"
"""``model.path`` that stands for the mini policy after its warm start, as it comes with this package."""


@dataclass(frozen=True, slots=True)
class Trainable:
    """A policy to be trained."""

    model: Any
    tokenizer: Any
    eos_ids: frozenset[int]

    @property
    def parameters(self) -> int:
        """How many numbers the model is."""
        return sum(one.numel() for one in self.model.parameters())


def shipped_warm_start() -> Path:
    """The folder of the mini policy's warm start.

    Raises:
        ConfigurationError: this installation lacks it.
    """
    folder = Path(str(resources.files("agemem_training") / "data" / "mini"))
    if not (folder / "config.json").is_file():
        msg = "This installation has no warm start. Train from scratch: agemem-mcp train --preset mini."
        raise ConfigurationError(msg)
    return folder


def load_trainable(config: ModelConfig) -> Trainable:
    """Load the policy that a configuration names, with a fresh LoRA adapter if it asks for one.

    Raises:
        ConfigurationError: it cannot be loaded, has no chat template, or peft is missing.
    """
    if config.path is None:
        msg = "No model is named: give model.path, or --model."
        raise ConfigurationError(msg)
    named = str(shipped_warm_start()) if config.path == SHIPPED else str(Path(config.path).expanduser())
    where = named if Path(named).is_dir() else config.path
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(where)
        model: Any = AutoModelForCausalLM.from_pretrained(where, dtype=getattr(torch, config.dtype))
    except Exception as error:
        msg = (
            f"The model {config.path!r} cannot be loaded: {first_line(error)}. Name a folder that save_pretrained "
            "wrote, or a model of the hub that this machine can reach."
        )
        raise ConfigurationError(msg) from error
    if not getattr(tokenizer, "chat_template", None):
        msg = f"The tokenizer of {config.path!r} has no chat template. Use a model that was trained to chat."
        raise ConfigurationError(msg)
    return Trainable(_prepared(model, config), tokenizer, eos_ids_of(model, tokenizer))


def eos_ids_of(model: Any, tokenizer: Any) -> frozenset[int]:  # noqa: ANN401  transformers' classes have no common type
    """Every token that ends a turn."""
    named: set[int | None] = {tokenizer.eos_token_id}
    for config in (model.generation_config, model.config.get_text_config()):
        ids: int | list[int] | None = getattr(config, "eos_token_id", None)
        named |= set(ids) if isinstance(ids, list) else {ids}
    return frozenset(one for one in named if one is not None)


def _prepared(model: Any, config: ModelConfig) -> Any:  # noqa: ANN401  as above
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if config.lora_rank is None:
        return model
    try:
        from peft import LoraConfig, get_peft_model  # noqa: PLC0415  adapters alone need it
    except ImportError as error:
        msg = f"A LoRA adapter needs peft ({error}): pip install 'agemem-mcp[train]'."
        raise ConfigurationError(msg) from error
    if config.gradient_checkpointing:
        model.enable_input_require_grads()
    adapter = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        target_modules=list(config.lora_targets),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, adapter)


def save_merged(model: Any, tokenizer: Any, folder: Path) -> None:  # noqa: ANN401  as above
    """Save a checkpoint that transformers and vLLM load, an adapter merged into it.

    Raises:
        OSError: it cannot be written.
    """
    whole = model
    if hasattr(model, "merge_and_unload"):
        import copy  # noqa: PLC0415  an adapter alone needs it: training may go on with it

        whole = copy.deepcopy(model).merge_and_unload()
    whole.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
