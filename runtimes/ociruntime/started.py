"""Starting a created container, and running one in the foreground."""

from __future__ import annotations

import os
import select

from bench.errors import HostError, IsomarkError, UsageError
from runtimes import libc
from runtimes.ociruntime import hooks, state
from runtimes.ociruntime.create import Created, Request, create
from runtimes.ociruntime.lifecycle import destroy, kill, oci_state, status
from runtimes.ociruntime.terminal import Relay, Signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtimes.birth import Newborn
    from runtimes.ociruntime.report import Log
    from runtimes.ociruntime.state import Container


def start(root: str, name: str, log: Log) -> None:
    """Let a created container's command run.

    Raises:
        UsageError: it has been started already, or has ended.
    """
    container = state.load(root, name)
    container.lock()
    container.load()
    said = status(container)
    if said != "created":
        raise UsageError(f"cannot start container {name}: it is {said}, not created")
    gate = container.file(state.GATE)
    try:
        fd = os.open(gate, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:  # ENXIO: a start that was killed has let it go, or it has died this moment
        os.unlink(gate)
        raise UsageError(f"cannot start container {name}: its first process does not wait any more") from error
    os.write(fd, b"+")
    os.close(fd)
    os.unlink(gate)
    announce(container, log)


def announce(container: Container, log: Log) -> None:
    """Run the poststart hooks; one that fails ends the container (runtime.md, "Lifecycle", 9).

    Raises:
        InstanceError: one failed.
    """
    own = container.state["hooks"].get("poststart", [])
    if own:
        try:
            hooks.run_all("poststart", own, oci_state(container, "running"))
        except IsomarkError:
            kill(container)
            raise
    log.debug(f"{container.id}: started")


def run(request: Request, log: Log, *, keep: bool) -> int:
    """Create and start; detached: 0, else wait, delete unless ``keep``, and return the command's status.

    Raises:
        IsomarkError: it did not start; nothing is left of it.
    """
    request.hold = False
    signals = None
    if not request.detached:
        libc.prctl(libc.PR_SET_CHILD_SUBREAPER, 1)
        signals = Signals()
    created = create(request, log)
    container = created.container
    try:
        announce(container, log)
    except IsomarkError:
        created.newborn.abandon()
        destroy(container, log)
        raise
    container.unlock()
    if signals is None:
        return 0
    code = attend(created.newborn, created.ready.terminal, signals)
    if not keep:
        _delete_ended(created, log)
    return code


def attend(newborn: Newborn, master: int | None, signals: Signals) -> int:
    """Show a child's terminal and hand on signals until it ends; its status, as a shell has it."""
    if master is not None:
        with Relay(master) as relay:
            relay.copy(newborn.pidfd, signals)
    else:
        poll = select.poll()
        poll.register(newborn.pidfd, select.POLLIN)
        poll.register(signals.wake, select.POLLIN)
        while newborn.pidfd not in [fd for fd, _ in poll.poll()]:
            signals.hand_on(newborn.pidfd)
    code = os.waitstatus_to_exitcode(os.waitpid(newborn.pid, 0)[1])
    newborn.close()
    return 128 - code if code < 0 else code


def _delete_ended(created: Created, log: Log) -> None:
    container = created.container
    try:
        container.lock()
    except UsageError:  # somebody else has deleted it
        return
    try:
        destroy(container, log)
    except HostError as error:
        log.error(error.message)
