"""Several processes of one run: a launcher starts them, or on one machine the first starts the others itself."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agemem_mcp.errors import AgeMemError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess

    from agemem_training.config import RunConfig

_LAST_WORDS_S = 10.0
"""So long a process may take to end after the others lost it."""


class OtherEnded(ConfigurationError):  # noqa: N818  the tree's names follow the HTTP vocabulary
    """Another process of the run ended before its time."""


def is_first() -> bool:
    """Whether this process speaks for all: ``accelerate launch`` and ``torchrun`` number them."""
    return os.environ.get("RANK", "0") == "0"


def is_launched() -> bool:
    """Whether a launcher started this process, and so all others too."""
    return "WORLD_SIZE" in os.environ


def check_shares(config: RunConfig, gpus: int = 0) -> None:
    """Refuse more processes than an iteration has tasks for, or the machine GPUs: some would have nothing to do.

    Args:
        config: of the run.
        gpus: that it can use on this machine; 0 where it works on the CPU.

    Raises:
        ConfigurationError: there are more, whoever started them.
    """
    processes = int(os.environ["WORLD_SIZE"]) if is_launched() else config.processes
    tasks = config.grpo.tasks
    if config.grpo.iterations and tasks < processes:
        fewer = "--num_processes of the launcher" if is_launched() else "processes"
        msg = (
            f"{processes} processes share the tasks of an iteration, which are {tasks} in all: some would do nothing. "
            f"Raise grpo.tasks to {processes} or more, or lower {fewer} to {tasks}."
        )
        raise ConfigurationError(msg)
    if config.grpo.iterations and gpus and not is_launched() and config.processes > gpus:
        msg = (
            f"{config.processes} processes want a GPU each, and there are {gpus} here: lower processes to {gpus}, or "
            'set device = "cpu".'
        )
        raise ConfigurationError(msg)


@contextmanager
def joined_by(others: int, work: Callable[..., None], *arguments: object) -> Generator[None]:
    """While this holds, so many other processes do the work; they and this one can meet as a process group.

    Args:
        others: how many; with none nothing changes.
        work: of each, a function of a module.
        arguments: its arguments.

    Raises:
        OtherEnded: another process ended.
        AgeMemError: it failed with this.
    """
    if not others:
        yield
        return
    meeting = _meeting(others + 1)
    started = [_Other.started(meeting | _rank(number), work, arguments) for number in range(1, others + 1)]
    try:
        with _environment(meeting | _rank(0)):
            yield
        for one in started:
            one.process.join()
    except RuntimeError as error:
        # So torch says that the other side of a connection is gone.
        failures = (one.failure() for one in started)
        failure = next((one for one in failures if one is not None), None)
        if failure is None:
            raise
        raise failure from error
    finally:
        for one in started:
            one.end()


@contextmanager
def own_accelerate() -> Generator[None]:
    """Accelerate keeps the group and the arithmetic of a process's first run: forget those before, and this one's."""
    from accelerate.state import AcceleratorState  # noqa: PLC0415  who only asks for its rank needs no torch

    forget = AcceleratorState._reset_state  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    forget(reset_partial_state=True)
    try:
        yield
    finally:
        forget(reset_partial_state=True)


@dataclass(frozen=True, slots=True)
class _Other:
    """Another process."""

    process: SpawnProcess
    connection: Connection

    @classmethod
    def started(
        cls, environment: Mapping[str, str], work: Callable[..., None], arguments: tuple[object, ...]
    ) -> _Other:
        # A copy of this process would have its threads' locks, but not the threads.
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=_worked, args=(there, dict(environment), work, arguments), daemon=True)
        process.start()
        # So that reading ends when the process does.
        there.close()
        return cls(process, here)

    def failure(self) -> AgeMemError | None:
        """Why it ended, if it did."""
        self.process.join(_LAST_WORDS_S)
        code = self.process.exitcode
        if not code:
            return None
        try:
            error: AgeMemError = self.connection.recv()
        except EOFError:
            return OtherEnded(
                f"Another process of this run ended (exit code {code}). If memory ran out, set processes = 1 or lower "
                "grpo.micro_batch_tokens."
            )
        return error

    def end(self) -> None:
        """End it, whatever it is doing."""
        self.process.kill()
        self.process.join()
        self.connection.close()


def _worked(
    connection: Connection, environment: Mapping[str, str], work: Callable[..., None], arguments: tuple[object, ...]
) -> None:
    """The life of another process."""
    # Ctrl-C is for the first one, which tells the others or ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(environment)
    try:
        work(*arguments)
    except AgeMemError as error:
        connection.send(error)
        raise SystemExit(1) from error


def _rank(number: int) -> dict[str, str]:
    return {"RANK": str(number), "LOCAL_RANK": str(number)}


def _meeting(processes: int) -> dict[str, str]:
    """Where and how many they are, as launchers say it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    found = {
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        # Else accelerate warns, and sets it to this.
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes))),
    }
    # gloo would meet at the address of this machine's name, which need not lead anywhere in a container.
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    return found if loopback is None else {"GLOO_SOCKET_IFNAME": loopback, **found}


@contextmanager
def _environment(values: Mapping[str, str]) -> Generator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
