"""Looking at a console that a trial reads: nothing of it disturbs the trial, whoever looks or leaves."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.channel import MAX_LINE_BYTES, Channel
from bench.errors import InstanceError
from vms.connection import SYSTEM_URI
from vms.events import LOOP
from vms.onlookers import Onlookers, looking

pytest.importorskip("libvirt")
HANG_SECONDS = 30.0


@pytest.fixture
def console() -> Iterator[tuple[Channel, socket.socket]]:
    LOOP.hold()
    ours, guest = socket.socketpair()
    fd = ours.detach()
    channel = Channel(fd, fd)
    yield channel, guest
    channel.close()
    guest.close()
    LOOP.release()


def description(folder: Path) -> str:
    source = f"<source mode='connect' path='{folder}/console'/>"
    return f"<domain><devices><serial type='unix'>{source}</serial></devices></domain>"


def say(console: tuple[Channel, socket.socket], *texts: str) -> None:
    """Have the guest print ``texts`` and the trial read them."""
    channel, guest = console
    guest.sendall("".join(f"{text}\n" for text in texts).encode())
    lines = channel.lines(HANG_SECONDS)
    assert [next(lines).text for _ in texts] == list(texts)


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + HANG_SECONDS
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_who_looks_sees_the_last_lines_and_then_each_until_the_end(
    console: tuple[Channel, socket.socket], tmp_path: Path
) -> None:
    with looking("<domain/>", SYSTEM_URI) as lines:
        assert lines is None
    with Onlookers(tmp_path / "console", console[0]):
        say(console, "before", "")
        with looking(description(tmp_path), SYSTEM_URI) as lines:
            assert lines is not None
            assert [next(lines), next(lines)] == [b"before\n", b"\n"]
            say(console, "during")
            assert next(lines) == b"during\n"
            with looking(description(tmp_path), SYSTEM_URI) as others:
                assert others is not None
                assert [next(others) for _ in range(3)] == [b"before\n", b"\n", b"during\n"]
    assert list(tmp_path.iterdir()) == []


def test_the_end_of_the_trial_is_the_end_for_who_looks(console: tuple[Channel, socket.socket], tmp_path: Path) -> None:
    door = Onlookers(tmp_path / "console", console[0])
    with door:
        say(console, "only")
        entered = looking(description(tmp_path), SYSTEM_URI)
        lines = entered.__enter__()
        assert lines is not None
        assert next(lines) == b"only\n"
    assert list(lines) == []
    entered.__exit__(None, None, None)
    say(console, "nobody is told")


def test_who_does_not_read_neither_delays_the_trial_nor_costs_memory(
    console: tuple[Channel, socket.socket], tmp_path: Path
) -> None:
    with Onlookers(tmp_path / "console", console[0]), looking(description(tmp_path), SYSTEM_URI) as lines:
        assert lines is not None
        say(console, "first")
        assert next(lines) == b"first\n"
        for _ in range(2000):  # eight megabytes
            say(console, "x" * MAX_LINE_BYTES)
        assert next(lines) == b"x" * MAX_LINE_BYTES + b"\n"
        say(console, "last")
        seen = list(iter(lambda: next(lines), b"last\n"))
        assert len(seen) < 1000, "what was not taken in time is not seen"


def test_who_leaves_is_forgotten(console: tuple[Channel, socket.socket], tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with Onlookers(tmp_path / "console", console[0]):
        with looking(description(tmp_path), SYSTEM_URI) as lines:
            assert lines is not None
            say(console, "one")
            assert next(lines) == b"one\n"
        say(console, "two", "three")
        until(lambda: len(os.listdir("/proc/self/fd")) == before + 1)  # the door's
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_console_whose_trial_has_ended_is_told_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(InstanceError) as caught, looking(description(tmp_path), SYSTEM_URI):
        pass
    assert "root" in caught.value.hint


def test_a_console_of_another_host_is_looked_at_there(console: tuple[Channel, socket.socket], tmp_path: Path) -> None:
    address = "qemu+tcp://me:secret@elsewhere/system"
    with Onlookers(tmp_path / "console", console[0]):  # the same path here is another guest's
        with pytest.raises(InstanceError, match="elsewhere") as caught, looking(description(tmp_path), address):
            pass
        assert "on that host" in caught.value.hint
        assert "secret" not in caught.value.message
        with looking(description(tmp_path), SYSTEM_URI) as lines:
            assert lines is not None


@pytest.mark.parametrize("path", ["/", ""])
def test_a_console_that_is_no_path_of_a_socket_is_told(path: str, tmp_path: Path) -> None:
    xml = description(tmp_path).replace(f"{tmp_path}/console", path)
    with pytest.raises(InstanceError, match="cannot be looked at"), looking(xml, SYSTEM_URI):
        pass
