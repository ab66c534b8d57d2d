"""Instants and durations as text, without ``datetime`` and ``re``."""

from __future__ import annotations

import time

from bench.errors import UsageError

NANOSECONDS = 10**9
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def now() -> str:
    """This instant in RFC 3339, UTC, with nanoseconds: what Docker writes."""
    return instant(time.time_ns())


def zero_offsets() -> dict[str, int]:
    """Offsets for a time namespace in whose first second CLOCK_MONOTONIC and CLOCK_BOOTTIME are 0 to 1.

    Seconds, counted from the clocks of the kernel and not from ours (time_namespaces(7)).
    """
    with open("/proc/self/timens_offsets", encoding="ascii") as file:
        own = {name: int(seconds) for name, seconds, _ in (line.split() for line in file)}
    clocks = {"monotonic": time.CLOCK_MONOTONIC, "boottime": time.CLOCK_BOOTTIME}
    return {name: own[name] - int(time.clock_gettime(clock)) for name, clock in clocks.items()}


def instant(nanoseconds: int) -> str:
    """An instant since 1970 in RFC 3339."""
    seconds, rest = divmod(nanoseconds, NANOSECONDS)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{rest:09d}Z"


def parse_duration(text: str) -> float:
    """Seconds in ``text``: ``1m30s``, ``250ms``, ``10`` (seconds).

    Raises:
        UsageError: it is no duration.
    """
    total, rest = 0.0, text
    while rest:
        length = 0
        while length < len(rest) and (rest[length].isdecimal() or rest[length] == "."):
            length += 1
        end = length
        while end < len(rest) and not rest[end].isdecimal():
            end += 1
        unit = rest[length:end] or ("s" if length == len(text) else "")
        try:
            total += float(rest[:length]) * _UNITS[unit]
        except (ValueError, KeyError):
            raise UsageError(f"{text!r} is not a duration", hint="write it like 10s, 1m30s or 500ms") from None
        rest = rest[end:]
    if not text:
        raise UsageError("an empty duration", hint="write it like 10s, 1m30s or 500ms")
    return total


def parse_instant(text: str) -> int:
    """Nanoseconds since 1970 in ``text``: RFC 3339, seconds since 1970, or a duration before now.

    Raises:
        UsageError: it is none of these.
    """
    from datetime import UTC, datetime  # only for --since and --until

    try:
        return int(float(text) * NANOSECONDS)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return time.time_ns() - int(parse_duration(text) * NANOSECONDS)
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * NANOSECONDS)


def ago(then: str | None) -> str:
    """How long ago ``then`` (RFC 3339) was, for people."""
    return "" if then is None else f"{rough((time.time_ns() - parse_instant(then)) / NANOSECONDS)} ago"


def rough(seconds: float) -> str:
    """A duration for people: ``5 seconds``, ``3 hours``."""
    if seconds < 1:
        return "less than a second"
    for name, length in (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {name}{'s' if count > 1 else ''}"
    raise AssertionError
