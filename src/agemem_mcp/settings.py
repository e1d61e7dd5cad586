"""Settings: the only reader of the environment. Every name is ``AGEMEM_…``; unknown ones are refused."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping  # noqa: TC003  pydantic's source reads the annotation
from contextvars import ContextVar
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, cast

import platformdirs
from pydantic import BaseModel, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.sources.utils import parse_env_vars

from agemem_mcp.domain.context import SessionLives
from agemem_mcp.domain.limits import Quota, Retention
from agemem_mcp.domain.memory import check_namespace
from agemem_mcp.domain.modes import FilterMode
from agemem_mcp.errors import ConfigurationError, InvalidOperation
from agemem_mcp.link.places import default_data_dir

if TYPE_CHECKING:
    from collections.abc import Iterator

PREFIX = "AGEMEM_"
_NOT_SHARED = (
    "data_dir",
    "namespace",
    "tools",
    "log_level",
    "daemon",
    "host",
    "port",
    "token",
    "allowed_hosts",
    "policy",
)
DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"


class ContextSettings(BaseModel):
    """Short-term context."""

    budget_tokens: int = Field(default=8192, ge=64, description="Tokens a session's context should stay below.")
    session_days: float = Field(
        default=30, gt=0, le=36_500, description="Days without use after which a session expires."
    )
    unnamed_session_hours: float = Field(
        default=1, gt=0, le=876_000, description="Hours after which a session expires whose id was never passed back."
    )
    tokenizer: str = Field(
        default="o200k_base", description="`o200k_base`, the path of a tokenizer.json, or `estimate`."
    )

    @property
    def lives(self) -> SessionLives:
        """After what time sessions expire."""
        return SessionLives(timedelta(days=self.session_days), timedelta(hours=self.unnamed_session_hours))


class FilterSettings(BaseModel):
    """What ``Filter_context`` takes for a match."""

    mode: FilterMode = Field(
        default=FilterMode.HYBRID,
        description="`hybrid` (words and meaning), `lexical` (words), `paper` (cosine of whole messages).",
    )
    theta: float | None = Field(
        default=None, ge=0, le=1, description="Similarity from which a message is removed; default by mode."
    )


class QuotaSettings(BaseModel):
    """How much one namespace of one caller may hold."""

    entries: int | None = Field(default=None, ge=1, description="Memories a namespace may hold; default any number.")
    bytes: int | None = Field(
        default=None, ge=1, description="UTF-8 bytes of texts and metadata a namespace may hold; default any number."
    )

    @property
    def limits(self) -> Quota:
        """The same as a rule."""
        return Quota(self.entries, self.bytes)


class SummarySettings(BaseModel):
    """An OpenAI-compatible endpoint that writes summaries when the caller gives none."""

    url: str | None = Field(default=None, description="Base URL, such as http://127.0.0.1:11434/v1.")
    model: str | None = Field(default=None, description="Model name at that endpoint.")
    api_key: SecretStr | None = Field(default=None, description="Its key, if it wants one.")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.url is None) != (self.model is None):
            msg = "AGEMEM_SUMMARY__URL and AGEMEM_SUMMARY__MODEL belong together: set both or neither"
            raise ValueError(msg)
        return self


class PolicySettings(BaseModel):
    """What decides which operation to use, where this package runs an agent itself."""

    name: str | None = Field(
        default=None, description="`openai:MODEL@URL`, `hf:PATH` or `scripted:NAME`: who answers in a chat."
    )
    api_key: SecretStr | None = Field(default=None, description="Its key, if it wants one.")
    native: bool = Field(
        default=False, description="`true`: it calls tools by its own interface, not by writing them into its text."
    )


_environment: ContextVar[Mapping[str, str] | None] = ContextVar("environment", default=None)
"""Whose environment is read; None for this process's own."""


class _Environment(EnvSettingsSource):
    """The environment of this process, or that of a client."""

    def _load_env_vars(self) -> Mapping[str, str | None]:
        names = _environment.get()
        return parse_env_vars(
            os.environ if names is None else names, self.case_sensitive, self.env_ignore_empty, self.env_parse_none_str
        )


