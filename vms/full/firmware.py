"""UEFI for full guests: OVMF's two files, named by ourselves and never chosen by libvirt.

libvirt would pick among the firmware that is installed, Secure Boot's among it, which refuses a boot loader that nobody
has signed, and would leave each guest's variables in a directory of its own. So every guest gets the same code, which
is kept under a name that tells its content, and a fresh copy of the empty variables beside its disk. A host that is not
this one gets both as volumes, as it gets kernels: the same firmware everywhere, whatever is installed there.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from bench.errors import DriverUnavailable
from vms.cache import keep
from vms.full.needs import OVMF_CODE, OVMF_VARIABLES


def uefi_files(state: Path) -> tuple[Path, Path]:
    """Return OVMF's code and its empty variables, kept in ``state/boot``.

    Raises:
        DriverUnavailable: OVMF is not installed.
        HostError: they cannot be written.
    """
    return _kept(state, OVMF_CODE), _kept(state, OVMF_VARIABLES)


def _kept(state: Path, source: Path) -> Path:
    try:
        data = source.read_bytes()
    except OSError as error:
        hint = "script/bootstrap, or: apt-get install ovmf"
        raise DriverUnavailable(f"cannot read {source}: {error.strerror}", hint=hint) from error
    return keep(state / "boot", f"{source.stem}-{hashlib.sha256(data).hexdigest()[:16]}.fd", lambda: data)
