"""Calls that may never return: their outcome, their time, Ctrl-C, and what they hold on to."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

import pytest

from bench.errors import InstanceError
from vms import deadline
from vms.deadline import awaited, in_time

libvirt = pytest.importorskip("libvirt")


class Handle:
    """Stands for what a call is made on."""

    def fail(self) -> None:
        raise ValueError("no")

    def work(self) -> str:
        return "done"


@contextmanager
def no_collector() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def test_what_a_call_returns_or_raises_is_its_caller_s() -> None:
    assert awaited("work", Handle().work) == "done"
    with pytest.raises(ValueError, match="no"):
        awaited("fail", Handle().fail)


def test_libvirt_s_error_says_what_could_not_be_done() -> None:
    def refuse() -> None:
        raise libvirt.libvirtError("it is busy")

    with pytest.raises(InstanceError, match="libvirt cannot save the guest: it is busy"):
        in_time("save the guest", refuse)


def test_a_call_that_takes_too_long_is_given_up_and_told_with_the_console_s_tail(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deadline, "CALL_SECONDS", 0.1)
    released = threading.Event()
    with pytest.raises(InstanceError, match="libvirt did not save the guest within") as caught:
        awaited("save the guest", released.wait, released.set, ["last line"])
    assert released.is_set()
    assert caught.value.tail == ("last line",)


@pytest.mark.parametrize("can_give_up", [True, False])
def test_ctrl_c_is_heard_and_unwinds_only_when_nothing_goes_on_beside_it(can_give_up: bool) -> None:
    released, ended = threading.Event(), threading.Event()

    def call() -> None:
        released.wait(0.5)
        ended.set()

    def interrupt() -> None:
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    interrupting = threading.Thread(target=interrupt)
    interrupting.start()
    with pytest.raises(KeyboardInterrupt):
        awaited("save the guest", call, released.set if can_give_up else None)
    assert ended.is_set()
    assert released.is_set() == can_give_up
    interrupting.join()


@pytest.mark.parametrize("fails", [True, False])
def test_nothing_is_held_when_the_outcome_is_known(fails: bool) -> None:
    """A handle that waits for the garbage collector holds its connection open."""
    handle = Handle()
    seen = weakref.ref(handle)
    with no_collector():
        with suppress(ValueError):
            awaited("work", partial(handle.fail if fails else handle.work))
        del handle
        assert seen() is None
