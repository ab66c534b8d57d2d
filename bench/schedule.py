"""The order of trials: randomised complete blocks over the cases.

Every block holds each case once, in an order of its own; drift of the host then falls on all cases
alike (Box, Hunter & Hunter, Statistics for Experimenters, ch. 4). Never all of A, then all of B.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from bench.model import Case
from bench.result import Slot


def schedule(cases: Sequence[Case], blocks: int, seed: int) -> tuple[Slot, ...]:
    """Return ``blocks`` random orders of ``cases`` one after another; equal arguments, equal order."""
    generator = random.Random(seed)
    order = sorted(cases)
    slots: list[Slot] = []
    for block in range(blocks):
        for case in generator.sample(order, k=len(order)):
            slots.append(Slot(len(slots), block, case))
    return tuple(slots)
