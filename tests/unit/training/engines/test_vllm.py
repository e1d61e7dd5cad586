"""Rollouts on a server that speaks vLLM's wire format, and how new weights reach it."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any

import httpx
import pytest

WHY = "the model behind the server needs torch and transformers: `pip install 'agemem-mcp[local]'`"
torch = pytest.importorskip("torch", reason=WHY)
transformers = pytest.importorskip("transformers", reason=WHY)

from tests.unit.policies.local.tiny_checkpoint import write_random, write_script  # noqa: E402  after the skip
from tests.unit.training.engines.vllm_server import MODEL, VLLM, refusal, serving  # noqa: E402  as above

from agemem_mcp.errors import ProviderError  # noqa: E402  as above
from agemem_policies.local import LocalPolicy  # noqa: E402  as above
from agemem_policies.openai_chat import Endpoint, Patience  # noqa: E402  as above
from agemem_policies.policy import ChatMessage, Policy, Prompt  # noqa: E402  as above
from agemem_training.engines import RolloutServerError, VLLMPolicy  # noqa: E402  as above

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

PROMPT = Prompt((ChatMessage("system", "Remember."), ChatMessage("user", "Where is <|im_end|> Ana?")))
ANSWERED = ["k", "<answer>", "Oslo", "</answer>", "!"]
TLS = httpx.create_ssl_context()
"""Made once: it reads every certificate of the machine."""


def loaded(folder: Path) -> VLLM:
    """A server of a checkpoint."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    return VLLM(model, transformers.AutoTokenizer.from_pretrained(folder))


@pytest.fixture(scope="module")
def random_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2 with random weights."""
    return write_random(tmp_path_factory.mktemp("random"))


@pytest.fixture(scope="module")
def scripted_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2 that answers a prompt ending in k with an answer, and one ending in q with an end of its turn."""
    return write_script(tmp_path_factory.mktemp("scripted"), ANSWERED, ["q", "w"])


@pytest.fixture
async def vllm(random_folder: Path) -> AsyncGenerator[VLLM]:
    """A server of the random model."""
    async with serving(loaded(random_folder)) as server:
        yield server


@pytest.fixture
async def client() -> AsyncGenerator[httpx.AsyncClient]:
    """Connections to it."""
    async with httpx.AsyncClient(verify=TLS) as client:
        yield client


async def no_wait(wait_s: float) -> None:
    """Sleep not at all."""


def policy_of(vllm: VLLM, client: httpx.AsyncClient, **options: Any) -> VLLMPolicy:
    """A policy that waits for nothing between two attempts."""
    tokenizer = vllm.tokenizer
    options = {"max_tokens": 12, "patience": Patience(sleep=no_wait)} | options
    return VLLMPolicy(Endpoint(vllm.url, MODEL), tokenizer, {tokenizer.eos_token_id}, client=client, **options)


@torch.inference_mode()
def recomputed(model: Any, prompt_ids: tuple[int, ...], action_ids: tuple[int, ...], temperature: float) -> list[float]:
    """Log-probabilities of the action by one pass over prompt and action."""
    logits_TV = model(input_ids=torch.tensor([[*prompt_ids, *action_ids]])).logits[0, len(prompt_ids) - 1 : -1]
    logprobs_TV = (logits_TV.float() / temperature).log_softmax(-1)
    return logprobs_TV.gather(1, torch.tensor(action_ids)[:, None])[:, 0].tolist()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
async def test_log_probabilities_that_come_back_are_those_of_the_model(
    vllm: VLLM, client: httpx.AsyncClient, temperature: float
) -> None:
    policy: Policy = policy_of(vllm, client, temperature=temperature, seed=1)
    completion = await policy.act(PROMPT)
    assert len(completion.action_ids) == completion.completion_tokens == 12
    assert completion.cut_off
    expected = recomputed(vllm.model, completion.prompt_ids, completion.action_ids, temperature)
    assert completion.logprobs == pytest.approx(expected, abs=1e-4)


