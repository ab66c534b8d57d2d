"""The state of a container as others see it, and its end.

runtime-spec 1.2, runtime.md: creating -> created -> running -> stopped, and paused in between.
"""

from __future__ import annotations

import _signal
import os
import select
import time

from bench.errors import HostError, IsomarkError, UsageError
from runtimes.ociruntime import groups, hooks
from runtimes.ociruntime.state import GATE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from runtimes.ociruntime.report import Log
    from runtimes.ociruntime.state import Container

KILL_SECONDS: Final = 10.0


def status(container: Container) -> str:
    """``creating``, ``created``, ``running``, ``paused`` or ``stopped``, as it is now."""
    first = container.process()
    if first is None or not first.is_alive():
        return "creating" if first is None and container.state["phase"] == "creating" else "stopped"
    if container.state["phase"] == "creating":
        return "creating"
    if os.path.exists(container.file(GATE)):
        return "created"
    if container.state["cgroup"] is not None:
        try:
            if groups.find(container.state).frozen():
                return "paused"
        except HostError:  # no group, or gone this moment
            pass
    return "running"


def oci_state(container: Container, said: str) -> dict[str, Any]:
    """The container's state as hooks and the command ``state`` get it."""
    own = container.state
    pid = own["pid"] if said != "stopped" else None
    return {
        "ociVersion": own["ociVersion"],
        "id": own["id"],
        "pid": pid or 0,
        "status": said,
        "bundle": own["bundle"],
        "rootfs": own["rootfs"],
        "created": own["created"],
        "annotations": own["annotations"],
        "owner": owner_name(own["owner"]),
    }


def owner_name(uid: int) -> str:
    """The user's name; empty if it has none."""
    import pwd  # only who asks pays for it

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""


def destroy(container: Container, log: Log) -> None:
    """Kill what is left of a container, remove what it owns, forget it, and run its poststop hooks.

    Idempotent up to the end: whatever is interrupted can be done again.

    Raises:
        HostError: something does not go away.
    """
    after = oci_state(container, "stopped") if container.state else None
    if container.state:
        first = container.process()
        if container.state["cgroup"] is not None:
            groups.remove(container.state)
        if first is not None:
            kill(container)
    container.forget()
    container.unlock()
    if after is not None:
        for hook in container.state["hooks"].get("poststop", []):  # one that fails does not keep the others from it
            try:
                hooks.run_all("poststop", [hook], after)
            except IsomarkError as error:
                log.warning(error.message)


def kill(container: Container) -> None:
    """Kill the first process and wait until it has ended.

    Raises:
        HostError: it does not die.
    """
    first = container.process()
    pidfd = None if first is None else first.open()
    if pidfd is None:
        return
    try:
        _signal.pidfd_send_signal(pidfd, _signal.SIGKILL)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(KILL_SECONDS * 1000):
            raise HostError(
                f"process {container.state['pid']} of {container.id} does not die",
                hint="it waits for a device, or is frozen: /proc/PID/stack and /proc/PID/cgroup say so",
            )
    except ProcessLookupError:
        return
    finally:
        os.close(pidfd)


def send(container: Container, number: int, *, everyone: bool) -> None:
    """Send a signal to the first process, or to all.

    Raises:
        UsageError: the container does not run.
    """
    said = status(container)
    if said == "stopped" and not everyone:
        raise UsageError(f"container not running: {container.id} is stopped")
    if said == "paused" and number == _signal.SIGKILL:
        groups.find(container.state).thaw()  # a process frozen by version 1 would not die
    if everyone and container.state["cgroup"] is not None:
        _send_all(container, number)
        return
    first = container.process()
    pidfd = None if first is None else first.open()
    if pidfd is None:
        raise UsageError(f"container not running: {container.id} is stopped")
    try:
        _signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        raise UsageError(f"container not running: {container.id} is stopped") from None
    finally:
        os.close(pidfd)


def _send_all(container: Container, number: int) -> None:
    """Signal every member once; with SIGKILL until nobody is left, for a member may fork meanwhile."""
    deadline = time.monotonic() + KILL_SECONDS
    told: set[int] = set()
    while True:
        try:
            fresh = set(groups.find(container.state).members()) - (set() if number == _signal.SIGKILL else told)
        except HostError:  # gone, and so is everybody
            return
        for pid in fresh:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        told |= fresh
        if not fresh or number != _signal.SIGKILL:
            return
        if time.monotonic() > deadline:
            raise HostError(f"processes {sorted(fresh)} of {container.id} do not die")
        time.sleep(0.001)
