"""Which Debian packages the lab is made of; versions and kernel come from the host's own apt."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from bench.errors import HostError

DOM0: Final = (
    "bridge-utils",
    "busybox-static",
    "iproute2",
    "libvirt-daemon",
    "libvirt-daemon-driver-xen",
    "mount",
    "procps",
    "qemu-system-xen",
    "xen-hypervisor-4.17-amd64",
    "xen-utils-4.17",
)
KERNEL: Final = "linux-image-amd64"
"""Depends on the newest generic kernel: the cloud kernel, which guests get, cannot be dom0 (CONFIG_XEN_DOM0)."""


def kernel_package() -> str:
    """The package that has the newest kernel, such as ``linux-image-6.1.0-50-amd64``.

    Raises:
        HostError: apt does not know it.
    """
    found = re.search(r"Depends: (linux-image-[0-9]\S+)", _ask("apt-cache", "depends", "--important", KERNEL))
    if found is None:
        raise HostError(f"apt does not know the package {KERNEL}", hint="apt-get update")
    return found[1]


def versions(packages: Sequence[str]) -> Mapping[str, str]:
    """Package -> the version that apt would install now.

    Raises:
        HostError: apt does not know one.
    """
    text = _ask("apt-cache", "policy", *packages)
    found = dict(re.findall(r"^(\S+):\n.*\n  Candidate: ([^(\s]+)$", text, re.MULTILINE))
    if missing := sorted(set(packages) - set(found)):
        raise HostError(
            f"apt does not know {', '.join(missing)}",
            hint="the lab is made of Debian 12's packages for amd64; apt-get update, or see /etc/apt/sources.list*",
        )
    return found


def unpack_kernel(package: str, work: Path, environment: Mapping[str, str]) -> Path:
    """Fetch ``package`` and unpack its kernel and modules; the tree, below ``work``, has boot/ and lib/modules/.

    ``environment`` is that of the programs which do so.

    Raises:
        HostError: it cannot be had.
    """
    tree = work / "kernel"
    tree.mkdir()
    _ask("apt-get", "--quiet=2", "download", package, cwd=work, environment=environment)
    (archive,) = work.glob(f"{package}_*.deb")
    unpack = 'dpkg-deb --fsys-tarfile "$1" | tar -x -C "$2" --wildcards "./boot/vmlinuz-*" "./lib/modules/*"'
    _ask("bash", "-c", f"set -o pipefail; {unpack}", "bash", str(archive), str(tree), environment=environment)
    archive.unlink()
    return tree


def _ask(*command: str, cwd: Path = Path("/"), environment: Mapping[str, str] | None = None) -> str:
    try:
        ended = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise HostError(f"the program {command[0]} is not installed", hint="the lab is made on Debian hosts") from error
    if ended.returncode != 0:
        said = ended.stderr.strip().splitlines()[-3:]
        raise HostError(f"{' '.join(command[:3])} failed: {' '.join(said)}", hint="apt-get update; df -h")
    return ended.stdout
