"""The root of one container: an overlay on the image's tree, mounted on the host, where libvirt finds it."""

from __future__ import annotations

import ctypes
import os
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from bench.errors import HostError, InstanceError
from bench.journal import Entry, Journal
from vms.lxc.container import BUSYBOX

SCRATCH: Final = "isomark/scratch"
"""Where a payload may write files that it measures."""
_MNT_DETACH: Final = 2
_BLOCK_BYTES: Final = 512
"""Of st_blocks (stat(2))."""


def make_root(tree: Path, folder: Path, journal: Journal, undo: ExitStack) -> Path:
    """Return a directory in ``folder`` that shows ``tree`` and keeps what is written to it; ``undo`` removes it all.

    One entry of the journal is enough: the remover of directories detaches what is mounted below.

    Raises:
        HostError: the kernel refuses the overlay.
        OSError: a directory cannot be made.
    """
    entry = journal.own("directory", path=str(folder))
    try:
        folder.mkdir(mode=0o711)
    except OSError:
        journal.gone(entry)
        raise
    undo.callback(_bury, folder, journal, entry)
    upper, work, root = (folder / part for part in ("upper", "work", "root"))
    for part in (upper, work, root):
        part.mkdir()
    _mount_overlay(tree, upper, work, root)
    undo.callback(_unmount, root)
    (root / SCRATCH).mkdir(parents=True, exist_ok=True)
    (root / SCRATCH).chmod(0o1777)
    (root / BUSYBOX.lstrip("/")).touch()  # something is bound there
    return root


def allocated_bytes(folder: Path) -> int:
    """Blocks allocated for what a container has written, which ``make_root`` keeps in ``folder``.

    Raises:
        InstanceError: it is gone.
    """
    try:
        return sum(path.lstat().st_blocks * _BLOCK_BYTES for path in (folder / "upper").rglob("*"))
    except FileNotFoundError as error:
        raise InstanceError("the instance is gone, or deletes files at this moment") from error


def _mount_overlay(lower: Path, upper: Path, work: Path, target: Path) -> None:
    data = f"lowerdir={_escape(lower)},upperdir={_escape(upper)},workdir={_escape(work)}"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"overlay", os.fsencode(target), b"overlay", ctypes.c_ulong(0), os.fsencode(data)) != 0:
        error = os.strerror(ctypes.get_errno())
        raise HostError(f"cannot mount an overlay at {target}: {error}", hint="it needs root and overlayfs")


def _unmount(path: Path) -> None:
    """Detach it: a container that started meanwhile may hold a copy for a moment (libvirt_lxc's mount namespace)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(path), _MNT_DETACH) != 0:
        raise HostError(f"cannot unmount {path}: {os.strerror(ctypes.get_errno())}")


def _bury(folder: Path, journal: Journal, entry: Entry) -> None:
    """Remove ``folder``, and only then call it gone."""
    _remove(folder)
    journal.gone(entry)


def _remove(folder: Path) -> None:
    """Remove ``folder``, in which nothing is mounted any more."""
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        raise HostError(f"cannot remove {folder}: {error.strerror}") from error


def _escape(path: Path) -> str:
    """Escape what overlayfs gives a meaning to (kernel, Documentation/filesystems/overlayfs.rst)."""
    return str(path).replace("\\", "\\\\").replace(",", "\\,").replace(":", "\\:")
