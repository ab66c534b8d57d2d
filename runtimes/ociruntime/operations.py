"""What a bundle's mounts and devices demand of the child beyond ``runtimes.mounts``; importing this adds it there.

A destination is resolved below the root's descriptor, following symbolic links within the root as runc does; proc and
sysfs must lie on real directories. Nothing but the few files that lxcfs replaces may be covered inside a proc file
system (CVE-2019-19921, CVE-2023-27561). Performed in the forked child: no imports in functions.
"""

from __future__ import annotations

import errno
import os
import stat

from runtimes import libc, mounts
from runtimes.mounts import FOLLOWING, STRICT, Target
from runtimes.ociruntime import copy_up, hooks
from runtimes.ociruntime.filesystem import SHOWN_IN_PROC
from runtimes.ociruntime.home import home_of
from runtimes.ociruntime.mount_options import MS_REMOUNT

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Mapping, Sequence
    from typing import Any, Final

GO: Final = b"go"
_NODE_TYPES: Final[Mapping[str, int]] = {"b": stat.S_IFBLK, "c": stat.S_IFCHR, "p": stat.S_IFIFO}
_late: list[int] = []
"""Mounts to be made read-only when all else is mounted below them."""


def _mount(
    root: int, path: str, _where: str, source: str, kind: str, flags: int, data: str, propagation: Sequence[int],
    recursive: Sequence[int], fill: bool,
) -> None:  # fmt: skip
    """Mount a file system of its own."""
    strict = kind in ("proc", "sysfs")
    existed, target = _directory(root, path, strict=strict)
    late = kind == "tmpfs" and flags & libc.MS_RDONLY and not flags & MS_REMOUNT
    try:
        if kind != "proc":
            _spare_proc(root, target)
        if kind == "tmpfs" and existed and "mode=" not in data:
            data = f"{data},mode={stat.S_IMODE(os.fstat(target).st_mode):o}".lstrip(",")
        shown = "none" if flags & MS_REMOUNT else source
        libc.mount(shown, _path(target), kind, flags & ~libc.MS_RDONLY if late else flags, data or None)
        if flags & MS_REMOUNT:
            return
        mounted = libc.openat2(root, path, os.O_PATH, STRICT if strict else FOLLOWING)
        if fill:
            copy_up.fill(_path(target), _path(mounted))
    finally:
        os.close(target)
    _adorn(mounted, propagation, recursive)
    if late:
        _late.append(mounted)
    else:
        os.close(mounted)


def _bind(
    root: int, path: str, _where: str, source: str | int, deep: bool, attributes: Sequence[int],
    propagation: Sequence[int], recursive: Sequence[int],
) -> None:  # fmt: skip
    """Bind ``source``, a path on the host or the descriptor of a detached copy of its mount."""
    depth = libc.AT_RECURSIVE if deep else 0
    tree = source if isinstance(source, int) else libc.open_tree(libc.AT_FDCWD, source, libc.OPEN_TREE_CLONE | depth)
    try:
        target = mounts.make_target(root, path, directory=stat.S_ISDIR(os.fstat(tree).st_mode))
        try:
            if path == "/proc":
                if libc.fstatfs(tree) != libc.PROC_SUPER_MAGIC:
                    raise PermissionError(errno.EPERM, "only a proc file system may be bound over /proc")
            else:
                _spare_proc(root, target)
            wanted, cleared = attributes[0], attributes[1] & (_state(tree) | libc.MOUNT_ATTR__ATIME)
            if wanted or cleared:
                libc.mount_setattr(tree, 0, wanted, clear=cleared)
            libc.move_mount(tree, target)
        finally:
            os.close(target)
        _adorn(tree, propagation, recursive)
    finally:
        os.close(tree)


def _adorn(mounted: int, propagation: Sequence[int], recursive: Sequence[int]) -> None:
    """Set how a mount spreads, and what holds for all mounts below it too."""
    for flags in propagation:
        depth = libc.AT_RECURSIVE if flags & libc.MS_REC else 0
        libc.mount_setattr(mounted, depth, 0, propagation=flags & ~libc.MS_REC)
    wanted, cleared = recursive
    if wanted or cleared:
        libc.mount_setattr(mounted, libc.AT_RECURSIVE, wanted, clear=cleared)


