"""Removing what dead runs left, from their journals.

Removers arrive through the entry-point group ``isomark.removers``: kind -> ``remove(what)``, which
must be idempotent and raise ``HostError`` when the thing is still there afterwards. The kinds that
belong to no driver are here.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Final

from bench.errors import HostError, IsomarkError
from bench.journal import OWNER_VARIABLE, Entry, read_journals
from bench.network import NETNS_DIRECTORY

ENTRY_POINTS: Final = "isomark.removers"
Remover = Callable[[Mapping[str, str]], None]

MNT_DETACH: Final = 2
UMOUNT_NOFOLLOW: Final = 8
KILL_SECONDS: Final = 5.0


@dataclass(frozen=True)
class Removal:
    """One thing that was, or could not be, removed; ``fault`` is empty on success."""

    owner: str
    entry: Entry
    fault: str = ""


def clean(journals: Path, gone: Collection[str] = ()) -> list[Removal]:
    """Remove everything that journals of dead runs name, newest first; live runs are left alone.

    A journal goes only when all it named is gone, so what fails is tried again next time. ``gone`` are libvirt URIs
    of hosts that are no more, and with them all that was there.
    """
    removers: dict[str, Remover] = {}
    done: list[Removal] = []
    for left in read_journals(journals):
        if left.owner.is_alive():
            continue
        removals = [
            Removal(left.owner.id, entry) if entry.what.get("uri") in gone else _remove(left.owner.id, entry, removers)
            for entry in left.entries
        ]
        if not any(removal.fault for removal in removals):
            left.path.unlink(missing_ok=True)
        done += removals
    return done


def _remove(owner: str, entry: Entry, removers: dict[str, Remover]) -> Removal:
    try:
        if entry.kind not in removers:
            found = entry_points(group=ENTRY_POINTS, name=entry.kind)
            if not found:
                return Removal(owner, entry, f"nothing here knows how to remove a {entry.kind}")
            removers[entry.kind] = next(iter(found)).load()
        removers[entry.kind](entry.what)
    except IsomarkError as error:
        return Removal(owner, entry, f"{error.message} ({error.hint})" if error.hint else error.message)
    except (OSError, ImportError, KeyError, ValueError) as error:  # the last two: it was not written so
        return Removal(owner, entry, str(error) or type(error).__name__)
    return Removal(owner, entry)


def remove_process(what: Mapping[str, str]) -> None:
    """Kill every process that carries ``ISOMARK_OWNER=what["marker"]`` in its environment.

    Raises:
        HostError: one is still there after five seconds.
    """
    needle = f"{OWNER_VARIABLE}={what['marker']}".encode()
    deadline = time.monotonic() + KILL_SECONDS
    while marked := [pid for pid in _pids() if needle in _environment(pid)]:
        if time.monotonic() > deadline:
            raise HostError(f"processes {marked} do not die", hint="thaw their cgroup or reboot")
        for pid in marked:
            _kill(pid, needle)
        time.sleep(0.01)


def remove_mount(what: Mapping[str, str]) -> None:
    """Detach the mount at ``what["path"]`` and all below it."""
    path = what["path"]
    while _is_mounted(path):
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.umount2(path.encode(), MNT_DETACH | UMOUNT_NOFOLLOW) != 0:
            raise HostError(f"cannot unmount {path}: {os.strerror(ctypes.get_errno())}")


def remove_directory(what: Mapping[str, str]) -> None:
    """Remove the directory or file ``what["path"]``; mounts below it are detached first, so nothing else is deleted.

    Raises:
        HostError: something is still mounted there, or it cannot be deleted.
    """
    path = Path(what["path"])
    for mounted in _mounts_below(str(path)):
        remove_mount({"path": mounted})
    if path.is_dir() and not path.is_symlink():
        try:
            shutil.rmtree(path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise HostError(f"cannot remove {path}: {error.strerror}") from error
    else:
        path.unlink(missing_ok=True)


def remove_netns(what: Mapping[str, str]) -> None:
    """Delete the named network namespace with its bridge and veth pairs."""
    path = NETNS_DIRECTORY / what["name"]
    if not path.exists():
        return
    ended = subprocess.run(["ip", "netns", "delete", what["name"]], capture_output=True, text=True, check=False)
    if path.exists():
        raise HostError(f"cannot delete the network namespace {what['name']}: {ended.stderr.strip()}")


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal() and int(name) != os.getpid()]


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # it ended, is a zombie, or belongs to somebody else
        return []


def _kill(pid: int, needle: bytes) -> None:
    """Kill ``pid`` if it is still the marked process: the descriptor pins it while we look again."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if needle in _environment(pid):
            signal.pidfd_send_signal(fd, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        os.close(fd)


def _mounts() -> list[str]:
    """Mount points of this process's namespace (proc(5), mountinfo field 5), in mount order."""
    lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    return [os.fsdecode(line.split(b" ")[4].decode("unicode_escape").encode("latin-1")) for line in lines]


def _is_mounted(path: str) -> bool:
    return path in _mounts()


def _mounts_below(path: str) -> list[str]:
    return [mount for mount in reversed(_mounts()) if mount == path or mount.startswith(f"{path}/")]
