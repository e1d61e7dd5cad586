"""Two real processes of one run, joined by gloo."""

from __future__ import annotations

import faulthandler
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_LIMIT_S = 240
_HANGS_S = 180
"""After that each process says where it stands and ends."""


def in_two_processes(script: Path, *arguments: str) -> None:
    """Run a script as ``accelerate launch`` runs it in two processes.

    With ``--cpu`` it leaves starting a second one to MPI. With ``--multi_gpu`` it starts two, which meet by gloo where
    there is no GPU.
    """
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    done = subprocess.run(
        [*launch, str(script), *arguments],
        # gloo would meet at the address of this machine's name, which need not lead anywhere in a container.
        env=child_environment() | {"CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": loopback()},
        capture_output=True,
        text=True,
        timeout=_LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def end_when_hanging() -> None:
    """Called in a script: a process that waits for the other one for ever ends with its stack on stderr."""
    faulthandler.dump_traceback_later(_HANGS_S, exit=True)


def loopback() -> str:
    """The name of the interface that leads to this machine alone."""
    return next(name for _, name in socket.if_nameindex() if name.startswith("lo"))


def child_environment() -> dict[str, str]:
    """With this process's search path, and one thread."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(one for one in sys.path if one), "OMP_NUM_THREADS": "1"}
