"""The parts that curves are drawn from: panels, lines over iterations, labels that do not overlap. No pyplot."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

BLACK, BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY = (
    "#222222",
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
)
"""Okabe and Ito's colours, which the colour-blind tell apart."""
GREY = "#8A8A8A"

TITLE_PT, TEXT_PT, SMALL_PT = 11.5, 9.0, 8.0
_FEW = 12
"""Up to so many iterations each one gets a marker."""
_WINDOWS = 20
"""A running mean spans a twentieth of the run."""
_LABEL_GAP, _SMALL_LABEL_GAP = 0.075, 0.16
"""Between the labels of two lines, of the height of a panel and of a small one."""


Style: TypeAlias = Literal["-", "--"]


class Series(NamedTuple):
    """A figure over the iterations."""

    iterations: Sequence[int]
    values: Sequence[float]

    def __bool__(self) -> bool:
        """Whether there is anything to draw."""
        return bool(self.values)


def dress(ax: Axes, title: str, *, small: bool = False) -> None:
    """Give a panel its title and a quiet frame."""
    ax.set_title(title, loc="left", fontsize=TEXT_PT + 1 if small else TITLE_PT, color=BLACK, pad=5)
    ax.tick_params(labelsize=SMALL_PT if small else TEXT_PT, color=GREY, labelcolor="#444444", length=3)
    ax.grid(axis="y", color="#E4E4E4", linewidth=0.8)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color("#BBBBBB")
    ax.locator_params(axis="x", integer=True, nbins=5)
    ax.locator_params(axis="y", nbins=4 if small else 6)


def empty(ax: Axes, why: str) -> None:
    """Say that a panel has nothing to show."""
    ax.text(0.5, 0.5, why, transform=ax.transAxes, ha="center", va="center", fontsize=TEXT_PT, color=GREY)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(visible=False)


def line(ax: Axes, series: Series, colour: str, style: Style = "-") -> float:
    """Draw a figure over the iterations: its running mean, and faint what it was.

    Returns:
        Where the line ends.
    """
    smooth, few = running_mean(series.values), len(series.values) <= _FEW
    if not few:
        ax.plot(series.iterations, series.values, color=colour, alpha=0.22, linewidth=0.9)
    marker = "o" if few else ""
    ax.plot(series.iterations, smooth, color=colour, linestyle=style, linewidth=1.9, marker=marker, markersize=4)
    return smooth[-1]


def running_mean(values: Sequence[float]) -> list[float]:
    """Smooth a series by the mean of its neighbours; at the ends there are fewer of them."""
    reach = len(values) // _WINDOWS // 2 + (len(values) > _FEW)
    return [fmean(values[max(0, at - reach) : at + reach + 1]) for at in range(len(values))]


def label_ends(ax: Axes, ends: Sequence[tuple[float, str, str]], *, small: bool = False) -> None:
    """Write the names of lines beside their ends, pushed apart where lines end close together.

    Args:
        ax: what the lines are drawn in.
        ends: where each line ends, its name and its colour.
        small: whether it is a small panel.
    """
    low, high = ax.get_ylim()
    ordered = sorted(ends)
    gap = _SMALL_LABEL_GAP if small else _LABEL_GAP
    places = spread([(value - low) / (high - low) for value, _, _ in ordered], gap)
    for place, (_, name, colour) in zip(places, ordered, strict=True):
        ax.text(1.02, place, name, transform=ax.transAxes, va="center", fontsize=TEXT_PT, color=colour)


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Push ascending places from 0 to 1 apart by a gap, upwards first and then back below 1."""
    spaced: list[float] = []
    for place in places:
        spaced.append(max(place, spaced[-1] + gap) if spaced else max(place, 0.0))
    above = 1.0
    for at in reversed(range(len(spaced))):
        spaced[at] = min(spaced[at], above)
        above = spaced[at] - gap
    return spaced
