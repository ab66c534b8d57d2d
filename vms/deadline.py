"""Calls of libvirt that wait for a hypervisor, within a time: libvirtd says that it lives while what it asks hangs.

Each runs in a thread that nobody has to wait for, because libvirt's calls heed neither a time-out nor Ctrl-C.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Final, TypeVar

from bench.errors import InstanceError
from vms.connection import told

T = TypeVar("T")

CALL_SECONDS: Final = 120.0
"""Generous: a save writes all of the guest's memory."""
_RETURN_SECONDS: Final = 5.0
"""How late a call may fail whose hypervisor is dead."""


def begin(call: Callable[[], T]) -> Future[T]:
    """Begin ``call`` in a thread that does not keep this process alive; return what will hold its outcome."""
    return _begin(call)[0]


def in_time(what: str, call: Callable[[], T], give_up: Callable[[], None] | None = None, tail: Sequence[str] = ()) -> T:
    """Return what ``call`` does, in time and with libvirt's errors made ours; see ``awaited``.

    Raises:
        InstanceError: libvirt cannot do it, or not within ``CALL_SECONDS``.
    """
    with told(f"libvirt cannot {what}"):
        return awaited(what, call, give_up, tail)


def awaited(what: str, call: Callable[[], T], give_up: Callable[[], None] | None = None, tail: Sequence[str] = ()) -> T:
    """Return what ``call`` does; ``give_up`` is to end what it waits for when it takes too long, or at Ctrl-C.

    Raises:
        libvirt.libvirtError: the call's.
        InstanceError: it takes longer than ``CALL_SECONDS``; ``what`` says for the message what was to be done,
            ``tail`` are the last console lines.
    """
    future, thread = _begin(call)
    if not _has_ended(thread, give_up):
        _give_up(thread, give_up)
        raise InstanceError(
            f"libvirt did not {what} within {CALL_SECONDS:g} s",
            hint="the hypervisor hangs: it was stopped, or waits for its disk (dmesg of its host may say so)",
            tail=tail,
        )
    return future.result()


def _has_ended(thread: threading.Thread, give_up: Callable[[], None] | None) -> bool:
    """Wait for the thread, not the outcome: it holds on to what it called as long as it is there."""
    try:
        thread.join(CALL_SECONDS)
    except BaseException:
        _give_up(thread, give_up)
        raise
    return not thread.is_alive()


def _give_up(thread: threading.Thread, give_up: Callable[[], None] | None) -> None:
    if give_up is not None:
        give_up()
        thread.join(_RETURN_SECONDS)


def _begin(call: Callable[[], T]) -> tuple[Future[T], threading.Thread]:
    future: Future[T] = Future()
    thread = threading.Thread(target=_run, args=(call, future), name="libvirt is asked", daemon=True)
    thread.start()
    return future, thread


def _run(call: Callable[[], T], future: Future[T]) -> None:
    try:
        future.set_result(call())
    except BaseException as error:  # noqa: BLE001 - its caller's, as that of any Future
        future.set_exception(error)
