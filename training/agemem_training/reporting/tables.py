"""Figures and tables as Markdown."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agemem_training.reporting.comparing import Difference, Verdict
    from agemem_training.reporting.intervals import Interval

MARKS: dict[Verdict | None, str] = {
    "rose": "▲",
    "fell": "**▼ fell**",
    "fell within the interval": "▽",
    "same": "",
    None: "",
}
LEGEND = (
    "Brackets hold 95 % intervals: Wilson's for shares, the bootstrap for means, the paired bootstrap for differences. "
    "▲ rose and **▼ fell** outside its interval; ▽ fell, but zero is within the interval."
)
MISSING = "—"
_LARGE = 100
"""From here on a figure is a count of tokens or the like, and decimals are noise."""


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are aligned to the right."""
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float) -> str:
    """A figure."""
    if not isfinite(value):
        return MISSING
    text = f"{value:,.0f}" if abs(value) >= _LARGE else f"{value:.3f}"
    return text.removeprefix("-") if text == "-0.000" else text


def with_interval(interval: Interval) -> str:
    """A figure and its interval."""
    return f"{number(interval.estimate)} [{number(interval.low)}, {number(interval.high)}]"


def signed(difference: Difference) -> str:
    """A difference, its interval and its mark."""
    value, low, high = (
        number(one) if one <= 0 else f"+{number(one)}"
        for one in (difference.difference.estimate, difference.difference.low, difference.difference.high)
    )
    return f"{value} [{low}, {high}] {MARKS[difference.verdict]}".rstrip()


def duration(seconds: float) -> str:
    """A time as a person reads it."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
