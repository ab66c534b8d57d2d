"""The payloads themselves, each run by chroot in the tree of the real image."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import protocol
from bench.channel import Channel
from bench.errors import ConsoleTimeout
from bench.journal import Journal
from bench.model import Workload, WorkloadImage
from bench.state import journal_directory, state_directory
from bench.workload import find_workload
from runtimes.oci.workload_image import build_workload_image

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="running payloads by chroot needs root"),
]
NAMES = ["boot", "cpu", "memory", "disk", "http"]
SECONDS = 60.0
ENTER = """
mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && mount --bind "$1" "$0/isomark/scratch" || exit 99
[ -z "$2" ] || mount -t tmpfs -o "$2" tmpfs "$0/isomark/scratch" || exit 99
exec chroot "$0" "$3"
"""
"""The tree read-only, so that writing anywhere but in scratch fails."""


@pytest.fixture(scope="module")
def image() -> Iterator[WorkloadImage]:
    state = state_directory()
    with Journal(journal_directory(state)) as journal:
        yield build_workload_image([find_workload(name) for name in NAMES], state, journal, lambda _: None)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Payload:
    """A payload that runs, and its console."""

    def __init__(
        self, image: WorkloadImage, name: str, scratch: Path, *, mount_options: str = "", **environment: str
    ) -> None:
        self.port = environment.get("ISOMARK_PORT", str(free_port()))
        scratch.chmod(0o1777)
        own = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "LANG": "C.UTF-8",
            "ISOMARK_WORKLOAD": name,
            "ISOMARK_CPUS": "2",
            "ISOMARK_ROUND_SECONDS": "0.5",
            "ISOMARK_PORT": self.port,
        }
        command = find_workload(name).command[0]
        inside = ["unshare", "--mount", "--propagation", "private", "sh", "-c", ENTER]
        self.process = subprocess.Popen(
            [*inside, str(image.tree), str(scratch), mount_options, command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**own, **environment},
            start_new_session=True,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.channel = Channel(os.dup(self.process.stdout.fileno()), os.dup(self.process.stdin.fileno()))
        self.process.stdin.close()
        self.process.stdout.close()

    def __enter__(self) -> Payload:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.channel.close()

    def next(self) -> protocol.Message:
        """The next protocol message; anything else on the console is a fault of the payload."""
        line = next(self.channel.lines(SECONDS))
        message = protocol.parse(line.text)
        assert message is not None, f"{line.text!r} is no protocol line"
        return message

    def rest(self) -> list[str]:
        return [line.text for line in self.channel.lines(SECONDS)]

    def status(self) -> int:
        return self.process.wait(timeout=SECONDS)


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


@pytest.mark.parametrize("name", NAMES)
def test_it_becomes_ready_answers_and_quits(image: WorkloadImage, scratch: Path, name: str) -> None:
    with Payload(image, name, scratch) as payload:
        assert payload.next() == protocol.Ready()
        for token in ("0a1b2c", "with a space", "%s\\n$(exit)`exit`"):
            payload.channel.send(f"ping {token}")
            assert payload.next() == protocol.Pong(token)
        payload.channel.send("quit")
        assert payload.rest() == []
        assert payload.status() == 0


@pytest.mark.parametrize("name", NAMES)
def test_it_ends_when_the_host_goes_away(image: WorkloadImage, scratch: Path, name: str) -> None:
    with Payload(
        image,
        name,
        scratch,
    ) as payload:
        assert payload.next() == protocol.Ready()
        os.close(payload.channel._write_fd)
        payload.channel._write_fd = -1
        assert payload.rest() == []
        assert payload.status() == 0


@pytest.mark.parametrize("name", NAMES)
def test_sigterm_ends_it_well(image: WorkloadImage, scratch: Path, name: str) -> None:
    with Payload(image, name, scratch) as payload:
        assert payload.next() == protocol.Ready()
        payload.process.terminate()
        assert payload.rest() == []
        assert payload.status() == 0


def _driven(workload: Workload) -> set[str]:
    return {metric.name for metric in workload.metrics}


@pytest.mark.parametrize("name", ["cpu", "memory", "disk"])
def test_rounds_give_every_declared_metric_and_no_other(image: WorkloadImage, scratch: Path, name: str) -> None:
    with Payload(image, name, scratch) as payload:
        assert payload.next() == protocol.Ready()
        for number in (0, 7):
            payload.channel.send(f"round {number}")
            assert payload.next() == protocol.RoundBegin(number)
            end = payload.next()
            assert isinstance(end, protocol.RoundEnd), end
            assert end.number == number
            assert end.figures.keys() == _driven(find_workload(name))
            for metric, value in end.figures.items():
                low, high = (1e-6, 10) if metric.endswith("_seconds") else (1, 1e12)
                assert low < value < high, metric
        payload.channel.send("quit")
        assert payload.rest() == []
        assert payload.status() == 0


def test_memory_throughput_is_in_bytes(image: WorkloadImage, scratch: Path) -> None:
    """Read as MiB/s it would be a thousand times what any machine can do, or a thousandth."""
    with Payload(image, "memory", scratch, ISOMARK_CPUS="1") as payload:
        payload.next()
        payload.channel.send("round 0")
        payload.next()
        end = payload.next()
    assert isinstance(end, protocol.RoundEnd)
    assert 1e8 < end.figures["memory_bytes_per_second"] < 1e12


def test_the_page_has_its_stated_size_and_the_port_is_free_afterwards(image: WorkloadImage, scratch: Path) -> None:
    for _ in range(2):
        with Payload(image, "http", scratch, ISOMARK_PORT=str(port := free_port())) as payload:
            assert payload.next() == protocol.Ready()
            answer = _get(port)
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
            assert len(answer.partition(b"\r\n\r\n")[2]) == 1024
            payload.channel.send("quit")
            assert payload.status() == 0
            with pytest.raises(ConnectionRefusedError):
                _get(port)


def _get(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_nginx_runs_one_worker_for_each_cpu_granted(image: WorkloadImage, scratch: Path) -> None:
    with Payload(image, "http", scratch, ISOMARK_CPUS="3") as payload:
        assert payload.next() == protocol.Ready()
        group = payload.process.pid
        deadline = time.monotonic() + SECONDS
        while (workers := _workers(group)) != 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert workers == 3
        payload.channel.send("quit")
        assert payload.status() == 0
        assert _workers(group) == 0


def _workers(session: int) -> int:
    shown = subprocess.run(["ps", "-s", str(session), "-o", "stat=,args="], capture_output=True, text=True, check=False)
    return sum("nginx: worker" in line and not line.startswith("Z") for line in shown.stdout.splitlines())


def test_a_busy_port_is_an_error_that_says_so(image: WorkloadImage, scratch: Path) -> None:
    with socket.create_server(("0.0.0.0", 0)) as server:
        port = str(server.getsockname()[1])
        with Payload(image, "http", scratch, ISOMARK_PORT=port) as payload:
            error = payload.next()
            assert isinstance(error, protocol.PayloadError)
            assert "Address already in use" in error.text
            assert payload.status() == 1


@pytest.mark.parametrize("name", ["disk", "http"])
def test_a_scratch_that_cannot_be_written_is_an_error_that_says_so(
    image: WorkloadImage, scratch: Path, name: str
) -> None:
    with Payload(image, name, scratch, mount_options="ro") as payload:
        error = payload.next()
        assert isinstance(error, protocol.PayloadError)
        assert "Read-only file system" in error.text
        assert payload.rest() == []
        assert payload.status() == 1


def test_a_full_disk_is_an_error_that_says_so(image: WorkloadImage, scratch: Path) -> None:
    with Payload(image, "disk", scratch, mount_options="size=1m") as payload:
        error = payload.next()
        assert isinstance(error, protocol.PayloadError)
        assert "No space left on device" in error.text
        assert payload.status() == 1


def test_a_tool_that_fails_ends_the_round_with_its_last_line(image: WorkloadImage, scratch: Path) -> None:
    with Payload(image, "cpu", scratch, ISOMARK_CPUS="none") as payload:
        assert payload.next() == protocol.Ready()
        payload.channel.send("round 0")
        assert payload.next() == protocol.RoundBegin(0)
        assert isinstance(payload.next(), protocol.PayloadError)
        assert payload.rest() == []
        assert payload.status() == 1


@pytest.mark.parametrize("name", ["boot", "http"])
def test_a_workload_without_rounds_refuses_one(image: WorkloadImage, scratch: Path, name: str) -> None:
    with Payload(image, name, scratch) as payload:
        assert payload.next() == protocol.Ready()
        payload.channel.send("round 0")
        assert payload.next() == protocol.RoundBegin(0)
        assert payload.next() == protocol.PayloadError("this workload has no rounds")
        assert payload.status() == 1


@pytest.mark.parametrize("command", ["nonsense", "pong x", "round", "ROUND 1"])
def test_an_unknown_command_is_an_error(image: WorkloadImage, scratch: Path, command: str) -> None:
    with Payload(image, "boot", scratch) as payload:
        assert payload.next() == protocol.Ready()
        payload.channel.send(command)
        assert payload.next() == protocol.PayloadError(f"no such command: {command}")
        assert payload.status() == 1


@pytest.mark.parametrize("length", ["x", "1e-05", "-1", ".5", "1.", "1.2.3", "0", "0.0", "08"])
def test_a_length_that_is_no_length_is_an_error(image: WorkloadImage, scratch: Path, length: str) -> None:
    with Payload(image, "cpu", scratch, ISOMARK_ROUND_SECONDS=length) as payload:
        assert payload.next() == protocol.Ready()
        payload.channel.send("round 0")
        payload.next()
        assert isinstance(payload.next(), protocol.PayloadError)
        assert payload.status() == 1


LENGTHS = [("1", 1000, 1), ("0.5", 500, 1), ("1.001", 1001, 2), ("2.0", 2000, 2), ("0.25", 250, 1), ("10", 10000, 10),
           ("3.0999", 3099, 4), ("0.08", 80, 1)]  # fmt: skip


@pytest.mark.parametrize(("length", "milliseconds", "seconds"), LENGTHS)
def test_a_length_is_read_in_milliseconds_and_in_whole_seconds(
    image: WorkloadImage, length: str, milliseconds: int, seconds: int
) -> None:
    script = 'PATH=/nowhere; . /isomark/lib.sh; round_length; echo "$milliseconds $seconds"'
    shown = subprocess.run(
        ["chroot", image.tree, "/bin/sh", "-c", script],
        env={"ISOMARK_ROUND_SECONDS": length, "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout == f"{milliseconds} {seconds}\n"


def test_boot_uses_no_program_but_the_shell(image: WorkloadImage, scratch: Path) -> None:
    with Payload(image, "boot", scratch, PATH="/usr/bin:/usr/sbin") as payload:
        assert payload.next() == protocol.Ready()
        payload.channel.send("ping x")
        payload.next()
        children = Path(f"/proc/{payload.process.pid}/task/{payload.process.pid}/children").read_text()
        assert children == ""
        assert Path(f"/proc/{payload.process.pid}/comm").read_text() == "run\n"
        with pytest.raises(ConsoleTimeout):
            next(payload.channel.lines(0.2))
