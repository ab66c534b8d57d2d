"""Where isomark keeps what outlives a run."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "ISOMARK_STATE"


def state_directory() -> Path:
    """``$ISOMARK_STATE``, else /var/lib/isomark for root and the XDG data directory for others.

    It holds ``images`` and ``trees`` (the OCI store), ``kernels``, ``disks``, ``proofs``, ``owned``
    (journals) and ``scratch`` (what live runs write).
    """
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen).absolute()
    if os.geteuid() == 0:
        return Path("/var/lib/isomark")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "isomark"


def journal_directory(state: Path) -> Path:
    """Where the journals of live and dead runs are."""
    return state / "owned"