class Settings(BaseSettings):
    """Everything that can be configured. Command-line options override the environment."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", validate_default=True, env_ignore_empty=True
    )

    data_dir: Path = Field(
        default_factory=lambda: Path(default_data_dir()),
        description="Folder of ledger, sessions and index.",
    )
    assets_dir: Path = Field(
        default_factory=lambda: Path(platformdirs.user_cache_dir("agemem-mcp", appauthor=False)) / "assets",
        description="Folder of the model and tokenizer files.",
    )
    hub_url: str = Field(default="https://huggingface.co", description="Where the model files are tried first.")
    namespace: str = Field(default="default", description="Namespace of memories and sessions.")
    tools: Literal["six", "all"] = Field(default="all", description="`six` leaves out the two context helpers.")
    ids: Literal["random", "sequential"] = Field(default="random", description="`sequential`: mem_1, mem_2, …")
    seed: int | None = Field(default=None, description="Makes ids reproducible; for tests and training only.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="warning", description="On stderr.")

    daemon: Literal["auto", "tcp"] = Field(
        default="auto", description="How clients reach the daemon: `tcp` (loopback) where Unix sockets do not work."
    )
    daemon_idle_minutes: float = Field(
        default=15, gt=0, le=525_600, description="Minutes without a connection after which the daemon ends."
    )

    host: str = Field(default="127.0.0.1", description="HTTP: address to listen on.")
    port: int = Field(default=8000, ge=0, le=65535, description="HTTP: port to listen on.")
    token: SecretStr | None = Field(default=None, description="HTTP: bearer token every request must carry.")
    allowed_hosts: Annotated[list[str], NoDecode] = Field(
        default_factory=list, description="HTTP: host names clients may use, comma-separated; `*` allows any."
    )

    embedding: str = Field(default=DEFAULT_MODEL, description="Embedding model, or `none` to search by words alone.")
    embedding_path: Path | None = Field(
        default=None, description="Folder with the ONNX files of another fastembed model."
    )
    embedding_threads: int | None = Field(default=None, ge=1, description="Threads for embedding; default all cores.")

    recency_days: float | None = Field(
        default=None,
        gt=0,
        le=36500,
        description="Half-life of the bonus for newer memories in a search; none by default.",
    )

    qdrant_url: str | None = Field(default=None, description="A Qdrant server or cluster instead of the embedded one.")
    qdrant_api_key: SecretStr | None = Field(default=None, description="Its key, if it wants one.")
    qdrant_collection: str = Field(default="agemem", min_length=1, description="Its collection.")

    retention: str = Field(
        default="", description="Life of memories by type, such as `event=30d,note=12h,*=2y`; default for ever."
    )
    quota: QuotaSettings = Field(default_factory=QuotaSettings)
    context: ContextSettings = Field(default_factory=ContextSettings)
    filter: FilterSettings = Field(default_factory=FilterSettings)
    summary: SummarySettings = Field(default_factory=SummarySettings)
    policy: PolicySettings = Field(default_factory=PolicySettings)

    @classmethod
    def settings_customise_sources(  # the names are the base class's
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What was given to the constructor comes before the environment."""
        del env_settings, dotenv_settings, file_secret_settings
        return init_settings, _Environment(settings_cls)

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:  # noqa: ANN401  whatever the environment holds
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("embedding")
    @classmethod
    def _model(cls, value: str) -> str:
        return "none" if value.strip().lower() == "none" else value.strip()

    @field_validator("retention")
    @classmethod
    def _lives(cls, value: str) -> str:
        try:
            Retention.parse(value)
        except InvalidOperation as error:
            raise ValueError(str(error)) from error
        return value

    @field_validator("data_dir", "assets_dir", "embedding_path")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser().absolute()

    @field_validator("token")
    @classmethod
    def _not_blank(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().strip():
            msg = "must not be blank"
            raise ValueError(msg)
        return value

    @model_validator(mode="after")
    def _files_of_other_models(self) -> Self:
        if self.embedding not in ("none", DEFAULT_MODEL) and self.embedding_path is None:
            msg = (
                f"AGEMEM_EMBEDDING={self.embedding} needs AGEMEM_EMBEDDING_PATH, the folder of its ONNX files: only "
                f"{DEFAULT_MODEL} is fetched by `agemem-mcp assets pull`"
            )
            raise ValueError(msg)
        return self


def load_settings(*, environment: Mapping[str, str] | None = None, **overrides: Any) -> Settings:  # noqa: ANN401  any setting's value
    """Read the environment, with ``overrides`` (those that are not None) on top.

    Args:
        environment: read instead of this process's own, such as a client's.
        overrides: settings by name.

    Raises:
        ConfigurationError: an unknown ``AGEMEM_`` name or a value that cannot be used; the text names it.
    """
    _refuse_unknown(os.environ if environment is None else environment)
    token = _environment.set(environment)
    try:
        settings = Settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        raise ConfigurationError(_explain(error)) from error
    finally:
        _environment.reset(token)
    try:
        check_namespace(settings.namespace)
    except InvalidOperation as error:
        msg = f"Settings: {PREFIX}NAMESPACE: {error}"
        raise ConfigurationError(msg) from error
    return settings


def setting_rows() -> list[tuple[str, str, str]]:
    """Name, default and meaning of every setting, for the README and ``doctor``."""
    return list(_rows(Settings, PREFIX))


def differing_settings(mine: Settings, theirs: Settings) -> list[tuple[str, str, str]]:
    """Name, my value and theirs of what differs among the settings that all clients of a memory share.

    What each client has for itself (namespace, tools) and what concerns listening or logging alone is left out;
    values of secrets are not shown.
    """
    own, other = dict(_flat(mine.model_dump())), dict(_flat(theirs.model_dump()))
    return [
        (name, _shown(own[name]), _shown(other[name]))
        for name in own
        if own[name] != other[name] and name.removeprefix(PREFIX).lower().split("__")[0] not in _NOT_SHARED
    ]


def changed_settings(settings: Settings) -> list[tuple[str, str]]:
    """Name and value of what differs from the defaults; secrets are not shown."""
    return [(name, _shown(value)) for name, value in _flat(settings.model_dump(exclude_unset=True))]


def _flat(values: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    for name, value in values.items():
        if isinstance(value, dict):
            nested = cast("dict[str, object]", value)
            yield from ((f"{PREFIX}{name}__{inner}".upper(), one) for inner, one in nested.items())
        else:
            yield f"{PREFIX}{name}".upper(), value


def _shown(value: object) -> str:
    return without_secrets(str(value))


def without_secrets(value: str) -> str:
    """The value, without the user and password that a URL may hold."""
    return re.sub(r"(?<=://)[^/@]*@", "", value)


def _rows(model: type[BaseModel], prefix: str) -> list[tuple[str, str, str]]:
    rows: list[tuple[str, str, str]] = []
    for name, field in model.model_fields.items():
        nested = field.annotation
        if isinstance(nested, type) and issubclass(nested, BaseModel):
            rows += _rows(nested, f"{prefix}{name.upper()}__")
            continue
        default = field.get_default(call_default_factory=False)
        shown = "" if default is None or field.default_factory is not None else str(default)
        rows.append((f"{prefix}{name.upper()}", shown, field.description or ""))
    return rows


def _refuse_unknown(environment: Mapping[str, str]) -> None:
    known = {name for name, _, _ in setting_rows()}
    for name in environment:
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            close = difflib.get_close_matches(name.upper(), known, n=1)
            hint = f" Did you mean {close[0]}?" if close else " `agemem-mcp doctor` lists them."
            msg = f"{name} is not a setting.{hint}"
            raise ConfigurationError(msg)


def _explain(error: ValidationError) -> str:
    problems: list[str] = []
    for problem in error.errors(include_url=False, include_input=False):
        name = PREFIX + "__".join(str(part) for part in problem["loc"]).upper() if problem["loc"] else ""
        text = problem["msg"].removeprefix("Value error, ")
        problems.append(f"{name}: {text}" if name else text)
    return "Settings: " + "; ".join(problems) + "."
