"""Rollouts of a run on a vLLM server: turns for all its episodes, and the newest adapter before each iteration."""

# accelerate is an extra: where it is installed its types are checked, elsewhere the rest still is
# pyright: reportMissingImports=false, reportUnknownVariableType=false

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from accelerate.utils import broadcast_object_list

from agemem_policies.openai_chat import Endpoint
from agemem_policies.policy import ChatMessage, Prompt
from agemem_training.checkpoints import replaced
from agemem_training.engines.vllm import VLLMPolicy
from agemem_training.processes import is_first
from agemem_training.sampling import Work

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from agemem_policies.policy import Completion, OnText
    from agemem_training.config import RunConfig
    from agemem_training.loading import Trainable


@dataclass(slots=True)
class ServerSampler:
    """Implements ``Policy`` for all episodes of a process; the server makes batches of what they ask at a time."""

    policy: VLLMPolicy
    adapter: Path
    """The folder in which the server finds the newest adapter."""
    work: Work = field(default_factory=Work)
    """Seconds are those in which at least one turn was waited for."""
    native: bool = False
    name: str = "rollout"
    _waiting: int = 0
    _since: float = 0.0

    async def act(self, prompt: Prompt, on_text: OnText | None = None) -> Completion:
        """See :meth:`VLLMPolicy.act`."""
        with self._waited():
            completion = await self.policy.act(prompt, on_text)
        self.work.read_tokens += completion.prompt_tokens or 0
        self.work.written_tokens += len(completion.action_ids)
        return completion

    def leave(self) -> None:
        """Nobody waits for an episode that has ended."""

    async def renew(self, model: Any) -> None:  # noqa: ANN401  transformers' model classes have no common type
        """Sample from an adapter as it is now; all processes call this together, while no turn is being taken.

        Args:
            model: with the adapter.

        Raises:
            ProviderError: the server could not load it.
        """
        name: list[str | None] = [None]
        if is_first():
            with replaced(self.adapter) as unfinished:
                model.save_pretrained(unfinished)
            name = [await self.policy.load_adapter(self.adapter)]
        broadcast_object_list(name)
        self.policy.adapter = name[0]

    async def close(self) -> None:
        """Release the connections."""
        await self.policy.close()

    @contextmanager
    def _waited(self) -> Generator[None]:
        if not self._waiting:
            self._since = time.perf_counter()
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1
            if not self._waiting:
                self.work.seconds += time.perf_counter() - self._since


def server_sampler(config: RunConfig, trainable: Trainable, adapter: Path) -> ServerSampler | None:
    """What a run samples its rollouts from, if that is a server; vLLM's own ``VLLM_API_KEY`` is its key.

    Args:
        config: of the run.
        trainable: the policy's tokenizer, and what ends its turns.
        adapter: a folder that the server sees under the same path.

    Raises:
        ConfigurationError: it has no such address.
    """
    grpo = config.grpo
    if grpo.rollout_url is None or grpo.rollout_model is None:
        return None
    policy = VLLMPolicy(
        Endpoint(grpo.rollout_url, grpo.rollout_model, os.environ.get("VLLM_API_KEY")),
        trainable.tokenizer,
        trainable.eos_ids,
        temperature=grpo.temperature,
        max_tokens=grpo.turn_tokens,
        # Processes that sampled alike would learn from half as much.
        seed=config.seed * 1009 + int(os.environ.get("RANK", "0")),
    )
    return ServerSampler(policy, adapter)


async def check_server(config: RunConfig, trainable: Trainable, adapter: Path) -> None:
    """Take one turn, if rollouts are to come from a server: better now than after hours of measuring.

    Raises:
        ProviderError: it cannot be reached, or tells no tokens; the text says what to do.
    """
    sampler = server_sampler(config, trainable, adapter)
    if sampler is not None:
        try:
            await sampler.act(Prompt((ChatMessage("user", "Hello"),)))
        finally:
            await sampler.close()
