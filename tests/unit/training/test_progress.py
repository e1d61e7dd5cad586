"""What a person sees of a run: a bar in a terminal, lines elsewhere."""

from __future__ import annotations

import io

from rich.console import Console

from agemem_training.progress import Progress


def shown(*, terminal: bool, iterations: int, silent: bool = False) -> str:
    """Everything that a run of so many iterations writes, whose reward rises by one from each to the next."""
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=120, color_system=None, soft_wrap=True)
    with Progress(console, silent=silent) as progress:
        for number in range(1, iterations + 1):
            progress.iterated(number, 20, reward=number - 1.5, success=(number - 1) / 4)
    return stream.getvalue()


def test_the_bar_of_a_terminal_tells_reward_and_success_as_a_running_mean() -> None:
    first, third = (shown(terminal=True, iterations=count).split("GRPO")[-1] for count in (1, 3))
    assert "reward -0.500  task success 0.000" in first
    assert "  5%" in first
    # -.5 · .9 + .5 · .1 = -.4, -.4 · .9 + 1.5 · .1 = -.21; 0, .025, .0725
    assert "reward -0.210  task success 0.072" in third
    assert " 15%" in third


def test_without_a_terminal_there_is_a_line_every_ten_iterations() -> None:
    said = shown(terminal=False, iterations=20).splitlines()
    assert [line.partition("]")[2].partition("  ")[0] for line in said] == [" iteration 10/20", " iteration 20/20"]
    # The mean lags behind a rise by one: 8.5 - 9 · (1 - .9⁹)
    assert "reward +2.987" in said[0]


def test_of_several_processes_the_others_say_nothing() -> None:
    assert shown(terminal=True, iterations=20, silent=True) == ""
