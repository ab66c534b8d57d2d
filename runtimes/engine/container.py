"""One container on disk: what was asked for, what is, and the two locks that order who may change it.

    containers/ID/config.json   what was asked for; never changes
                  state.json    what is; replaced as a whole, by the monitor while it lives, else by who holds the lock
                  monitor       locked by the monitor for as long as it lives: the truth about whether it does
                  socket        where the monitor listens
                  log, log.1 …  what it printed
                  upper, work   the overlay's; root: where it is mounted, in the container's own namespace only
                  hosts, hostname, resolv.conf

The directory itself is locked by a command for as long as it works on the container (start, rm, cp …).
"""

from __future__ import annotations

import errno
import fcntl
import os

from bench.errors import HostError, InstanceError
from runtimes.engine import text
from runtimes.engine.files import Damaged, is_locked, read_json, write_whole
from runtimes.engine.process import Process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runtimes.engine.place import Place

LIVE = ("running", "paused", "restarting")
"""States that need a live monitor to be true."""
SHORT = 12
"""Digits of an id that are shown."""
_REMEDY = "isomark container rm -f removes the container"
_CONFIG = {
    **dict.fromkeys(("id", "name", "created", "image", "manifest", "tree", "cwd", "user", "network"), str),
    **dict.fromkeys(("entrypoint", "arguments", "groups", "mounts", "ports", "exposed", "devices", "ulimits"), list),
    **dict.fromkeys(("add_hosts", "dns", "dns_search", "dns_options"), list),
    **dict.fromkeys(("environment", "labels", "restart", "resources", "namespaces"), dict),
    **dict.fromkeys(("security", "sysctls", "log"), dict),
    **dict.fromkeys(("tty", "stdin_open", "stdin_once", "auto_remove", "publish_all", "read_only", "init"), bool),
    **dict.fromkeys(("stop_signal", "stop_timeout", "shm_bytes"), int),
}
"""What a config.json must have for the engine to rely on it; null is allowed where it is not named."""
_STATE = {
    "status": str,
    "restarts": int,
    "exit_code": int | None,
    **dict.fromkeys(("process", "monitor"), list | None),
    **dict.fromkeys(("journal", "started", "finished", "error"), str | None),
    **dict.fromkeys(("oom_killed", "stopped"), bool),
    **dict.fromkeys(("network", "rootless"), dict | None),
}


class Container:
    """The container in ``place`` with this full id."""

    __slots__ = ("_config", "id", "path", "place")

    def __init__(self, place: Place, ident: str) -> None:
        self.place = place
        self.id = ident
        self.path = f"{place.containers}/{ident}"
        self._config: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.config["name"])

    @property
    def config(self) -> dict[str, Any]:
        """What was asked for; see ``runtimes.engine.config``.

        Raises:
            InstanceError: the container is gone.
            Damaged: its file is.
        """
        if self._config is None:
            self._config = self._read("config.json", _CONFIG)
        return self._config

    def state(self) -> dict[str, Any]:
        """What is, as last written; see ``fresh_state``.

        Raises:
            InstanceError: the container is gone.
            Damaged: its file is.
        """
        return self._read("state.json", _STATE)

    def _read(self, name: str, shape: dict[str, Any]) -> dict[str, Any]:
        path = f"{self.path}/{name}"
        value = read_json(path, _REMEDY)
        if value is None:
            if os.path.isdir(self.path):
                raise Damaged(f"{path} is missing", hint=_REMEDY)
            raise no_such(self.id[:SHORT])
        for key, kind in shape.items():
            if not isinstance(value.get(key, ...), kind):
                raise Damaged(f"{path} is damaged: {key!r} is not what it should be", hint=_REMEDY)
        return value

    def write_state(self, state: dict[str, Any], *, sync: bool = False) -> None:
        """Replace what is.

        Raises:
            HostError: the disk does not take it.
        """
        try:
            write_whole(f"{self.path}/state.json", text.dumps(state).encode(), sync=sync)
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def lock(self, *, wait: bool = True) -> int:
        """Lock the container for an operation; the lock goes with the descriptor, which is the caller's to close.

        Raises:
            InstanceError: it is gone, or with ``wait`` false, somebody else works on it.
        """
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except (FileNotFoundError, NotADirectoryError):
            raise no_such(self.id[:SHORT]) from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if os.stat(self.path).st_ino == os.fstat(fd).st_ino:
                return fd
        except FileNotFoundError:
            pass
        except BlockingIOError:
            os.close(fd)
            raise InstanceError(f"another command is working on container {self.id[:SHORT]}") from None
        os.close(fd)
        raise no_such(self.id[:SHORT])

    def lock_monitor(self) -> int | None:
        """The lock that a monitor holds for its life; ``None`` if one does."""
        fd = os.open(f"{self.path}/monitor", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        return fd

    def is_monitored(self) -> bool:
        """Whether its monitor lives."""
        return is_locked(f"{self.path}/monitor", os.O_RDWR)

    def process(self, state: dict[str, Any]) -> Process | None:
        """Its first process, if ``state`` names one that still runs."""
        process = Process.read(state["process"])
        return process if process is not None and process.alive() else None


def fresh_state() -> dict[str, Any]:
    """What is, of a container that was never started.

    ``process`` is the first process and ``monitor`` who watches over it (``runtimes.engine.process``), times are
    RFC 3339 or ``None``, ``network`` what the network room granted, ``stopped`` whether somebody asked for its end, so
    that no policy starts it again, ``rootless`` what an ordinary user's last start had instead of root's means
    (``runtimes.engine.rootless``), ``remap`` the users that it had with --userns private (``runtimes.engine.remap``).
    """
    return {
        "status": "created",
        "process": None,
        "monitor": None,
        "journal": None,
        "started": None,
        "finished": None,
        "exit_code": None,
        "oom_killed": False,
        "error": None,
        "restarts": 0,
        "stopped": False,
        "network": None,
        "rootless": None,
        "remap": None,
    }


class NoSuchContainer(InstanceError):
    """A container is not there."""


def no_such(name: str) -> NoSuchContainer:
    """The error for a container that is not there."""
    return NoSuchContainer(f"there is no container {name!r}", hint="isomark container ps -a lists them")


def cannot_write(path: str, error: OSError) -> HostError:
    """The error for a state directory that takes nothing more."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "free some disk space, or set ISOMARK_STATE to a larger disk"
    elif error.errno in (errno.EMFILE, errno.ENFILE):
        hint = "raise ulimit -n"
    else:
        hint = "set ISOMARK_STATE to a directory that you may write"
    return HostError(f"cannot write {path}: {error.strerror}", hint=hint)
