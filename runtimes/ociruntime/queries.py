"""What containers there are, and what is in them."""

from __future__ import annotations

import os

from bench.errors import HostError, UsageError
from runtimes.ociruntime import documents, groups, state
from runtimes.ociruntime.lifecycle import oci_state, status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Final

    from runtimes.ociruntime.state import Container

_COLUMNS: Final = ("ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER")


def show(root: str, name: str) -> str:
    """The state of one container as JSON (runtime.md, "Query State")."""
    container = state.load(root, name)
    return documents.pretty(oci_state(container, status(container)))


def listing(root: str, form: str, *, quiet: bool) -> str:
    """All containers: a table, JSON, or their ids alone.

    Raises:
        UsageError: an unknown format.
    """
    containers = state.every(root)
    if quiet:
        return "\n".join(container.id for container in containers)
    rows = [oci_state(container, status(container)) for container in containers]
    if form == "json":
        return documents.dumps(rows)
    if form != "table":
        raise UsageError(f"--format is table or json, not {form!r}")
    cells = [[str(row[name.lower()]) for name in _COLUMNS] for row in rows]
    return table([list(_COLUMNS), *cells])


def processes(root: str, name: str, form: str, options: Sequence[str]) -> str:
    """The processes of a container: their ids as JSON, or the lines of ps(1) about them.

    Raises:
        UsageError: an unknown format.
        HostError: there is no ps, or nothing to find members by.
    """
    container = state.load(root, name)
    pids = members(container)
    if form == "json":
        return documents.dumps(pids)
    if form != "table":
        raise UsageError(f"--format is table or json, not {form!r}")
    lines = _ps(options or ("-ef",))
    column = next((at for at, word in enumerate(lines[0].split()) if word == "PID"), None) if lines else None
    if column is None:
        raise HostError("ps does not show process ids", hint="leave its options out, or have them print PID")
    wanted = {str(pid) for pid in pids}
    rows = [line for line in lines[1:] if line.split()[column : column + 1] and line.split()[column] in wanted]
    return "\n".join([lines[0], *rows])


def members(container: Container) -> list[int]:
    """The ids of a container's processes, as the host numbers them."""
    if container.state["cgroup"] is not None:
        try:
            return sorted(groups.find(container.state).members())
        except HostError:  # the container has ended and its group is gone
            return []
    first = container.process()
    return [first.pid] if first is not None and first.is_alive() else []


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def figures(root: str, name: str) -> str:
    """What a container uses, as ``runc events --stats`` prints it; what nobody counts is left out."""
    container = state.load(root, name)
    if status(container) == "stopped":
        raise UsageError(f"container {name} is not running")
    found = groups.find(container.state).stats()
    memory: dict[str, Any] = {
        "usage": {"usage": found.memory_bytes, "max": found.memory_peak_bytes, "limit": found.memory_limit_bytes}
    }
    data = {
        "cpu": {
            "usage": {
                "total": _nanoseconds(found.cpu_seconds), "user": _nanoseconds(found.cpu_user_seconds),
                "kernel": _nanoseconds(found.cpu_system_seconds),
            },
            "throttling": {
                "periods": found.periods, "throttledPeriods": found.throttled_periods,
                "throttledTime": _nanoseconds(found.throttled_seconds),
            },
        },
        "memory": memory,
        "pids": {"current": found.pids, "limit": found.pids_limit},
    }  # fmt: skip
    return documents.dumps({"type": "stats", "id": name, "data": _present(data)})


def _nanoseconds(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1e9)


def _present(value: dict[str, Any]) -> dict[str, Any]:
    """Without what is missing."""
    rows = {name: _present(each) if isinstance(each, dict) else each for name, each in value.items()}
    return {name: each for name, each in rows.items() if each is not None and each != {}}


def _ps(options: Sequence[str]) -> list[str]:
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        try:
            pid = os.posix_spawnp("ps", ["ps", *options], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, writing, 1)])
        finally:
            os.close(writing)
        parts = []
        while data := os.read(reading, 65536):
            parts.append(data)
        _, ended = os.waitpid(pid, 0)
    except OSError as error:
        raise HostError(f"cannot run ps: {error.strerror}", hint="apt-get install procps; or --format json") from error
    finally:
        os.close(reading)
    if ended:
        raise UsageError(f"ps refuses the options {' '.join(options)}")
    return b"".join(parts).decode(errors="replace").splitlines()
