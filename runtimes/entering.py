"""Being born into namespaces that exist already, or into a time namespace: by a copy between parent and child.

A process cannot enter a PID or a time namespace itself, only have its children born there (setns(2)). So the parent
makes a copy, which enters, and makes the child as its own sibling (CLONE_PARENT): the parent reaps it.
"""

from __future__ import annotations

import _signal
import _socket
import os

from runtimes import identity, kernel_files, libc, steps
from runtimes.steps import StepFailed, Steps
from runtimes.usermap import map_users

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, NoReturn

    from runtimes.spec import Spec


def bear_through_copy(
    spec: Spec, flags: int, birthplace: int | None, proc: int, begin: Callable[[], None], live: Callable[[], NoReturn]
) -> tuple[int, int]:
    """The child's pid and pidfd; ``begin`` is called in both copies first, ``live`` in the child at last.

    Raises:
        StepFailed: a namespace cannot be entered or made.
    """
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    copy, copy_fd = -1, -1
    try:
        copy, copy_fd = libc.clone3(0, _signal.SIGCHLD)
        if copy == 0:
            ours.close()
            _enter(spec, flags, birthplace, proc, theirs, begin, live)
        theirs.close()
        return _attend(spec, copy, ours)
    except OSError as error:
        raise StepFailed("create a copy of itself", error.strerror or str(error), error.errno) from error
    finally:
        ours.close()
        theirs.close()
        if copy > 0:
            os.waitpid(copy, 0)
            os.close(copy_fd)


def _attend(spec: Spec, copy: int, connection: _socket.socket) -> tuple[int, int]:
    """Do for the copy what only its parent may, until it has made the child."""
    while True:
        data, fds = steps.receive(connection)
        kind, fields = steps.decode(data)
        if kind == "map":
            map_users(copy, spec)
            steps.send(connection, steps.GO)
        elif kind == "pid":
            return int(fields[0]), fds[0]
        elif kind == "error":
            raise steps.decode_error(fields)
        else:
            raise StepFailed("create its process", "the copy in between died", None)


def _enter(
    spec: Spec, flags: int, birthplace: int | None, proc: int, parent: _socket.socket,
    begin: Callable[[], None], live: Callable[[], NoReturn],
) -> NoReturn:  # fmt: skip
    """The copy's life."""
    doing = Steps(trace=False)
    try:
        begin()
        if spec["oom_score_adj"] is not None:  # later this process's files are root's
            doing.begin("set its score for the out-of-memory killer")
            kernel_files.write_own(proc, "oom_score_adj", str(spec["oom_score_adj"]))
        if spec["join"]:
            libc.prctl(libc.PR_SET_DUMPABLE, 0)  # who is inside already must not look into this process
            _join(spec["join"], doing)
        if flags & libc.CLONE_NEWUSER and spec["time_offsets"] is not None:
            flags &= ~libc.CLONE_NEWUSER
            _make_users(parent, doing)
        if spec["time_offsets"] is not None:
            _make_time(spec["time_offsets"], proc, doing)
        doing.begin("create its process in its namespaces")
        pid, pidfd = libc.clone3(flags | libc.CLONE_PARENT, 0, birthplace)
        if pid == 0:
            parent.close()
            live()
        steps.send(parent, steps.encode_pid(pid), [pidfd])
    except (OSError, ValueError) as error:
        steps.send_error(parent, doing.failed(error))
    finally:
        os._exit(0)


def _join(namespaces: Sequence[Sequence[Any]], doing: Steps) -> None:
    """Enter all; those that are not the user namespace's to give before it, the others after it, mounts last."""
    held = []
    for flag, path in namespaces:
        doing.begin(f"join {path}")
        held.append((flag, path, os.open(path, os.O_RDONLY | os.O_CLOEXEC)))
    held.sort(key=lambda each: each[0] == libc.CLONE_NEWNS)
    users = [each for each in held if each[0] == libc.CLONE_NEWUSER]
    refused = []
    for each in held:
        if each in users:
            continue
        try:
            _set(each, doing)
        except PermissionError:
            if not users:
                raise
            refused.append(each)
    for each in users:
        _set(each, doing)
        doing.begin("become root of its user namespace")
        identity.become_root()
    for each in refused:
        _set(each, doing)


def _set(namespace: tuple[int, str, int], doing: Steps) -> None:
    flag, path, fd = namespace
    doing.begin(f"join {path}")
    libc.setns(fd, flag)


def _make_users(parent: _socket.socket, doing: Steps) -> None:
    """Make the user namespace first: the time namespace must be its."""
    doing.begin("create its user namespace")
    libc.unshare(libc.CLONE_NEWUSER)
    steps.send(parent, b"map")
    if steps.receive(parent)[0] != steps.GO:
        os._exit(0)
    identity.become_root()
    libc.prctl(libc.PR_SET_DUMPABLE, 1)  # or its files in /proc would be the host's root's


def _make_time(offsets: dict[str, int], proc: int, doing: Steps) -> None:
    doing.begin("create its time namespace")
    libc.unshare(libc.CLONE_NEWTIME)
    doing.begin("set its clocks")
    text = "\n".join(f"{clock} {seconds} 0" for clock, seconds in offsets.items())
    kernel_files.write_own(proc, "timens_offsets", text)
