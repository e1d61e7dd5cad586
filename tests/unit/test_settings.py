"""Settings come from the environment, and say which of them is wrong."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from agemem_mcp.domain.context import SessionLives
from agemem_mcp.domain.limits import Quota
from agemem_mcp.domain.modes import FilterMode
from agemem_mcp.errors import ConfigurationError
from agemem_mcp.settings import changed_settings, differing_settings, load_settings, setting_rows

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the machine's own."""
    for name in list(os.environ):
        if name.upper().startswith("AGEMEM_"):
            monkeypatch.delenv(name)


def refusal(**overrides: Any) -> str:
    """The text with which settings are refused."""
    with pytest.raises(ConfigurationError) as caught:
        load_settings(**overrides)
    return str(caught.value)


def test_without_any_setting_everything_stays_on_this_machine() -> None:
    settings = load_settings()
    assert (settings.host, settings.token, settings.qdrant_url, settings.summary.url) == ("127.0.0.1", None, None, None)
    assert (settings.namespace, settings.tools, settings.ids, settings.seed) == ("default", "all", "random", None)
    assert settings.context.budget_tokens == 8192
    assert settings.context.lives == SessionLives(timedelta(days=30), timedelta(hours=1))
    assert settings.filter.mode is FilterMode.HYBRID
    assert settings.assets_dir != settings.data_dir
    assert settings.data_dir not in settings.assets_dir.parents
    assert changed_settings(settings) == []


def test_every_setting_has_a_name_and_a_meaning() -> None:
    rows = setting_rows()
    names = [name for name, _, _ in rows]
    assert len(set(names)) == len(names) <= 40
    assert all(name.startswith("AGEMEM_") and name == name.upper() for name in names)
    assert all(meaning.endswith((".", "…")) for _, _, meaning in rows)
    assert ("AGEMEM_PORT", "8000", "HTTP: port to listen on.") in rows


