"""The server that a workload's tree becomes: Debian's server packages, a kernel and our units on top of it.

The packages are installed over the very tree that the containers run from, as an overlay's upper layer, so that what
is compared differs in nothing else. mmdebstrap only makes trees anew; apt and dpkg, which it calls too, can
work on one that is there (server.sh).
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Mapping, Sequence
from importlib.resources import as_file, files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final

from bench.errors import HostError, ImageError
from bench.model import WorkloadImage
from vms.kernel import GuestKernel

PACKAGES: Final = (
    "systemd-sysv", "udev", "dbus", "libpam-systemd", "openssh-server", "initramfs-tools", "kmod", "zstd",
    "e2fsprogs", "iproute2", "procps",
)  # fmt: skip
EPOCH: Final = 1686355200
"""The time of everything added, that of the images themselves."""

_SCRIPT: Final = "server.sh"
_GUEST: Final = "guest"
_TAIL_LINES: Final = 12
_IN_NAMESPACES: Final = ("setpriv", "--pdeathsig", "KILL", "--", "unshare", "--mount", "--pid", "--fork",
                         "--kill-child", "--mount-proc", "--propagation", "private", "--")  # fmt: skip
"""Whatever ends isomark or this ends everything in it, and takes its mounts along."""
_PASSED_ON: Final = ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


def server_recipe() -> str:
    """A digest of all that shapes the server beside image and kernel; the state of Debian's archive is not in it."""
    hashed = hashlib.sha256(repr((PACKAGES, EPOCH)).encode())
    hashed.update(_resource(_SCRIPT).read_bytes())
    for name, data in sorted(_walk(_resource(_GUEST), "")):
        hashed.update(repr((name, data)).encode())
    return hashed.hexdigest()


def write_server(
    image: WorkloadImage,
    kernel: GuestKernel,
    work: Path,
    grub_config: str,
    mke2fs: Sequence[str],
    environment: Mapping[str, str],
) -> None:
    """Make the server of ``image`` and run ``mke2fs`` with ``environment`` on it, which finds it at ``work/root``.

    ``work`` is an empty directory, and is empty again afterwards. ``grub_config`` becomes /boot/grub/grub.cfg.

    Raises:
        HostError: not root, or the host's apt fails.
        ImageError: a package or the file system cannot be made.
    """
    if os.geteuid() != 0:
        raise HostError("a full server is installed by root only", hint="run as root")
    with as_file(_resource(_SCRIPT)) as script, as_file(_resource(_GUEST)) as guest:
        ended = _run([
            *_IN_NAMESPACES,
            *("sh", str(script), str(image.tree), str(kernel.image), str(kernel.modules), kernel.version, str(guest)),
            *(str(EPOCH), " ".join(PACKAGES)),
            *("env", *(f"{name}={value}" for name, value in environment.items()), *mke2fs),
        ], work, grub_config)  # fmt: skip
    if ended.returncode != 0:
        said = "\n".join(ended.stderr.strip().splitlines()[-_TAIL_LINES:])
        raise ImageError(
            f"no server can be made of {image.reference}:\n{said}", hint="see whether apt-get update works on this host"
        )


def _run(command: Sequence[str], work: Path, standard_input: str) -> subprocess.CompletedProcess[str]:
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    environment["PATH"] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    try:
        return subprocess.run(
            command, cwd=work, env=environment, input=standard_input, capture_output=True, check=False,
            start_new_session=True, text=True, errors="replace",
        )  # fmt: skip
    except FileNotFoundError as error:
        raise HostError(f"the program {command[0]} is not installed", hint="apt-get install util-linux") from error


def _resource(name: str) -> Traversable:
    return files("vms.full").joinpath(name)


def _walk(folder: Traversable, prefix: str) -> list[tuple[str, bytes]]:
    """All files below ``folder``: their paths in it, and what they hold."""
    found: list[tuple[str, bytes]] = []
    for each in folder.iterdir():
        name = f"{prefix}/{each.name}"
        found += _walk(each, name) if each.is_dir() else [(name, each.read_bytes())]
    return found
