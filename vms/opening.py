"""Opening a connection to libvirt within a time: libvirt itself waits for ever for a host that says nothing."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import libvirt

_REFUSED: Final = -1


def open_in_time(address: str, seconds: float) -> libvirt.virConnect:
    """Return a connection to libvirt at ``address``; a login takes its name and password from libvirt's auth.conf.

    Raises:
        libvirt.libvirtError: there is none.
        TimeoutError: there is none within ``seconds``; one that comes later is closed.
    """
    opening: Future[libvirt.virConnect] = Future()
    threading.Thread(target=_open, args=(address, opening), name="libvirt connects", daemon=True).start()
    try:
        return opening.result(seconds)
    except TimeoutError as error:
        opening.add_done_callback(_close)
        raise TimeoutError(f"nothing heard of it within {seconds:g} s") from error


def _open(address: str, opening: Future[libvirt.virConnect]) -> None:
    import libvirt

    # only who can be asked for name and password finds them in auth.conf (virConnectOpenAuth); ours answers nothing
    login = [[libvirt.VIR_CRED_AUTHNAME, libvirt.VIR_CRED_PASSPHRASE], _do_not_answer, None]
    try:
        opening.set_result(libvirt.openAuth(address, login, 0))
    except libvirt.libvirtError as error:
        opening.set_exception(error)


def _do_not_answer(_wanted: object, _: object) -> int:
    return _REFUSED


def _close(opening: Future[libvirt.virConnect]) -> None:
    import libvirt

    with suppress(libvirt.libvirtError):
        opening.result().close()
