"""The console line protocol between an instance's payload and the trial.

From the instance, each on a line of its own that starts with ``isomark ``::

    isomark loader                             the boot loader runs (full virtual servers)
    isomark init                               the instance's own init runs (virtual servers)
    isomark unit NAME                          systemd has reached this unit (full virtual servers)
    isomark ready                              the payload can serve
    isomark round N begin
    isomark round N end {"metric": number, …}  the figures of round N
    isomark metric {"metric": number, …}       figures outside rounds
    isomark pong TOKEN                         answer to ping
    isomark error TEXT                         the payload gives up, and why
    isomark exit CODE                          the payload ended with this status

To the instance: ``ping TOKEN``, ``round N``, ``quit``. Anything else on the console is noise and
is kept for the tail. Lines come from whatever runs in the instance, so nothing here trusts them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

PREFIX: Final = "isomark "
MAX_FIGURES: Final = 64
_KERNEL: Final = re.compile(r"(?:\(early\) )?\[ *\d+\.\d{6}\] ")
_UNIT: Final = re.compile(r"[A-Za-z0-9:_.@\\-]{1,255}")
"""A unit's name (systemd.unit(5))."""
_METRIC_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")


@dataclass(frozen=True)
class Init:
    """The instance's init has started."""


@dataclass(frozen=True)
class Step:
    """The boot has come as far as ``name``: ``loader``, or a systemd unit such as ``basic.target``."""

    name: str


@dataclass(frozen=True)
class Ready:
    """The payload can serve."""


@dataclass(frozen=True)
class RoundBegin:
    """Round ``number`` has begun."""

    number: int


@dataclass(frozen=True)
class RoundEnd:
    """Round ``number`` has ended with these figures."""

    number: int
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Figures:
    """Figures outside any round."""

    figures: Mapping[str, float]


@dataclass(frozen=True)
class Pong:
    """The answer to ``ping token``."""

    token: str


@dataclass(frozen=True)
class PayloadError:
    """The payload gave up."""

    text: str


@dataclass(frozen=True)
class Exit:
    """The payload ended with this exit status."""

    code: int


@dataclass(frozen=True)
class Malformed:
    """A line that claims to be protocol and is not; a trial that meets one fails."""

    text: str
    reason: str


Message = Init | Step | Ready | RoundBegin | RoundEnd | Figures | Pong | PayloadError | Exit | Malformed


def is_kernel_line(text: str) -> bool:
    """Whether ``text`` is a Linux kernel log line with its time stamp."""
    return _KERNEL.match(text) is not None


def is_last_of_kernel(text: str) -> bool:
    """Whether ``text`` is what a kernel says last that panicked and does not reboot (kernel/panic.c)."""
    return is_kernel_line(text) and "---[ end Kernel panic" in text


def parse(text: str) -> Message | None:
    """Return the message on console line ``text``, or ``None`` if it is no protocol line."""
    if not text.startswith(PREFIX):
        return None
    word, _, rest = text[len(PREFIX) :].strip().partition(" ")
    match word:
        case "init":
            return Init()
        case "loader" | "unit":
            return _parse_step(text, word, rest)
        case "ready":
            return Ready()
        case "round":
            return _parse_round(text, rest)
        case "metric":
            figures = _parse_figures(rest)
            return Figures(figures) if isinstance(figures, dict) else Malformed(text, figures)
        case "pong":
            return Pong(rest)
        case "error":
            return PayloadError(rest)
        case "exit":
            return Exit(int(rest)) if re.fullmatch(r"\d{1,3}", rest, re.ASCII) else Malformed(text, "no status")
    return Malformed(text, f"unknown word {word!r}")


def _parse_step(text: str, word: str, rest: str) -> Message:
    if word == "loader" and not rest:
        return Step(word)
    return Step(rest) if word == "unit" and _UNIT.fullmatch(rest) else Malformed(text, "no step of a boot")


def _parse_round(text: str, rest: str) -> Message:
    number, _, tail = rest.partition(" ")
    if not re.fullmatch(r"\d{1,6}", number, re.ASCII):
        return Malformed(text, "no round number")
    if tail == "begin":
        return RoundBegin(int(number))
    word, _, payload = tail.partition(" ")
    if word != "end":
        return Malformed(text, "a round begins or ends")
    figures = _parse_figures(payload)
    return RoundEnd(int(number), figures) if isinstance(figures, dict) else Malformed(text, figures)


def _parse_figures(payload: str) -> dict[str, float] | str:
    """Return the figures in a JSON object, or why they cannot be taken."""
    try:
        value = json.loads(payload)
    except (ValueError, RecursionError):
        return "not JSON"
    if not isinstance(value, dict) or not 0 < len(value) <= MAX_FIGURES:
        return "not an object of figures"
    figures: dict[str, float] = {}
    for name, figure in value.items():
        if not _METRIC_NAME.fullmatch(name):
            return f"bad metric name {name[:80]!r}"
        if isinstance(figure, bool) or not isinstance(figure, int | float):
            return f"{name} is not a number"
        try:
            figures[name] = float(figure)
        except OverflowError:
            return f"{name} is not a finite number"
        if not math.isfinite(figures[name]):
            return f"{name} is not a finite number"
    return figures
