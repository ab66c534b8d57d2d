"""A container's state on disk, below ``--root``: what exists is written here before it does.

    ROOT/ID/state.json      what the container is and owns
    ROOT/ID/config.json     its configuration, as it was when it was created
    ROOT/ID/start           a FIFO, as long as its first process waits to be started
    ROOT/ID/lock            held by the command that changes the container; dies with it (fcntl(2), record locks)

A process is named by its pid and start time, so that a later one of the same pid is never meant.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time

from bench.errors import HostError, UsageError
from runtimes.ociruntime import documents

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

FORM: Final = 1
"""Of state.json."""
CONFIG: Final = "config.json"
STATE: Final = "state.json"
GATE: Final = "start"
LOCK: Final = "lock"
MAX_ID: Final = 255
LOCK_SECONDS: Final = 10.0
CACHE: Final = "seccomp"
"""Compiled filters are kept in ROOT as well; no container is called so."""
_ID_SIGNS: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+-.")


class Process:
    """A process on this host, told apart from a later one of its pid."""

    __slots__ = ("pid", "ticks")

    def __init__(self, pid: int, ticks: int) -> None:
        self.pid = pid
        self.ticks = ticks

    def is_alive(self) -> bool:
        """Whether it is there and no zombie."""
        return start_ticks(self.pid) == self.ticks

    def open(self) -> int | None:
        """A pidfd of it; ``None`` if it is gone."""
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return None
        if self.is_alive():
            return pidfd
        os.close(pidfd)
        return None


class Container:
    """A container's directory and what stands in its state file.

    Attributes:
        state: id, bundle, rootfs, ociVersion, annotations, created, owner (uid), cgroup (the group's path or
            ``None``), pid and ticks of the first process, phase (``creating`` or ``created``), hooks, and what
            exec needs: pid namespace, terminal.
    """

    __slots__ = ("_lock", "id", "path", "state")

    def __init__(self, root: str, name: str) -> None:
        self.id = name
        self.path = f"{root}/{name}"
        self.state: dict[str, Any] = {}
        self._lock = -1

    def file(self, name: str) -> str:
        """The path of one of its files."""
        return f"{self.path}/{name}"

    def save(self) -> None:
        """Write the state.

        Raises:
            HostError: it cannot be written.
        """
        documents.write(self.file(STATE), self.state)

    def load(self) -> Container:
        """Read the state.

        Raises:
            UsageError: there is no such container.
        """
        if not os.path.isfile(self.file(STATE)):
            raise missing(self.id)
        state = documents.read(self.file(STATE))
        if not isinstance(state, dict) or state.get("form") != FORM or state.get("id") != self.id:
            raise HostError(f"{self.file(STATE)} is not the state of {self.id}", hint=f"delete --force {self.id}")
        self.state = state
        return self

    def process(self) -> Process | None:
        """Its first process; ``None`` before there is one."""
        pid = self.state.get("pid")
        return None if pid is None else Process(pid, self.state["ticks"])

    def lock(self, seconds: float = LOCK_SECONDS) -> None:
        """Keep other commands from changing the container while this process lives.

        Raises:
            HostError: another one does for longer than ``seconds``.
            UsageError: the container went away meanwhile.
        """
        deadline = time.monotonic() + seconds
        while True:
            fd = self._open_lock()
            try:
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                if time.monotonic() > deadline:
                    raise HostError(
                        f"another command changes container {self.id}", hint="wait for its create or delete to end"
                    ) from None
                time.sleep(0.01)
                continue
            if self._is_current(fd):
                self._lock = fd
                return
            os.close(fd)  # it was deleted and its lock with it

    def unlock(self) -> None:
        """Let others change it; idempotent."""
        if self._lock != -1:
            os.close(self._lock)
            self._lock = -1

    def forget(self) -> None:
        """Remove its files; what they name must be gone. The state goes last, and says until then what to clean."""
        try:
            names = os.listdir(self.path)
        except FileNotFoundError:
            return
        for name in sorted(names, key=lambda each: (each == STATE, each == LOCK)):
            if name not in (STATE, LOCK):
                _unlink(self.file(name))
        _unlink(self.file(STATE))
        _unlink(self.file(LOCK))
        try:
            os.rmdir(self.path)
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno == errno.ENOTEMPTY:  # a create of that name has begun
                return
            raise HostError(f"cannot remove {self.path}: {error.strerror}") from error

    def _open_lock(self) -> int:
        try:
            return os.open(self.file(LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError:
            raise missing(self.id) from None
        except OSError as error:
            raise HostError(f"cannot lock {self.path}: {error.strerror}") from error

    def _is_current(self, fd: int) -> bool:
        try:
            now = os.stat(self.file(LOCK))
        except FileNotFoundError:
            return False
        held = os.fstat(fd)
        return (now.st_dev, now.st_ino) == (held.st_dev, held.st_ino)


def create(root: str, name: str) -> Container:
    """Make the directory of a new container, locked; one that a killed ``create`` left empty is taken over.

    Raises:
        UsageError: the name is no name, or taken.
        HostError: ``root`` cannot be written.
    """
    check_id(name)
    container = Container(root, name)
    while True:
        try:
            os.makedirs(root, 0o711, exist_ok=True)
            os.mkdir(container.path, 0o711)
        except FileExistsError:
            pass
        except OSError as error:
            raise HostError(f"cannot make {container.path}: {error.strerror}", hint="see --root") from error
        if os.path.exists(container.file(STATE)):
            raise taken(name)
        try:
            container.lock()
        except UsageError:  # a delete was faster: its directory is gone
            continue
        if os.path.exists(container.file(STATE)):
            container.unlock()
            raise taken(name)
        return container


def load(root: str, name: str) -> Container:
    """The container ``name``.

    Raises:
        UsageError: the name is no name, or nobody's.
    """
    check_id(name)
    return Container(root, name).load()


def every(root: str) -> list[Container]:
    """All containers below ``root``, by name; those that go away meanwhile, or are not yet written, are left out."""
    try:
        names = sorted(os.listdir(root))
    except FileNotFoundError:
        return []
    found = []
    for name in names:
        if name in (CACHE, "") or not _is_id(name):
            continue
        try:
            found.append(Container(root, name).load())
        except UsageError:
            continue
    return found


def check_id(name: str) -> None:
    """See that ``name`` can be a container's.

    Raises:
        UsageError: it cannot.
    """
    if not _is_id(name):
        raise UsageError(
            f"{name[:80]!a} cannot be a container's id",
            hint=f"letters, digits, _ + - and . make one, at most {MAX_ID}, but not . and .. and {CACHE}",
        )


def missing(name: str) -> UsageError:
    """There is no container ``name``; engines look for these words."""
    return UsageError(f"container {name!r} does not exist")


def taken(name: str) -> UsageError:
    """The name is in use; engines look for these words."""
    return UsageError(f"container with id {name} already exists", hint=f"delete it: delete --force {name}")


def start_ticks(pid: int) -> int | None:
    """Clock ticks from boot to the start of ``pid`` (proc(5), /proc/PID/stat, 22); ``None`` if gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            stat = file.read(4096)
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(b")")[2].split()
    return None if not fields or fields[0] in (b"Z", b"X") else int(fields[19])


def _is_id(name: str) -> bool:
    return 0 < len(name) <= MAX_ID and name not in (".", "..", CACHE) and not set(name) - _ID_SIGNS


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise HostError(f"cannot remove {path}: {error.strerror}") from error
