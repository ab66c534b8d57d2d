"""Durations as Go writes them, such as ``1m30s``, which is how health checks state times."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

from bench.errors import UsageError

_PART: Final = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_UNITS: Final = {"ns": 1, "us": 10**3, "µs": 10**3, "μs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9,
                 "h": 3600 * 10**9}  # fmt: skip
LEAST: Final = 10**6
"""Docker takes no shorter time than a millisecond, except zero, which means its default."""


def nanoseconds(text: str) -> int:
    """Return the duration ``text`` in nanoseconds.

    Raises:
        UsageError: it is none, is longer than 292 years, or is shorter than Docker takes.
    """
    at = 0
    total = Decimal(0)
    while (part := _PART.match(text, at)) is not None:
        total += Decimal(part[1]) * _UNITS[part[2]]
        at = part.end()
    if text != "0" and (at == 0 or at != len(text) or total >= 2**63):
        raise UsageError(f"{text[:40]!r} is no duration", hint="write it like 30s or 1m30s")
    if 0 < total < LEAST:
        raise UsageError(f"the duration {text[:40]} is shorter than 1ms", hint="write it like 30s or 1m30s")
    return int(total)
