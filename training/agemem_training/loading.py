"""The policy that is to be trained: a checkpoint, a model of the hub, or the small one that is shipped."""

# torch, transformers and peft are extras: where they are installed their types are checked, elsewhere the rest still is
# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import warnings
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import torch
from huggingface_hub import constants
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from agemem_mcp.errors import ConfigurationError
from agemem_policies.local.checkpoint import eos_ids_of, first_line
from agemem_training.config import SHIPPED

if TYPE_CHECKING:
    from agemem_training.config import ModelConfig, RunConfig

_PATIENCE_S = 5.0


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


def own_device(config: RunConfig) -> torch.device:
    """What a process works on that measures alone, or speaks for the others."""
    return torch.device("cuda" if config.device == "auto" and torch.cuda.is_available() else "cpu")


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
    where, options = located(config)
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(where, **options)
        model: Any = AutoModelForCausalLM.from_pretrained(where, dtype=getattr(torch, config.dtype), **options)
    except Exception as error:
        msg = (
            f"The model {config.path!r} cannot be loaded: {first_line(error)} Name a folder that save_pretrained "
            "wrote, or a model of the hub that this machine can reach."
        )
        raise ConfigurationError(msg) from error
    if not getattr(tokenizer, "chat_template", None):
        msg = f"The tokenizer of {config.path!r} has no chat template. Use a model that was trained to chat."
        raise ConfigurationError(msg)
    return Trainable(_prepared(model, config), tokenizer, eos_ids_of(model, tokenizer))


def located(config: ModelConfig) -> tuple[str, dict[str, Any]]:
    """Where the model is, and how transformers is to look for it.

    Raises:
        ConfigurationError: no model is named, or the shipped one is missing.
    """
    if config.path is None:
        msg = "No model is named: give model.path, or --model."
        raise ConfigurationError(msg)
    folder = shipped_warm_start() if config.path == SHIPPED else Path(config.path).expanduser()
    if folder.is_dir():
        return str(folder), {"local_files_only": True, "trust_remote_code": False}
    return config.path, {"local_files_only": not _hub_answers(), "trust_remote_code": False}


def _hub_answers() -> bool:
    """Whether the hub can be reached; asked once here, where transformers would try for half a minute."""
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        httpx.head(constants.ENDPOINT, timeout=_PATIENCE_S)
    except httpx.HTTPError:
        return False
    return True


def recompute_activations(model: Any) -> None:  # noqa: ANN401  as above
    """Have an update compute anew what it does not keep: ``model.gradient_checkpointing``."""
    # The second is what transformers before 5.24 calls it.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def _prepared(model: Any, config: ModelConfig) -> Any:  # noqa: ANN401  as above
    if config.gradient_checkpointing:
        recompute_activations(model)
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
    try:
        with warnings.catch_warnings():
            # Where a model can have experts, peft takes the targets of an MLP for theirs: dense layers would get none.
            warnings.filterwarnings("error", message=".* no (module|parameter) was matched", category=RuntimeWarning)
            return get_peft_model(model, adapter)
    except (ValueError, RuntimeWarning) as error:  # it has none of the layers, or not all
        msg = f"{config.path!r} takes no LoRA adapter: {first_line(error)} Check model.lora_targets."
        raise ConfigurationError(msg) from error


def save_merged(model: Any, tokenizer: Any, folder: Path) -> None:  # noqa: ANN401  as above
    """Save a checkpoint that transformers and vLLM load.

    Args:
        model: an adapter is merged into it, and it is of no further use for training.
        tokenizer: of the model.
        folder: is made, and what is of the same name in it replaced.

    Raises:
        ConfigurationError: it cannot be written.
    """
    whole = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    try:
        whole.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    except (OSError, RuntimeError, SafetensorError) as error:
        msg = f"The policy cannot be written to {folder} ({error}). Make room first."
        raise ConfigurationError(msg) from error
