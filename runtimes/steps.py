"""The steps of a set-up: what is being done, when it began, and how that is told over the set-up socket.

A message has fields with null bytes between them: ``pid``, number · ``terminal`` · ``ready``, step, seconds, … ·
``error``, step, reason, errno. The other way: ``go``, or ``go``, ``root`` where the last descriptor is the root. Who
reads it trusts its own children, and yet understands nothing but this.
"""

from __future__ import annotations

import _socket
import os
import sys
import time

from bench.errors import InstanceError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

GO: Final = b"go"
GO_WITH_ROOT: Final = b"go\0root"
MAX_MESSAGE_BYTES: Final = 65536
MAX_DESCRIPTORS: Final = 48
"""More than a version 1 host has cgroup hierarchies, and fewer than the kernel's SCM_MAX_FD."""
_MAX_FIELD: Final = 4096
_ANCILLARY_BYTES: Final = _socket.CMSG_SPACE(4 * MAX_DESCRIPTORS)

_HINTS: Final = {
    "run ": "the command must be an executable in the image, and so must its interpreter and its libraries",
    "create its namespaces": "run as root; inside a container, that one must be privileged",
    "join ": "is the container that it belongs to still running?",
    "map its users": "install uidmap and grant ranges in /etc/subuid and /etc/subgid; or run as root",
    "create its user namespace": "allow user namespaces: sysctl kernel.unprivileged_userns_clone=1 "
    "kernel.apparmor_restrict_unprivileged_userns=0; or run as root",
    "mount its root (overlay": "set ISOMARK_STATE to a directory on ext4, xfs or btrfs: not every file system can be "
    "the upper layer of an overlay; and see that the kernel has overlayfs (modprobe overlay)",
    "enter its cgroups": "version 1 must be mounted writable (mount | grep cgroup); a real-time process cannot join",
    "set up its network": "is the veth module there? modprobe veth",
    "mount /": "the image must have a directory of that name, not a symbolic link",
    "bind /": "the image must have a directory of that name, not a symbolic link",
    "find the user ": "the image's /etc/passwd and /etc/group must name it; or give numbers",
    "change to its user": "without root, users and groups other than 0 take newuidmap (apt-get install uidmap) and "
    "lines of this user in /etc/subuid and /etc/subgid",
    "enter the working directory": "it must be a directory below the container's root",
    "set its limits": "only CAP_SYS_RESOURCE may raise a hard limit: ask for no more than ulimit -Ha shows",
    "filter its system calls": "see isomark doctor --engine; or start it with --security off",
}
"""The beginning of the step that failed -> what would help."""


class StepFailed(Exception):
    """A step of a set-up failed; ``step`` completes "cannot …"."""

    def __init__(self, step: str, reason: str, errno: int | None) -> None:
        super().__init__(step, reason)
        self.step = step
        self.reason = reason
        self.errno = errno

    def as_error(self) -> InstanceError:
        """The same for who started it."""
        hint = next((text for begin, text in _HINTS.items() if self.step.startswith(begin)), "see isomark doctor")
        return InstanceError(f"cannot {self.step}: {self.reason}", hint=hint)


class Steps:
    """Remembers what is being done, for an error message, and with ``trace`` when, on the host's CLOCK_MONOTONIC.

    ``ahead`` is by how many seconds this process's own clock is ahead of that one, in a time namespace.
    """

    def __init__(self, *, trace: bool, ahead: int = 0) -> None:
        self.current = "start"
        self.times: list[tuple[str, float]] = []
        self.trace = trace
        self._ahead = ahead

    def begin(self, step: str) -> None:
        """``step`` begins; it completes the sentence "cannot …"."""
        self.current = step
        if self.trace:
            self.times.append((step, time.monotonic() - self._ahead))

    def failed(self, error: Exception) -> StepFailed:
        """The current step failed for ``error``; but for OSError and ValueError (a bad word) it is a fault of ours."""
        if isinstance(error, OSError):
            return StepFailed(self.current, error.strerror or str(error), error.errno)
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        return StepFailed(self.current, reason, None)


def send(connection: _socket.socket, data: bytes, fds: Sequence[int] = ()) -> None:
    """Send one message with descriptors.

    Raises:
        BrokenPipeError: the other side is gone.
    """
    if not fds:
        connection.send(data, _socket.MSG_NOSIGNAL)
        return
    packed = b"".join([fd.to_bytes(4, sys.byteorder) for fd in fds])
    connection.sendmsg([data], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, packed)], _socket.MSG_NOSIGNAL)


def receive(connection: _socket.socket, size: int = MAX_MESSAGE_BYTES) -> tuple[bytes, list[int]]:
    """Take one message and its descriptors; empty at the end."""
    while True:
        try:
            data, ancillary, _, _ = connection.recvmsg(size, _ANCILLARY_BYTES, _socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:  # said once, ahead of what was sent, if the other side died with our word unread
            continue
        break
    fds: list[int] = []
    for level, kind, packed in ancillary:
        if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
            whole = len(packed) - len(packed) % 4
            fds += [int.from_bytes(packed[at : at + 4], sys.byteorder) for at in range(0, whole, 4)]
    return data, fds


def encode_pid(pid: int) -> bytes:
    """Tell that the process exists; its pidfd goes along."""
    return b"pid\0%d" % pid


def encode_ready(steps: Steps) -> bytes:
    """Tell that all is set up; the terminal's master goes along if there is one."""
    fields = [field for step, at in steps.times for field in (_plain(step), b"%.9f" % at)]
    return b"\0".join([b"ready", *fields])


def encode_error(failed: StepFailed) -> bytes:
    """Tell that a step failed."""
    return b"\0".join([b"error", _plain(failed.step), _plain(failed.reason), b"%d" % (failed.errno or 0)])


def send_error(connection: _socket.socket, failed: StepFailed) -> None:
    """Tell that a step failed to who may be gone."""
    try:
        send(connection, encode_error(failed))
    except (BrokenPipeError, ConnectionResetError):  # nobody is left to tell
        return


def decode(data: bytes) -> tuple[str, list[str]]:
    """The kind of a message, and its fields."""
    kind, *fields = os.fsdecode(data).split("\0")
    return kind, fields


def decode_times(fields: Sequence[str]) -> list[tuple[str, float]]:
    """The steps of a ``ready`` message."""
    return [(step, float(at)) for step, at in zip(fields[::2], fields[1::2], strict=True)]


def decode_error(fields: Sequence[str]) -> StepFailed:
    """What an ``error`` message tells."""
    step, reason, errno = fields
    return StepFailed(step, reason, int(errno) or None)


def _plain(text: str) -> bytes:
    return os.fsencode(text.replace("\0", "\\0"))[:_MAX_FIELD]
