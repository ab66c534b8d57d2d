"""The directory that is a guest's root: shown to it by a daemon of the host, and nobody's to change.

libvirt's own ``readonly`` for virtiofs needs a newer daemon (libvirt 11.0); a read-only mount is obeyed by each.
"""

from __future__ import annotations

import ctypes
import errno
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from bench.errors import HostError

_MS_RDONLY: Final = 1
_MS_REMOUNT: Final = 32
_MS_BIND: Final = 4096
_MNT_DETACH: Final = 2


def share_read_only(tree: Path, at: Path, undo: ExitStack) -> None:
    """Show ``tree`` at ``at``, which is made, read-only; ``undo`` takes it away.

    It is to be in the lab's scratch space, whose remover detaches what is mounted there.

    Raises:
        HostError: the kernel refuses.
        OSError: the directory cannot be made.
    """
    at.mkdir()
    undo.callback(_unmount, at)  # before it is mounted: an interrupt may come right after
    _mount(tree, at, _MS_BIND)
    _mount(None, at, _MS_REMOUNT | _MS_BIND | _MS_RDONLY)


def _mount(source: Path | None, target: Path, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    what = None if source is None else os.fsencode(source)
    if libc.mount(what, os.fsencode(target), None, ctypes.c_ulong(flags), None) != 0:
        error = os.strerror(ctypes.get_errno())
        raise HostError(f"cannot mount {target}: {error}", hint='a shared root needs root here; root = "disk" does not')


def _unmount(path: Path) -> None:
    """Detach it: a daemon that ends at this moment may still hold a copy of the mount. Fine if nothing is mounted."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(path), _MNT_DETACH) != 0 and ctypes.get_errno() != errno.EINVAL:
        raise HostError(f"cannot unmount {path}: {os.strerror(ctypes.get_errno())}")
