"""Rollouts on a vLLM server (0.10.2 or newer), by its OpenAI endpoint.

A prompt is turned into tokens here, with the tokenizer and the encoder that training uses, and sent as tokens. The
sampled tokens and their log-probabilities come back as the server counted them; nothing sampled is tokenised again.
Sampling cuts nothing off (top_p 1, no top_k, no penalty), whatever the model's generation config says, so that the
log-probabilities are those of the distribution drawn from.

Start the server like this:

    VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve MODEL \
        --logprobs-mode processed_logprobs --enable-lora --max-lora-rank R

``processed_logprobs`` is needed at every temperature but 1: vLLM else tells log-probabilities from before the division
by it, and its answer does not show which. The LoRA options are needed for :meth:`VLLMPolicy.load_adapter`; its route
opens the server to whoever reaches it: keep it on this machine or a closed network.

New weights reach the server through files alone: it must see the trainer's folders under the same paths. vLLM's
transfers from GPU to GPU (NCCL, IPC) are not used.
"""

from __future__ import annotations

import hashlib
import secrets
import uuid
from collections import Counter
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar

from agemem_mcp.errors import ProviderError
from agemem_policies.local.chat_ids import ChatEncoder
from agemem_policies.local.text_stream import STOPS, TextStream
from agemem_policies.openai_chat import Patience
from agemem_policies.openai_chat.connection import Connection, address
from agemem_policies.openai_chat.failures import EndpointError
from agemem_policies.openai_chat.reading import as_list, as_logprob, as_object, as_token_ids
from agemem_policies.policy import Completion

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection
    from pathlib import Path

    import httpx

    from agemem_policies.local.chat_ids import ChatTokenizer
    from agemem_policies.openai_chat import Endpoint
    from agemem_policies.policy import OnText, Prompt

T = TypeVar("T")

_ENDS = ("stop", "length")
_ABSENT = (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED)


class RolloutServerError(ProviderError):
    """The server answers, but rollouts cannot be taken from it as it was started; the text says what to change."""


