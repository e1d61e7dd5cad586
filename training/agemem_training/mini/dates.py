"""Days, as they stand before a memory that is shown."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

YEARS = range(2020, 2040)
"""That the mini policy has a token for."""
_FIRST, _LAST = date(YEARS[0], 1, 1).toordinal(), date(YEARS[-1], 12, 31).toordinal()


def draw_day(rng: random.Random) -> date:
    """Any day of those years: a policy that has never seen a 29th copies wrongly on every one of them."""
    return date.fromordinal(rng.randint(_FIRST, _LAST))
