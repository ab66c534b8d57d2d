"""The users and groups of a user namespace, mapped from outside by its parent (user_namespaces(7))."""

from __future__ import annotations

import os

from runtimes.steps import StepFailed, Steps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtimes.spec import Spec

    Map = Sequence[Sequence[int]]


def map_users(pid: int, spec: Spec) -> None:
    """Write the maps of process ``pid``'s new user namespace; as ``write_maps``."""
    write_maps(pid, spec["uid_map"] or [], spec["gid_map"] or [])


def write_maps(pid: int, uid_map: Map, gid_map: Map) -> None:
    """Write ``[inside, outside, count]`` rows.

    Root writes any; another may map itself alone, and for more asks newuidmap and newgidmap.

    Raises:
        StepFailed: they cannot be written.
    """
    steps = Steps(trace=False)
    steps.begin("map its users")
    try:
        if os.geteuid() == 0:
            _write(pid, "uid_map", uid_map)
            _write(pid, "gid_map", gid_map)
            return
        if _is_itself(gid_map, os.getegid()):
            with open(f"/proc/{pid}/setgroups", "wb", buffering=0) as file:
                file.write(b"deny")
            _write(pid, "gid_map", gid_map)
        else:
            _ask("newgidmap", pid, gid_map)
        if _is_itself(uid_map, os.geteuid()):
            _write(pid, "uid_map", uid_map)
        else:
            _ask("newuidmap", pid, uid_map)
    except OSError as error:
        raise steps.failed(error) from error


def _is_itself(rows: Map, own: int) -> bool:
    return len(rows) == 1 and rows[0][1] == own and rows[0][2] == 1


def _write(pid: int, name: str, rows: Map) -> None:
    text = "\n".join(" ".join(map(str, row)) for row in rows)
    with open(f"/proc/{pid}/{name}", "wb", buffering=0) as file:
        file.write(text.encode())


def _ask(program: str, pid: int, rows: Map) -> None:
    """Run the set-uid ``program``, which knows from /etc/subuid or /etc/subgid what this user may map."""
    command = [program, str(pid), *(str(number) for row in rows for number in row)]
    try:
        child = os.posix_spawnp(program, command, os.environ)
    except FileNotFoundError as error:
        raise StepFailed("map its users", f"{program} is not installed", error.errno) from error
    _, status = os.waitpid(child, 0)
    if status != 0:
        raise StepFailed("map its users", f"{' '.join(command)}: exit status {os.waitstatus_to_exitcode(status)}", None)
