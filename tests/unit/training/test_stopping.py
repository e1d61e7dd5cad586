"""Ctrl-C asks first, and of many errors at once a person is told one."""

from __future__ import annotations

import os
import signal

import pytest

pytest.importorskip("torch", reason="training needs torch: `pip install 'agemem-mcp[train]'`")

from agemem_mcp.errors import ConfigurationError, ProviderError, StoreError
from agemem_training.stopping import interrupts, single_errors


def bundle(*errors: Exception) -> ExceptionGroup[Exception]:
    return ExceptionGroup("episodes", errors)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_ends_at_once_unless_the_run_will_end_by_itself() -> None:
    answers = [True, False]
    before = signal.getsignal(signal.SIGINT)
    with interrupts(lambda: answers.pop(0)):
        interrupt()
        assert answers == [False]
        with pytest.raises(KeyboardInterrupt):
            interrupt()
    assert signal.getsignal(signal.SIGINT) is before


def test_of_errors_of_many_episodes_one_is_told() -> None:
    errors = [ValueError("cancelled"), bundle(StoreError("The disk is full.")), StoreError("again")]
    with pytest.raises(StoreError, match="The disk is full"), single_errors():
        raise bundle(*errors)


def test_where_memory_runs_out_in_rollouts_settings_are_named() -> None:
    error = ProviderError("The model failed: out of memory.")
    error.__cause__ = MemoryError()
    with pytest.raises(ConfigurationError, match=r"grpo\.trajectories"), single_errors():
        raise bundle(StoreError("x"), error)


def test_an_error_that_nobody_expected_stays_whole() -> None:
    with pytest.raises(ExceptionGroup) as caught, single_errors():
        raise bundle(ValueError("a defect"))
    assert len(caught.value.exceptions) == 1