class VLLMPolicy:
    """Implements ``Policy`` on a vLLM server, and brings new weights to it between two iterations."""

    def __init__(  # noqa: PLR0913  one per option
        self,
        endpoint: Endpoint,
        tokenizer: ChatTokenizer,
        eos_ids: Collection[int],
        *,
        temperature: float = 1.0,
        max_tokens: int = 2048,
        seed: int | None = None,
        patience: Patience | None = None,
        client: httpx.AsyncClient | None = None,
    ) -> None:
        """Nothing is asked yet.

        Args:
            endpoint: the server's URL, which ends in ``/v1``, and the name under which it serves the model.
            tokenizer: the model's own, with a chat template.
            eos_ids: tokens that end a turn.
            temperature: 0 takes the most probable token.
            max_tokens: the most tokens of one turn. The server refuses what is too long for its ``--max-model-len``.
            seed: makes sampling repeatable as far as the server's arithmetic is: what a prompt is answered depends on
                the seed, the prompt and how often it was asked before. None for other answers each time.
            patience: how long and how often the server is asked. Loading weights is one long silence.
            client: connections to use; they stay open when the policy is closed.
        """
        self._endpoint = endpoint
        self._tokenizer = tokenizer
        self._eos_ids = sorted(eos_ids)
        self._encoder = ChatEncoder(tokenizer, self._eos_ids)
        self._silent_ids = self._encoder.control_ids | frozenset(eos_ids)
        self._temperature = temperature
        self._max_tokens = max_tokens
        self._seed = seed
        self._asked: Counter[bytes] = Counter()
        self._patience = patience or Patience()
        self._connection = Connection(endpoint, self._patience, client)
        self.adapter: str | None = None
        """The name of the adapter that turns are sampled from; None for the model itself."""

    @property
    def name(self) -> str:
        """The model's name."""
        return self._endpoint.model

    @property
    def native(self) -> bool:
        """False: it writes its calls into its text."""
        return False

    async def act(self, prompt: Prompt, on_text: OnText | None = None) -> Completion:
        """Take one turn; a failure that may pass is tried again with the same seed.

        Args:
            prompt: what the model is shown.
            on_text: told the text once, as a whole.

        Returns:
            The text, and the tokens with their log-probabilities. As with a local model, a token that ends turns is
            among the tokens, not in the text; a token in which the last tag ends is there as a whole.

        Raises:
            RolloutServerError: the server tells no tokens, or other ones than it was sent.
            ProviderError: the server cannot be reached, refused, or gave no usable answer; or the prompt is too long.
        """
        ids = self._encoder.encode(prompt.messages)
        url, body = self._endpoint.url("/completions"), self._body(ids)

        async def ask() -> Completion:
            async with self._connection.post(url, body) as response:
                answer = self._connection.read_choices(url, await response.aread())
            return self._completion(answer, ids)

        completion = await self._patiently(ask)
        if on_text is not None and completion.text:
            on_text(completion.text)
        return completion

    async def load_adapter(self, folder: Path) -> str:
        """Sample from a LoRA adapter from now on, and let the server forget the one before.

        Each adapter gets a name of its own: vLLM keeps what it has computed of a prompt by the adapter's name, so under
        the same name parts of a turn would still come from the old weights. Call it while no turn is being taken.

        Args:
            folder: as peft's ``save_pretrained`` writes it.

        Returns:
            Its name, which is :attr:`adapter` from now on: who asks the same server elsewhere sets it there.

        Raises:
            RolloutServerError: the server takes no adapters.
            ProviderError: it could not load this one; turns are still sampled from the one before.
        """
        needed = (
            "Start vLLM with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, where it can read the adapter's "
            "folder under the same path"
        )
        base, path = self._endpoint, _absolute(folder)

        async def load() -> str:
            # another name at each attempt: the server may have loaded it although its answer was lost
            name = f"agemem-{uuid.uuid4().hex}"
            await self._command(base, "/load_lora_adapter", {"lora_name": name, "lora_path": path}, needed)
            return name

        before, name = self.adapter, await self._patiently(load)
        self.adapter = name
        if before is not None:
            await self._patiently(lambda: self._command(base, "/unload_lora_adapter", {"lora_name": before}, needed))
        return name

    async def close(self) -> None:
        """Release the connections, unless they were given; closing twice is harmless."""
        await self._connection.close()

    def _body(self, ids: list[int]) -> dict[str, Any]:
        return {
            "model": self.adapter or self._endpoint.model,
            "prompt": ids,
            "max_tokens": self._max_tokens,
            "temperature": self._temperature,
            # named one by one: what is left out the server takes from the model's generation config
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "seed": self._seed_of(ids),
            "stop": list(STOPS),
            "stop_token_ids": self._eos_ids,
            "include_stop_str_in_output": True,
            # else tags that are special tokens (</tool_call> of some models) would not be seen as stops
            "skip_special_tokens": False,
            "return_token_ids": True,
            "logprobs": 0,  # of the sampled token alone
        }

    def _seed_of(self, ids: list[int]) -> int:
        """Another seed each time that a prompt is asked: else the rollouts of a group would all be the same."""
        if self._seed is None:
            return secrets.randbits(32)
        key = hashlib.sha256(repr(ids).encode()).digest()
        self._asked[key] += 1
        return int.from_bytes(hashlib.sha256(f"{self._seed}/{self._asked[key]}/".encode() + key).digest()[:4], "big")

    def _completion(self, answer: dict[str, Any], ids: list[int]) -> Completion:
        """Read an answer.

        Raises:
            ProviderError: see :meth:`act`.
        """
        where = address(self._endpoint.url("/completions"))
        choice = as_object(next(iter(as_list(answer["choices"])), None))
        reason = choice.get("finish_reason")
        if reason not in _ENDS:
            msg = f"{where} gave up a turn ({reason}). See vLLM's own log; it may have been put to sleep."
            raise EndpointError(msg, passing=True)
        action_ids, told_ids = as_token_ids(choice.get("token_ids")), as_token_ids(choice.get("prompt_token_ids"))
        logprobs = as_list(as_object(choice.get("logprobs")).get("token_logprobs"))
        if not action_ids or not told_ids:
            msg = f"{where} told no token ids. Rollouts need vLLM 0.10.2 or newer with return_token_ids."
            raise RolloutServerError(msg)
        if told_ids != ids:
            msg = (
                f"{where} read {len(told_ids):,} tokens that are not the {len(ids):,} that it was sent. Ask vLLM "
                "itself, without anything in between that cuts prompts short or tokenises them again."
            )
            raise RolloutServerError(msg)
        if len(logprobs) != len(action_ids):
            msg = (
                f"{where} told {len(action_ids):,} tokens but {len(logprobs):,} log-probabilities. Rollouts need vLLM "
                "0.10.2 or newer."
            )
            raise RolloutServerError(msg)
        stream = TextStream(self._tokenizer, self._silent_ids)
        for token_id in action_ids:
            if not stream.stopped:
                stream.feed(token_id)
        stream.finish()
        return Completion(
            text=stream.text,
            cut_off=reason == "length",
            prompt_tokens=len(ids),
            completion_tokens=len(action_ids),
            prompt_ids=tuple(ids),
            action_ids=tuple(action_ids),
            logprobs=tuple(map(as_logprob, logprobs)),
        )

    async def _command(self, base: Endpoint, path: str, body: dict[str, Any], needed: str) -> None:
        """Have the server do something; ``needed`` says what it takes, should it not know the route."""
        try:
            async with self._connection.post(base.url(path), body) as response:
                await response.aread()
        except EndpointError as failure:
            if failure.status not in _ABSENT:
                raise
            msg = f"{failure} {needed}."
            raise RolloutServerError(msg) from failure

    async def _patiently(self, send: Callable[[], Awaitable[T]]) -> T:
        """Send a request until it is answered, or is of no use."""
        attempt = 1
        while True:
            try:
                return await send()
            except EndpointError as failure:
                await self._patience.outwait(failure, attempt, self.name)
                attempt += 1


def _absolute(folder: Path) -> str:
    return str(folder.absolute())