async def test_a_prompt_has_the_tokens_that_it_has_in_this_process(
    vllm: VLLM, client: httpx.AsyncClient, random_folder: Path
) -> None:
    there = await policy_of(vllm, client, temperature=0).act(PROMPT)
    local = LocalPolicy(random_folder, temperature=0, max_tokens=12)
    here = await local.act(PROMPT)
    await local.close()
    assert (there.prompt_ids, there.action_ids, there.text) == (here.prompt_ids, here.action_ids, here.text)
    assert there.logprobs == pytest.approx(here.logprobs, abs=1e-4)
    assert vllm.bodies[0]["prompt"] == list(there.prompt_ids)


async def test_nothing_is_cut_off_the_distribution_that_is_drawn_from(vllm: VLLM, client: httpx.AsyncClient) -> None:
    await policy_of(vllm, client, temperature=0.5, seed=3).act(PROMPT)
    (body,) = vllm.bodies
    sampling = {"temperature": 0.5, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    assert body.items() >= (sampling | {"presence_penalty": 0.0, "frequency_penalty": 0.0}).items()
    assert body.items() >= {"max_tokens": 12, "return_token_ids": True, "logprobs": 0, "model": MODEL}.items()
    assert (body["stop"], body["include_stop_str_in_output"]) == (["</tool_call>", "</answer>"], True)
    assert body["stop_token_ids"] == [vllm.tokenizer.eos_token_id]


async def test_a_turn_ends_with_the_tag_that_ends_its_answer(scripted_folder: Path, client: httpx.AsyncClient) -> None:
    told: list[str] = []
    async with serving(loaded(scripted_folder)) as vllm:
        completion = await policy_of(vllm, client, temperature=0).act(Prompt((ChatMessage("user", "k"),)), told.append)
    assert completion.text == "<answer>Oslo</answer>"
    assert told == [completion.text]
    assert not completion.cut_off
    assert vllm.tokenizer.decode(completion.action_ids) == completion.text


async def test_a_token_that_ends_turns_is_among_the_tokens_and_not_in_the_text(
    scripted_folder: Path, client: httpx.AsyncClient
) -> None:
    async with serving(loaded(scripted_folder)) as vllm:
        completion = await policy_of(vllm, client, temperature=0).act(Prompt((ChatMessage("user", "q"),)))
    assert completion.text == "w"
    assert completion.action_ids[-1] == vllm.tokenizer.eos_token_id
    assert not completion.cut_off


async def test_the_same_seed_gives_the_same_turns_and_each_turn_another(vllm: VLLM, client: httpx.AsyncClient) -> None:
    runs = [
        [(await policy.act(PROMPT)).action_ids for _ in range(3)]
        for policy in (
            policy_of(vllm, client, seed=1),
            policy_of(vllm, client, seed=1),
            policy_of(vllm, client, seed=2),
        )
    ]
    assert runs[0] == runs[1]
    assert len({ids for run in (runs[0], runs[2]) for ids in run}) == 6


async def test_without_a_seed_turns_differ(vllm: VLLM, client: httpx.AsyncClient) -> None:
    first, second = [(await policy_of(vllm, client).act(PROMPT)).action_ids for _ in range(2)]
    assert first != second


async def test_turns_are_taken_at_the_same_time(vllm: VLLM, client: httpx.AsyncClient) -> None:
    policy = policy_of(vllm, client, seed=1)
    completions = await asyncio.gather(*(policy.act(PROMPT) for _ in range(8)))
    assert len({one.action_ids for one in completions}) == 8


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"token_ids": None}, r"told no token ids\. Rollouts need vLLM 0\.10\.2 or newer with return_token_ids"),
        ({"prompt_token_ids": None}, r"told no token ids\. Rollouts need vLLM 0\.10\.2 or newer"),
        ({"prompt_token_ids": [1, 2]}, r"read 2 tokens that are not the \d+ that it was sent\. Ask vLLM itself"),
        ({"logprobs": None}, r"told 12 tokens but 0 log-probabilities"),
        ({"logprobs": {"token_logprobs": [-1.0]}}, r"told 12 tokens but 1 log-probabilities"),
    ],
)
async def test_a_server_from_which_no_rollouts_can_be_taken_is_told(
    vllm: VLLM, client: httpx.AsyncClient, changes: dict[str, Any], told: str
) -> None:
    vllm.changes = changes
    with pytest.raises(RolloutServerError, match=told):
        # With another seed a turn may be shorter.
        await policy_of(vllm, client, seed=1).act(PROMPT)
    assert len(vllm.bodies) == 1


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"token_ids": ["1"]}, "token ids that are not whole numbers"),
        ({"logprobs": {"token_logprobs": [None] * 12}}, "a log-probability that is not a number"),
        ({"finish_reason": "abort"}, r"gave up a turn \(abort\)"),
    ],
)
async def test_an_answer_that_cannot_be_used_is_a_providers_error(
    vllm: VLLM, client: httpx.AsyncClient, changes: dict[str, Any], told: str
) -> None:
    vllm.changes = changes
    with pytest.raises(ProviderError, match=told):
        await policy_of(vllm, client, seed=1).act(PROMPT)


