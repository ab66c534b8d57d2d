"""Kernel same-page merging (Linux, Documentation/admin-guide/mm/ksm.rst): switched on for a while, put back as it was.

It is the whole host's, so it is only touched where it is off and has merged nothing, and what is changed is owned: it
stands in the journal before it is changed, with what was there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.errors import HostError
from bench.journal import Journal

DIRECTORY: Final = Path("/sys/kernel/mm/ksm")
KIND: Final = "ksm"
SCANS: Final = 3
"""A page is merged when two passes have found it unchanged; the first may have begun in the middle."""
SCAN_SECONDS: Final = 60.0
_IDLE_SECONDS: Final = 2.0
_POLL_SECONDS: Final = 0.1
_UNMERGE: Final = "2"
_PACE: Final = (
    ("advisor_mode", "none"),  # Linux 6.8: an advisor would not let the pace be set
    ("pages_to_scan", "20000"),
    ("sleep_millisecs", "10"),
)
"""In the order to write them; put back in the reverse one. Some 8 GiB a second, as far as one CPU can."""


@dataclass(frozen=True)
class Counters:
    """What KSM has merged on the whole host, in bytes; ``profit_bytes`` is ``None`` before Linux 6.4."""

    shared_bytes: int
    sharing_bytes: int
    profit_bytes: int | None


def read_counters(directory: Path = DIRECTORY) -> Counters | None:
    """Return what is merged now, ``None`` where the kernel has no KSM."""
    if not directory.is_dir():
        return None
    page = os.sysconf("SC_PAGE_SIZE")
    profit = directory / "general_profit"
    return Counters(
        shared_bytes=_number(directory, "pages_shared") * page,
        sharing_bytes=_number(directory, "pages_sharing") * page,
        profit_bytes=int(profit.read_text()) if profit.exists() else None,
    )


def why_untouched(directory: Path = DIRECTORY) -> str:
    """Why KSM may not be switched on here; empty if it may."""
    if not directory.is_dir():
        return "the kernel has no KSM (CONFIG_KSM)"
    if _read(directory, "run") == "1":
        return "KSM runs already, so there is no before"
    if _number(directory, "pages_shared"):
        return "KSM was stopped with pages merged, so there is no before"
    if not os.access(directory / "run", os.W_OK):
        return "KSM may not be switched on: /sys/kernel/mm/ksm is read-only here, or this is not root"
    return ""


@contextmanager
def merging(journal: Journal, directory: Path = DIRECTORY) -> Iterator[None]:
    """Switch KSM on, at a quick pace, and put back what was there; call where ``why_untouched`` is empty.

    Raises:
        HostError: the kernel does not take a setting.
    """
    pace = {name: value for name, value in _PACE if (directory / name).exists()}
    before = {name: _read(directory, name) for name in (*pace, "run")}
    entry = journal.own(KIND, directory=str(directory), **before)
    try:
        for name, value in pace.items():
            _write(directory, name, value)
        _write(directory, "run", "1")
        yield
    finally:
        put_back(entry.what)
        journal.gone(entry)


def await_scans(directory: Path = DIRECTORY, seconds: float = SCAN_SECONDS) -> str:
    """Wait until KSM has passed over all mergeable memory; return why it has not, empty if it has.

    That there is none is noticed early where the kernel counts the pages that it scans.
    """
    begun = time.monotonic()
    first = _number(directory, "full_scans")
    moved, seen = begun, _scanned(directory)
    while (now := time.monotonic()) < begun + seconds:
        time.sleep(_POLL_SECONDS)
        if _number(directory, "full_scans") >= first + SCANS:
            return ""
        found = _scanned(directory)
        if found is None or found != seen:
            moved, seen = now, found
        elif now > moved + _IDLE_SECONDS:
            return "KSM finds nothing to merge: no process offers its memory (madvise(2), MADV_MERGEABLE)"
    return f"KSM has not passed over all mergeable memory within {seconds:g} s"


def put_back(what: Mapping[str, str]) -> None:
    """Write what ``merging`` found and undo what was merged. Idempotent.

    What others have set since is theirs, and where they have set the pace, KSM is theirs too.

    Raises:
        HostError: the kernel does not take it.
    """
    directory = Path(what["directory"])
    ours = {name: value for name, value in _PACE if name in what and _read(directory, name) == value}
    all_ours = len(ours) == len(what.keys() & dict(_PACE).keys())
    if all_ours and _read(directory, "run") in {"1", _UNMERGE}:
        _write(directory, "run", _UNMERGE)
        _write(directory, "run", what["run"])
    for name in reversed(ours):
        _write(directory, name, what[name])


def _read(directory: Path, name: str) -> str:
    """The file's text; of a choice like ``[none] scan-time`` what is chosen."""
    text = (directory / name).read_text().strip()
    return text.partition("[")[2].partition("]")[0] if "[" in text else text


def _scanned(directory: Path) -> int | None:
    """How many pages were looked at so far; ``None`` before Linux 6.6."""
    return _number(directory, "pages_scanned") if (directory / "pages_scanned").exists() else None


def _number(directory: Path, name: str) -> int:
    return int(_read(directory, name))


def _write(directory: Path, name: str, value: str) -> None:
    try:
        (directory / name).write_text(value)
    except OSError as error:
        raise HostError(
            f"cannot write {value} to {directory / name}: {error.strerror}", hint="isomark clean tries again"
        ) from error
