"""Whether KVM works here: a /dev/kvm that opens proves nothing, a kernel that boots does."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from bench import protocol
from bench.channel import Channel
from bench.driver import Lab
from bench.errors import ConsoleFlood, ConsoleTimeout, DriverUnavailable
from bench.journal import OWNER_VARIABLE, boot_id
from vms.cache import keep
from vms.initramfs import boot_files
from vms.kernel import GuestKernel, find_kernel
from vms.qemu import FIRMWARE, KERNEL_ARGUMENTS

BOOT_SECONDS: Final = 20.0
EMULATOR: Final = "qemu-system-x86_64"
_WORDS: Final = 160


@dataclass(frozen=True)
class Proof:
    """What trying showed; ``reason`` says how it failed."""

    works: bool
    reason: str
    seconds: float


def require_kvm(lab: Lab, kernel: GuestKernel) -> None:
    """Boot ``kernel`` under KVM unless that was tried since this host was booted.

    Raises:
        DriverUnavailable: it does not boot.
    """
    path = proof_path(lab.state, kernel)
    keep(path.parent, path.name, lambda: json.dumps(asdict(_boot(lab, kernel))).encode())
    shown = Proof(**json.loads(path.read_text()))
    if not shown.works:
        raise DriverUnavailable(
            f"/dev/kvm is there, but no guest boots on it: {shown.reason}",
            hint=f"the driver qemu, which emulates the CPU, works without it; to try KVM again, delete {path}",
        )


def remembered(state: Path) -> Proof | None:
    """What was shown for the present kernel, QEMU and boot of the host; ``None`` if nothing was tried.

    Raises:
        DriverUnavailable: there is no guest kernel, or no QEMU.
    """
    path = proof_path(state, find_kernel(state))
    return Proof(**json.loads(path.read_text())) if path.exists() else None


def proof_path(state: Path, kernel: GuestKernel) -> Path:
    """Where the proof for guest ``kernel``, this QEMU and this boot of the host is kept.

    Raises:
        DriverUnavailable: there is no QEMU.
    """
    try:
        version = subprocess.run([EMULATOR, "--version"], capture_output=True, check=False).stdout
    except FileNotFoundError as error:
        raise DriverUnavailable("qemu-system-x86_64 is not installed", hint="script/bootstrap") from error
    key = hashlib.sha256(version + kernel.version.encode() + boot_id().encode()).hexdigest()[:16]
    return state / "proofs" / f"kvm-{key}.json"


def _boot(lab: Lab, kernel: GuestKernel) -> Proof:
    """Start QEMU itself with the host's CPU, as the domain would have it, and wait for our init."""
    booted, initramfs = boot_files(lab.state, kernel)
    command = [
        EMULATOR, "-machine", "q35,accel=kvm", "-cpu", "host", "-m", "256", "-nodefaults", "-no-user-config",
        "-display", "none", "-no-reboot", "-bios", FIRMWARE, "-kernel", str(booted), "-initrd", str(initramfs),
        "-append", " ".join(KERNEL_ARGUMENTS), "-serial", "stdio",
    ]  # fmt: skip
    marker = f"{lab.journal.owner.id}-kvm"
    begun = time.monotonic()
    with lab.journal.owning("process", marker=marker):
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, OWNER_VARIABLE: marker},
        )
        assert process.stdout is not None
        channel = Channel(os.dup(process.stdout.fileno()), os.open(os.devnull, os.O_WRONLY))
        try:
            reason = _await_init(channel)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
            channel.close()
    return Proof(not reason, reason, round(time.monotonic() - begun, 3))


def _await_init(channel: Channel) -> str:
    """Return why the guest did not reach its init; empty if it did."""
    try:
        for line in channel.lines(BOOT_SECONDS):
            if isinstance(protocol.parse(line.text), protocol.Init):
                return ""
    except (ConsoleTimeout, ConsoleFlood) as error:
        return f"{error.message}; {_last(channel.tail)}"
    return f"QEMU ended; {_last(channel.tail)}"


def _last(tail: deque[str]) -> str:
    said = [line.strip() for line in tail if line.strip()]
    return f"last it said: {said[-1][:_WORDS]}" if said else "it said nothing"
