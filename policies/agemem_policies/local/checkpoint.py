"""A checkpoint folder of Hugging Face's as a model to run: weights, tokenizer, what ends a turn, how long it may be."""

# torch, transformers and peft are extras: where they are installed their types are checked, elsewhere the rest still is
# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false

from __future__ import annotations

import gc
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from agemem_mcp.errors import AgeMemError, ConfigurationError, ProviderError

if TYPE_CHECKING:
    from agemem_policies.local.chat_ids import ChatTokenizer

_ADAPTER = "adapter_config.json"
_LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""Never a network; never code that a checkpoint brings along (and no question on stdin whether to run it)."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What was loaded."""

    model: Any
    """A causal language model of transformers, in evaluation mode, on its device."""
    tokenizer: ChatTokenizer
    eos_ids: frozenset[int]
    """Every token that ends a turn."""
    window: int | None
    """The most tokens, prompt and answer together; None where the model names no limit."""


def load_checkpoint(folder: Path, *, device: str, dtype: str) -> Checkpoint:
    """Load a model folder, or the folder of a LoRA adapter whose base model is a local folder too.

    Args:
        folder: as ``save_pretrained`` writes it.
        device: as torch names it, or ``auto``: the first GPU, else the processor.
        dtype: ``auto`` for the one that the weights were saved in, or torch's name of one.

    Raises:
        ConfigurationError: the folder has no checkpoint that can be used; the text says what to do.
        ProviderError: it does not fit into memory.
    """
    adapter = (folder / _ADAPTER).is_file()
    base = _base_of(folder) if adapter else folder
    if not (base / "config.json").is_file():
        message = (
            f"{base} holds no model: {'there is no such folder' if not base.is_dir() else 'config.json is missing'}. "
            "Name a folder that save_pretrained wrote, or download a model there first; nothing is downloaded here."
        )
        raise ConfigurationError(message)
    try:
        tokenizer = _tokenizer(folder if (folder / "tokenizer_config.json").is_file() else base)
        model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, **_LOCAL)
        if adapter:
            model = _adapted(model, folder)
        model = model.to(_device(device)).eval()
    except AgeMemError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            message = (
                f"The model in {base} does not fit into memory: {first_line(error)}. Choose dtype=bfloat16, another "
                "device, or a smaller model."
            )
            raise ProviderError(message) from error
        message = (
            f"The model in {base} cannot be loaded: {first_line(error)}. It takes the files of save_pretrained: "
            "config, weights (safetensors) and tokenizer, of an architecture that this release of transformers knows."
        )
        raise ConfigurationError(message) from error
    return Checkpoint(model, tokenizer, eos_ids_of(model, tokenizer), _window(model))


def free_memory() -> None:
    """Give back to the GPU's driver what torch keeps of a model that nothing refers to any longer."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a GPU or in the machine (for which torch has no class of its own)."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def _base_of(adapter: Path) -> Path:
    """The base model's folder; a relative one is looked for beside the adapter, then where the process runs."""
    try:
        config = cast("dict[str, Any]", json.loads((adapter / _ADAPTER).read_text(encoding="utf-8")))
        named = str(config["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        message = f"{adapter / _ADAPTER} names no base model: {error}. Save the adapter anew with peft."
        raise ConfigurationError(message) from error
    for base in (adapter / named, Path(named)):
        if base.is_dir():
            return base
    message = (
        f"The adapter in {adapter} belongs to the model {named!r}, which is no folder on this machine. Download that "
        f"model, and write its folder as base_model_name_or_path into {adapter / _ADAPTER}."
    )
    raise ConfigurationError(message)


def _adapted(model: Any, adapter: Path) -> Any:  # noqa: ANN401  transformers' model classes have no common type
    try:
        from peft import PeftModel  # noqa: PLC0415  adapters alone need it
    except ImportError as error:
        message = f"{adapter} is a LoRA adapter, and peft is not installed: `pip install peft`, or merge the adapter."
        raise ConfigurationError(message) from error
    adapted: Any = PeftModel.from_pretrained(model, str(adapter), local_files_only=True)
    # merged it costs nothing per token
    return adapted.merge_and_unload()


def _tokenizer(folder: Path) -> ChatTokenizer:
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, **_LOCAL)
    try:
        tokenizer.get_chat_template()
    except (AttributeError, ValueError) as error:
        message = (
            f"The tokenizer in {folder} has no chat template, so it cannot be told how to show a conversation to the "
            "model. Use a model that was trained to chat, or put its template there as chat_template.jinja."
        )
        raise ConfigurationError(message) from error
    if not tokenizer("a", add_special_tokens=False)["input_ids"]:
        # without its vocabulary transformers makes an empty one, and says nothing
        message = f"The tokenizer in {folder} knows no words: its files (tokenizer.json) are missing. Put them there."
        raise ConfigurationError(message)
    return cast("ChatTokenizer", tokenizer)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        message = f"torch cannot use the device {name!r}: {first_line(error)}. Choose auto, cpu, or one that is there."
        raise ConfigurationError(message) from error
    return device


def eos_ids_of(model: Any, tokenizer: Any) -> frozenset[int]:  # noqa: ANN401  as above
    """The generation config's, and the tokenizer's: a base model's configs do not know how a chat ends."""
    named: set[int | None] = {tokenizer.eos_token_id}
    for config in (model.generation_config, model.config.get_text_config()):
        ids: int | list[int] | None = getattr(config, "eos_token_id", None)
        named |= set(ids) if isinstance(ids, list) else {ids}
    return frozenset(one for one in named if one is not None)


def _window(model: Any) -> int | None:  # noqa: ANN401  as above
    return cast("int | None", getattr(model.config.get_text_config(), "max_position_embeddings", None))


def first_line(error: BaseException) -> str:
    """The first sentence of what a vendor says at length."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
