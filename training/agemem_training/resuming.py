"""A run that goes on with another configuration than it began with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agemem_mcp.errors import ConfigurationError
from agemem_training.config import as_toml, differences, load_config

if TYPE_CHECKING:
    from agemem_training.checkpoints import RunFolder
    from agemem_training.config import RunConfig
    from agemem_training.journal import Journal

_OF_THE_START = ("model.path", "warm_start")
"""Settings of the policy before reinforcement learning."""
_OF_UPDATES = ("grpo.", "threads", "processes", "save_every", "device", "model.")
"""Settings that leave what was measured comparable."""


def go_on_with(folder: RunFolder, config: RunConfig, journal: Journal, *, force: bool) -> None:
    """Compare a configuration with the one that the run in a folder was made with, and note it as the run's.

    Args:
        folder: of the run.
        config: that it is to go on with.
        journal: of the run; what was measured under other conditions is dropped, to be measured anew.
        force: go on although something differs.

    Raises:
        ConfigurationError: it differs, and that is not forced, or cannot be; the text shows the differences.
    """
    changed = differences(load_config(folder.used_config()), config)
    if not changed:
        return
    listed = "\n  ".join(changed)
    if not force:
        msg = f"This is not the run's configuration. Give --force to go on with another one:\n  {listed}"
        raise ConfigurationError(msg)
    if folder.start.is_dir() and any(one.startswith(_OF_THE_START) for one in changed):
        msg = f"The policy that the run begins with is made already. Begin another run, with --out:\n  {listed}"
        raise ConfigurationError(msg)
    journal.progress.note(f"going on with another configuration:\n  {listed}")
    if not all(one.startswith(_OF_UPDATES) for one in changed):
        journal.progress.note("what was measured so far was measured otherwise, and is measured anew")
        journal.metrics.drop_evaluations()
    folder.note_config(as_toml(config))
