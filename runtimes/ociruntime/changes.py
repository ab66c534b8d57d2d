"""Commands that change a container that is there: kill, delete, pause, resume, update."""

from __future__ import annotations

import _signal
import os
import sys

from bench.errors import HostError, UsageError
from runtimes.ociruntime import documents, groups, resources, state
from runtimes.ociruntime.lifecycle import destroy, send, status
from runtimes.ociruntime.lifecycle import kill as end
from runtimes.ociruntime.node import Node

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Final

    from runtimes.ociruntime.report import Log

_REALTIME: Final = (34, 64)
"""SIGRTMIN and SIGRTMAX, as glibc has them (signal(7))."""


def kill(root: str, name: str, text: str, *, everyone: bool) -> None:
    """Send the signal that ``text`` names.

    Raises:
        UsageError: no such container or signal, or it does not run.
    """
    number = signal_number(text)
    send(state.load(root, name), number, everyone=everyone)


def delete(root: str, name: str, log: Log, *, force: bool) -> None:
    """Remove a container that has ended; with ``force`` end it, and remove whatever a killed command has left.

    Raises:
        UsageError: it runs; or without ``force``, there is none.
    """
    state.check_id(name)
    container = state.Container(root, name)
    if not os.path.isdir(container.path):
        if force:
            return
        raise state.missing(name)
    if force:
        if _seize(container, log):
            destroy(container, log)
        return
    container.lock()
    container.load()
    if (said := status(container)) not in ("stopped", "created"):
        raise UsageError(f"cannot delete container {name} that is not stopped: {said}", hint="kill it, or --force")
    destroy(container, log)


def _seize(container: state.Container, log: Log) -> bool:
    """Lock a container and read what is known of it, whatever state it is in; whether it is still there."""
    _end(container)
    try:
        container.lock()
    except UsageError:  # somebody else has deleted it
        return False
    try:
        container.load()
    except UsageError:  # killed before anything was made
        pass
    except HostError as error:
        log.warning(f"{error.message}: only its directory is removed")
    return True


def _end(container: state.Container) -> None:
    """Kill the first process even while another command holds the lock: a create that waits for it gives up."""
    try:
        end(container.load())
    except (UsageError, HostError):  # nothing is written yet, or it is all wrong: there is nobody to kill
        return


def pause(root: str, name: str) -> None:
    """Stop every process of a container where it is.

    Raises:
        UsageError: it does not run.
    """
    container = state.load(root, name)
    said = status(container)
    if said not in ("running", "created"):
        raise UsageError(f"cannot pause container {name}: it is {said}")
    groups.find(container.state).freeze()


def resume(root: str, name: str) -> None:
    """Let them go on.

    Raises:
        UsageError: it is not paused.
    """
    container = state.load(root, name)
    said = status(container)
    if said != "paused":
        raise UsageError(f"cannot resume container {name}: it is {said}, not paused")
    groups.find(container.state).thaw()


def update(root: str, name: str, source: str | None, given: Mapping[str, Any], log: Log) -> None:
    """Change limits: those of the JSON file ``source``, ``-`` for standard input, or those ``given``.

    Raises:
        UsageError: malformed, or the container has ended.
    """
    container = state.load(root, name)
    if status(container) == "stopped":
        raise UsageError(f"container {name} is not running")
    value: Any = given
    if source == "-":
        value = documents.decode(sys.stdin.buffer.read(documents.MAX_BYTES + 1), "standard input")
    elif source is not None:
        value = documents.read(source)
    warnings: list[str] = []
    wanted = resources.parse(Node(value, "resources" if source is None else source), warnings)
    wanted.devices = None  # engines send them along; they do not change
    for warning in warnings:
        log.warning(warning)
    groups.find(container.state).update(wanted)


def signal_number(text: str) -> int:
    """The signal ``text`` names: ``9``, ``KILL``, ``SIGKILL``, ``RTMIN+1``.

    Raises:
        UsageError: none is called so.
    """
    if text.isascii() and text.isdecimal() and 0 <= int(text) < _signal.NSIG:
        return int(text)
    name = text.upper().removeprefix("SIG")
    found = getattr(_signal, f"SIG{name}", None) if name.isalnum() else None
    if isinstance(found, int):
        return int(found)
    least, most = _REALTIME
    for base, start, sign in (("RTMIN", least, 1), ("RTMAX", most, -1)):
        offset = name.removeprefix(base).lstrip("+-")
        if name.startswith(base) and offset.isascii() and offset.isdecimal():
            number = start + sign * int(offset)
            if least <= number <= most:
                return number
    raise UsageError(f"unknown signal {text!a}", hint="kill -l lists them")
