"""Which policy a few words stand for."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
from tests.unit.policies.openai_chat.chat_endpoint import HELLO, endpoint, says

from agemem_mcp.errors import ConfigurationError
from agemem_policies.choosing import OPENAI_URL, Choice, make_policy, parse_choice
from agemem_policies.openai_chat import OpenAIChatPolicy, Sampling


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("openai:gpt-5", Choice("openai", "gpt-5", OPENAI_URL)),
        ("openai:qwen2.5:7b@http://localhost:11434/v1", Choice("openai", "qwen2.5:7b", "http://localhost:11434/v1")),
        ("openai:Qwen/Qwen3-4B@https://a.example/v1/", Choice("openai", "Qwen/Qwen3-4B", "https://a.example/v1")),
        ("openai:m@http://a.example", Choice("openai", "m", "http://a.example")),
        ("openai:m@http://me:word@a.example/v1", Choice("openai", "m", "http://me:word@a.example/v1")),
        ("openai:claude@20250101@http://a.example/v1", Choice("openai", "claude@20250101", "http://a.example/v1")),
        ("openai:@cf/meta/llama:8b", Choice("openai", "@cf/meta/llama:8b", OPENAI_URL)),
        (" openai:gpt-5\n", Choice("openai", "gpt-5", OPENAI_URL)),
        ("hf:Qwen/Qwen3-0.6B", Choice("hf", "Qwen/Qwen3-0.6B")),
        ("hf:C:\\models\\small", Choice("hf", "C:\\models\\small")),
        ("scripted:echo", Choice("scripted", "echo")),
    ],
)
def test_each_form_is_read(text: str, choice: Choice) -> None:
    assert parse_choice(text) == choice


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "'' is no policy"),
        ("gpt-5", "'gpt-5' is no policy"),
        ("openai", "'openai' is no policy"),
        ("OpenAI:gpt-5", "is no policy"),
        ("ollama:qwen", "is no policy"),
        ("http://localhost", "is no policy"),
        ("openai:", "names no model"),
        ("openai: @http://localhost", "names no model"),
        ("openai:@http://localhost", "names no model"),
        ("hf:", "names no path"),
        ("scripted: ", "names no script"),
        ("openai:qwen@localhost", "must begin with http:// or https://"),
        ("openai:qwen@localhost/v1", "must begin with http:// or https://"),
        ("openai:qwen@10.0.0.1:8000/v1", "must begin with http:// or https://"),
    ],
)
def test_anything_else_is_refused_with_the_forms(text: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{said}.*openai:MODEL@URL .* hf:PATH .* scripted:NAME"):
        parse_choice(text)


async def test_a_model_behind_an_endpoint_is_asked_with_the_key_and_the_options() -> None:
    async with endpoint(says("Oslo")) as chat:
        policy = make_policy(
            f"openai:qwen2.5:7b@{chat.url}", api_key="sk-1", native=True, sampling=Sampling(max_tokens=9)
        )
        assert (policy.name, policy.native) == ("qwen2.5:7b", True)
        assert (await policy.act(HELLO)).text == "Oslo"
        await policy.close()
    (asked,) = chat.asked
    assert (asked.headers["authorization"], asked.body["max_tokens"]) == ("Bearer sk-1", 9)


async def test_without_an_address_it_is_openais() -> None:
    policy = make_policy("openai:gpt-5")
    assert isinstance(policy, OpenAIChatPolicy)
    assert str(policy._endpoint.chat_url()) == "https://api.openai.com/v1/chat/completions"
    await policy.close()


@pytest.mark.parametrize(
    ("text", "module", "maker", "argument"),
    [
        ("hf:models/small", "agemem_policies.local", "LocalPolicy", "models/small"),
        ("scripted:echo", "agemem_policies.scripted", "scripted_policy", "echo"),
    ],
)
def test_what_is_made_elsewhere_is_imported_only_then(
    monkeypatch: pytest.MonkeyPatch, text: str, module: str, maker: str, argument: str
) -> None:
    stand_in = ModuleType(module)
    setattr(stand_in, maker, lambda given: ("made of", given))
    monkeypatch.setitem(sys.modules, module, stand_in)
    assert make_policy(text) == ("made of", argument)


def test_a_missing_torch_is_told_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "agemem_policies.local", None)  # as if one of its imports failed
    with pytest.raises(
        ConfigurationError, match=r'hf:small needs torch .*: pip install "agemem-mcp\[local\]"'
    ) as caught:
        make_policy("hf:small")
    assert isinstance(caught.value.__cause__, ImportError)


def test_a_model_that_needs_another_package_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(path: str) -> None:
        msg = "No module named 'einops'"
        raise ModuleNotFoundError(msg)

    stand_in = ModuleType("agemem_policies.local")
    monkeypatch.setattr(stand_in, "LocalPolicy", load, raising=False)
    monkeypatch.setitem(sys.modules, "agemem_policies.local", stand_in)
    with pytest.raises(ConfigurationError, match=r"needs torch and transformers \(No module named 'einops'"):
        make_policy("hf:small")
