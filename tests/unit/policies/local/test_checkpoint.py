"""Folders that can be loaded, and what is said about those that cannot."""

from __future__ import annotations

import json
import socket
import sys
from typing import TYPE_CHECKING, Any

import pytest

from agemem_mcp.errors import ConfigurationError
from agemem_policies.local import LocalPolicy
from agemem_policies.policy import ChatMessage, Completion, Prompt

WHY = "a model in this process needs torch and transformers: `pip install 'agemem-mcp[local]'`"
torch = pytest.importorskip("torch", reason=WHY)
transformers = pytest.importorskip("transformers", reason=WHY)

from tests.unit.policies.local.tiny_checkpoint import write_random  # noqa: E402  as above

from agemem_policies.local import checkpoint, engine  # noqa: E402  after the skip

if TYPE_CHECKING:
    from pathlib import Path


async def act(folder: Path, **options: Any) -> Completion:
    policy = LocalPolicy(folder, max_tokens=8, **options)
    try:
        return await policy.act(Prompt((ChatMessage("user", "hello"),)))
    finally:
        await policy.close()


async def refused(folder: Path, **options: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        await act(folder, **options)
    return str(caught.value)


async def test_nothing_is_asked_of_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_random(tmp_path / "tiny")

    def no_network(*given: Any) -> None:
        pytest.fail("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    assert len((await act(folder)).action_ids) == 8


async def test_a_folder_that_is_not_there_or_holds_no_model_is_named(tmp_path: Path) -> None:
    assert "there is no such folder" in await refused(tmp_path / "absent")
    assert "config.json is missing" in await refused(tmp_path)


async def test_a_checkpoint_without_weights_is_refused(tmp_path: Path) -> None:
    folder = write_random(tmp_path / "tiny")
    (folder / "model.safetensors").unlink()
    assert f"The model in {folder} cannot be loaded" in await refused(folder)


async def test_a_tokenizer_without_its_vocabulary_is_refused(tmp_path: Path) -> None:
    folder = write_random(tmp_path / "tiny")
    (folder / "tokenizer.json").unlink()
    assert "tokenizer.json" in await refused(folder)


async def test_damaged_files_are_refused(tmp_path: Path) -> None:
    folder = write_random(tmp_path / "tiny")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert "cannot be loaded" in await refused(folder)
    (folder / "config.json").write_text("{")
    assert "cannot be loaded" in await refused(folder)


async def test_code_that_a_checkpoint_brings_along_is_not_run(tmp_path: Path) -> None:
    folder = write_random(tmp_path / "tiny")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert "cannot be loaded" in await refused(folder)
    assert not (tmp_path / "ran").exists()


async def test_a_tokenizer_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    assert "no chat template" in await refused(write_random(tmp_path / "tiny", template=None))


async def test_a_folder_that_was_mended_works_at_the_next_call(tmp_path: Path) -> None:
    policy = LocalPolicy(tmp_path / "tiny", max_tokens=3)
    prompt = Prompt((ChatMessage("user", "hello"),))
    with pytest.raises(ConfigurationError):
        await policy.act(prompt)
    write_random(tmp_path / "tiny")
    assert len((await policy.act(prompt)).action_ids) == 3
    await policy.close()


async def test_a_device_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    assert "'nonsense'" in await refused(write_random(tmp_path / "tiny"), device="nonsense")


async def test_the_number_format_is_the_one_of_the_weights_or_the_one_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_random(tmp_path / "tiny", dtype="bfloat16")
    transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    seen: list[Any] = []
    original = checkpoint.load_checkpoint

    def spy(*given: Any, **options: Any) -> Any:
        loaded = original(*given, **options)
        seen.append(loaded.model.dtype)
        return loaded

    monkeypatch.setattr(engine, "load_checkpoint", spy)
    await act(folder)
    await act(folder, dtype="float32")
    assert seen == [torch.bfloat16, torch.float32]


async def test_without_torch_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (f"agemem_policies.local.{module}" for module in ("engine", "generation", "checkpoint")):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "agemem-mcp[local]" in await refused(tmp_path)


def write_adapter(folder: Path, base: Path, named: str | None = None) -> Path:
    """A LoRA adapter with random weights, as peft saves it."""
    peft = pytest.importorskip("peft", reason="adapters need peft: `pip install 'agemem-mcp[train]'`")
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(3)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    peft.get_peft_model(model, config).save_pretrained(folder)
    saved = json.loads((folder / "adapter_config.json").read_text())
    saved["base_model_name_or_path"] = named or str(base)
    (folder / "adapter_config.json").write_text(json.dumps(saved))
    return folder


@pytest.mark.parametrize("relative", [False, True])
async def test_an_adapter_s_words_are_those_of_the_base_model_with_it(tmp_path: Path, relative: bool) -> None:
    base = write_random(tmp_path / "base")
    adapter = write_adapter(tmp_path / "adapter", base, "../base" if relative else None)
    done, plain = await act(adapter), await act(base)
    assert done.prompt_ids == plain.prompt_ids
    assert done.action_ids != plain.action_ids
    peft = pytest.importorskip("peft")
    model = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    with torch.no_grad():
        logits = model(torch.tensor([[*done.prompt_ids, *done.action_ids]])).logits[0, len(done.prompt_ids) - 1 : -1]
    expected = logits.log_softmax(-1)[range(8), list(done.action_ids)]
    torch.testing.assert_close(torch.tensor(done.logprobs), expected, atol=1e-4, rtol=0)


async def test_an_adapter_whose_base_model_is_not_here_names_it(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", write_random(tmp_path / "base"), "someone/somewhere")
    assert "'someone/somewhere', which is no folder" in await refused(adapter)
    (adapter / "adapter_config.json").write_text("{}")
    assert "names no base model" in await refused(adapter)


async def test_an_adapter_without_peft_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = write_adapter(tmp_path / "adapter", write_random(tmp_path / "base"))
    monkeypatch.setitem(sys.modules, "peft", None)
    assert "pip install peft" in await refused(adapter)


async def test_a_model_without_a_cache_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: Any, input_ids: Any, **ignored: Any) -> None:
        pytest.fail("it would see its last token alone")

    monkeypatch.setattr(transformers.Qwen2ForCausalLM, "forward", forward)
    assert "takes no cache" in await refused(write_random(tmp_path / "tiny"))
