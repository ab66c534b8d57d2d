from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import channel as channel_module
from bench.channel import MAX_LINE_BYTES, TAIL_LINES, Channel
from bench.errors import ConsoleFlood, ConsoleTimeout, InstanceError


@pytest.fixture
def pair() -> Iterator[tuple[Channel, socket.socket]]:
    host, instance = socket.socketpair()
    opened = _channel(host)
    yield opened, instance
    opened.close()
    instance.close()


def _channel(host: socket.socket) -> Channel:
    fd = host.detach()
    return Channel(fd, fd)


def test_lines_come_as_they_are_written_and_end_with_the_console(pair: tuple[Channel, socket.socket]) -> None:
    channel, instance = pair
    instance.sendall(b"one\r\ntwo\nthr")
    instance.close()
    assert [line.text for line in channel.lines(5)] == ["one", "two", "thr"]


def test_stamps_do_not_go_backwards(pair: tuple[Channel, socket.socket]) -> None:
    channel, instance = pair
    instance.sendall(b"a\nb\nc\n")
    instance.close()
    stamps = [line.at_seconds for line in channel.lines(5)]
    assert stamps == sorted(stamps)


def test_silence_is_a_time_out_with_the_last_lines(pair: tuple[Channel, socket.socket]) -> None:
    channel, instance = pair
    instance.sendall(b"starting\nstill starting\n")
    with pytest.raises(ConsoleTimeout) as caught:
        list(channel.lines(0.05))
    assert caught.value.tail == ("starting", "still starting")


def test_the_first_of_each_event_stays(pair: tuple[Channel, socket.socket]) -> None:
    channel, instance = pair
    channel.push("spawned", 1.0)
    instance.sendall(b"[    0.000000] Linux version\n[    0.100000] more\nisomark init\nisomark ready\nisomark ready\n")
    instance.close()
    list(channel.lines(5))
    assert [event.name for event in channel.events] == ["spawned", "kernel", "init", "ready"]


def test_a_line_without_end_is_cut_and_memory_stays_bounded(pair: tuple[Channel, socket.socket]) -> None:
    channel, instance = pair

    def flood() -> None:
        for _ in range(200):
            instance.sendall(b"x" * 10_000)
        instance.sendall(b"\nnext\n")
        instance.close()

    writer = threading.Thread(target=flood)
    writer.start()
    texts = [line.text for line in channel.lines(10)]
    writer.join()
    assert texts == ["x" * MAX_LINE_BYTES, "next"]


def test_a_flood_ends_the_console(pair: tuple[Channel, socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_module, "MAX_TOTAL_BYTES", 1000)
    channel, instance = pair
    instance.sendall(b"noise\n" * 300)
    with pytest.raises(ConsoleFlood):
        list(channel.lines(5))
    assert len(channel.tail) <= TAIL_LINES


def test_control_characters_never_reach_the_tail(pair: tuple[Channel, socket.socket]) -> None:
    channel, instance = pair
    instance.sendall(b"\x1b[31mred\x1b[0m \x07bell \x9b2J \xff\xfe\n")
    instance.close()
    (line,) = channel.lines(5)
    assert line.text.isprintable()
    assert line.text.startswith("red bell")


def test_what_hides_or_reorders_text_never_reaches_the_tail(pair: tuple[Channel, socket.socket]) -> None:
    channel, instance = pair
    instance.sendall("a\u202eb\u200bc\u00add\te\ue000 €\n".encode())
    instance.close()
    assert [line.text for line in channel.lines(5)] == ["abcd\te €"]


def test_sending_to_an_instance_that_is_gone_is_an_error(pair: tuple[Channel, socket.socket]) -> None:
    channel, instance = pair
    instance.close()
    with pytest.raises(InstanceError, match="does not read"):
        channel.send("ping 1")


def test_closing_twice_is_harmless(pair: tuple[Channel, socket.socket]) -> None:
    channel, _ = pair
    channel.close()
    channel.close()


@settings(max_examples=50)
@given(st.lists(st.binary(max_size=300), max_size=8))
def test_bytes_of_any_kind_in_any_portions_give_the_lines_they_hold(portions: list[bytes]) -> None:
    host, instance = socket.socketpair()
    channel = _channel(host)
    for portion in portions:
        instance.sendall(portion)
    instance.close()
    texts = [line.text for line in channel.lines(5)]
    channel.close()
    whole = b"".join(portions)
    expected = whole.split(b"\n")
    if expected[-1] == b"":
        expected.pop()
    assert len(texts) == len(expected)
    assert all(text.replace("\t", " ").isprintable() for text in texts)


def test_pipes_serve_as_well_as_a_socket() -> None:
    out_read, out_write = os.pipe()
    in_read, in_write = os.pipe()
    channel = Channel(out_read, in_write)
    channel.send("round 1")
    assert os.read(in_read, 100) == b"round 1\n"
    os.close(out_write)
    assert list(channel.lines(5)) == []
    channel.close()
    os.close(in_read)
