"""The key that a built lab is kept under: it changes with whatever shapes the lab."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import Final

from bench.errors import HostError
from xenlab.machine import QEMU
from xenlab.packages import DOM0, kernel_package, versions
from xenlab.tree import FILES

_MODULES: Final = ("boot.py", "build.py", "machine.py", "packages.py", "tree.py")


def key() -> str:
    """Digest of the recipe's files, the packages' versions, and the emulator, whose states only its like can read.

    Raises:
        HostError: apt does not know the packages, or QEMU is not installed.
    """
    digest = hashlib.sha256(_emulator().encode())
    for path in [*(Path(__file__).parent / name for name in _MODULES), *sorted(FILES.iterdir())]:
        digest.update(path.read_bytes())
    for package, version in sorted(versions([*DOM0, kernel_package()]).items()):
        digest.update(f"{package}={version}\n".encode())
    return digest.hexdigest()[:16]


def _emulator() -> str:
    try:
        return subprocess.run([QEMU, "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise HostError(f"{QEMU} is not installed", hint="script/bootstrap") from error
