"""An ordinary user's way to be root: a user namespace of this process's own, with mounts (user_namespaces(7)).

Inside, the user is root, and the subordinate ids of /etc/subuid and /etc/subgid are users 1, 2, … where newuidmap and
newgidmap are installed; else root is the only user there is, and every file is root's. The same user gets the same map
each time, so that files made in one such namespace have the same owners in the next. From outside the user has every
capability over such a namespace: signals, /proc and setns(2) need none to be entered.
"""

from __future__ import annotations

import marshal
import os

from bench import errors
from bench.errors import HostError, IsomarkError
from runtimes import identity, libc
from runtimes.engine.place import VARIABLE, state_directory
from runtimes.steps import StepFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Rows = list[list[int]]

_MAPPERS = ("newuidmap", "newgidmap")
_HINT = (
    "allow user namespaces: sysctl user.max_user_namespaces=65536 kernel.unprivileged_userns_clone=1 "
    "kernel.apparmor_restrict_unprivileged_userns=0; or run as root"
)
_PIECE_BYTES = 65536
MARK = "ISOMARK_USER_NAMESPACE"
"""In the environment of programs that are started inside, so that they know."""
_inside = MARK in os.environ


def privileged() -> bool:
    """Whether this process is root, and not only of a namespace that ``enter`` made."""
    return os.geteuid() == 0 and not _inside


def owns_files() -> bool:
    """Whether this process may give files to the users that an image names."""
    return os.geteuid() == 0 and (not _inside or sum(count for _, _, count in own_map("uid_map")) > 1)


def maps() -> tuple[Rows, Rows]:
    """The ``[inside, outside, count]`` rows for this user's users and groups; without subordinate ids one each."""
    uid, gid = os.geteuid(), os.getegid()
    directories = os.environ.get("PATH", os.defpath).split(":")
    name = _name(uid)  # without one the two refuse
    if name and all(any(os.access(f"{each}/{program}", os.X_OK) for each in directories) for program in _MAPPERS):
        owners = (name, str(uid))
        users, groups = ranges("/etc/subuid", owners), ranges("/etc/subgid", owners)
        if users and groups:
            return _rows(uid, users), _rows(gid, groups)
    return [[0, uid, 1]], [[0, gid, 1]]


def own_map(name: str) -> Rows:
    """The ``uid_map`` or ``gid_map`` of the namespace that this process is in."""
    return map_of(name, "self")


def map_of(name: str, pid: int | str) -> Rows:
    """That of process ``pid``; the ids outside are those that this process sees."""
    with open(f"/proc/{pid}/{name}", encoding="ascii") as file:
        return [[int(word) for word in line.split()] for line in file]


def nested_maps() -> tuple[Rows, Rows]:
    """Maps for a user namespace below this one, in which every user has the same number."""
    users, groups = ([[inside, inside, count] for inside, _, count in own_map(name)] for name in ("uid_map", "gid_map"))
    return users, groups


def enter(beside: int | None = None) -> None:
    """Be root of a user namespace of this user's from now on; nothing happens as root, or if it is so already.

    Args:
        beside: A process in the namespace to enter instead of making one.

    Raises:
        HostError: the host does not allow it.
    """
    global _inside  # noqa: PLW0603 - it is the process that changes
    if privileged() or _inside:
        return
    os.environ[VARIABLE] = state_directory()  # which depends on who asks
    try:
        if beside is None:
            _unshare_mapped(*maps())
        else:
            _join(beside)
        identity.become_root()
    except OSError as error:
        raise HostError(f"cannot enter a user namespace: {error.strerror}", hint=_HINT) from error
    os.environ[MARK] = "1"
    _inside = True


def within(work: Callable[[], Any]) -> Any:  # noqa: ANN401 - whatever work returns
    """Do ``work`` as root of this user's user namespace, in a copy of this process; as root, or inside, at once.

    What it returns must be plain data (marshal).

    Raises:
        IsomarkError: as ``work`` did.
        OSError: as ``work`` did.
        HostError: there is no such namespace to be had, or the copy was killed.
    """
    if privileged() or _inside:
        return work()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read)
            answer = marshal.dumps(_attempt(work))
            while answer:
                answer = answer[os.write(write, answer) :]
        finally:
            os._exit(0)
    os.close(write)
    pieces = []
    try:
        while piece := os.read(read, _PIECE_BYTES):
            pieces.append(piece)
    finally:
        os.close(read)
        os.waitpid(pid, 0)
    if not pieces:
        raise HostError("the process that works in the user namespace was killed")
    kind, *rest = marshal.loads(b"".join(pieces))
    if kind == "done":
        return rest[0]
    if kind == "OSError":
        raise OSError(*rest)
    raise _error(kind, *rest)


def _attempt(work: Callable[[], Any]) -> tuple[Any, ...]:
    try:
        enter()
        return ("done", work())
    except IsomarkError as error:
        return (type(error).__name__, error.message, error.hint)
    except OSError as error:
        name = error.filename if isinstance(error.filename, str) else None
        return ("OSError", error.errno, error.strerror, name)


def _error(kind: str, message: str, hint: str) -> IsomarkError:
    found: type[IsomarkError] = getattr(errors, kind, HostError)
    return found(message, hint=hint)


def _join(pid: int) -> None:
    namespace = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    try:
        libc.setns(namespace, libc.CLONE_NEWUSER)
    finally:
        os.close(namespace)
    libc.unshare(libc.CLONE_NEWNS)


def _unshare_mapped(uid_map: Rows, gid_map: Rows) -> None:
    """Make the namespaces; a copy that stays outside writes the maps, which takes somebody there."""
    from runtimes.usermap import write_maps

    pid = os.getpid()
    made, made_end = os.pipe()
    said, said_end = os.pipe()
    mapper = os.fork()
    if mapper == 0:
        try:
            os.close(made_end)
            if os.read(made, 1):
                write_maps(pid, uid_map, gid_map)
                os.write(said_end, b"+")
        except StepFailed as failed:
            os.write(said_end, failed.reason.encode())
        finally:
            os._exit(0)
    try:
        os.close(said_end)
        libc.unshare(libc.CLONE_NEWUSER | libc.CLONE_NEWNS)
        os.write(made_end, b"+")
        reason = os.read(said, 4096)
    finally:
        for fd in (made, made_end, said):
            os.close(fd)
        os.waitpid(mapper, 0)
    if reason != b"+":
        raise HostError(
            f"cannot map the users of a user namespace: {reason.decode() or 'the process that does it was killed'}",
            hint="newuidmap must be set-user-ID (apt-get install --reinstall uidmap), and /etc/subuid right",
        )


def _rows(own: int, ranges: list[tuple[int, int]]) -> Rows:
    rows, inside = [[0, own, 1]], 1
    for start, count in ranges:
        rows.append([inside, start, count])
        inside += count
    return rows


def ranges(path: str, owners: tuple[str, ...]) -> list[tuple[int, int]]:
    """The first and the number of each range of subordinate ids in a file as of subuid(5), of whoever is named so."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = [line.strip().split(":") for line in file]
    except OSError:
        return []
    return [
        (int(line[1]), int(line[2]))
        for line in lines
        if len(line) == 3 and line[0] in owners and line[1].isdecimal() and line[2].isdecimal() and int(line[2])
    ]


def _name(uid: int) -> str | None:
    import pwd  # nobody but an ordinary user needs it

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None
