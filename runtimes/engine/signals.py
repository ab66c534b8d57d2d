"""Signals by name and number, without importing ``signal`` and its enumerations."""

from __future__ import annotations

from bench.errors import UsageError

_NAMES = [
    "HUP",
    "INT",
    "QUIT",
    "ILL",
    "TRAP",
    "ABRT",
    "BUS",
    "FPE",
    "KILL",
    "USR1",
    "SEGV",
    "USR2",
    "PIPE",
    "ALRM",
    "TERM",
    "STKFLT",
    "CHLD",
    "CONT",
    "STOP",
    "TSTP",
    "TTIN",
    "TTOU",
    "URG",
    "XCPU",
    "XFSZ",
    "VTALRM",
    "PROF",
    "WINCH",
    "IO",
    "PWR",
    "SYS",
]
"""From 1 on (signal(7), x86 and ARM)."""


def parse_signal(text: str) -> int:
    """The number of a signal: ``TERM``, ``SIGTERM``, ``15``, ``RTMIN+3``.

    Raises:
        UsageError: there is no such signal.
    """
    name = text.upper().removeprefix("SIG")
    if name.isdecimal() and 1 <= int(name) <= 64:
        return int(name)
    if name in _NAMES:
        return _NAMES.index(name) + 1
    base, sign, offset = name.replace("-", "+-").partition("+")
    if base in ("RTMIN", "RTMAX") and (not sign or offset.removeprefix("-").isdecimal()):
        number = (34 if base == "RTMIN" else 64) + int(offset or 0)
        if 34 <= number <= 64:
            return number
    raise UsageError(f"there is no signal {text!r}", hint="write it like SIGTERM, TERM or 15")


def signal_name(number: int) -> str:
    """``SIGTERM`` for 15."""
    return f"SIG{_NAMES[number - 1]}" if 1 <= number <= len(_NAMES) else f"SIGRTMIN+{number - 34}"
