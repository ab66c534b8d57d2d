"""A full guest started by QEMU itself: the disk alone is tried here, without libvirt and the driver."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.channel import Channel
from vms.full.disk import FullDisk
from vms.qcow2 import write_overlay

OVMF = Path("/usr/share/OVMF")
READY_SECONDS = 240.0


@dataclass
class Booted:
    """One QEMU. ``lines`` are those read so far."""

    channel: Channel
    process: subprocess.Popen[bytes]
    monitor: Path
    lines: list[str]

    def until(self, text: str) -> list[str]:
        """Read on until the console says ``text``; return the lines before it."""
        before: list[str] = []
        for line in self.channel.lines(READY_SECONDS):
            self.lines.append(line.text)
            if line.text == text:
                return before
            before.append(line.text)
        raise AssertionError(f"{text!r} was not said:\n" + "\n".join(self.lines))

    def press_power_button(self) -> None:
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.connect(str(self.monitor))
            monitor.sendall(b"system_powerdown\n")
            answer = b""
            while answer.count(b"(qemu)") < 2:  # before and after it: what is not waited for may be dropped
                answer += monitor.recv(4096)


@contextmanager
def booted(disk: FullDisk, second: bytes, firmware: str, folder: Path) -> Iterator[Booted]:
    """Boot an overlay of ``disk`` with ``second`` as another virtio disk, under ``bios`` or ``ovmf``."""
    write_overlay(folder / "disk.qcow2", disk.path, disk.size_bytes)
    (folder / "second.raw").write_bytes(second)
    command = ["qemu-system-x86_64", "-machine", "q35", "-accel", "tcg", "-cpu", "max", "-m", "512", "-nodefaults"]
    command += ["-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"]
    command += ["-drive", f"if=none,id=d0,file={folder}/disk.qcow2", "-device", "virtio-blk-pci,drive=d0,bootindex=1"]
    command += ["-drive", f"if=none,id=d1,file={folder}/second.raw,format=raw,readonly=on"]
    command += ["-device", "virtio-blk-pci,drive=d1", "-monitor", f"unix:{folder}/monitor,server=on,wait=off"]
    command += ["-netdev", "user,id=n0,restrict=on", "-device", "virtio-net-pci,netdev=n0,romfile="]
    if firmware == "ovmf":
        shutil.copy(OVMF / "OVMF_VARS_4M.fd", folder / "vars.fd")
        command += ["-drive", f"if=pflash,format=raw,readonly=on,file={OVMF}/OVMF_CODE_4M.fd"]
        command += ["-drive", f"if=pflash,format=raw,file={folder}/vars.fd"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        with process:
            assert process.stdin is not None
            assert process.stdout is not None
            channel = Channel(process.stdout.fileno(), process.stdin.fileno())
            try:
                yield Booted(channel, process, folder / "monitor", [])
            finally:
                process.kill()
    finally:
        process.wait()
