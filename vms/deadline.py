"""Calls of libvirt that wait for QEMU's monitor, within a time: libvirtd says that it lives while QEMU hangs.

Each runs in a thread that nobody has to wait for, because libvirt's calls heed neither a time-out nor Ctrl-C.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from typing import Final, TypeVar

from bench.errors import InstanceError

T = TypeVar("T")

CALL_SECONDS: Final = 120.0
"""Generous: a save writes all of the guest's memory."""
_RETURN_SECONDS: Final = 5.0
"""How late a call may fail whose hypervisor is dead."""


def begin(call: Callable[[], T]) -> Future[T]:
    """Begin ``call`` in a thread that does not keep this process alive; return what will hold its outcome."""
    future: Future[T] = Future()
    threading.Thread(target=_run, args=(call, future), name="libvirt is asked", daemon=True).start()
    return future


def in_time(what: str, call: Callable[[], T], give_up: Callable[[], None], tail: Sequence[str]) -> T:
    """Return what ``call`` does; ``give_up`` is to end what it waits for when it takes too long, or at Ctrl-C.

    Raises:
        InstanceError: it takes longer than ``CALL_SECONDS``; ``what`` says for the message what was to be done,
            ``tail`` are the last console lines.
    """
    future = begin(call)
    if not _is_done(future, give_up):
        _give_up(future, give_up)
        raise InstanceError(
            f"libvirt did not {what} within {CALL_SECONDS:g} s",
            hint="the hypervisor hangs: it was stopped, or waits for its disk (dmesg of its host may say so)",
            tail=tail,
        )
    return future.result()


def _is_done(future: Future[T], give_up: Callable[[], None]) -> bool:
    try:
        return bool(wait([future], CALL_SECONDS).done)
    except BaseException:
        _give_up(future, give_up)
        raise


def _give_up(future: Future[T], give_up: Callable[[], None]) -> None:
    give_up()
    wait([future], _RETURN_SECONDS)


def _run(call: Callable[[], T], future: Future[T]) -> None:
    try:
        future.set_result(call())
    except BaseException as error:  # noqa: BLE001 - its caller's, as that of any Future
        future.set_exception(error)
