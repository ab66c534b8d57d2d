"""``isomark container stop``, ``kill``, ``restart``, ``pause``, ``unpause``, ``wait``, ``rm`` and ``prune``."""

from __future__ import annotations

import os
import sys

from bench.errors import HostError, InstanceError, IsomarkError, UsageError
from runtimes.engine import life, text, wire
from runtimes.engine.command import Command
from runtimes.engine.config import to_seconds
from runtimes.engine.container import LIVE, SHORT, NoSuchContainer
from runtimes.engine.containers import every, find
from runtimes.engine.files import Damaged
from runtimes.engine.place import Place
from runtimes.engine.process import Process
from runtimes.engine.removal import erase, erase_damaged, settle, with_own_journal
from runtimes.engine.signals import parse_signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket as Socket  # noqa: N812 - a class
    from collections.abc import Callable, Mapping

    from runtimes.engine.container import Container
    from runtimes.engine.options import Options, Table

STOP: Table = (
    ("signal", "s", "SIGNAL", "What to send first; the container's own stop signal by default"),
    ("time", "t", "SECONDS", "How long it may take before SIGKILL; -1: for ever"),
    ("timeout", "", "SECONDS", "The same"),
)
KILL: Table = (("signal", "s", "SIGNAL", "What to send; SIGKILL by default"),)
REMOVE: Table = (
    ("force", "f", "", "Kill it first if it runs"),
    ("volumes", "v", "", "Remove its anonymous volumes too"),
)
PRUNE: Table = (("force", "f", "", "Do not ask"),)


def _each(
    options: Options,
    work: Callable[[Container], str | None],
    found: Mapping[str, Container] | None = None,
    *,
    lenient: bool = False,
) -> int:
    """Do ``work`` on each container named and print its name, or what work returns; go on after a failure.

    ``found``: containers by name that were looked up already, and may be gone by now. ``lenient``: that there is none
    of a name is told, and no failure.
    """
    if not options.rest:
        raise UsageError("the container's name is missing", hint="isomark container ps lists them")
    place = Place()
    status = 0
    for name in options.rest:
        try:
            told = work(found[name] if found is not None else find(place, name))
        except IsomarkError as error:
            _complain(error)
            status = status if lenient and isinstance(error, NoSuchContainer) else 1
        else:
            sys.stdout.write(f"{name if told is None else told}\n")
            sys.stdout.flush()
    return status


def _complain(error: IsomarkError) -> None:
    sys.stderr.write(f"isomark: {error.message}\n" + (f"  hint: {error.hint}\n" if error.hint else ""))


def settled(container: Container) -> bool:
    """Make the container's state true; false if it is gone now."""
    if container.is_monitored():
        return True
    lock = container.lock()
    try:
        return settle(container, lock) is not None
    finally:
        os.close(lock)


def _not_running(container: Container) -> InstanceError:
    return InstanceError(f"container {container.name} does not run", hint=f"isomark container start {container.name}")


def stop(options: Options) -> int:
    """End containers, in good order if they can."""
    signal = options.text("signal")
    number = parse_signal(signal) if signal is not None else None
    timeout = to_seconds(options.text("time") or options.text("timeout"), "time")

    def work(container: Container) -> None:
        if wire.ask(container, {"do": "stop", "signal": number, "timeout": timeout}) is None:
            settled(container)

    return _each(options, work)


def restart(options: Options) -> int:
    """Stop containers and start them again."""
    timeout = to_seconds(options.text("time") or options.text("timeout"), "time")
    signal = options.text("signal")
    number = parse_signal(signal) if signal is not None else None

    def work(container: Container) -> None:
        wire.ask(container, {"do": "stop", "signal": number, "timeout": timeout})
        life.start(container, attached=False)

    return _each(options, work)


def kill(options: Options) -> int:
    """Send containers a signal."""
    number = parse_signal(options.text("signal") or "KILL")

    def work(container: Container) -> None:
        settled(container)
        if wire.ask(container, {"do": "kill", "signal": number}) is None:
            raise _not_running(container)

    return _each(options, work)


def pause(options: Options) -> int:
    """Stop every process of containers where it is."""
    return _each(options, lambda container: _change(container, "pause"))


def unpause(options: Options) -> int:
    """Let the processes of paused containers go on."""
    return _each(options, lambda container: _change(container, "unpause"))