def _cgroup2(
    root: int, path: str, _where: str, flags: int, propagation: Sequence[int], source: str, own: bool
) -> None:  # fmt: skip
    """The version 2 tree, seen from a cgroup namespace of its own, or the container's group of the host's tree."""
    _, target = _directory(root, path, strict=False)
    try:
        _spare_proc(root, target)
        if own:
            try:
                libc.mount("cgroup", _path(target), "cgroup2", flags)
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EBUSY):  # as a rule in a user namespace
                    raise
            else:
                with Target(root, path, FOLLOWING) as mounted:
                    _adorn(mounted.fd, propagation, (0, 0))
                return
        _attach(source, target, flags, propagation)
    finally:
        os.close(target)


def _cgroup1(
    root: int, path: str, _where: str, flags: int, propagation: Sequence[int],
    hierarchies: Sequence[Sequence[Any]], own: bool,
) -> None:  # fmt: skip
    """A tmpfs with a directory for each version 1 hierarchy: ``[directory, options, group on the host, links]``."""
    _, target = _directory(root, path, strict=False)
    try:
        _spare_proc(root, target)
        libc.mount("tmpfs", _path(target), "tmpfs", flags & ~libc.MS_RDONLY, "mode=755")
    finally:
        os.close(target)
    with Target(root, path, FOLLOWING) as top:
        for name, options, group, links in hierarchies:
            os.mkdir(name, 0o755, dir_fd=top.fd)
            below = libc.openat2(top.fd, name, os.O_PATH | os.O_DIRECTORY, STRICT)
            try:
                if own:
                    libc.mount("cgroup", _path(below), "cgroup", flags, options)
                else:
                    _attach(group, below, flags, ())
            finally:
                os.close(below)
            for link in links:
                os.symlink(name, link, dir_fd=top.fd)
        _adorn(top.fd, propagation, (0, 0))
        if flags & libc.MS_RDONLY:
            libc.mount_setattr(top.fd, 0, libc.MOUNT_ATTR_RDONLY)


def _attach(source: str, target: int, flags: int, propagation: Sequence[int]) -> None:
    """Bind a part of a cgroup tree; flags 1, 2, 4 and 8 are the same in both interfaces (linux/mount.h)."""
    tree = libc.open_tree(libc.AT_FDCWD, source, libc.OPEN_TREE_CLONE)
    try:
        libc.mount_setattr(tree, 0, flags & 0xF)
        libc.move_mount(tree, target)
        _adorn(tree, propagation, (0, 0))
    finally:
        os.close(tree)


def _device(
    root: int, path: str, _where: str, kind: str, major: int, minor: int, mode: int, uid: int, gid: int, bind: bool
) -> None:  # fmt: skip
    """Supply a device node; one that is there already must be the same."""
    directory, name = os.path.split(path)
    parent = mounts.make_target(root, directory, directory=True)
    try:
        if bind and kind != "p":
            _bind_device(parent, path, name, kind, os.makedev(major, minor))
            return
        try:
            os.mknod(name, _NODE_TYPES[kind] | mode, os.makedev(major, minor), dir_fd=parent)
        except FileExistsError:
            found = os.stat(name, dir_fd=parent, follow_symlinks=False)
            same = stat.S_IFMT(found.st_mode) == _NODE_TYPES[kind]
            if not same or (kind != "p" and found.st_rdev != os.makedev(major, minor)):
                raise FileExistsError(errno.EEXIST, "there is something else of that name") from None
        if uid or gid:
            os.chown(name, uid, gid, dir_fd=parent, follow_symlinks=False)
    finally:
        os.close(parent)


def _bind_device(parent: int, path: str, name: str, kind: str, device: int) -> None:
    """Bind the host's node of the same path, after a look at what it is."""
    tree = libc.open_tree(libc.AT_FDCWD, path, libc.OPEN_TREE_CLONE)
    try:
        found = os.fstat(tree)
        if stat.S_IFMT(found.st_mode) != _NODE_TYPES[kind] or found.st_rdev != device:
            raise FileNotFoundError(errno.ENOENT, "the host has another device of that name")
        try:  # noqa: SIM105 - contextlib is slow to import
            os.mknod(name, stat.S_IFREG | 0o644, dir_fd=parent)
        except FileExistsError:
            pass
        target = libc.openat2(parent, name, os.O_PATH, STRICT)
        try:
            libc.move_mount(tree, target)
        finally:
            os.close(target)
    finally:
        os.close(tree)


def _link(root: int, path: str, text: str) -> None:
    """Make a symbolic link where there is nothing."""
    directory, name = os.path.split(path)
    parent = mounts.make_target(root, directory, directory=True)
    try:
        os.symlink(text, name, dir_fd=parent)
    except FileExistsError:
        pass
    finally:
        os.close(parent)


