"""Filling a new tmpfs with what it covers (runtime-spec, config.md, mount option ``tmpcopyup``).

The tree is the image's and hostile: nothing in it is followed, each entry is opened by its directory's descriptor.
"""

from __future__ import annotations

import errno
import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_CHUNK: Final = 1 << 20


def fill(source: str, target: str) -> None:
    """Copy what is in the directory ``source`` into the directory ``target``, which is empty; both are fd paths.

    Raises:
        OSError: it does not fit, or cannot be read.
    """
    reading = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        writing = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _directory(reading, writing)
        finally:
            os.close(writing)
    finally:
        os.close(reading)


def _directory(reading: int, writing: int) -> None:
    """Copy the entries and then the attributes of one directory."""
    for name in os.listdir(reading):
        found = os.stat(name, dir_fd=reading, follow_symlinks=False)
        if stat.S_ISDIR(found.st_mode):
            os.mkdir(name, 0o700, dir_fd=writing)
            _descend(name, reading, writing)
        elif stat.S_ISLNK(found.st_mode):
            os.symlink(os.readlink(name, dir_fd=reading), name, dir_fd=writing)
            os.chown(name, found.st_uid, found.st_gid, dir_fd=writing, follow_symlinks=False)
        elif stat.S_ISREG(found.st_mode):
            _file(name, reading, writing)
        else:
            os.mknod(name, found.st_mode, found.st_rdev, dir_fd=writing)
            os.chown(name, found.st_uid, found.st_gid, dir_fd=writing, follow_symlinks=False)
    _attributes(reading, writing)


def _descend(name: str, reading: int, writing: int) -> None:
    below = os.open(name, _DIRECTORY, dir_fd=reading)
    try:
        made = os.open(name, _DIRECTORY, dir_fd=writing)
        try:
            _directory(below, made)
        finally:
            os.close(made)
    finally:
        os.close(below)


def _file(name: str, reading: int, writing: int) -> None:
    source = os.open(name, os.O_RDONLY | _FILE, dir_fd=reading)
    try:
        made = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FILE, 0o600, dir_fd=writing)
        try:
            while data := os.read(source, _CHUNK):
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(made, rest) :]
            _attributes(source, made)
        finally:
            os.close(made)
    finally:
        os.close(source)


def _attributes(source: int, made: int) -> None:
    found = os.fstat(source)
    os.fchown(made, found.st_uid, found.st_gid)
    os.fchmod(made, stat.S_IMODE(found.st_mode))
    for name in os.listxattr(source):
        try:
            os.setxattr(made, name, os.getxattr(source, name))
        except OSError as error:
            if error.errno != errno.ENOTSUP:  # a tmpfs has no user attributes before Linux 6.6
                raise
    os.utime(made, ns=(found.st_atime_ns, found.st_mtime_ns))
