"""Consoles that print as fast as a process can write, far beyond what an emulated guest brings about.

A real process writes into the very socket that QEMU would, and a real libvirtd sends as fast as it reads; a mebibyte
more or less is nothing, a gigabyte would be.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from session_host import SessionHost, session_host

from bench import channel as channel_module
from bench.channel import MAX_LINE_BYTES, MAX_TOTAL_BYTES, TAIL_LINES, Channel
from bench.errors import ConsoleFlood
from vms import stream as stream_module
from vms.connection import Connection
from vms.console import ConsoleListener
from vms.stream import LIMIT_BYTES, ConsoleStream

libvirt = pytest.importorskip("libvirt")
MIB = 1024**2
GIB = 1024**3
HANG_SECONDS = 120.0
SOCKET_BYTES = 2 * MIB
"""More than the kernel keeps for a reader (net.core.wmem_max)."""
WRITER = """
import socket, sys
block = eval(sys.argv[2])
block *= (1 << 20) // len(block)
console = socket.socket(socket.AF_UNIX)
console.connect(sys.argv[1])
console.settimeout(float(sys.argv[3]))
written = 0
try:
    while True:
        written += console.send(block)
except (BrokenPipeError, ConnectionResetError, TimeoutError):
    print(written)
"""
KINDS = {
    "lines": "b'all work and no play makes jack a dull boy\\n'",
    "an endless line": "b'x'",
    "empty lines": "b'\\n'",
    "NULs": "bytes(4096)",
    "every byte": "bytes(range(256))",
}


class Flood:
    """A process that opened the console ``channel`` reads and writes to it as fast as it is taken."""

    def __init__(self, channel: Channel, process: subprocess.Popen[str]) -> None:
        self.channel = channel
        self._process = process

    def accepted_bytes(self) -> int:
        """How much it got rid of until its console was closed, or nobody took any more."""
        said, _ = self._process.communicate(timeout=HANG_SECONDS)
        return int(said)


@contextmanager
def flood(folder: Path, kind: str, patience_seconds: float = HANG_SECONDS) -> Iterator[Flood]:
    path = folder / "console"
    with ConsoleListener(path, None) as listener:
        command = [sys.executable, "-c", WRITER, str(path), KINDS[kind], str(patience_seconds)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            fd = listener.accept()[0].detach()
            channel = Channel(fd, fd)
            try:
                yield Flood(channel, process)
            finally:
                channel.close()
                process.kill()


def drain(channel: Channel) -> None:
    """Read all that it gives; lines are cut."""
    for line in channel.lines(HANG_SECONDS):
        assert len(line.text) <= MAX_LINE_BYTES


@contextmanager
def bounded(limit_bytes: int) -> Iterator[None]:
    """The block may never make this process larger by ``limit_bytes`` (proc(5), clear_refs and VmHWM)."""
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak_bytes()
    yield
    assert _peak_bytes() - before < limit_bytes


def _peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


@pytest.mark.parametrize("kind", KINDS)
def test_a_flood_is_cut_off_and_memory_stays_bounded(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = MIB if kind == "empty lines" else MAX_TOTAL_BYTES  # a million of them take seconds
    monkeypatch.setattr(channel_module, "MAX_TOTAL_BYTES", most)
    with flood(tmp_path, kind) as flooding:
        with bounded(24 * MIB), pytest.raises(ConsoleFlood) as caught:
            drain(flooding.channel)
        flooding.channel.close()
        assert most < flooding.accepted_bytes() < most + SOCKET_BYTES
    assert len(caught.value.tail) <= TAIL_LINES
    assert all(line.replace("\t", " ").isprintable() for line in caught.value.tail)


def test_a_gigabyte_in_one_line_needs_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: pytest.RecordProperty
) -> None:
    monkeypatch.setattr(channel_module, "MAX_TOTAL_BYTES", GIB)
    with flood(tmp_path, "an endless line") as flooding:
        begun = time.monotonic()
        with bounded(4 * MIB), pytest.raises(ConsoleFlood):
            assert [len(line.text) for line in flooding.channel.lines(HANG_SECONDS)] == [MAX_LINE_BYTES]
        record_property("megabytes_per_second", round(GIB / 1e6 / (time.monotonic() - begun)))
        assert [len(line) for line in flooding.channel.tail] == [MAX_LINE_BYTES]


def test_a_flood_that_nobody_reads_stays_with_the_one_who_prints(tmp_path: Path) -> None:
    with flood(tmp_path, "lines", patience_seconds=1.0) as flooding, bounded(4 * MIB):
        assert flooding.accepted_bytes() < SOCKET_BYTES


@pytest.fixture(scope="module")
def host() -> Iterator[SessionHost]:
    with session_host() as running:
        yield running


class FloodedDomain:
    """Its console is a volume of two gigabytes, which libvirtd sends as fast as it reads: a domain cannot print so."""

    def __init__(self, connection: Connection, content: bytes) -> None:
        self._connection = connection
        pool = connection.open().storagePoolLookupByName("isomark")
        xml = f"<volume><name>flood</name><capacity>{2 * GIB}</capacity><allocation>0</allocation></volume>"
        self._volume = pool.createXML(xml, 0)
        if content:
            path = Path(self._volume.path())
            with path.open("r+b") as file:
                for _ in range(LIMIT_BYTES * 2 // len(content)):
                    file.write(content)

    def openConsole(self, _device: None, stream: object, _flags: int) -> None:  # noqa: N802 - libvirt calls it so
        self._volume.download(stream, 0, 2 * GIB, 0)

    def delete(self) -> None:
        pool = self._connection.open().storagePoolLookupByName("isomark")  # anew, should the connection have died
        pool.storageVolLookupByName("flood").delete(0)


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"", b"all work and no play makes jack a dull boy\n" * 1000])
@pytest.mark.parametrize("waits_seconds", [0.0, 2.0])
def test_a_flood_through_libvirt_is_cut_off_and_memory_stays_bounded(
    content: bytes, waits_seconds: float, host: SessionHost
) -> None:
    connection = Connection(host.uri)
    domain = FloodedDomain(connection, content)
    try:
        # at this rate libvirt's client may find so much more to read that it is late to tell of it
        with bounded(2 * GIB // 8), ExitStack() as undo:
            stream = ConsoleStream(connection, domain)
            undo.callback(stream.close)
            fd = stream.detach()
            channel = Channel(fd, fd)
            undo.callback(channel.close)
            time.sleep(waits_seconds)  # nobody reads; libvirt takes it in all the same
            with pytest.raises(ConsoleFlood):
                drain(channel)
        assert connection.open().isAlive()
    finally:
        domain.delete()
        connection.close()


@pytest.fixture
def endless(host: SessionHost, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ConsoleStream, socket.socket]]:
    """A stream from a console that prints for longer than a test, and the trial's end of it."""
    monkeypatch.setattr(stream_module, "LIMIT_BYTES", 2 * GIB)
    connection = Connection(host.uri)
    domain = FloodedDomain(connection, b"")
    stream = ConsoleStream(connection, domain)
    try:
        with socket.socket(fileno=stream.detach()) as trial:
            yield stream, trial
    finally:
        stream.close()
        domain.delete()
        connection.close()


def drain_bytes(trial: socket.socket) -> None:
    """Read until the end."""
    while trial.recv(1 << 20):
        pass


@pytest.mark.full
def test_who_waits_for_a_libvirtd_that_hangs_to_let_go_keeps_nobody_from_noticing_it(
    host: SessionHost, endless: tuple[ConsoleStream, socket.socket]
) -> None:
    """Were it the event loop that waits, the call would never return."""
    other = Connection(host.uri)
    handle = other.open()
    waiting = threading.Thread(target=endless[0].hang_up)
    with host.hanging():
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive()
        with pytest.raises(libvirt.libvirtError, match="keepalive"):
            handle.getHostname()
        waiting.join(HANG_SECONDS)
        assert not waiting.is_alive()
    other.close()


def test_a_trial_is_told_the_end_of_a_console_let_go_with_the_domains(
    endless: tuple[ConsoleStream, socket.socket],
) -> None:
    stream, trial = endless
    trial.settimeout(HANG_SECONDS)
    assert trial.recv(1) == b"\0"
    stream.hang_up()
    trial.settimeout(0.5)
    with pytest.raises(TimeoutError):
        drain_bytes(trial)
    stream.linger()
    trial.settimeout(HANG_SECONDS)
    assert trial.recv(1) == b""
