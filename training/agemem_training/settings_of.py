"""A run's configuration as episodes, servers and judges take it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from agemem_mcp.settings import load_settings
from agemem_policies.baselines import kit_named
from agemem_policies.manner import Manner
from agemem_policies.openai_chat import Endpoint
from agemem_training.costs import threads_of
from agemem_training.environment import Rules
from agemem_training.judges import JudgeSettings
from agemem_training.rewards import RewardSettings
from agemem_training.worlds import WorldSettings

if TYPE_CHECKING:
    from agemem_mcp.adapters.embedding import VectorCache
    from agemem_training.config import RunConfig

_MEMORY_DISK = Path("/dev/shm")  # noqa: S108  a folder of our own is made in it


def rules_of(config: RunConfig) -> Rules:
    """What holds in every episode."""
    environment = config.environment
    return Rules(
        kit=kit_named(environment.kit),
        max_rounds=environment.max_rounds,
        recalled=environment.recalled,
        overflow=environment.overflow,
        answer_tokens=environment.answer_tokens,
        frame_tokens=environment.frame_tokens,
        system=environment.system,
        own_summaries=environment.own_summaries,
    )


def manner_of(config: RunConfig) -> Manner:
    """How the policy that comes out is to be asked, elsewhere as well."""
    environment = config.environment
    return Manner(
        system=environment.system,
        recalled=environment.recalled,
        window_tokens=None if environment.tokenizer == "policy" else environment.budget_tokens,
        answer_tokens=environment.answer_tokens,
        frame_tokens=environment.frame_tokens,
        own_summaries=environment.own_summaries,
    )


def world_of(config: RunConfig, tokenizer_folder: Path | None, vectors: VectorCache | None = None) -> WorldSettings:
    """The server of an episode.

    Args:
        config: of the run.
        tokenizer_folder: where the policy's tokenizer is; None while there is none, and tokens are estimated.
        vectors: remembers what was embedded from one server to the next; None for nothing.
    """
    environment = config.environment
    tokenizer = environment.tokenizer
    if tokenizer == "policy":
        tokenizer = "estimate" if tokenizer_folder is None else str(tokenizer_folder / "tokenizer.json")
    return WorldSettings(
        budget_tokens=environment.budget_tokens,
        tokenizer=tokenizer,
        ids=environment.ids,
        threads=threads_of(config),
        vectors=vectors,
        # Passing memories need no disk: where there is one in memory, a commit is four times as fast.
        folder=_MEMORY_DISK if _MEMORY_DISK.is_dir() else None,
        extra={} if environment.embedding is None else {"embedding": environment.embedding},
        url=environment.url,
        token=os.environ.get("AGEMEM_TOKEN"),
    )


def pay_of(config: RunConfig) -> RewardSettings:
    """What an episode is paid for."""
    reward = config.reward
    return RewardSettings(
        variant=reward.variant,
        w_task=reward.weights.task,
        w_context=reward.weights.context,
        w_memory=reward.weights.memory,
        rounds_penalty=reward.weights.rounds_penalty,
        overflow_penalty=reward.weights.overflow_penalty,
        no_effect_cost=reward.weights.no_effect_cost,
        clip=reward.weights.clip,
    )


def judge_of(config: RunConfig) -> JudgeSettings | None:
    """Who grades beside words; None for nobody.

    Its key is that of endpoints of policies, of which training asks none.

    Raises:
        ConfigurationError: the address or the key cannot be used.
    """
    reward = config.reward
    if reward.judge_url is None or reward.judge_model is None:
        return None
    key = load_settings().policy.api_key
    endpoint = Endpoint(reward.judge_url, reward.judge_model, None if key is None else key.get_secret_value())
    return JudgeSettings(endpoint, reward.judge_memories)
