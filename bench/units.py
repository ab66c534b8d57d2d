"""Quantities for people: parsing "512MiB" and "0.5s", and writing figures with their unit."""

from __future__ import annotations

import re
from typing import Final

from bench.errors import UsageError

KIB: Final = 1024
MIB: Final = 1024**2
GIB: Final = 1024**3

_SIZES: Final = {
    "": 1, "B": 1,
    "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9,
    "KiB": KIB, "MiB": MIB, "GiB": GIB,
}  # fmt: skip
_SIZE: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def parse_bytes(text: str) -> int:
    """Return the number of bytes that ``text`` names: ``"512MiB"``, ``"1.5 GB"``, ``"4096"``.

    Decimal (kB, MB, GB) and binary (KiB, MiB, GiB) units mean what IEC 80000-13 says.

    Raises:
        UsageError: ``text`` is not a size.
    """
    match = _SIZE.fullmatch(text)
    if match is None or match[2] not in _SIZES:
        raise UsageError(f"{text!r} is not a size", hint="write it like 512MiB or 2GB")
    return round(float(match[1]) * _SIZES[match[2]])


def format_bytes(count: float) -> str:
    """Return ``count`` bytes with a binary unit and three significant figures."""
    for unit, size in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if abs(count) >= size:
            return f"{significant(count / size)} {unit}"
    return f"{count:.0f} B"


def format_seconds(seconds: float) -> str:
    """Return a duration with the unit that keeps it readable: 850 µs, 12.3 ms, 4.56 s, 3 min 20 s."""
    if abs(seconds) < 1e-3:
        return f"{significant(seconds * 1e6)} µs"
    if abs(seconds) < 1:
        return f"{significant(seconds * 1e3)} ms"
    if abs(seconds) < 120:
        return f"{significant(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def significant(value: float, figures: int = 3) -> str:
    """Return ``value`` with ``figures`` significant figures, no exponent, thousands separated."""
    if value == 0:
        return "0"
    digits = len(str(int(abs(float(f"{value:.{figures}g}"))))) if abs(value) >= 1 else 0
    if digits >= figures:
        return f"{float(f'{value:.{figures}g}'):,.0f}" if digits < 5 else f"{value:,.0f}"
    if abs(value) >= 1:
        return f"{value:.{figures - digits}f}"
    return f"{float(f'{value:.{figures}g}'):f}".rstrip("0").rstrip(".")


def format_quantity(value: float, unit: str) -> str:
    """Return ``value`` with its metric ``unit`` (``"seconds"``, ``"bytes"``, ``"ratio"``, ``"x/s"`` …)."""
    if unit == "seconds":
        return format_seconds(value)
    if unit == "bytes":
        return format_bytes(value)
    if unit == "bytes/s":
        return f"{format_bytes(value)}/s"
    if unit == "ratio":
        return f"{significant(value)}×"
    return f"{significant(value)} {unit}"
