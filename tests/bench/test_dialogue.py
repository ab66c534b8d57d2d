from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest

from bench.channel import Channel
from bench.dialogue import Dialogue
from bench.errors import ConsoleClosed, ConsoleTimeout, InstanceError
from bench.model import Event, Line, MemoryReading


class Console:
    """An instance that is nothing but its console; the other end is the test's."""

    def __init__(self, fd: int) -> None:
        self.channel = Channel(fd, fd)

    @property
    def events(self) -> Sequence[Event]:
        return self.channel.events

    @property
    def tail(self) -> Sequence[str]:
        return tuple(self.channel.tail)

    def lines(self, timeout_seconds: float) -> Iterator[Line]:
        return self.channel.lines(timeout_seconds)

    def send(self, text: str) -> None:
        self.channel.send(text)

    def memory(self) -> MemoryReading:
        raise NotImplementedError

    def address(self) -> str | None:
        return None

    def stop(self, timeout_seconds: float) -> bool:
        return True

    def kill(self) -> None: ...

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()


@contextmanager
def payload(play: Callable[[socket.socket], None], timeout_seconds: float = 5) -> Iterator[Dialogue]:
    host, guest = socket.socketpair()

    def act() -> None:
        with guest:
            play(guest)

    actor = threading.Thread(target=act)
    actor.start()
    with Console(host.detach()) as instance:
        yield Dialogue(instance, timeout_seconds)
    actor.join()


def says(text: str) -> Callable[[socket.socket], None]:
    return lambda guest: guest.sendall(text.encode())


def test_a_kernel_that_panicked_is_not_waited_for() -> None:
    cause = "Kernel panic - not syncing: Attempted to kill the idle task!"

    def play(guest: socket.socket) -> None:
        guest.sendall(f"[    0.000000] {cause}\n[    0.000000] ---[ end {cause} ]---\n".encode())
        guest.recv(1)  # it stands still, and its console stays open

    with payload(play, 60) as dialogue, pytest.raises(InstanceError, match="kernel panicked") as caught:
        dialogue.ready()
    assert cause in caught.value.tail[0]


def test_noise_before_ready_is_passed_over() -> None:
    with payload(says("[    0.000000] Linux\nhello\nisomark init\nisomark ready\n")) as dialogue:
        assert dialogue.ready() > 0


def test_a_round_gives_its_figures_and_the_hosts_length() -> None:
    def play(guest: socket.socket) -> None:
        assert guest.recv(100) == b"round 4\n"
        guest.sendall(b'isomark round 4 begin\nisomark metric {"a_bytes": 1}\nisomark round 4 end {"b_bytes": 2}\n')

    with payload(play) as dialogue:
        figures, seconds = dialogue.round(4, 1.0)
        assert figures == {"b_bytes": 2.0}
        assert seconds >= 0
        assert dialogue.figures == {"a_bytes": 1.0}


def test_a_pong_answers_its_own_ping() -> None:
    def play(guest: socket.socket) -> None:
        token = guest.recv(100).split()[1].decode()
        guest.sendall(f"isomark pong {token}\n".encode())

    with payload(play) as dialogue:
        assert dialogue.ping() > 0


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("isomark error no space left\n", "gave up: no space left"),
        ("isomark exit 3\n", "ended with status 3 before it said 'ready'"),
        ("isomark round x\n", "broke the protocol"),
        ("isomark pong ab\n", "where 'ready' was due"),
    ],
)
def test_whatever_keeps_a_payload_from_being_ready_is_told(said: str, told: str) -> None:
    with payload(says(said)) as dialogue, pytest.raises(InstanceError, match=told):
        dialogue.ready()


def test_an_end_before_ready_is_told_with_the_tail() -> None:
    with payload(says("sh: not found\n")) as dialogue, pytest.raises(ConsoleClosed) as caught:
        dialogue.ready()
    assert caught.value.tail == ("sh: not found",)


def test_a_payload_that_never_says_ready_times_out_with_the_tail() -> None:
    done = threading.Event()

    def play(guest: socket.socket) -> None:
        guest.sendall(b"thinking\n")
        done.wait(5)

    with payload(play, timeout_seconds=0.1) as dialogue:
        with pytest.raises(ConsoleTimeout) as caught:
            dialogue.ready()
        done.set()
    assert caught.value.tail == ("thinking",)


def test_the_wrong_rounds_end_is_refused() -> None:
    def play(guest: socket.socket) -> None:
        guest.recv(100)
        guest.sendall(b'isomark round 1 begin\nisomark round 2 end {"a_bytes": 1}\n')

    with payload(play) as dialogue, pytest.raises(InstanceError, match="where 'roundend' was due"):
        dialogue.round(1, 0.1)
