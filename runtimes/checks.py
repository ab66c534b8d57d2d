"""What ``isomark doctor`` tells about processes and containers on this host."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.driver import Finding, Severity
from bench.errors import HostError, InstanceError
from bench.journal import Journal
from bench.state import journal_directory
from runtimes import birth, libc
from runtimes.container.hierarchy import REQUIRED, detect
from runtimes.driver import MOUNT_POINTS
from runtimes.instance import remove_tree
from runtimes.spawner import Spawner
from runtimes.spec import Spec


def findings(state: Path) -> list[Finding]:
    """Cgroups, overlayfs on the state directory, and user namespaces; the two last by trying."""
    return [_cgroups(), _overlay(state), _user_namespaces(state)]


def _cgroups() -> Finding:
    try:
        layout = detect()
        layout.require()
    except HostError as error:
        return Finding("cgroups", "problem", error.message, error.hint)
    where = {name: f"version {held.version}" for name in REQUIRED if (held := layout.holding(name)) is not None}
    if os.geteuid() != 0 and not all(os.access(held.top, os.W_OK) for held in layout.hierarchies):
        return Finding(
            "cgroups", "problem", f"{layout.version}, not writable: containers cannot be limited",
            "run as root", where,
        )  # fmt: skip
    return Finding("cgroups", "ok", f"{layout.version}: cpu, memory and pids can be limited", facts=where)


def _overlay(state: Path) -> Finding:
    if "\toverlay\n" not in Path("/proc/filesystems").read_text() and not Path("/sys/module/overlay").exists():
        return Finding("overlayfs", "problem", "the kernel does not offer it", "modprobe overlay")
    if os.geteuid() != 0:
        return Finding("overlayfs", "problem", "only root may mount it here", "run as root")
    fault = _try(state, _overlay_spec)
    if fault is not None:
        return Finding("overlayfs", "problem", fault.message, fault.hint)
    return Finding("overlayfs", "ok", f"works on {state}")


def _user_namespaces(state: Path) -> Finding:
    fault = _try(state, _user_namespace_spec)
    if fault is None:
        return Finding("user namespaces", "ok", "available")
    severity: Severity = "note" if os.geteuid() == 0 else "problem"
    return Finding("user namespaces", severity, f"{fault.message}: nothing runs without root", fault.hint)


def _try(state: Path, make_spec: Callable[[Path], Spec]) -> InstanceError | HostError | None:
    """Set up an instance of nothing in a directory below ``state``, and return what prevented it."""
    directory = state / f"check-{secrets.token_hex(4)}"
    try:
        with Journal(journal_directory(state)) as journal, journal.owning("directory", path=str(directory)):
            return _try_in(directory, make_spec, journal.owner.id)
    except HostError as error:
        return error


def _try_in(directory: Path, make_spec: Callable[[Path], Spec], owner: str) -> InstanceError | HostError | None:
    spawner = Spawner(owner)
    try:
        for part in (*(f"tree/{point}" for point in MOUNT_POINTS), "upper", "work", "root"):
            (directory / part).mkdir(parents=True)
        child = spawner.spawn(make_spec(directory))
        child.provide()
        try:
            child.await_pid()
            child.await_exec()
        finally:
            child.abandon()
            os.close(child.read_fd)
            os.close(child.write_fd)
    except (InstanceError, HostError) as error:
        return error
    except OSError as error:
        return HostError(f"cannot write {directory}: {error.strerror}", hint="set ISOMARK_STATE")
    finally:
        spawner.close()
        remove_tree(directory)
    return None


def _overlay_spec(directory: Path) -> Spec:
    tree, upper, work, root = (str(directory / part) for part in ("tree", "upper", "work", "root"))
    return _spec(libc.CLONE_NEWNS, ["overlay", [tree], upper, work, root])


def _user_namespace_spec(directory: Path) -> Spec:
    spec = _spec(libc.CLONE_NEWNS | libc.CLONE_NEWUSER, ["bind", str(directory / "tree"), True])
    spec["uid_map"], spec["gid_map"] = [[0, os.geteuid(), 1]], [[0, os.getegid(), 1]]
    return spec


def _spec(namespaces: int, root: list[Any]) -> Spec:
    spec = birth.plain()
    spec["namespaces"], spec["root"] = namespaces, root
    return spec
