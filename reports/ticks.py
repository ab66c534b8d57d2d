"""Where a scale has its ticks: few, round, and no two labels over one another."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Final

from bench.units import format_seconds

CHARACTER: Final = 6.0
"""Units that a character of a label takes."""


def linear_ticks(low: float, high: float) -> list[float]:
    """Return three to five round numbers from ``low`` to ``high``."""
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)
    first = math.ceil(low / step)
    return [place * step for place in range(first, math.floor(high / step) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return at most five numbers from ``low`` to ``high``, in steps of a power of ten or of its parts."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [factor * 10.0**decade for decade in decades for factor in factors]
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) <= 5:
            return inside
    stride = math.ceil(len(inside) / 5)
    return inside[::-1][::stride][::-1]


def apart(ticks: Sequence[float], write: Callable[[float], str], place: Callable[[float], float]) -> list[float]:
    """Return ``ticks``, or every second, fourth … of them from the last, so that their labels stay apart.

    ``place`` says how many units from the left a tick is.
    """
    found = list(ticks)
    while len(found) > 1 and any(
        place(right) - place(left) < CHARACTER * (len(write(left)) + len(write(right))) / 2
        for left, right in pairwise(found)
    ):
        found = found[::-1][::2][::-1]
    return found


def short_seconds(seconds: float) -> str:
    """Return a round duration without digits that say nothing."""
    return re.sub(r"\.0+(?= )", "", format_seconds(seconds))