def test_the_environment_sets_and_the_command_line_overrides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AGEMEM_PORT", "9000")
    monkeypatch.setenv("AGEMEM_HOST", "localhost")
    monkeypatch.setenv("AGEMEM_CONTEXT__BUDGET_TOKENS", "500")
    monkeypatch.setenv("AGEMEM_FILTER__MODE", "paper")
    monkeypatch.setenv("AGEMEM_DATA_DIR", str(tmp_path))
    settings = load_settings(port=9001, host=None)
    assert (settings.port, settings.host, settings.data_dir) == (9001, "localhost", tmp_path)
    assert settings.context.budget_tokens == 500
    assert settings.filter.mode is FilterMode.PAPER


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGEMEM_PORT", "")
    monkeypatch.setenv("AGEMEM_TOKEN", "")
    assert (load_settings().port, load_settings().token) == (8000, None)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("AGEMEM_EMBEDING", "AGEMEM_EMBEDING is not a setting. Did you mean AGEMEM_EMBEDDING?"),
        ("AGEMEM_FILTER__TETA", "Did you mean AGEMEM_FILTER__THETA?"),
        ("agemem_tokens", "agemem_tokens is not a setting. Did you mean AGEMEM_TOKEN?"),
        ("AGEMEM_CONTEXT_BUDGET_TOKENS", "Did you mean AGEMEM_CONTEXT__BUDGET_TOKENS?"),
        ("AGEMEM_XYZZY_PLUGH_QUUX", "`agemem-mcp doctor` lists them."),
    ],
)
def test_an_unknown_name_is_refused_with_the_one_it_resembles(
    monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    monkeypatch.setenv(name, "1")
    assert said in refusal()


def test_names_of_other_programs_are_let_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGEMEMORY", "1")
    monkeypatch.setenv("MY_AGEMEM_PORT", "x")
    assert load_settings().port == 8000


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AGEMEM_PORT", "x"),
        ("AGEMEM_PORT", "70000"),
        ("AGEMEM_TOOLS", "seven"),
        ("AGEMEM_IDS", "uuid"),
        ("AGEMEM_SEED", "dice"),
        ("AGEMEM_LOG_LEVEL", "loud"),
        ("AGEMEM_TOKEN", "   "),
        ("AGEMEM_EMBEDDING_THREADS", "0"),
        ("AGEMEM_CONTEXT__BUDGET_TOKENS", "10"),
        ("AGEMEM_CONTEXT__SESSION_DAYS", "0"),
        ("AGEMEM_CONTEXT__SESSION_DAYS", "inf"),
        ("AGEMEM_CONTEXT__UNNAMED_SESSION_HOURS", "1e300"),
        ("AGEMEM_FILTER__MODE", "fuzzy"),
        ("AGEMEM_FILTER__THETA", "1.5"),
        ("AGEMEM_SUMMARY__URL", "http://127.0.0.1:1/v1"),
        ("AGEMEM_EMBEDDING", "other/model"),
        ("AGEMEM_NAMESPACE", "a b"),
        ("AGEMEM_NAMESPACE", "../x"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_with_its_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    text = refusal()
    assert name in text
    assert text.endswith(".")
    assert "\n" not in text


def test_secrets_are_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = ("AGEMEM_TOKEN", "AGEMEM_QDRANT_API_KEY", "AGEMEM_SUMMARY__API_KEY", "AGEMEM_POLICY__API_KEY")
    for name in secrets:
        monkeypatch.setenv(name, "hunter2")
    monkeypatch.setenv("AGEMEM_SUMMARY__URL", "http://127.0.0.1:1/v1")
    monkeypatch.setenv("AGEMEM_SUMMARY__MODEL", "small")
    settings = load_settings()
    assert settings.token is not None
    assert settings.token.get_secret_value() == "hunter2"
    shown = changed_settings(settings)
    assert {name for name, _ in shown} == {*secrets, "AGEMEM_SUMMARY__URL", "AGEMEM_SUMMARY__MODEL"}
    assert "hunter2" not in f"{shown} {settings!r} {settings}"
    monkeypatch.setenv("AGEMEM_PORT", "x")
    assert "hunter2" not in refusal()


def test_several_problems_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGEMEM_PORT", "x")
    monkeypatch.setenv("AGEMEM_FILTER__THETA", "9")
    assert "AGEMEM_PORT: " in refusal()
    assert "; AGEMEM_FILTER__THETA: " in refusal()


@pytest.mark.parametrize(
    ("given", "kept"), [("a.example, b.example", ["a.example", "b.example"]), ("*", ["*"]), (",", [])]
)
def test_host_names_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch, given: str, kept: list[str]) -> None:
    monkeypatch.setenv("AGEMEM_ALLOWED_HOSTS", given)
    assert load_settings().allowed_hosts == kept


def test_folders_are_absolute_and_the_home_folder_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert load_settings(data_dir="~/x").data_dir == tmp_path / "x"
    assert load_settings(assets_dir="y").assets_dir == tmp_path / "y"


@pytest.mark.parametrize("given", ["none", "None", " NONE "])
def test_no_model_may_be_written_in_any_case(given: str) -> None:
    assert load_settings(embedding=given).embedding == "none"


def test_another_model_is_used_with_its_folder(tmp_path: Path) -> None:
    assert load_settings(embedding="other/model", embedding_path=tmp_path).embedding_path == tmp_path


def test_a_retention_and_a_quota_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGEMEM_RETENTION", "event=30d,note=12h")
    monkeypatch.setenv("AGEMEM_QUOTA__ENTRIES", "1000")
    settings = load_settings()
    assert (settings.retention, settings.quota.limits) == ("event=30d,note=12h", Quota(entries=1000))
    monkeypatch.setenv("AGEMEM_QUOTA__BYTES", "0")
    assert "AGEMEM_QUOTA__BYTES: Input should be greater than or equal to 1" in refusal()
    monkeypatch.delenv("AGEMEM_QUOTA__BYTES")
    monkeypatch.setenv("AGEMEM_RETENTION", "event=30d,note")
    assert "AGEMEM_RETENTION: 'note' is no retention. Write such as event=30d" in refusal()


def test_a_policy_is_named_with_its_key_and_how_it_calls_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = load_settings().policy
    assert (policy.name, policy.api_key, policy.native) == (None, None, False)
    monkeypatch.setenv("AGEMEM_POLICY__NAME", "openai:small@http://127.0.0.1:1/v1")
    monkeypatch.setenv("AGEMEM_POLICY__NATIVE", "true")
    policy = load_settings().policy
    assert (policy.name, policy.native) == ("openai:small@http://127.0.0.1:1/v1", True)


def test_what_each_client_has_for_itself_is_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = load_settings()
    monkeypatch.setenv("AGEMEM_POLICY__NAME", "scripted:echo")
    monkeypatch.setenv("AGEMEM_POLICY__API_KEY", "hunter2")
    monkeypatch.setenv("AGEMEM_NAMESPACE", "work")
    monkeypatch.setenv("AGEMEM_CONTEXT__BUDGET_TOKENS", "500")
    assert differing_settings(mine, load_settings()) == [("AGEMEM_CONTEXT__BUDGET_TOKENS", "8192", "500")]
