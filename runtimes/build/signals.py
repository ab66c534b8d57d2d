"""Names of signals as ``STOPSIGNAL`` takes them."""

from __future__ import annotations

import signal
from typing import Final

from bench.errors import UsageError

_NAMES: Final = {member.name.removeprefix("SIG") for member in signal.Signals}


def checked_signal(text: str) -> str:
    """Return ``text`` if it is a signal: ``SIGQUIT``, ``QUIT``, ``3`` or ``SIGRTMIN+3``.

    Raises:
        UsageError: it is none.
    """
    name = text.upper().removeprefix("SIG")
    base, plus, offset = name.partition("+") if "+" in name else name.partition("-")
    known = name in _NAMES or (base in ("RTMIN", "RTMAX") and plus and offset.isdecimal() and int(offset) <= 30)
    if not known and not (text.isdecimal() and 0 < int(text) <= int(signal.SIGRTMAX)):
        raise UsageError(f"{text[:40]!r} is no signal", hint="write it like SIGQUIT or 3")
    return text
