"""``agemem-mcp train``: the options, and what they ask for. Importing this imports no torch."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agemem_mcp.cli.output import Json
from agemem_mcp.errors import ConfigurationError, InvalidOperation
from agemem_mcp.process import resume_garbage_collection, start_logging
from agemem_mcp.settings import load_settings
from agemem_training.config import RunConfig, as_toml, load_config, load_preset, preset_names

if TYPE_CHECKING:
    from agemem_training.tasks.recorded import Survey

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def train(
    preset: Annotated[
        str | None, typer.Option(help=f"One of {', '.join(preset_names())}; default mini.", show_default=False)
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
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the run in this folder.", show_default=False)
    ] = None,
    evaluate: Annotated[
        Path | None, typer.Option(help="Only measure this checkpoint, on fresh held-out tasks.", show_default=False)
    ] = None,
    episodes: Annotated[int, typer.Option(min=1, help="With --evaluate: of each source of tasks.")] = 200,
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
    _need_torch()
    if evaluate is not None:
        chosen = _of_checkpoint(evaluate, preset, config)
    elif resume is not None:
        chosen = load_config(resume / "config.toml") if preset is None and config is None else _chosen(preset, config)
    else:
        chosen = _chosen(preset, config)
    chosen = _changed(chosen, seed=seed, model=model, tasks=tasks, iterations=iterations)
    resume_garbage_collection()
    show = _shower(yes=yes)
    if dry_run:
        from agemem_training.estimate import estimate  # noqa: PLC0415  loads torch

        typer.echo(as_toml(chosen), nl=False)
        typer.echo(estimate(chosen))
        return
    if evaluate is not None:
        from agemem_training.measuring import measure  # noqa: PLC0415  loads torch

        asyncio.run(measure(chosen, evaluate, episodes=episodes, greedy=not sampled, as_json=json, show=show))
        return
    _train(chosen, resume or out or Path("runs") / time.strftime("%Y%m%d-%H%M%S"), resume is not None, force, show)


def _train(config: RunConfig, out: Path, resume: bool, force: bool, show: Any) -> None:  # noqa: ANN401, FBT001  a callable; from the command line
    from agemem_training.progress import Progress  # noqa: PLC0415  as below
    from agemem_training.run import TrainingRun, Wishes  # noqa: PLC0415  loads torch

    with Progress() as progress:
        wishes = Wishes(out, " ".join(["agemem-mcp", *sys.argv[1:]]), resume=resume, force=force)
        asyncio.run(TrainingRun(config, wishes, progress, show).run())
        progress.note(f"the policy and its report are in {out}; talk with it: agemem-mcp chat --policy hf:{out}")


def _need_torch() -> None:
    try:
        import accelerate  # noqa: F401, PLC0415  only whether it is there
        import torch  # noqa: F401, PLC0415  as above
        import transformers  # noqa: F401, PLC0415  as above
    except ImportError as error:
        msg = (
            f"Training needs torch, transformers and accelerate ({error}). Install torch for your machine, then "
            '`pip install "agemem-mcp[train]"`.'
        )
        raise ConfigurationError(msg) from error


def _chosen(preset: str | None, config: Path | None) -> RunConfig:
    if preset is not None and config is not None:
        msg = "Give --preset or --config, not both: a configuration is complete by itself."
        raise InvalidOperation(msg)
    return load_config(config) if config is not None else load_preset(preset or "mini")


def _of_checkpoint(folder: Path, preset: str | None, config: Path | None) -> RunConfig:
    """How a checkpoint is measured: as its own run says, unless something else is asked for."""
    own = folder / "config.toml"
    if preset is None and config is None and own.is_file():
        return load_config(own)
    return _chosen(preset, config)


def _changed(
    config: RunConfig, *, seed: int | None, model: str | None, tasks: list[str] | None, iterations: int | None
) -> RunConfig:
    changes: dict[str, Any] = {} if seed is None else {"seed": seed}
    if model is not None:
        changes["model"] = config.model.model_copy(update={"path": model})
        changes["warm_start"] = None
    if tasks:
        changes["tasks"] = config.tasks.model_copy(update={"sources": tuple(tasks), "weights": None})
    if iterations is not None:
        changes["grpo"] = config.grpo.model_copy(update={"iterations": iterations})
    return RunConfig.model_validate(config.model_copy(update=changes).model_dump())


def _shower(*, yes: bool) -> Any:  # noqa: ANN401  a callable
    def show(survey: Survey) -> None:
        """Show what is taken of what people stored, and ask."""
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
