"""Numbers that people write in options, as Docker reads them."""

from __future__ import annotations

import os

from bench.errors import UsageError

_POWERS = {"": 0, "b": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_NUMBER = frozenset("0123456789.")


def parse_size(text: str, option: str) -> int:
    """Bytes in ``text``: ``512m``, ``1.5g``, ``64KiB``; units are powers of 1024.

    Raises:
        UsageError: it is no size.
    """
    lower = text.strip().lower()
    end = 0
    while end < len(lower) and lower[end] in _NUMBER:
        end += 1
    unit = lower[end:].strip()
    short = unit.removesuffix("ib") if unit.endswith("ib") else unit.removesuffix("b") if len(unit) > 1 else unit
    try:
        return int(float(lower[:end]) * 1024 ** _POWERS[short])
    except (ValueError, KeyError, OverflowError):
        raise UsageError(f"option --{option}: {text!r} is not a size", hint="write it like 512m or 2g") from None


def parse_int(text: str, option: str, *, least: int | None = None, most: int | None = None) -> int:
    """The whole number in ``text``.

    Raises:
        UsageError: it is none, or out of bounds.
    """
    try:
        number = int(text)
    except ValueError:
        raise UsageError(f"option --{option}: {text!r} is not a whole number") from None
    if (least is not None and number < least) or (most is not None and number > most):
        bounds = f"at least {least}" if most is None else f"from {least} to {most}"
        raise UsageError(f"option --{option}: {number} is not {bounds}")
    return number


def parse_cpus(text: str) -> float:
    """The number of CPUs in ``text``.

    Raises:
        UsageError: it is none.
    """
    try:
        cpus = float(text)
    except ValueError:
        cpus = -1.0
    if not 0.01 <= cpus <= 1e6:
        raise UsageError(f"option --cpus: {text!r} is not a number of CPUs", hint="write it like 2 or 0.5")
    if cpus > (most := os.cpu_count() or 1):
        raise UsageError(f"option --cpus: this host has {most} CPUs, not {text}", hint=f"at most {most}")
    return cpus


def format_size(count: float) -> str:
    """Bytes for people, in powers of 1024 and four characters or so: ``3.21MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.4g}{unit}"
        count /= 1024
    return f"{count:.4g}TiB"
