"""Who the command is run as: looked up in the image, which is hostile, and changed to."""

from __future__ import annotations

import os
import stat

from runtimes import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Final

    from runtimes.spec import User

MAX_BYTES: Final = 1 << 20
"""No /etc/passwd that a container needs is larger."""
_MAX_ID: Final = (1 << 32) - 2
_FIFO_OR_SOCKET: Final = (stat.S_IFIFO, stat.S_IFSOCK)


class Identity:
    """Numbers, and the home directory where /etc/passwd tells one."""

    __slots__ = ("gid", "groups", "home", "uid")

    def __init__(self, uid: int, gid: int, groups: list[int], home: str | None) -> None:
        self.uid = uid
        self.gid = gid
        self.groups = groups
        self.home = home


def look_up(user: User) -> Identity:
    """Find ``user`` in the /etc of the root that this process is in, as Docker does.

    Its first group is among its further ones as well: who could leave it, by a set-group-ID program, would escape what
    a file refuses to that group (CVE-2022-36109).

    Raises:
        OSError: a file is no regular file, or cannot be read.
        ValueError: there is no such user or group.
    """
    if user["name"] is None:
        return Identity(user["uid"], user["gid"], user["groups"], None)
    name, colon, group = user["name"].partition(":")
    name = name or "0"
    entry = next((row for row in _rows("/etc/passwd", 7) if row[0] == name), None) or next(
        (row for row in _rows("/etc/passwd", 7) if name.isdecimal() and row[2] == str(int(name))), None
    )
    if entry is None and not name.isdecimal():
        raise ValueError("no such user in the image's /etc/passwd")
    uid = _number(entry[2] if entry else name)
    groups = list(user["groups"])
    if colon and group:
        gid = _group(group)
    elif entry is None:
        gid = 0
    else:
        gid = _number(entry[3])
        groups += [_number(row[2]) for row in _rows("/etc/group", 4) if entry[0] in row[3].split(",")]
    return Identity(uid, gid, list(dict.fromkeys([gid, *groups])), (entry[5] or "/") if entry else "/")


def own_standard_streams(identity: Identity) -> None:
    """Give pipes and terminals among descriptors 0 to 2 to the user, who may want to open /dev/stdout.

    A file of the host stays its owner's.
    """
    if identity.uid == 0:
        return
    for fd in range(3):
        found = os.fstat(fd)
        terminal = stat.S_ISCHR(found.st_mode) and os.isatty(fd)
        if found.st_uid != identity.uid and (terminal or stat.S_IFMT(found.st_mode) in _FIFO_OR_SOCKET):
            try:
                os.fchown(fd, identity.uid, -1)
            except OSError:  # not ours to give: it can be used, but not opened again
                continue


def change(identity: Identity, umask: int, *, own_users: bool, asked: Sequence[int] = ()) -> None:
    """Become ``identity``.

    In a user namespace made without privilege, ``own_users``, the groups of the caller cannot be given up, and none
    can be taken (user_namespaces(7), "setgroups"): those that the image's /etc/group names are left out, and that is
    an error only for groups that were ``asked`` for.

    Raises:
        OSError: the kernel refuses.
    """
    try:
        os.setgroups(identity.groups)
    except PermissionError:
        if asked or not own_users:
            raise
    os.setresgid(identity.gid, identity.gid, identity.gid)
    os.setresuid(identity.uid, identity.uid, identity.uid)
    os.umask(umask)


def act_as(uid: int, gid: int) -> None:
    """Make files as this user from now on, with every capability kept (credentials(7)); ``act_as(0, 0)`` undoes it."""
    _, permitted, inheritable = libc.capget()
    os.setegid(gid)
    os.seteuid(uid)
    libc.capset(permitted, permitted, inheritable)


def become_root() -> None:
    """Be user 0 of a user namespace whose map has one: what is made from here on is root's."""
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def _group(text: str) -> int:
    row = next((row for row in _rows("/etc/group", 4) if row[0] == text), None)
    if row is None and not text.isdecimal():
        raise ValueError(f"no group {text} in the image's /etc/group")
    return _number(row[2] if row else text)


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text) > _MAX_ID:
        raise ValueError(f"{text[:40]!r} is no user or group number")
    return int(text)


def _rows(path: str, columns: int) -> Iterator[list[str]]:
    """The well-formed lines of a file like /etc/passwd; none if it is missing."""
    for line in _read(path).split("\n"):
        row = line.strip().split(":")
        if len(row) >= columns and row[0]:
            yield row


def _read(path: str) -> str:
    """The text of a small regular file, which may be anything else: a FIFO or a device is not waited for."""
    try:
        fd = libc.openat2(libc.AT_FDCWD, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY, libc.RESOLVE_NO_MAGICLINKS)
    except FileNotFoundError:
        return ""
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"the image's {path} is no regular file")
        if found.st_size > MAX_BYTES:
            raise ValueError(f"the image's {path} is larger than {MAX_BYTES >> 20} MiB")
        return os.read(fd, MAX_BYTES).decode(errors="surrogateescape")
    finally:
        os.close(fd)
