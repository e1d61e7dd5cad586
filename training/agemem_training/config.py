"""What a run is made of: TOML into frozen models. Importing this imports no torch.

A preset is such a file; so is the ``config.toml`` that every run leaves behind, with everything resolved.
"""

from __future__ import annotations

import json
import tomllib
from importlib import resources
from typing import TYPE_CHECKING, Any, Literal, Self, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from agemem_mcp.errors import ConfigurationError
from agemem_policies.baselines import KITS
from agemem_policies.budget import Overflow

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path


SHIPPED = "warm-start"
"""``model.path`` that stands for the mini policy after its warm start, as it comes with this package."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelConfig(_Frozen):
    """The policy that is trained."""

    path: str | None = Field(
        default=None,
        description="Folder of a checkpoint, or a model's name at the hub; none: a small one from scratch.",
    )
    hidden_size: int = Field(default=144, ge=8, description="From scratch: width.")
    layers: int = Field(default=4, ge=1, description="From scratch: depth.")
    heads: int = Field(default=3, ge=1, description="From scratch: attention heads.")
    rope_layers: int = Field(
        default=2, ge=0, description="From scratch: the lower layers that know positions; those above go by content."
    )
    lora_rank: int | None = Field(
        default=None, ge=1, description="Train a LoRA adapter of this rank; none: all weights."
    )
    lora_alpha: int = Field(default=32, ge=1)
    lora_targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="Of the arithmetic. What is trained is kept in float32: bfloat16 knows no steps so small.",
    )
    gradient_checkpointing: bool = False

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.hidden_size % self.heads:
            msg = f"hidden_size {self.hidden_size} is no multiple of heads {self.heads}"
            raise ValueError(msg)
        width = self.hidden_size // self.heads
        if width % 2:
            msg = f"a head's share of hidden_size {self.hidden_size} is {width}: it must be even"
            raise ValueError(msg)
        return self


class TasksConfig(_Frozen):
    """What is trained on and what is held out."""

    sources: tuple[str, ...] = Field(
        default=("synthetic:L1", "synthetic:L2", "synthetic:L3"),
        min_length=1,
        description="`synthetic:LEVEL`, `hotpotqa:PATH` or `recorded:DIR`.",
    )
    weights: tuple[float, ...] | None = Field(default=None, description="How often each is drawn from; none: alike.")

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if len(set(self.sources)) < len(self.sources):
            msg = "a source is named twice; give it a weight instead"
            raise ValueError(msg)
        if self.weights is not None and len(self.weights) != len(self.sources):
            msg = f"{len(self.weights)} weights for {len(self.sources)} sources"
            raise ValueError(msg)
        if self.weights is not None and (min(self.weights) < 0 or not 0 < sum(self.weights) < float("inf")):
            msg = "weights are 0 or more, and one of them is more"
            raise ValueError(msg)
        return self


class EnvironmentConfig(_Frozen):
    """An episode and its server."""

    url: str | None = Field(
        default=None,
        description="Of a server that runs already, such as http://127.0.0.1:8000/mcp: its own settings hold, and what "
        "episodes store stays in namespaces of their own. Its token is AGEMEM_TOKEN. None: a server in this process.",
    )
    budget_tokens: int = Field(default=8192, ge=64, description="T_max: of a context, as the server counts.")
    tokenizer: str = Field(
        default="o200k_base", description="What the server counts with; `policy` is the policy's own tokenizer."
    )
    ids: Literal["random", "sequential"] = "random"
    kit: str = "agemem"
    overflow: Overflow = Field(
        default=Overflow.ERROR, description="When a context outgrows the budget; by default the episode ends."
    )
    max_rounds: int = Field(default=24, ge=1, description="N_max: turns of the policy in one stage.")
    recalled: int = Field(default=3, ge=0, description="Hits of the environment's retrieval in stage 1.")
    answer_tokens: int = Field(default=1024, ge=0, description="Of the budget, kept for a turn.")
    frame_tokens: int = Field(default=16, ge=0, description="Of the chat template, counted for each message.")
    system: str | None = Field(default=None, description="A system prompt instead of the agent's.")
    own_summaries: bool = True
    embedding: str | None = Field(
        default=None, description="The server's embedding model, or `none`; none: its default."
    )

    @model_validator(mode="after")
    def _leaves_room(self) -> Self:
        if self.answer_tokens >= self.budget_tokens:
            msg = f"answer_tokens {self.answer_tokens} leave nothing of budget_tokens {self.budget_tokens}"
            raise ValueError(msg)
        return self

    @field_validator("kit")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in KITS:
            msg = f"there is no kit {name!r}; there are {', '.join(KITS)}"
            raise ValueError(msg)
        return name


class RewardWeights(_Frozen):
    """How much each part of a reward counts; `released` has weights of its own."""

    task: float = Field(default=1 / 3, ge=0)
    context: float = Field(default=1 / 3, ge=0)
    memory: float = Field(default=1 / 3, ge=0)
    rounds_penalty: float = Field(default=1.0, ge=0, description="For running out of rounds.")
    overflow_penalty: float = Field(default=0.5, ge=0, description="For a context that outgrew its budget.")
    no_effect_cost: float = Field(default=0.02, ge=0, description="Of each call without effect, in `strict` alone.")
    clip: float | None = Field(default=None, gt=0, description="Largest size of the total, either way.")


class RewardConfig(_Frozen):
    """What is paid for."""

    variant: Literal["paper", "strict", "released", "answer"] = "strict"
    judge_url: str | None = Field(
        default=None,
        description="An OpenAI-compatible endpoint that grades; its key, if it wants one, is AGEMEM_POLICY__API_KEY.",
    )
    judge_model: str | None = None
    judge_memories: bool = Field(
        default=True,
        description="It grades not answers alone, but what was stored in stage 1 (paper) and retrieved in stage 3.",
    )
    weights: RewardWeights = RewardWeights()

    @model_validator(mode="after")
    def _judge(self) -> Self:
        if (self.judge_url is None) != (self.judge_model is None):
            msg = "judge_url and judge_model are given together"
            raise ValueError(msg)
        return self


class WarmStartConfig(_Frozen):
    """Supervised training on demonstrations, before reinforcement learning."""

    repeat_steps: int = Field(default=800, ge=0, description="Updates on phrases that come again: copying as such.")
    drill_steps: int = Field(default=4000, ge=0, description="Updates on drills: single skills, without a server.")
    episode_steps: int = Field(default=3000, ge=0, description="Updates on whole episodes, and drills in between.")
    drill_share: float = Field(default=0.4, ge=0, le=1, description="Of the latter: how many are on drills.")
    episodes: int = Field(default=192, ge=1, description="Demonstrations of each source, made on the real server.")
    habits: Literal["expert", "noisy"] = "noisy"
    batch_tokens: int = Field(default=1500, ge=64)
    learning_rate: float = Field(default=3e-3, gt=0)
    muon_learning_rate: float = Field(default=2e-2, gt=0, description="Of the weight matrices.")
    observation_weight: float = Field(
        default=0.1, ge=0, description="Of every token but those of repeats; what is to be written counts 1 more."
    )
    gate: float = Field(default=0.9, ge=0, le=1, description="What each copying skill must reach.")
    skill_drills: int = Field(default=600, ge=1, description="Drills that the skills are measured by.")


class GrpoConfig(_Frozen):
    """Step-wise GRPO."""

    iterations: int = Field(default=100, ge=0)
    tasks: int = Field(default=4, ge=1, description="Per iteration, over all processes.")
    trajectories: int = Field(default=8, ge=2, description="K: of each task.")
    learning_rate: float = Field(default=1e-6, gt=0)
    warmup: int = Field(default=5, ge=0, description="Iterations over which the learning rate rises.")
    final_share: float = Field(
        default=1.0, gt=0, le=1, description="Of the learning rate, left in the last iteration: it falls evenly."
    )
    weight_decay: float = Field(default=0.0, ge=0)
    beta: float = Field(default=0.1, ge=0)
    clip: float | None = Field(default=None, gt=0)
    ratio: Literal["token", "step"] = "token"
    max_grad_norm: float = Field(default=1.0, gt=0)
    temperature: float = Field(default=1.0, gt=0)
    turn_tokens: int = Field(default=2048, ge=1, description="Of one turn, at most.")
    micro_batch_tokens: int = Field(default=8192, ge=64)
    rollout_url: str | None = Field(
        default=None,
        description="A vLLM server that samples the rollouts of a run with a LoRA adapter, such as "
        "http://127.0.0.1:8001/v1; its key is VLLM_API_KEY. None: they are sampled in this process.",
    )
    rollout_model: str | None = Field(default=None, description="The name under which it serves the model.")
    resample: int = Field(default=0, ge=0, description="Times that a group without variance is drawn anew.")
    patience: int | None = Field(
        default=None,
        ge=1,
        description="Evaluations without a better one, then it stops. The run then ends with the weights of its best "
        "evaluation; without patience with its last ones.",
    )

    @model_validator(mode="after")
    def _server(self) -> Self:
        if (self.rollout_url is None) != (self.rollout_model is None):
            msg = "rollout_url and rollout_model are given together"
            raise ValueError(msg)
        return self


class EvaluationConfig(_Frozen):
    """Measuring on tasks that were held out."""

    every: int = Field(default=20, ge=1, description="Iterations between two, on the validation split.")
    episodes: int = Field(default=48, ge=1, description="Of each source, then.")
    final_episodes: int = Field(default=200, ge=1, description="Of each source, on the test split, before and after.")
    sampled: bool = Field(default=True, description="At the end also with sampling, not greedy alone.")
    demonstrator: Literal["expert", "noisy"] | None = Field(
        default=None, description="Measured on the same tasks, to compare with; synthetic tasks alone have one."
    )


class RunConfig(_Frozen):
    """Everything."""

    preset: str = "custom"
    seed: int = 0
    device: Literal["auto", "cpu"] = Field(default="auto", description="`auto` is a GPU, where there is one.")
    threads: int | None = Field(default=None, ge=1, description="Of torch; processes divide them.")
    processes: int = Field(
        default=1,
        ge=1,
        description="On this machine, that share rollouts and updates, and on a CPU the evaluations before and after. "
        "On GPUs each has one of its own.",
    )
    save_every: int = Field(default=10, ge=1, description="Iterations between two checkpoints.")
    model: ModelConfig = ModelConfig()
    tasks: TasksConfig = TasksConfig()
    environment: EnvironmentConfig = EnvironmentConfig()
    reward: RewardConfig = RewardConfig()
    warm_start: WarmStartConfig | None = None
    grpo: GrpoConfig = GrpoConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _an_adapter_for_the_server(self) -> Self:
        if self.grpo.rollout_url is not None and self.model.lora_rank is None:
            msg = "grpo.rollout_url needs model.lora_rank: new weights reach a server as a LoRA adapter"
            raise ValueError(msg)
        return self


def preset_names() -> list[str]:
    """The presets that are shipped."""
    files = resources.files("agemem_training.presets").iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def load_preset(name: str) -> RunConfig:
    """A preset by name.

    Raises:
        ConfigurationError: there is none of that name.
    """
    if name not in preset_names():
        msg = f"There is no preset {name!r}. There are {', '.join(preset_names())}; or give a file with --config."
        raise ConfigurationError(msg)
    text = resources.files("agemem_training.presets").joinpath(f"{name}.toml").read_text("utf-8")
    return _read(text, f"preset {name}", {"preset": name})


def load_config(path: Path) -> RunConfig:
    """A configuration from a file.

    Raises:
        ConfigurationError: it cannot be read, or what it says cannot be; the text names each field.
    """
    try:
        return _read(path.read_text("utf-8"), str(path), {})
    except (OSError, UnicodeDecodeError) as error:
        msg = f"The configuration {path} cannot be read ({error})."
        raise ConfigurationError(msg) from error


def _read(text: str, where: str, defaults: Mapping[str, Any]) -> RunConfig:
    try:
        return RunConfig.model_validate({**defaults, **tomllib.loads(text)})
    except tomllib.TOMLDecodeError as error:
        msg = f"{where} is no TOML: {error}."
        raise ConfigurationError(msg) from error
    except ValidationError as error:
        raise _refused(error, where) from error


def _refused(error: ValidationError, where: str) -> ConfigurationError:
    wrong = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
    return ConfigurationError(f"{where} cannot be used: {wrong}.")


def changed(config: RunConfig, **tables: Mapping[str, Any]) -> RunConfig:
    """The configuration with other values, checked as a file's are.

    Args:
        config: stays as it is.
        tables: what is changed in each table; the table ``run`` is the top level.

    Raises:
        ConfigurationError: the values cannot be; the text names each field.
    """
    data = config.model_dump()
    for name, values in tables.items():
        data = {**data, **values} if name == "run" else {**data, name: {**data[name], **values}}
    try:
        return RunConfig.model_validate(data)
    except ValidationError as error:
        raise _refused(error, "The configuration with these options") from error


def as_toml(config: RunConfig) -> str:
    """The configuration as a file that :func:`load_config` reads; what is none is left out."""
    data = config.model_dump(mode="json", exclude_none=True)
    return "\n".join(_lines(data)) + "\n"


def _lines(data: Mapping[str, Any], name: str = "") -> Iterator[str]:
    """A table, what stands in it by itself first: in TOML all that follows the head of a table is in that table."""
    tables = {key: cast("dict[str, Any]", value) for key, value in data.items() if isinstance(value, dict)}
    yield from (f"{key} = {_toml(value)}" for key, value in data.items() if key not in tables)
    for key, table in tables.items():
        yield from ("", f"[{name}{key}]", *_lines(table, f"{name}{key}."))


def _toml(value: object) -> str:
    # The values here are those that JSON and TOML write alike.
    return json.dumps(value, ensure_ascii=False)


def differences(before: RunConfig, now: RunConfig) -> list[str]:
    """What differs between two configurations, a line for each field."""
    old, new = _flat(before.model_dump(mode="json")), _flat(now.model_dump(mode="json"))
    return [f"{name}: {old.get(name)!r} → {new.get(name)!r}" for name in old | new if old.get(name) != new.get(name)]


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in data.items():
        if isinstance(value, dict):
            flat |= _flat(cast("dict[str, Any]", value), f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
