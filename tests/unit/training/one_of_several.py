"""Script: one process of a run, ``one_of_several.py CONFIG OUT``. Each names a folder of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.unit.training.processes import end_when_hanging

from agemem_training.config import load_config
from agemem_training.progress import Progress
from agemem_training.run import Wishes, train

SCRIPT = Path(__file__)

if __name__ == "__main__":
    end_when_hanging()
    _config, _out, _rank = load_config(Path(sys.argv[1])), Path(sys.argv[2]), os.environ["RANK"]
    with Progress(silent=True) as _progress:
        _own = _out if _rank == "0" else _out.with_name(f"run-{_rank}")
        train(_config, Wishes(_own, "accelerate launch"), _progress, lambda _survey: None)
