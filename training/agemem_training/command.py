"""``agemem-mcp train``: the options, and what they ask for. Importing this imports no torch."""

from __future__ import annotations

import importlib
import shlex
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic_core import from_json as json_of

from agemem_mcp.cli.output import Json, print_json
from agemem_mcp.errors import ConfigurationError, InvalidOperation
from agemem_mcp.process import resume_garbage_collection, start_logging
from agemem_mcp.settings import load_settings
from agemem_training.config import SHIPPED, RunConfig, as_toml, changed, load_config, load_preset, preset_names
from agemem_training.processes import is_first

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from agemem_training.tasks.recorded import Survey

_FOR_MODELS = "qwen2.5-7b-hotpotqa"
"""The preset of --model."""
_EPISODES = 200
"""Of --evaluate."""
_INTERRUPTED = 130

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def train(
    preset: Annotated[
        str | None,
        typer.Option(
            help=f"One of {', '.join(preset_names())}; default mini, with --model another.", show_default=False
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="A configuration of your own (TOML) instead.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; default runs/ and the time.", show_default=False)
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of everything left to chance.", show_default=False)] = None,
    model: Annotated[
        str | None, typer.Option(help="Train this model: a folder, or a name at the hub.", show_default=False)
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(help="hotpotqa:PATH, recorded:DIR or synthetic:LEVEL; repeatable.", show_default=False),
    ] = None,
    iterations: Annotated[int | None, typer.Option(min=0, help="Of GRPO.", show_default=False)] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the run in this folder.", show_default=False)] = None,
    evaluate: Annotated[
        Path | None, typer.Option(help="Only measure this checkpoint, on fresh held-out tasks.", show_default=False)
    ] = None,
    episodes: Annotated[
        int | None,
        typer.Option(min=1, help="With --evaluate: of each source of tasks; default 200.", show_default=False),
    ] = None,
    sampled: Annotated[bool, typer.Option("--sampled", help="With --evaluate: sample, not greedy.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Go on although a skill is missing or the configuration differs.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Take recorded tasks without asking.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the resolved configuration and what it needs; train nothing.")
    ] = False,
    json: Json = False,
) -> None:
    """Train a policy that manages memory, and measure it on tasks it has not seen."""
    start_logging(load_settings().log_level)
    _check_combination(out=out, resume=resume, evaluate=evaluate)
    if evaluate is not None:
        _check_measuring(model=model, iterations=iterations, force=force)
        chosen = _of_checkpoint(evaluate, preset, config)
    else:
        _check_training(episodes=episodes, sampled=sampled)
        own = resume if preset is None and config is None else None
        chosen = _chosen(preset, config, model) if own is None else _of_run(own)
    chosen = _with_options(chosen, seed=seed, model=model, tasks=tasks, iterations=iterations)
    _need_torch()
    resume_garbage_collection()
    show = _shower(yes=yes)
    if dry_run:
        _show_plan(chosen, as_json=json)
    elif evaluate is not None:
        _measure(chosen, evaluate, show, episodes=episodes or _EPISODES, sampled=sampled, as_json=json)
    else:
        _train(chosen, resume or out, show, resume=resume is not None, force=force, as_json=json)


def _check_combination(*, out: Path | None, resume: Path | None, evaluate: Path | None) -> None:
    if resume is not None and (out is not None or evaluate is not None):
        msg = "--resume goes on in its own folder: give it without --out and --evaluate."
        raise InvalidOperation(msg)
    if evaluate is not None and out is not None:
        msg = "--evaluate writes no folder: give it without --out."
        raise InvalidOperation(msg)


def _check_training(*, episodes: int | None, sampled: bool) -> None:
    """Refuse what training would not heed: its own measurements are set in the configuration."""
    if episodes is not None or sampled:
        option = "--sampled" if episodes is None else "--episodes"
        msg = f"{option} is for --evaluate. What training measures is set by [evaluation] of the configuration."
        raise InvalidOperation(msg)


def _check_measuring(*, model: str | None, iterations: int | None, force: bool) -> None:
    """Refuse what a measurement would not heed: who gave it expects something else to be measured."""
    given = {"--model": model is not None, "--iterations": iterations is not None, "--force": force}
    unheeded = [option for option, is_given in given.items() if is_given]
    if unheeded:
        msg = (
            f"--evaluate measures the policy in its folder as it is and trains nothing: give it without "
            f"{' and '.join(unheeded)}."
        )
        raise InvalidOperation(msg)


def _measure(
    config: RunConfig, checkpoint: Path, show: Callable[[Survey], None], *, episodes: int, sampled: bool, as_json: bool
) -> None:
    from agemem_training.measuring import Measuring, measure  # noqa: PLC0415  loads torch

    with _telling_interruption():
        measure(config, checkpoint, Measuring(episodes, not sampled, as_json), show=show)


def _train(
    config: RunConfig, folder: Path | None, show: Callable[[Survey], None], *, resume: bool, force: bool, as_json: bool
) -> None:
    from agemem_training.progress import Progress  # noqa: PLC0415  a run alone has progress
    from agemem_training.run import Wishes  # noqa: PLC0415  loads torch
    from agemem_training.run import train as run  # noqa: PLC0415  as above

    out = folder or Path("runs") / time.strftime("%Y%m%d-%H%M%S")
    wishes = Wishes(out, shlex.join(["agemem-mcp", *sys.argv[1:]]), resume=resume, force=force)
    first = is_first()
    with _telling_interruption(), Progress(silent=not first) as progress:
        folder = run(config, wishes, progress, show)
        # A policy that was trained with ids that count from one can name no others, such as a person's memory has.
        chat = f"agemem-mcp chat --policy hf:{folder}"
        if config.environment.ids == "sequential":
            chat = f"AGEMEM_IDS=sequential {chat} --data-dir {folder / 'memory'}"
        progress.note(f"the policy and its report are in {folder}; talk with it: {chat}")
    if as_json and first:
        report = json_of((folder / "report.json").read_bytes())
        print_json({"folder": str(folder), "gates": report["gates"], "before_after": report["before_after"]})


@contextmanager
def _telling_interruption() -> Generator[None]:
    """Ctrl-C ends a command with the status that shells know it by."""
    from agemem_training.stopping import Interrupted  # noqa: PLC0415  loads torch

    try:
        yield
    except Interrupted as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(_INTERRUPTED) from error


def _show_plan(config: RunConfig, *, as_json: bool) -> None:
    from agemem_training.estimate import Estimate, estimate  # noqa: PLC0415  loads torch

    expected = estimate(config)
    if as_json:
        told = asdict(expected) if isinstance(expected, Estimate) else {"unknown": expected}
        print_json({"config": config.model_dump(mode="json"), "estimate": told})
        return
    typer.echo(as_toml(config))
    known = isinstance(expected, Estimate)
    typer.echo(expected if known else f"# parameters and memory: unknown, for the model is not at hand ({expected})")
    grpo = config.grpo
    typer.echo(f"# {grpo.iterations} iterations, each of {grpo.tasks} tasks with {grpo.trajectories} trajectories")


def _need_torch() -> None:
    try:
        for name in ("torch", "transformers", "accelerate", "matplotlib", "psutil"):
            importlib.import_module(name)
    except ImportError as error:
        msg = (
            f"Training needs what the extra `train` installs ({error}). Install torch for your machine, then "
            '`pip install "agemem-mcp[train]"`.'
        )
        raise ConfigurationError(msg) from error


def _chosen(preset: str | None, config: Path | None, model: str | None) -> RunConfig:
    if preset is not None and config is not None:
        msg = "Give --preset or --config, not both: a configuration is complete by itself."
        raise InvalidOperation(msg)
    if config is not None:
        return load_config(config)
    # A model that others trained wants other surroundings than one of a million parameters.
    return load_preset(preset or ("mini" if model in {None, SHIPPED} else _FOR_MODELS))


def _of_run(folder: Path) -> RunConfig:
    if not (folder / "config.toml").is_file():
        msg = f"There is no run in {folder}: it has no config.toml. Begin one with --out {folder}."
        raise ConfigurationError(msg)
    return load_config(folder / "config.toml")


def _of_checkpoint(checkpoint: Path, preset: str | None, config: Path | None) -> RunConfig:
    """How a checkpoint is measured: as its own run says, unless something else is asked for."""
    if not checkpoint.is_dir():
        msg = f"There is no checkpoint {checkpoint}: --evaluate takes the folder of one."
        raise ConfigurationError(msg)
    if preset is not None or config is not None:
        return _chosen(preset, config, None)
    for folder in (checkpoint, checkpoint.resolve().parent):  # OUT itself, or OUT/start
        if (folder / "config.toml").is_file():
            return load_config(folder / "config.toml")
    # Under another prompt, budget or length of turns than its own a policy fails, and nobody would know why.
    msg = (
        f"Nothing says how the policy in {checkpoint} was trained: neither it nor the folder above has a config.toml. "
        "Name its tasks, server, prompt and turns with --preset NAME or --config FILE."
    )
    raise ConfigurationError(msg)


def _with_options(
    config: RunConfig, *, seed: int | None, model: str | None, tasks: list[str] | None, iterations: int | None
) -> RunConfig:
    tables: dict[str, dict[str, Any]] = {"run": {}} if seed is None else {"run": {"seed": seed}}
    if model is not None:
        tables["run"]["warm_start"] = None
        tables["model"] = {"path": model}
    if tasks:
        tables["tasks"] = {"sources": tuple(tasks), "weights": None}
    if iterations is not None:
        tables["grpo"] = {"iterations": iterations}
    return changed(config, **tables)


def _shower(*, yes: bool) -> Callable[[Survey], None]:
    def show(survey: Survey) -> None:
        """Show what is taken of what people stored, and ask; of several processes that a launcher started, one does."""
        if not is_first():
            return
        typer.echo(str(survey), err=True)
        if yes:
            return
        if not sys.stdin.isatty():
            msg = "Recorded tasks are taken from what people stored. Look at the list above, and give --yes."
            raise InvalidOperation(msg)
        if not typer.confirm("Train on these?", err=True):
            msg = "Nothing was taken."
            raise InvalidOperation(msg)

    return show