def _change(container: Container, what: str) -> None:
    if wire.ask(container, {"do": what}) is None:
        settled(container)
        raise _not_running(container)


def wait(options: Options) -> int:
    """Wait until containers end, and print their exit status."""
    place = Place()
    waiting: dict[str, Socket | None] = {}
    found: dict[str, Container] = {}
    for name in options.rest:
        found[name] = container = find(place, name)
        connection = waiting[container.id] = wire.connect(container)
        if connection is not None:
            try:
                wire.send(connection, wire.REQUEST, {"do": "wait"})
            except BrokenPipeError:  # it has just ended, and its state says how
                continue
    return _each(options, lambda container: _await_end(container, waiting.pop(container.id, None)), found)


def _await_end(container: Container, connection: Socket | None) -> str:
    if connection is not None:
        kind, body = wire.receive(connection)
        if kind == wire.ENDED:
            return str(text.loads(body.decode())["exit_code"])
    settled(container)
    return str(container.state()["exit_code"] or 0)


def remove(options: Options) -> int:
    """Remove containers with all they wrote."""
    force, volumes = options.flag("force"), options.flag("volumes")
    if not options.rest:
        raise UsageError("the container's name is missing", hint="isomark container ps -a lists them")
    return _each(options, lambda container: remove_one(container, force=force, volumes=volumes), lenient=force)


def remove_one(container: Container, *, force: bool, volumes: bool) -> None:
    """Remove one container.

    Raises:
        InstanceError: it runs, and ``force`` is not given.
    """
    if force:
        _end(container)
    try:
        lock = container.lock()
    except InstanceError:
        if force:  # it had --rm
            return
        raise
    try:
        _remove_locked(container, lock, volumes=volumes)
    except Damaged:
        if not force:
            raise
        erase_damaged(container)
    finally:
        os.close(lock)


def _remove_locked(container: Container, lock: int, *, volumes: bool) -> None:
    state = settle(container, lock)
    if state is None:
        return
    if container.is_monitored():
        raise InstanceError(
            f"container {container.name} is {state['status'] if state['status'] in LIVE else 'still ending'}",
            hint=f"isomark container stop {container.name}, or rm --force",
        )
    with_own_journal(container, lambda journal: erase(container, journal, volumes=volumes))


def _end(container: Container) -> None:
    """Kill a container; a monitor that cannot be spoken to is killed, and the kernel kills the container with it."""
    try:
        wire.ask(container, {"do": "stop", "signal": 9, "timeout": 0})
    except wire.Unreachable:
        monitor = Process.read(container.state()["monitor"])
        if monitor is None or not monitor.kill():
            raise


def prune(options: Options) -> int:
    """Remove every container that has ended."""
    if not options.flag("force") and not _confirmed():
        return 1
    removed = status = 0
    for container in every(Place()):
        try:
            if not settled(container) or container.state()["status"] not in ("exited", "created"):
                continue
            remove_one(container, force=False, volumes=False)
        except InstanceError:  # somebody else was faster, one way or the other
            continue
        except HostError as error:
            _complain(error)
            status = 1
            continue
        sys.stdout.write(f"{container.id[:SHORT]}\n")
        removed += 1
    sys.stderr.write(f"isomark: removed {removed} containers\n")
    return status


def _confirmed() -> bool:
    if not os.isatty(0):
        raise UsageError("prune asks first, and our input is no terminal", hint="isomark container prune --force")
    sys.stderr.write("Remove all containers that have ended? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


_NAMES = "[OPTIONS] CONTAINER…"
COMMANDS = {
    "stop": Command(stop, STOP, _NAMES, "End containers; they stay until they are removed."),
    "restart": Command(restart, STOP, _NAMES, "Stop containers and start them again."),
    "kill": Command(kill, KILL, _NAMES, "Send containers a signal."),
    "pause": Command(pause, (), "CONTAINER…", "Freeze containers where they are."),
    "unpause": Command(unpause, (), "CONTAINER…", "Let frozen containers go on."),
    "wait": Command(wait, (), "CONTAINER…", "Wait for containers to end and print their exit status."),
    "rm": Command(remove, REMOVE, _NAMES, "Remove containers with all they wrote."),
    "prune": Command(prune, PRUNE, "[OPTIONS]", "Remove all containers that have ended."),
}
