"""What a guest finds before its disk: busybox, our init, the modules for virtio, and this trial's command.

Two archives one after the other, as the kernel allows: the first depends on kernel and busybox only
and is made once; the second, some hundred bytes, says what to start and which address to take. A
kernel command line could not hold that: 2048 characters, and no quoting that carries every byte.
"""

from __future__ import annotations

import hashlib
import ipaddress
import shlex
import shutil
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Final

from bench.driver import Launch
from bench.errors import DriverUnavailable, InstanceError
from bench.network import Lease
from vms import cpio
from vms.cache import keep
from vms.domain import Platform
from vms.elf import is_static
from vms.kernel import GuestKernel
from vms.modules import load_order
from vms.qemu import QEMU, ROOT_TAG
from vms.vmlinux import extract_vmlinux, has_pvh_entry

APPLETS: Final = ("chroot", "cp", "env", "ifconfig", "insmod", "mkdir", "mount", "poweroff", "reboot", "route", "stty")
"""What init.sh calls; without /proc, which comes later, busybox finds its applets by links only."""

_BUSYBOX: Final = (Path("/bin/busybox"), Path("/usr/bin/busybox"))
_DISK: Final = "{disk} /root ext4 noinit_itable 0 0\n"
_SHARED: Final = f"""\
{ROOT_TAG} /lower virtiofs ro 0 0
overlay /root overlay lowerdir=/lower,upperdir=/upper,workdir=/work 0 0
"""
"""This archive's own files are a tmpfs (kernel, init/do_mounts.c), so what the guest writes can lie beside them."""
_EARLY: Final = """\
{root}devtmpfs /root/dev devtmpfs nosuid,noexec,mode=755 0 0
proc /root/proc proc nosuid,nodev,noexec 0 0
sysfs /root/sys sysfs nosuid,nodev,noexec 0 0
"""
_LATE: Final = """\
devpts /root/dev/pts devpts nosuid,noexec,ptmxmode=0666,mode=0620,gid=5 0 0
shm /root/dev/shm tmpfs nosuid,nodev,noexec,mode=1777 0 0
"""


def find_busybox() -> Path:
    """Return the busybox of this host, which has to be a static one.

    Raises:
        DriverUnavailable: there is none.
    """
    for path in _BUSYBOX:
        if path.exists() and is_static(path.read_bytes()):
            return path
    raise DriverUnavailable("there is no statically linked busybox", hint="apt-get install busybox-static")


def boot_files(state: Path, kernel: GuestKernel, platform: Platform = QEMU) -> tuple[Path, Path]:
    """Return the kernel that ``platform`` enters and the first archive, both made if need be in ``state/boot``.

    Raises:
        DriverUnavailable: the kernel lacks the drivers of the platform's devices, or there is no busybox.
        HostError: they cannot be read or written.
    """
    image = kernel.image.read_bytes()
    raw = keep(state / "boot", f"vmlinux-{_digest(image)}", lambda: extract_vmlinux(image))
    base = base_archive(load_order(kernel.modules, platform.modules), find_busybox().read_bytes(), platform)
    initramfs = keep(state / "boot", f"initramfs-{_digest(base)}", lambda: base)
    if platform.kernel == "raw" or (platform.kernel == "raw if PVH" and has_pvh_entry(raw.read_bytes())):
        return raw, initramfs
    return keep(state / "boot", f"vmlinuz-{_digest(image)}", lambda: image), initramfs


def base_archive(modules: Mapping[str, bytes], busybox: bytes, platform: Platform = QEMU) -> bytes:
    """Return the archive that all guests of one kernel and platform share; ``modules`` in load order."""
    init = files("vms").joinpath("init.sh").read_bytes()
    root = _SHARED if platform.shared_root else _DISK.format(disk=platform.disk)
    names = [f"modules/{position:02}-{name}.ko" for position, name in enumerate(modules)]
    return cpio.archive(
        [
            *(cpio.directory(name) for name in ("bin", "dev", "etc", "modules", "root", "links")),
            *(cpio.directory(name) for name in ("lower", "upper", "work") if platform.shared_root),
            cpio.directory("links/pts"),
            cpio.directory("links/shm"),
            cpio.link("links/fd", "/proc/self/fd"),
            cpio.link("links/stdin", "/proc/self/fd/0"),
            cpio.link("links/stdout", "/proc/self/fd/1"),
            cpio.link("links/stderr", "/proc/self/fd/2"),
            cpio.character_device("dev/console", 5, 1),
            cpio.file("etc/child", child_script()),
            cpio.file("etc/early", _EARLY.format(root=root).encode()),
            cpio.file("etc/terminal", f"TERMINAL={platform.terminal}\n".encode()),
            cpio.file("etc/late", _LATE.encode()),
            cpio.file("bin/busybox", busybox, 0o755),
            *(cpio.link(f"bin/{applet}", "busybox") for applet in APPLETS),
            cpio.file("init", init, 0o755),
            *(cpio.file(name, data) for name, data in zip(names, modules.values(), strict=True)),
        ]
    )


def child_script() -> bytes:
    """The shell function by which process 1 waits for the payload."""
    return files("vms").joinpath("child.sh").read_bytes()


def trial_archive(launch: Launch) -> bytes:
    """Return the archive with ``/trial``, the shell script that says what this guest is to do.

    Raises:
        InstanceError: the command or the environment cannot be expressed.
    """
    return cpio.archive([cpio.file("trial", trial_script(launch).encode("utf-8", "surrogateescape"))])


def trial_script(launch: Launch, root: str | None = "/root") -> str:
    """Return the variables and the function ``payload`` that init.sh reads; it roots the payload in ``root``."""
    for name, value in launch.environment.items():
        if not name or "=" in name or "\0" in name + value:
            raise InstanceError(f"{name!r} cannot be an environment variable")
    if not launch.command or any("\0" in word for word in launch.command):
        raise InstanceError("the command has no words or holds a NUL byte")
    environment = [f"{name}={value}" for name, value in launch.environment.items()]
    enter = [] if root is None else ["/bin/chroot", root]
    words = ["env", "-i", *environment, *enter, *launch.command]
    settings = {"NAME": launch.name, **_network(launch.lease)}
    lines = [f"{name}={shlex.quote(value)}" for name, value in settings.items()]
    return "\n".join([*lines, f"payload() {{ exec {shlex.join(words)}; }}", ""])


def write_initrd(path: Path, base: Path, trial: bytes) -> None:
    """Write ``base`` followed by ``trial`` to ``path``."""
    shutil.copyfile(base, path)
    with path.open("ab") as initrd:
        initrd.write(trial)


def _network(lease: Lease | None) -> dict[str, str]:
    if lease is None:
        return {"ADDRESS": ""}
    netmask = str(ipaddress.IPv4Network((0, lease.prefix_length)).netmask)
    prefix = str(lease.prefix_length)
    return {"ADDRESS": lease.address, "PREFIX": prefix, "NETMASK": netmask, "GATEWAY": lease.gateway}


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
