"""The smallest guests of Xen's three types: each says a marker on its console, and nothing else."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from vms import cpio

if TYPE_CHECKING:
    import libvirt

TYPES: Final = ("pv", "pvh", "hvm")
POOL: Final = "default"
"""What every lab comes with, as hosts usually do."""

_CHUNK_BYTES: Final = 256 * 1024
_INIT: Final = """\
#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
echo "{marker} $(/bin/busybox uname -r)"
exec /bin/busybox sleep 1000000
"""
_DOMAIN: Final = """\
<domain type='xen'>
  <name>{name}</name>
  <memory unit='MiB'>192</memory>
  <vcpu>1</vcpu>
  {system}
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>destroy</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>{devices}</devices>
</domain>
"""
_LINUX: Final = """\
<os>
    <type arch='x86_64' machine='{machine}'>{os_type}</type>
    <kernel>{kernel}</kernel>
    <initrd>{initrd}</initrd>
    <cmdline>console=hvc0 quiet</cmdline>
  </os>"""
_FIRMWARE: Final = """\
<os>
    <type arch='x86_64' machine='xenfv'>hvm</type>
    <loader type='rom'>/usr/lib/xen-4.17/boot/hvmloader</loader>
    <boot dev='hd'/>
  </os>
  <features><acpi/><apic/><pae/></features>"""
_HVC: Final = "<console type='pty'><target type='xen' port='0'/></console>"
_SERIAL: Final = """\
<serial type='pty'><target port='0'/></serial>
    <console type='pty'><target type='serial' port='0'/></console>"""
_DISK: Final = """\
<disk type='file' device='disk'>
      <driver name='qemu' type='raw'/>
      <source file='{path}'/>
      <target dev='hda' bus='ide'/>
    </disk>"""


def initramfs(busybox: bytes, marker: str) -> bytes:
    """An initramfs that says ``marker`` and the kernel's release; ``busybox`` is a static one."""
    return cpio.archive(
        [
            *(cpio.directory(name) for name in ("bin", "dev", "proc")),
            cpio.character_device("dev/console", 5, 1),
            cpio.file("bin/busybox", busybox, 0o755),
            cpio.file("init", _INIT.format(marker=marker).encode(), 0o755),
        ]
    )


def boot_sector(marker: str) -> bytes:
    """A disk of one sector that says ``marker`` on the first serial port, and halts."""
    code = bytes.fromhex(
        "31c0 8ed8"  # xor ax, ax; mov ds, ax
        "be227c fc"  # mov si, text; cld
        "ac 84c0 7412"  # next: lodsb; test al, al; jz halt
        "88c4 bafd03"  # mov ah, al; mov dx, 0x3fd
        "ec a820 74fb"  # wait: in al, dx; test al, 0x20; jz wait
        "88e0 baf803 ee ebe9"  # mov al, ah; mov dx, 0x3f8; out dx, al; jmp next
        "f4 ebfd"  # halt: hlt; jmp halt
    )
    return (code + f"{marker}\r\n".encode() + b"\0").ljust(510, b"\0") + b"\x55\xaa"


def linux_xml(name: str, guest_type: str, kernel: str, initrd: str) -> str:
    """A PV or PVH domain that boots ``kernel`` and ``initrd``, which are paths in the lab."""
    machine, os_type = {"pv": ("xenpv", "linux"), "pvh": ("xenpvh", "xenpvh")}[guest_type]
    system = _LINUX.format(machine=machine, os_type=os_type, kernel=kernel, initrd=initrd)
    return _DOMAIN.format(name=name, system=system, devices=_HVC)


def firmware_xml(name: str, disk: str) -> str:
    """An HVM domain whose BIOS boots ``disk``, a path in the lab."""
    return _DOMAIN.format(name=name, system=_FIRMWARE, devices=_DISK.format(path=disk) + _SERIAL)


@contextmanager
def uploaded(connection: libvirt.virConnect, name: str, data: bytes) -> Iterator[str]:
    """Upload ``data`` as volume ``name`` for the length of a block; offers its path in the lab."""
    pool = connection.storagePoolLookupByName(POOL)
    volume = pool.createXML(f"<volume><name>{name}</name><capacity>{len(data)}</capacity></volume>")
    try:
        stream = connection.newStream()
        volume.upload(stream, 0, len(data))
        for at in range(0, len(data), _CHUNK_BYTES):
            _send(stream, data[at : at + _CHUNK_BYTES])
        stream.finish()
        yield volume.path()
    finally:
        volume.delete()


def _send(stream: libvirt.virStream, data: bytes) -> None:
    while data:
        data = data[stream.send(data) :]


@contextmanager
def running(connection: libvirt.virConnect, xml: str) -> Iterator[tuple[libvirt.virDomain, Console]]:
    """Start a transient domain for the length of a block; its console is open before it runs."""
    import libvirt

    domain = connection.createXML(xml, libvirt.VIR_DOMAIN_START_PAUSED)
    try:
        console = Console(connection, domain)
        domain.resume()
        yield domain, console
    finally:
        domain.destroy()


class Console:
    """What a domain says, from virDomainOpenConsole.

    The stream blocks, and a thread reads it: a stream that does not block would need libvirt's event
    loop, of which a process has one, and whose connection drops unless some thread runs it.
    """

    def __init__(self, connection: libvirt.virConnect, domain: libvirt.virDomain) -> None:
        self._stream = connection.newStream()
        domain.openConsole(None, self._stream)
        self._pieces: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.said = b""
        threading.Thread(target=self._read, daemon=True).start()

    def wait_for(self, marker: str, timeout_seconds: float) -> bool:
        """Wait until the guest said ``marker``; whether it did in time, before its console closed."""
        deadline = time.monotonic() + timeout_seconds
        while marker.encode() not in self.said:
            try:
                piece = self._pieces.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return False
            if not piece:
                return False
            self.said += piece
        return True

    def _read(self) -> None:
        import libvirt

        try:
            while piece := self._stream.recv(4096):
                self._pieces.put(piece)
        except libvirt.libvirtError:  # the domain was destroyed
            pass
        self._pieces.put(b"")
