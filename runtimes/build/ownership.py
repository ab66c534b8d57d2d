"""``--chown`` and ``--chmod``: names looked up in the image, and modes in octal or symbols (chmod(1))."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from typing import Final

from bench.errors import ImageError, UsageError
from runtimes import libc

Owner = tuple[int, int]
Mode = Callable[[int], int]
"""Takes a mode with its type (inode(7)), returns the permissions it shall have."""

MAX_ID: Final = 2**32 - 2
_DATABASE_BYTES: Final = 4 * 1024**2
_IN_ROOT: Final = libc.RESOLVE_IN_ROOT | libc.RESOLVE_NO_MAGICLINKS
_CLAUSE: Final = re.compile(r"([ugoa]*)((?:[-+=][rwxXst]*)+)")
_ACTION: Final = re.compile(r"([-+=])([rwxXst]*)")
_SHIFTS: Final = {"u": 6, "g": 3, "o": 0}
_BITS: Final = {"r": 4, "w": 2, "x": 1}


def find_owner(text: str, root: int) -> Owner:
    """Return the ids that ``user``, ``user:group`` or numbers mean in the tree that ``root`` is a descriptor of.

    A name brings its own group along, a number the group of the same number.

    Raises:
        UsageError: it is malformed.
        ImageError: the image knows no such user or group.
    """
    user, colon, group = text.partition(":")
    if not user or (colon and not group):
        raise UsageError(f"{text[:80]!r} is no owner", hint="write --chown=USER or --chown=USER:GROUP")
    if user.isdecimal():
        uid = gid = _checked(user)
    else:
        uid, gid = _look_up(root, "etc/passwd", user, 2, 3)
    if colon:
        gid = _checked(group) if group.isdecimal() else _look_up(root, "etc/group", group, 2, 2)[0]
    return uid, gid


def read_mode(text: str) -> Mode:
    """Return what ``--chmod=text`` does to a mode.

    Raises:
        UsageError: it is neither octal nor symbols.
    """
    if text.isdecimal():
        if not set(text) <= set("01234567") or int(text, 8) > 0o7777:
            raise UsageError(f"--chmod={text[:40]} is not octal, at most 7777", hint="write it like 755 or u=rwX,go=rX")
        return lambda _: int(text, 8)
    clauses = [_CLAUSE.fullmatch(clause) for clause in text.split(",")]
    if not all(clauses):
        raise UsageError(f"--chmod={text[:40]} is no mode", hint="write it like 755 or u=rwX,go=rX")
    parsed = [(clause[1] or "a", _ACTION.findall(clause[2])) for clause in clauses if clause]

    def change(mode: int) -> int:
        for who, actions in parsed:
            for operator, letters in actions:
                mode = _act(mode, who, operator, letters)
        return stat.S_IMODE(mode)

    return change


def _act(mode: int, who: str, operator: str, letters: str) -> int:
    classes = "ugo" if "a" in who else who
    executes = "x" in letters or ("X" in letters and (stat.S_ISDIR(mode) or mode & 0o111))
    low = sum(_BITS[letter] for letter in set(letters) & set("rw")) | (1 if executes else 0)
    bits = sum(low << _SHIFTS[name] for name in set(classes))
    covered = sum(7 << _SHIFTS[name] for name in set(classes))
    special = sum(
        bit
        for bit, letter, names in ((0o4000, "s", "u"), (0o2000, "s", "g"), (0o1000, "t", "ugo"))
        if letter in letters and set(names) & set(classes)
    )
    if operator == "+":
        return mode | bits | special
    if operator == "-":
        return mode & ~(bits | special)
    return (mode & ~covered) | bits | special


def _look_up(root: int, path: str, name: str, *fields: int) -> tuple[int, ...]:
    """Fields of the line of /etc/passwd or /etc/group that begins with ``name``."""
    for line in _database(root, path):
        parts = line.split(":")
        if parts[0] == name and len(parts) > max(fields) and all(parts[field].isdecimal() for field in fields):
            return tuple(_checked(parts[field]) for field in fields)
    kind = "user" if path.endswith("passwd") else "group"
    raise ImageError(f"the image has no {kind} {name[:60]!r} in /{path}", hint="write its number, or create it before")


def _database(root: int, path: str) -> Iterator[str]:
    try:
        # not blocking: the image may have a pipe there
        fd = libc.openat2(root, path, os.O_RDONLY | os.O_NONBLOCK, _IN_ROOT)
    except OSError:
        return
    with open(fd, "rb") as file:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            yield from file.read(_DATABASE_BYTES).decode("utf-8", "replace").splitlines()


def _checked(number: str) -> int:
    if len(number) > 10 or int(number) > MAX_ID:
        raise UsageError(f"{number[:40]} is no user or group id", hint=f"they end at {MAX_ID}")
    return int(number)
