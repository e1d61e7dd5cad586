"""``agemem-mcp train``: plans, refusals, measurements, and Ctrl-C in a real process."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

WHY = "training needs torch, transformers, accelerate and peft: `pip install 'agemem-mcp[train]'`"
for extra in ("torch", "transformers", "accelerate", "peft", "matplotlib"):
    pytest.importorskip(extra, reason=WHY)

import psutil  # noqa: E402  after the skip
from tests.unit.policies.local.tiny_checkpoint import write_random  # noqa: E402  as above
from tests.unit.training.processes import child_environment  # noqa: E402  as above
from tests.unit.training.tiny_policy import hotpotqa_file, tiny_run  # noqa: E402  as above

from agemem_training.checkpoints import load_checkpoint_state  # noqa: E402  as above
from agemem_training.command import app  # noqa: E402  as above
from agemem_training.config import ModelConfig, RunConfig, as_toml, load_preset  # noqa: E402  as above
from agemem_training.loading import load_trainable  # noqa: E402  as above

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_TRAIN = "import sys; from agemem_mcp._entry import main; sys.argv = ['agemem-mcp', 'train', *sys.argv[1:]]; main()"
_LIMIT_S = 120


@pytest.fixture(autouse=True)
def _own_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    # Loggers keep the stderr that they first wrote to, and that of a command run in here is closed after its test.
    monkeypatch.setattr("agemem_training.command.start_logging", lambda _level: None)


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def told(*options: str) -> str:
    done = CliRunner().invoke(app, list(options), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def refused(*options: str) -> str:
    done = CliRunner().invoke(app, list(options))
    assert done.exit_code == 1
    assert type(done.exception).__module__ == "agemem_mcp.errors", done.exception
    return str(done.exception)


def written(folder: Path, config: RunConfig) -> Path:
    path = folder / "own.toml"
    path.write_text(as_toml(config), encoding="utf-8")
    return path


def test_the_help_fits_80_columns() -> None:
    done = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"})
    assert done.exit_code == 0
    assert max(map(len, done.output.splitlines())) <= 80
    for option in ("--preset", "--config", "--resume", "--evaluate", "--dry-run", "--model", "--tasks", "--force"):
        assert option in done.output


def test_a_dry_run_tells_the_whole_configuration_and_what_it_needs() -> None:
    plan = told("--dry-run", "--seed", "3", "--iterations", "7")
    config = RunConfig.model_validate(tomllib.loads(plan))
    assert config.preset == "mini"
    assert (config.seed, config.grpo.iterations) == (3, 7)
    assert config.environment == load_preset("mini").environment
    [parameters] = re.findall(r"^# parameters: ([\d,]+)$", plan, re.MULTILINE)
    assert 500_000 < int(parameters.replace(",", "")) < 3_000_000
    assert re.search(r"^# memory of each process: about 0\.\d\d GB", plan, re.MULTILINE)
    assert "# 7 iterations, each of 6 tasks with 8 trajectories" in plan


def test_a_dry_run_says_so_where_the_model_is_out_of_reach() -> None:
    plan = told("--dry-run", "--preset", "qwen2.5-7b-hotpotqa", "--tasks", "hotpotqa:a.json")
    assert RunConfig.model_validate(tomllib.loads(plan)).tasks.sources == ("hotpotqa:a.json",)
    assert "# parameters and memory: unknown, for the model is not at hand" in plan
    assert "Traceback" not in plan


def test_of_a_model_with_an_adapter_the_adapter_alone_is_trained(tmp_path: Path) -> None:
    model = write_random(tmp_path / "model")
    plan = json.loads(told("--dry-run", "--json", "--model", str(model), "--tasks", "hotpotqa:a.json"))
    assert plan["config"]["preset"] == "qwen2.5-7b-hotpotqa"
    estimate = plan["estimate"]
    # rank 32 · (in + out) of seven matrices in each of two layers
    shapes = [(48, 48), (48, 24), (48, 24), (48, 48), (48, 96), (48, 96), (96, 48)]
    assert estimate["trained_parameters"] == 2 * sum(32 * (one + other) for one, other in shapes)
    assert estimate["reference_bytes"] == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--preset", "maxi"], "There is no preset 'maxi'. There are mini, "),
        (["--config", "absent.toml"], "absent.toml cannot be read"),
        (["--preset", "mini", "--config", "own.toml"], "--preset or --config, not both"),
        (["--resume", "absent"], "There is no run in absent"),
        (["--resume", "a", "--out", "b"], "--resume goes on in its own folder"),
        (["--evaluate", "absent"], "There is no checkpoint absent"),
        (["--episodes", "50"], "--episodes is for --evaluate. What training measures is set by [evaluation] of the"),
        (["--sampled", "--dry-run"], "--sampled is for --evaluate."),
        (["--evaluate", "a", "--out", "b"], "--evaluate writes no folder"),
        (["--evaluate", "a", "--model", "b"], "--evaluate measures the policy in its folder as it is and trains"),
        (["--evaluate", "a", "--iterations", "0"], "nothing: give it without --iterations."),
        (["--evaluate", "a", "--force", "--model", "b"], "nothing: give it without --model and --force."),
        (["--tasks", "hotpotqa:absent.json", "--model", "absent"], "absent.json cannot be read"),
        (["--tasks", "stories", "--preset", "smoke"], "'stories' names no source of tasks"),
        (["--tasks", "synthetic:L1", "--model", "someone/model"], "The model 'someone/model' cannot be loaded"),
        (["--tasks", "synthetic:L1", "--tasks", "synthetic:L1"], "a source is named twice"),
    ],
)
def test_what_cannot_be_done_is_said_in_words(
    options: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refused(*options)
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    model = write_random(tmp_path / "model", template=None)
    tasks = f"hotpotqa:{hotpotqa_file(tmp_path)}"
    assert "no chat template" in refused("--model", str(model), "--tasks", tasks, "--out", str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_run_and_a_measurement_of_what_it_left(tiny_start: Path, tmp_path: Path) -> None:
    config = tiny_run(tiny_start, run={"processes": 2}, grpo={"iterations": 1}, evaluation={"final_episodes": 1})
    out = tmp_path / "run"
    done = json.loads(told("--config", str(written(tmp_path, config)), "--out", str(out), "--json"))
    assert done["folder"] == str(out)
    assert [(one["level"], one["greedy"]) for one in done["before_after"]] == [("L1", True)]
    line = told("--evaluate", str(out), "--seed", "5", "--episodes", "3")
    pattern = (
        r"synthetic:L1: task success \d\.\d{3} \[\d\.\d{3}, \d\.\d{3}\] of 3 \(greedy, seed 5\); reward [+-]\d\.\d{3}"
    )
    assert re.match(pattern, line)
    start = out / "start"  # measured as its run says
    [measured] = json.loads(told("--evaluate", str(start), "--episodes", "2", "--sampled", "--json"))
    assert {name: measured[name] for name in ("tasks", "greedy", "seed", "n")} == {
        "tasks": "synthetic:L1", "greedy": False, "seed": 0, "n": 2,
    }  # fmt: skip
    assert measured["figures"]["steps"] > 0


def test_a_checkpoint_that_does_not_say_how_it_was_trained_is_measured_as_asked_for_alone(
    tiny_start: Path, tmp_path: Path
) -> None:
    said = refused("--evaluate", str(tiny_start), "--episodes", "2")
    assert said.startswith(f"Nothing says how the policy in {tiny_start} was trained: neither it nor the folder above")
    assert "with --preset NAME or --config FILE" in said
    config = tiny_run(tmp_path / "elsewhere", tasks={"sources": ["synthetic:L2"]}, run={"seed": 3})
    own = ("--config", str(written(tmp_path, config)), "--episodes", "2", "--json")
    [measured] = json.loads(told("--evaluate", str(tiny_start), *own))
    assert (measured["tasks"], measured["seed"], measured["n"]) == ("synthetic:L2", 3, 2)
    plan = tomllib.loads(told("--evaluate", str(tiny_start), "--preset", "smoke", "--dry-run"))
    assert plan["preset"] == "smoke"


def test_a_run_ends_with_how_to_talk_with_its_policy(tiny_start: Path, tmp_path: Path) -> None:
    def last_line(ids: str) -> str:
        environment = {"ids": ids}
        config = tiny_run(tiny_start, environment=environment, grpo={"iterations": 0}, evaluation={"final_episodes": 1})
        options = ["--config", str(written(tmp_path, config)), "--out", str(tmp_path / ids)]
        done = CliRunner().invoke(app, options, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stderr.splitlines()[-1]

    assert last_line("random").endswith(f"; talk with it: agemem-mcp chat --policy hf:{tmp_path / 'random'}")
    out = tmp_path / "sequential"
    counted = f"; talk with it: AGEMEM_IDS=sequential agemem-mcp chat --policy hf:{out} --data-dir {out / 'memory'}"
    assert last_line("sequential").endswith(counted)


@pytest.mark.usefixtures("assets_dir")
def test_the_smoke_preset_runs_to_its_end_and_leaves_everything(tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = json.loads(told("--preset", "smoke", "--out", str(out), "--json"))
    assert done["folder"] == str(out)
    assert [(one["level"], one["greedy"]) for one in done["before_after"]] == [("L1", True), ("L1", False)]
    report = json.loads((out / "report.json").read_text())
    assert report["gates"] == done["gates"]
    assert [one["passed"] for one in report["gates"]] == [True] * 7  # whatever it can: nothing is required of it
    assert [one["phase"] for one in report["iterations"]] == ["warm start", "grpo", "grpo"]
    assert [one["name"] for one in report["evaluations"]].count("during") == 1
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert "| task success |" in (out / "report.md").read_text()
    assert "hf:DIR" in (out / "README.md").read_text()
    state, weights, _ = load_checkpoint_state(out / "checkpoints" / "iteration-00002")
    assert (state.iteration, state.evaluated) == (2, 1)
    policy = load_trainable(ModelConfig(path=str(out)))
    assert weights.keys() >= {name for name, _ in policy.model.named_parameters()}
    assert policy.parameters < 100_000


def interrupted(
    options: list[str],
    ready: Callable[[str], bool],
    disturb: Callable[[int], None] = lambda process: os.killpg(process, signal.SIGINT),
) -> tuple[int, str]:
    """Start a command, disturb it once it has said a line, and give its status and all that it said.

    Args:
        options: of the command.
        ready: whether it is a line to disturb it at.
        disturb: what to do to the process of this number; by default what Ctrl-C does in a terminal.
    """
    child = subprocess.Popen(
        [sys.executable, "-c", _TRAIN, *options],
        stderr=subprocess.PIPE,
        text=True,
        env=child_environment(),
        start_new_session=True,
    )
    assert child.stderr is not None
    try:
        said: list[str] = []
        for line in child.stderr:
            said.append(line)
            if ready(line):
                disturb(child.pid)
                break
        said += child.stderr.readlines()
        return child.wait(_LIMIT_S), "".join(said)
    finally:
        child.kill()
        child.wait()
        child.stderr.close()


@pytest.mark.parametrize("processes", [1, 2])
def test_ctrl_c_saves_what_was_learnt_and_says_how_to_go_on(processes: int, tiny_start: Path, tmp_path: Path) -> None:
    config = tiny_run(
        tiny_start,
        run={"processes": processes},
        grpo={"iterations": 500},
        evaluation={"every": 3, "final_episodes": 1},
    )
    out = tmp_path / "run"
    options = ["--config", str(written(tmp_path, config.model_copy(update={"save_every": 400}))), "--out", str(out)]
    status, said = interrupted(options, lambda line: "measuring during" in line)
    assert status == 130
    [iteration] = map(int, re.findall(r"^Ended after iteration (\d+)\. ", said, re.MULTILINE))
    assert 3 <= iteration < 500
    assert f"The last good checkpoint is iteration-{iteration:05d}: go on from it by --resume {out}." in said
    assert "Traceback" not in said
    state, _, _ = load_checkpoint_state(out / "checkpoints" / f"iteration-{iteration:05d}")
    assert state.iteration == iteration
    told("--resume", str(out), "--iterations", str(iteration + 1), "--force")
    assert (out / "report.md").is_file()


def test_a_run_whose_other_process_was_killed_says_how_to_go_on(tiny_start: Path, tmp_path: Path) -> None:
    config = tiny_run(
        tiny_start,
        run={"processes": 2, "save_every": 1},
        grpo={"iterations": 500},
        evaluation={"every": 3, "final_episodes": 1},
    )
    out = tmp_path / "run"
    options = ["--config", str(written(tmp_path, config)), "--out", str(out)]

    def kill_the_other(process: int) -> None:
        [other] = [one for one in psutil.Process(process).children() if "spawn_main" in " ".join(one.cmdline())]
        other.kill()

    status, said = interrupted(options, lambda line: "measuring during" in line, kill_the_other)
    assert status == 1
    assert "Another process of this run ended (exit code -9)." in said
    assert re.search(rf"The last good checkpoint is iteration-\d+: go on from it by --resume {out}\.", said)
    assert "Traceback" not in said


def test_ctrl_c_in_a_warm_start_ends_it_at_once(tmp_path: Path) -> None:
    warm: dict[str, Any] = {
        "repeat_steps": 100_000,
        "drill_steps": 1,
        "episode_steps": 1,
        "episodes": 1,
        "batch_tokens": 64,
    }
    config = tiny_run(tmp_path, warm_start=warm).model_dump()
    config["model"] |= {"path": None, "hidden_size": 8, "layers": 1, "heads": 1}
    path = written(tmp_path, RunConfig.model_validate(config))
    status, said = interrupted(
        ["--config", str(path), "--out", str(tmp_path / "run")], lambda line: "demonstrations of each level" in line
    )
    assert status == 130
    assert "a warm start is not saved half done" in said
    assert "Traceback" not in said
    assert not (tmp_path / "run" / "start").exists()
