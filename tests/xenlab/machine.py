"""The outer machine: QEMU's command line, its process, its console."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from bench.errors import HostError, InstanceError
from bench.journal import OWNER_VARIABLE, Journal
from xenlab.monitor import Monitor

QEMU: Final = "qemu-system-x86_64"
LIBVIRT_PORT: Final = 16509
"""libvirtd's inside the machine."""

_XEN: Final = (
    "dom0_mem=384M,max:384M console=com1 com1=115200,8n1 bootscrub=0 "
    "spec-ctrl=no xpti=0 ucode=no watchdog=0 cpufreq=none"
)
_DOM0: Final = "console=hvc0 mitigations=off quiet audit=0 apparmor=0"
_HARDWARE: Final = (
    *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
    # one CPU: on a busy host two wait for each other's locks, and an HVM guest takes eight times as long
    *("-machine", "pc", "-accel", "tcg,tb-size=512", "-smp", "1", "-m", "1024"),
    # with smap dom0 dies at its entry; with rdtscp Xen cannot emulate it for a PVH guest
    *("-cpu", "max,smap=off,rdtscp=off"),
    *("-kernel", "xen", "-append", _XEN, "-initrd", f"vmlinux {_DOM0},initramfs"),
    *("-netdev", f"user,id=net,hostfwd=tcp:127.0.0.1:0-:{LIBVIRT_PORT}"),  # port 0: the kernel chooses one
    *("-device", "virtio-net-pci,netdev=net,romfile="),
    *("-device", "virtio-blk-pci,drive=disk"),
)
"""Paths are relative: QEMU runs in the lab's directory, for a comma or blank in a path would end an option."""
_TAIL_LINES: Final = 12


@dataclass(frozen=True)
class Machine:
    """A running machine; ``console`` is the file that its serial line is written to."""

    process: subprocess.Popen[bytes]
    monitor: Monitor
    console: Path
    uri: str

    def wait_for(self, ready: str, failed: str, timeout_seconds: float) -> None:
        """Wait until the console says ``ready``.

        Raises:
            InstanceError: it says ``failed``, the machine ended, or it takes too long.
        """
        deadline = time.monotonic() + timeout_seconds
        while ready not in (said := self.console.read_text(errors="replace")):
            if failed in said or self.process.poll() is not None:
                raise InstanceError(f"dom0 does not start; it said:\n{_tail(said)}", tail=said.splitlines())
            if time.monotonic() > deadline:
                raise InstanceError(
                    f"dom0 was not ready after {timeout_seconds:.0f} s; it said:\n{_tail(said)}",
                    hint="is the host overloaded?",
                    tail=said.splitlines(),
                )
            time.sleep(0.05)

    def wait_for_libvirt(self, timeout_seconds: float) -> None:
        """Wait until libvirt's Xen driver answers and has its storage pool; ``virsh`` is what asks.

        Raises:
            InstanceError: it does not answer in time.
        """
        deadline = time.monotonic() + timeout_seconds
        command = ["timeout", "20", "virsh", "--connect", self.uri, "pool-info", "default"]
        while (asked := subprocess.run(command, capture_output=True, text=True, check=False)).returncode != 0:
            if time.monotonic() > deadline or self.process.poll() is not None:
                said = f"{asked.stderr.strip()}\n{_tail(self.console.read_text(errors='replace'))}"
                raise InstanceError(f"libvirt in the lab does not answer:\n{said}", hint="is the host overloaded?")
            time.sleep(0.1)


@contextmanager
def machine(files: Path, disk: Path, scratch: Path, journal: Journal, *, frozen: bool = False) -> Iterator[Machine]:
    """Run a machine with the boot files of ``files`` and ``disk`` (.raw or .qcow2) for the length of a block.

    Logs go to ``scratch``. A ``frozen`` one waits for ``monitor.thaw``.

    Raises:
        HostError: QEMU is missing or does not start.
    """
    if shutil.which(QEMU) is None or shutil.which("virsh") is None:
        raise HostError(f"{QEMU} or virsh is not installed", hint="script/bootstrap")
    owned = journal.own("process", marker=journal.owner.id)
    console, log = scratch / "console.log", scratch / "qemu.log"
    console.touch()
    ours, theirs = socket.socketpair()
    with ours, theirs, log.open("wb") as errors:
        process = subprocess.Popen(
            _command(disk, console, theirs.fileno(), frozen),
            cwd=files,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8", OWNER_VARIABLE: journal.owner.id},
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # Ctrl-C is for us
        )
        try:
            theirs.close()
            yield _met(process, ours, console, log)
        finally:
            process.kill()
            process.wait()
            journal.gone(owned)


def _command(disk: Path, console: Path, monitor: int, frozen: bool) -> Sequence[str]:
    drive = {
        "driver": disk.suffix.removeprefix("."),
        "node-name": "disk",
        "file": {"driver": "file", "filename": str(disk), "cache": {"no-flush": True}},
        "cache": {"no-flush": True},
    }
    return [
        *("setpriv", "--pdeathsig", "KILL", "--", QEMU, *_HARDWARE),
        *("-blockdev", json.dumps(drive)),
        *("-chardev", f"socket,id=monitor,fd={monitor}", "-mon", "chardev=monitor,mode=control"),
        *("-chardev", f"file,id=console,path={str(console).replace(',', ',,')}"),
        *("-serial", "chardev:console"),
        *(("-incoming", "defer") if frozen else ()),
    ]


def _met(process: subprocess.Popen[bytes], connection: socket.socket, console: Path, log: Path) -> Machine:
    try:
        monitor = Monitor(connection)
    except HostError as error:
        said = _tail(log.read_text(errors="replace"))
        raise HostError(f"{QEMU} does not start:\n{said}", hint="script/bootstrap installs it; free -m") from error
    return Machine(process, monitor, console, f"xen+tcp://127.0.0.1:{_port(process.pid)}/system")


def _port(pid: int) -> int:
    """The only port that QEMU listens on: its forwarding to libvirt."""
    (listening,) = (c for c in psutil.Process(pid).net_connections("tcp4") if c.status == psutil.CONN_LISTEN)
    return int(listening.laddr.port)


def _tail(text: str) -> str:
    return "\n".join(text.splitlines()[-_TAIL_LINES:])
