"""Mounting below the lab's scratch space (mount(2)), whose remover detaches what a kill -9 leaves there."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from typing import Final

from bench.errors import HostError

MS_RDONLY: Final = 1
MS_REMOUNT: Final = 32
MS_BIND: Final = 4096
_MNT_DETACH: Final = 2


def mount(source: bytes | None, target: Path, kind: bytes | None, flags: int, data: bytes | None, hint: str) -> None:
    """Mount ``source`` at ``target``. Register ``detach`` first: an interrupt may come right after.

    Raises:
        HostError: the kernel refuses; ``hint`` is what would help.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(source, os.fsencode(target), kind, ctypes.c_ulong(flags), data) != 0:
        what = "an overlay at " if kind == b"overlay" else ""
        raise HostError(f"cannot mount {what}{target}: {os.strerror(ctypes.get_errno())}", hint=hint)


def detach(path: Path) -> None:
    """Unmount ``path``, though somebody who ends at this moment may hold a copy; fine if nothing is mounted there.

    Raises:
        HostError: the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(path), _MNT_DETACH) != 0 and ctypes.get_errno() != errno.EINVAL:
        raise HostError(f"cannot unmount {path}: {os.strerror(ctypes.get_errno())}")
