"""The directory that is a guest's root: shown to it by a daemon of the host, and nobody's to change.

libvirt's own ``readonly`` for virtiofs needs a newer daemon (libvirt 11.0); a read-only mount is obeyed by each.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from vms.mounting import MS_BIND, MS_RDONLY, MS_REMOUNT, detach, mount

_HINT: Final = 'a shared root needs root here; root = "disk" does not'


def share_read_only(tree: Path, at: Path, undo: ExitStack) -> None:
    """Show ``tree`` at ``at``, which is made, read-only; ``undo`` takes it away.

    It is to be in the lab's scratch space, whose remover detaches what is mounted there.

    Raises:
        HostError: the kernel refuses.
        OSError: the directory cannot be made.
    """
    at.mkdir()
    undo.callback(detach, at)
    mount(os.fsencode(tree), at, None, MS_BIND, None, _HINT)
    mount(None, at, None, MS_REMOUNT | MS_BIND | MS_RDONLY, None, _HINT)