def _ptmx(root: int, path: str, text: str) -> None:
    """Make /dev/ptmx the container's own: whatever the image has in its place goes."""
    directory, name = os.path.split(path)
    parent = mounts.make_target(root, directory, directory=True)
    try:
        try:
            if os.readlink(name, dir_fd=parent) == text:
                return
        except OSError:
            pass
        try:  # noqa: SIM105
            os.unlink(name, dir_fd=parent)
        except FileNotFoundError:
            pass
        os.symlink(text, name, dir_fd=parent)
    finally:
        os.close(parent)


def _hooks(
    _root: int, _what: str, parents: _socket.socket, channel: _socket.socket, own: Sequence[Any], state: dict[str, Any]
) -> None:  # fmt: skip
    """Let the parent run prestart and createRuntime, then run createContainer here."""
    parents.close()
    channel.send(b"hooks")
    if channel.recv(len(GO)) != GO:
        os._exit(127)  # the parent is gone, or it knows the reason
    failure = hooks.failure("createContainer", own, {**state, "pid": os.getpid()})
    if failure is not None:
        raise OSError(errno.ECANCELED, failure)


def _home(root: int, _what: str, environment: dict[str, str], uid: int) -> None:
    """Complete the environment of the command, when the image's /etc/passwd is in its place."""
    environment.setdefault("HOME", home_of(root, uid))


def _mask(root: int, path: str, _where: str) -> None:
    mounts.perform(root, ["hide", path])


def _readonly(root: int, path: str, _where: str) -> None:
    mounts.perform(root, ["protect", path])


def _finish(root: int, _what: str, propagation: int) -> None:
    """What must come last."""
    while _late:
        mounted = _late.pop()
        libc.mount_setattr(mounted, 0, libc.MOUNT_ATTR_RDONLY)
        os.close(mounted)
    if propagation:
        _adorn(root, (propagation,), (0, 0))


def _directory(root: int, path: str, *, strict: bool) -> tuple[bool, int]:
    """Find or make the directory ``path``: whether it was there, and its descriptor."""
    resolve = STRICT if strict else FOLLOWING
    try:
        return True, libc.openat2(root, path, os.O_PATH | os.O_DIRECTORY, resolve)
    except FileNotFoundError:
        if not strict:
            return False, mounts.make_target(root, path, directory=True)
        mounts.perform(root, ["directory", path, 0o755])
        return False, libc.openat2(root, path, os.O_PATH | os.O_DIRECTORY, resolve)
    except OSError as error:
        if strict and error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise OSError(error.errno, "the image has a symbolic link or a file there, not a directory") from None
        raise


def _spare_proc(root: int, target: int) -> None:
    """Refuse to cover what is inside a proc file system, by whatever link it was found."""
    if libc.fstatfs(target) != libc.PROC_SUPER_MAGIC:
        return
    top = os.readlink(_path(root))
    inside = os.readlink(_path(target)).removeprefix(top.rstrip("/"))
    if inside not in SHOWN_IN_PROC:
        raise PermissionError(errno.EPERM, f"it leads to {inside} inside /proc, which must not be covered")


def _state(mounted: int) -> int:
    """Which of the attributes that an option can lift a mount has; the bits are the same (statvfs(3))."""
    flags = os.fstatvfs(mounted).f_flag
    known = libc.MOUNT_ATTR_NOSUID | libc.MOUNT_ATTR_NODEV | libc.MOUNT_ATTR_NOEXEC
    return (flags & known) | (libc.MOUNT_ATTR_NOSYMFOLLOW if flags & 0x2000 else 0)


def _path(fd: int) -> str:
    return f"/proc/self/fd/{fd}"


mounts.OPERATIONS.update({
    "oci-mount": _mount,
    "oci-bind": _bind,
    "oci-cgroup1": _cgroup1,
    "oci-cgroup2": _cgroup2,
    "oci-device": _device,
    "oci-link": _link,
    "oci-ptmx": _ptmx,
    "oci-hooks": _hooks,
    "oci-home": _home,
    "oci-mask": _mask,
    "oci-readonly": _readonly,
    "oci-finish": _finish,
})  # fmt: skip

CLOSING: Final = ("oci-mask", "oci-readonly", "oci-finish")
"""What comes after the hooks."""
VERBS: Final[Mapping[str, str]] = {
    "oci-mount": "mount",
    "oci-bind": "bind",
    "oci-cgroup1": "mount",
    "oci-cgroup2": "mount",
    "oci-device": "make",
    "oci-mask": "cover",
    "oci-readonly": "protect",
}
"""Operation -> what an error says of its third member, which names the place in the configuration."""
