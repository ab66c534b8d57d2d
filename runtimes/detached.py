"""Mounts that are nowhere yet (fsopen(2), fsmount(2)), made while something else is waited for, and attached later.

A parent that makes directories for its instance goes on to make the overlay on them, and sends it along with the word
to go on. The instance meanwhile makes all file systems that need no place. All of it is within the start, and for the
one instance. An instance with users of its own must own its overlay and makes it itself.
"""

from __future__ import annotations

import os
import stat

from runtimes import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, Final, TypedDict

    from runtimes.spec import Spec

    Operation = Sequence[Any]
    Devices = Mapping[str, Sequence[int]]

    class Contents(TypedDict):
        """What is in a new tmpfs: devices as ``make_nodes`` takes them, name -> text, name -> mode."""

        nodes: Devices
        links: Mapping[str, str]
        directories: Mapping[str, int]


MADE: Final = frozenset({"mount", "tree", "hide"})
"""Operations of ``runtimes.mounts`` that attach a new file system."""
_PLAIN_ATTRIBUTES: Final = libc.MS_RDONLY | libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC
"""Flags of mount(2) that have the same bit in mount_setattr(2)."""
_MAX_VALUE: Final = 255
"""Of an option's value, in bytes (fsconfig(2))."""


def make_root(spec: Spec) -> int | None:
    """Make the root of ``spec`` from outside if it can be; the caller closes it.

    Where that fails the instance tries it itself and tells what is wrong.
    """
    if spec["root"][0] != "overlay" or spec["uid_map"] is not None or spec["join"]:
        return None
    _, lowers, upper, work, _ = spec["root"]
    options = (("lowerdir", ":".join(map(escape, lowers))), ("upperdir", upper), ("workdir", work))
    if any(len(os.fsencode(value)) > _MAX_VALUE for _, value in options):
        return None
    try:
        fs = libc.fsopen("overlay")
    except OSError:
        return None
    try:
        for key, value in options:
            libc.fsconfig(fs, libc.FSCONFIG_SET_STRING, key, value)
        libc.fsconfig(fs, libc.FSCONFIG_CMD_CREATE)
        return libc.fsmount(fs, 0)
    except OSError:
        return None
    finally:
        os.close(fs)


def make_for(operation: Operation) -> int | None:
    """The file system that an operation of ``runtimes.mounts`` will attach; ``None`` if it attaches no new one.

    Raises:
        OSError: the kernel refuses.
    """
    name = operation[0]
    if name == "mount":
        return make(operation[2], operation[3], operation[4])
    if name == "tree":
        return make_tree(operation[2], operation[3])
    return make_empty() if name == "hide" else None


def make(fstype: str, flags: int, data: str | None) -> int:
    """A detached mount of a new file system, with flags and options as of mount(2).

    Raises:
        OSError: the kernel refuses.
    """
    fs = libc.fsopen(fstype)
    try:
        for option in data.split(",") if data else ():
            key, equals, value = option.partition("=")
            if equals:
                libc.fsconfig(fs, libc.FSCONFIG_SET_STRING, key, value)
            else:
                libc.fsconfig(fs, libc.FSCONFIG_SET_FLAG, key)
        libc.fsconfig(fs, libc.FSCONFIG_CMD_CREATE)
        strict = libc.MOUNT_ATTR_STRICTATIME if flags & libc.MS_STRICTATIME else 0
        return libc.fsmount(fs, flags & _PLAIN_ATTRIBUTES | strict)
    finally:
        os.close(fs)


def make_tree(data: str, contents: Contents) -> int:
    """A detached tmpfs with ``contents``, from which no program gains by set-user-ID."""
    mounted = make("tmpfs", libc.MS_NOSUID | libc.MS_STRICTATIME, data)
    previous = os.umask(0)
    try:
        make_nodes(mounted, contents["nodes"])
        for name, text in contents["links"].items():
            os.symlink(text, name, dir_fd=mounted)
        for name, mode in contents["directories"].items():
            os.mkdir(name, mode, dir_fd=mounted)
    finally:
        os.umask(previous)
    return mounted


def make_nodes(directory: int, devices: Devices) -> None:
    """Make devices: name -> major, minor, or with more: and mode, with its type, user, group."""
    for name, (major, minor, *more) in devices.items():
        mode, user, group = more or (stat.S_IFCHR | 0o666, 0, 0)
        os.mknod(name, mode, os.makedev(major, minor), dir_fd=directory)
        if user or group:
            os.chown(name, user, group, dir_fd=directory, follow_symlinks=False)


def make_empty() -> int:
    """An empty directory that stays so."""
    flags = libc.MS_RDONLY | libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC
    return make("tmpfs", flags, "size=0,nr_inodes=2,mode=555")


def escape(path: str) -> str:
    """Escape what overlayfs gives a meaning to (kernel, Documentation/filesystems/overlayfs.rst)."""
    return path.replace("\\", "\\\\").replace(",", "\\,").replace(":", "\\:")