async def test_a_turn_that_failed_for_a_while_is_asked_for_again_with_the_same_seed(
    vllm: VLLM, client: httpx.AsyncClient
) -> None:
    vllm.failures = [refusal(503, "overloaded"), refusal(500, "Internal Server Error")]
    await policy_of(vllm, client, seed=1).act(PROMPT)
    assert len(vllm.bodies) == 3
    assert vllm.bodies[0] == vllm.bodies[1] == vllm.bodies[2]


async def test_a_refusal_is_told_and_not_asked_for_again(vllm: VLLM, client: httpx.AsyncClient) -> None:
    vllm.failures = [refusal(400, "This model's maximum context length is 512 tokens.")]
    with pytest.raises(ProviderError, match=r"answered 400 \(This model's maximum context length is 512 tokens\.\)"):
        await policy_of(vllm, client).act(PROMPT)
    assert len(vllm.bodies) == 1


async def test_a_server_that_is_not_there_is_told(random_folder: Path, client: httpx.AsyncClient) -> None:
    vllm = loaded(random_folder)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        vllm.url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
    with pytest.raises(ProviderError, match="could not be reached"):
        await policy_of(vllm, client).act(PROMPT)


async def test_turns_come_from_the_adapter_loaded_last_and_the_one_before_is_forgotten(
    vllm: VLLM, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    policy = policy_of(vllm, client)
    names: list[str] = []
    for number in (1, 2):
        await policy.load_adapter(tmp_path / f"adapter-{number}")
        await policy.act(PROMPT)
        names.append(vllm.bodies[-1]["model"])
    assert vllm.adapters == {names[1]: str(tmp_path / "adapter-2")}
    assert names[0] != names[1]
    assert policy.name == MODEL


async def test_an_adapter_whose_loading_failed_for_a_while_is_loaded_under_another_name(
    vllm: VLLM, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    vllm.failures = [refusal(503, "overloaded")]
    await policy_of(vllm, client).load_adapter(tmp_path)
    first, second = [body["lora_name"] for _, body in vllm.commands]
    assert first != second
    assert list(vllm.adapters) == [second]


async def test_turns_still_come_from_the_adapter_before_one_that_could_not_be_loaded(
    vllm: VLLM, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    policy = policy_of(vllm, client)
    await policy.load_adapter(tmp_path)
    vllm.failures = [refusal(400, "LoRA rank 64 is greater than max_lora_rank 16.")]
    with pytest.raises(ProviderError, match="LoRA rank 64 is greater than max_lora_rank 16"):
        await policy.load_adapter(tmp_path / "wide")
    await policy.act(PROMPT)
    assert [vllm.bodies[-1]["model"]] == list(vllm.adapters)


async def test_a_server_that_takes_no_adapters_is_told_how_to_start(
    vllm: VLLM, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    vllm.lora = False
    with pytest.raises(RolloutServerError, match=r"--enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"):
        await policy_of(vllm, client).load_adapter(tmp_path)


async def test_closing_twice_is_harmless(random_folder: Path) -> None:
    vllm = loaded(random_folder)
    policy = VLLMPolicy(Endpoint("http://127.0.0.1:9/v1", MODEL), vllm.tokenizer, {vllm.tokenizer.eos_token_id})
    assert not policy.native
    await policy.close()
    await policy.close()
