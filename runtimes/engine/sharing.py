"""Namespaces that a container shares with others (``--network container:NAME`` and its like)."""

from __future__ import annotations

from bench.errors import InstanceError
from runtimes import libc
from runtimes.engine.containers import find

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runtimes.engine.container import Container

_KINDS = (
    ("network", libc.CLONE_NEWNET, "net"),
    ("pid", libc.CLONE_NEWPID, "pid"),
    ("ipc", libc.CLONE_NEWIPC, "ipc"),
)


class Shared:
    """One namespace of another container's.

    ``flag`` and ``file`` (below /proc/PID/ns) are its kind, ``container`` and ``pid`` whose it is; ``monitor`` is the
    process that watches over that container.
    """

    __slots__ = ("container", "file", "flag", "monitor", "pid")

    def __init__(self, flag: int, file: str, container: Container, pid: int, monitor: int) -> None:
        self.flag = flag
        self.file = file
        self.container = container
        self.pid = pid
        self.monitor = monitor

    def entrance(self, flag: int | None = None, file: str | None = None) -> list[Any]:
        """It as ``Spec`` has what is to be joined, or another one of the same process."""
        return [flag or self.flag, f"/proc/{self.pid}/ns/{file or self.file}"]


def shared_by(container: Container) -> list[Shared]:
    """All that ``container`` shares.

    Raises:
        InstanceError: a container that it shares one with does not run.
    """
    config = container.config
    wanted = {"network": config["network"], **config["namespaces"]}
    return [
        _find(container, kind, flag, file, wanted[kind].partition(":")[2])
        for kind, flag, file in _KINDS
        if wanted[kind].startswith("container:")
    ]


def _find(container: Container, kind: str, flag: int, file: str, name: str) -> Shared:
    other = find(container.place, name)
    state = other.state()
    process = other.process(state)
    if process is None or state["monitor"] is None:
        raise InstanceError(
            f"container {other.name}, whose {kind} it shares, does not run",
            hint=f"isomark container start {other.name}",
        )
    return Shared(flag, file, other, process.pid, int(state["monitor"][0]))
