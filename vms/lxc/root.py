"""The root of one container: an overlay on the image's tree, mounted on the host, where libvirt finds it."""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from bench.errors import HostError, InstanceError
from bench.journal import Entry, Journal
from vms.lxc.container import BUSYBOX
from vms.mounting import detach, mount

SCRATCH: Final = "isomark/scratch"
"""Where a payload may write files that it measures."""
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
    undo.callback(detach, root)
    options = f"lowerdir={_escape(tree)},upperdir={_escape(upper)},workdir={_escape(work)}"
    mount(b"overlay", root, b"overlay", 0, os.fsencode(options), "it needs root and overlayfs")
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
