"""A terminal on a guest's console."""

from __future__ import annotations

import os
import select
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

import typer

from bench.errors import InstanceError

if TYPE_CHECKING:
    from vms.connection import Connection
    from vms.ours import OwnDomain

LEAVE: Final = b"\x1d"
"""Ctrl-]."""
_CHUNK: Final = 65536


def attach(connection: Connection, own: OwnDomain, *, force: bool) -> None:
    """Carry the console of ``own`` to standard output and standard input to it, until either ends or Ctrl-] is typed.

    What a trial of this host holds can be looked at only.

    Raises:
        InstanceError: it can neither be had nor looked at, or somebody else reads it.
    """
    import libvirt

    from vms.connection import told
    from vms.onlookers import looking
    from vms.stream import ConsoleStream

    with told("libvirt does not show the domain"):
        description = own.handle.XMLDesc(0)
    with looking(description, own.address) as lines:
        if lines is not None:
            typer.echo(f"console of {own.name}, which its trial reads: to look at only; Ctrl-C leaves", err=True)
            _show(lines)
            return
    try:
        stream = ConsoleStream(connection, own.handle, force=force)
    except libvirt.libvirtError as error:
        raise InstanceError(f"no console of {own.name}: {error}", hint=_hint(str(error))) from error
    fd = stream.detach()
    typer.echo(f"console of {own.name}; Ctrl-] leaves", err=True)
    try:
        with _raw(sys.stdin.fileno()):
            _carry(fd, sys.stdin.fileno(), sys.stdout.fileno())
    finally:
        os.close(fd)
        stream.close()


def _show(lines: Iterator[bytes]) -> None:
    with suppress(KeyboardInterrupt):
        for line in lines:
            os.write(sys.stdout.fileno(), line)


def _hint(text: str) -> str:
    if "Active console session" in text:
        return "the run that started it reads it; --force takes it away, and the trial then fails"
    return "isomark vm ls shows whether it still runs"


def _carry(console: int, source: int, sink: int) -> None:
    readable = [console, source]
    while console in readable:
        ready, _, _ = select.select(readable, [], [])
        if console in ready:
            data = os.read(console, _CHUNK)
            if not data:
                return
            os.write(sink, data)
        if source in ready:
            typed = os.read(source, _CHUNK)
            before, left, _ = typed.partition(LEAVE)
            os.write(console, before)
            if left:
                return
            if not typed:  # standard input ended; what the guest says is still wanted
                readable.remove(source)


@contextmanager
def _raw(fd: int) -> Iterator[None]:
    """Hand on every key as it is typed; nothing to do where no terminal is."""
    if not os.isatty(fd):
        yield
        return
    before = termios.tcgetattr(fd)
    tty.setraw(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
