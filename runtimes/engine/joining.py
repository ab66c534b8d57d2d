"""Starting another process in a container that runs: its namespaces and its cgroup."""

from __future__ import annotations

import os

from bench.errors import IsomarkError
from runtimes import birth, libc
from runtimes.container.cgroup import existing_or_none
from runtimes.engine.failure import StartFailed, failure_code

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from runtimes.container.cgroup import Group, NoGroup
    from runtimes.engine.container import Container
    from runtimes.spec import Spec

_KINDS = (
    ("user", libc.CLONE_NEWUSER),
    ("pid", libc.CLONE_NEWPID),
    ("net", libc.CLONE_NEWNET),
    ("ipc", libc.CLONE_NEWIPC),
    ("uts", libc.CLONE_NEWUTS),
    ("cgroup", libc.CLONE_NEWCGROUP),
    ("time", libc.CLONE_NEWTIME),
    ("mnt", libc.CLONE_NEWNS),
)


def spaces_of(pid: int) -> list[list[Any]]:
    """The namespaces of process ``pid`` to join; one that is our own as well is left out."""
    found: list[list[Any]] = []
    for kind, flag in _KINDS:
        path = f"/proc/{pid}/ns/{kind}"
        if not os.path.exists(path):  # a kernel without time namespaces
            continue
        if os.stat(path).st_ino != os.stat(f"/proc/self/ns/{kind}").st_ino:
            found.append([flag, path])
    return found


def group_of(container: Container, state: Mapping[str, Any]) -> Group | NoGroup:
    """The cgroup of a container that runs, or what stands for it.

    Raises:
        HostError: it is gone.
    """
    return existing_or_none(container.id, (state.get("rootless") or {}).get("delegated"))


def bear_within(container: Container, spec: Spec, stdio: tuple[int, int, int]) -> tuple[birth.Newborn, int | None]:
    """Start ``spec`` in the container's cgroup: the process, and its terminal's master if it has one.

    Raises:
        StartFailed: it does not start; its code is 126 or 127 if it is the command's fault.
    """
    state = container.state()
    group = group_of(container, state)
    birthplace, entrances = group.entrances(born=not state.get("remap"))  # who is of its users cannot be born there
    doors = [*entrances, *([] if birthplace is None else [birthplace])]
    spec["born_in_cgroup"] = birthplace is not None
    newborn = None
    try:
        newborn = birth.bear(spec, stdio, birthplace=birthplace)
        newborn.provide(entrances)
        return newborn, newborn.await_ready().terminal
    except IsomarkError as error:
        raise StartFailed(error.message, error.hint, failure_code(newborn, error)) from error
    finally:
        for fd in doors:
            os.close(fd)
