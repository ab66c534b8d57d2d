"""Calls of libvirt that wait for a hypervisor, within a time: libvirtd says that it lives while what it asks hangs.

Each runs in a thread that nobody has to wait for, because libvirt's calls heed neither a time-out nor Ctrl-C.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from typing import Final, TypeVar

from bench.errors import InstanceError
from vms.connection import told

T = TypeVar("T")

CALL_SECONDS: Final = 120.0
"""Generous: a save writes all of the guest's memory."""
_RETURN_SECONDS: Final = 5.0
"""How late a call may fail whose hypervisor is dead."""
_INTERRUPTED_SECONDS: Final = 25.0
"""How long an interrupt waits for a call that nothing can end: longer than a libvirtd that hangs goes unnoticed."""


def begin(call: Callable[[], T]) -> Future[T]:
    """Begin ``call`` in a thread that does not keep this process alive; return what will hold its outcome."""
    future: Future[T] = Future()
    threading.Thread(target=_run, args=([call], future), name="libvirt is asked", daemon=True).start()
    return future


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
    future = begin(call)
    try:
        if not _is_done(future, give_up):
            raise InstanceError(
                f"libvirt did not {what} within {CALL_SECONDS:g} s",
                hint="the hypervisor hangs: it was stopped, or waits for its disk (dmesg of its host may say so)",
                tail=tail,
            )
        return future.result()
    finally:
        del future, call  # an error knows this frame, which would know it, and what holds a connection open


def _is_done(future: Future[T], give_up: Callable[[], None] | None) -> bool:
    try:
        if wait([future], CALL_SECONDS).done:
            return True
    except BaseException:
        _give_up(future, give_up, _INTERRUPTED_SECONDS)  # who unwinds is not to ask beside a call that goes on
        raise
    _give_up(future, give_up, 0.0)
    return False


def _give_up(future: Future[T], give_up: Callable[[], None] | None, else_seconds: float) -> None:
    if give_up is not None:
        give_up()
    wait([future], else_seconds if give_up is None else _RETURN_SECONDS)


def _run(box: list[Callable[[], T]], future: Future[T]) -> None:
    """Do what is in ``box``, and hold nothing of it when the outcome is known."""
    call = box.pop()
    try:
        result = call()
    except BaseException as error:  # noqa: BLE001 - its caller's, as that of any Future
        del call
        future.set_exception(error)
    else:
        del call
        future.set_result(result)
    finally:
        del future
