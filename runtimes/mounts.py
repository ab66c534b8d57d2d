"""The file system of an instance as data, and the operations that make it.

A list of operations, each ``[name, argument, …]``, is performed inside the instance's mount namespace, before the
image's code runs. Targets are paths in the image and the image is hostile: each is resolved below the root's
descriptor, so nothing is ever mounted or made outside the root. On the way to what isomark itself mounts a symbolic
link is refused; what the user asks for (``user_bind``, ``user_mount``) follows links within the root, as Docker does.
"""

from __future__ import annotations

import errno
import os
import stat

from runtimes import detached, libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, Final

    from runtimes.detached import Contents, Devices

    Operation = Sequence[Any]

NOTHING_EXECUTABLE: Final = libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC
STRICT: Final = libc.RESOLVE_IN_ROOT | libc.RESOLVE_NO_SYMLINKS | libc.RESOLVE_NO_MAGICLINKS
FOLLOWING: Final = libc.RESOLVE_IN_ROOT | libc.RESOLVE_NO_MAGICLINKS
_MAX_LINKS: Final = 40
"""As the kernel (path_resolution(7))."""
_NULL_DEVICE: Final = os.makedev(1, 3)


class Target:
    """A path below the root, held open; a context manager. By default no symbolic link on the way is followed."""

    def __init__(self, root: int, path: str, resolve: int = STRICT) -> None:
        self.fd = libc.openat2(root, path, os.O_PATH, resolve)

    @property
    def path(self) -> str:
        """By which the kernel finds it again."""
        return f"/proc/self/fd/{self.fd}"

    def __enter__(self) -> Target:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


def perform(root: int, operation: Operation, mounted: int | None = None) -> None:
    """Perform one operation below ``root``; ``mounted`` is what ``runtimes.detached`` made for it, which is closed.

    Raises:
        OSError: the kernel refused it.
    """
    name, *arguments = operation
    if mounted is None:
        OPERATIONS[name](root, *arguments)
    elif name == "hide":
        _hide_by(root, arguments, mounted)
    else:
        _attach(root, arguments[0], mounted)


def describe(operation: Operation) -> str:
    """What ``operation`` does, for an error message."""
    name = "bind" if operation[0] == "lent" else operation[0].removeprefix("user_")
    return f"{name} {operation[1]}"


def make_target(root: int, path: str, *, directory: bool) -> int:
    """Find ``path`` below the root, or make it, an empty directory or file, with the directories above it.

    Symbolic links are followed within the root, one that leads nowhere as well.

    Raises:
        OSError: it cannot be made.
    """
    for _ in range(_MAX_LINKS):
        try:
            return libc.openat2(root, path, os.O_PATH, FOLLOWING)
        except FileNotFoundError:
            parent = make_target(root, os.path.dirname(path) or "/", directory=True)
        try:
            path = _make_entry(parent, path, directory=directory)
        finally:
            os.close(parent)
    return libc.openat2(root, path, os.O_PATH, FOLLOWING)  # says ELOOP


def _make_entry(parent: int, path: str, *, directory: bool) -> str:
    """Make the last part of ``path``; where there is a link already, return what it says."""
    name = os.path.basename(path)
    try:
        if directory:
            os.mkdir(name, 0o755, dir_fd=parent)
        else:
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=parent))
    except FileExistsError:
        text = os.readlink(name, dir_fd=parent)
        return os.path.join(os.path.dirname(path), text)
    return path


def _mount(root: int, path: str, fstype: str, flags: int, data: str | None) -> None:
    _attach(root, path, detached.make(fstype, flags, data))


def _tree(root: int, path: str, data: str, contents: Contents) -> None:
    """Mount a tmpfs with ``contents``: devices, links and directories."""
    _attach(root, path, detached.make_tree(data, contents))


def _attach(root: int, path: str, mounted: int) -> None:
    """Attach a detached mount of ours, and close it."""
    try:
        with _mount_point(root, path) as target:
            libc.move_mount(mounted, target.fd)
    finally:
        os.close(mounted)


def _mount_point(root: int, path: str) -> Target:
    """Where isomark itself mounts: no link leads there, and a missing directory is made."""
    try:
        return Target(root, path)
    except FileNotFoundError as missing:
        try:
            _make_directories(root, path, 0o755)
        except OSError:  # a read-only image: that it lacks the directory is what is wrong
            raise missing from None
    return Target(root, path)


def _bind(root: int, path: str, source: str, attributes: int, recursive: bool) -> None:
    """Bind ``source``, a path on the host, over ``path``."""
    with Target(root, path) as target:
        _attach_copy(libc.AT_FDCWD, source, target.fd, attributes, recursive=recursive)


def _attach_copy(
    directory: int, source: str, target: int, attributes: int, clear: int = 0, *,
    recursive: bool, deep: bool | None = None, propagation: int = 0,
) -> None:  # fmt: skip
    """Bind ``source`` over ``target``; it is nowhere before it has its attributes.

    ``deep``: whether what is mounted below gets them too; as ``recursive`` unless told.
    """
    flags = libc.OPEN_TREE_CLONE | (libc.AT_RECURSIVE if recursive else 0) | (0 if source else libc.AT_EMPTY_PATH)
    tree = libc.open_tree(directory, source, flags)
    try:
        if attributes or clear:
            depth = libc.AT_RECURSIVE if (recursive if deep is None else deep) else 0
            libc.mount_setattr(tree, depth, attributes, clear=clear)
        libc.move_mount(tree, target)
        if propagation:
            _propagate(tree, propagation)
    finally:
        os.close(tree)


def _propagate(mounted: int, flags: int) -> None:
    """Set how mounts and unmounts below spread; ``flags`` are MS_SHARED and its kin, with MS_REC for all below."""
    depth = libc.AT_RECURSIVE if flags & libc.MS_REC else 0
    libc.mount_setattr(mounted, depth, 0, propagation=flags & ~libc.MS_REC)


def _user_bind(
    root: int, path: str, source: str, attributes: int, clear: int, recursive: bool, deep: bool, propagation: int
) -> None:
    """Bind the user's ``source``, a path on the host, over ``path``, which is made if it is missing.

    ``attributes`` and ``clear`` are MOUNT_ATTR_*, with ``deep`` for what is mounted below as well.
    """
    target = make_target(root, path, directory=stat.S_ISDIR(os.stat(source).st_mode))
    try:
        _attach_copy(
            libc.AT_FDCWD, source, target, attributes, clear, recursive=recursive, deep=deep, propagation=propagation
        )
    finally:
        os.close(target)


def _lent(root: int, path: str, mounted: int, propagation: int) -> None:
    """Attach ``mounted``, a detached mount that this process inherited, at ``path``, which is made if it is missing."""
    target = make_target(root, path, directory=stat.S_ISDIR(os.fstat(mounted).st_mode))
    try:
        libc.move_mount(mounted, target)
        if propagation:
            _propagate(mounted, propagation)
    finally:
        os.close(target)
        os.close(mounted)


def _user_mount(root: int, path: str, fstype: str, source: str, flags: int, data: str | None, propagation: int) -> None:
    """Mount a file system at ``path``, which is made if it is missing."""
    target = make_target(root, path, directory=True)
    try:
        libc.mount(source, f"/proc/self/fd/{target}", fstype, flags, data)
    finally:
        os.close(target)
    if propagation:
        with Target(root, path, FOLLOWING) as mounted:
            _propagate(mounted.fd, propagation)


def _directory(root: int, path: str, mode: int) -> None:
    """Create ``path`` and the directories above it where they are missing."""
    try:
        os.close(libc.openat2(root, path, os.O_PATH | os.O_DIRECTORY, STRICT))
    except FileNotFoundError:
        _make_directories(root, path, mode)


def _make_directories(root: int, path: str, mode: int) -> None:
    parts = path.strip("/").split("/")
    for depth, name in enumerate(parts):
        with Target(root, "/" + "/".join(parts[:depth])) as parent:
            try:
                os.mkdir(name, mode if depth == len(parts) - 1 else 0o755, dir_fd=parent.fd)
            except FileExistsError:
                continue


def _nodes(root: int, path: str, devices: Devices) -> None:
    with Target(root, path) as directory:
        detached.make_nodes(directory.fd, devices)


def _files(root: int, path: str, names: Sequence[str]) -> None:
    """Create empty files in ``path``, to bind over."""
    with Target(root, path) as directory:
        for name in names:
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=directory.fd))


def _links(root: int, path: str, links: Mapping[str, str]) -> None:
    """Create symbolic links in ``path``, name -> text."""
    with Target(root, path) as directory:
        for name, text in links.items():
            os.symlink(text, name, dir_fd=directory.fd)


def _hide(root: int, *paths: str) -> None:
    _hide_by(root, paths, detached.make_empty())


def _hide_by(root: int, paths: Sequence[str], empty: int) -> None:
    """Cover each of ``paths`` with nothing: /dev/null over a file, the detached ``empty`` over a directory."""
    null, attached = _open_null(root), False
    for path in paths:
        try:
            target = Target(root, path, FOLLOWING)
        except (FileNotFoundError, NotADirectoryError):  # this kernel has no such file: nothing to hide
            continue
        with target:
            if not stat.S_ISDIR(os.fstat(target.fd).st_mode):
                _attach_copy(null, "", target.fd, 0, recursive=False)
            elif not attached:
                attached = True
                libc.move_mount(empty, target.fd)
            else:  # from where it is attached now: before Linux 6.15 a detached mount could not be copied
                _attach_copy(empty, "", target.fd, 0, recursive=False)
    os.close(empty)
    os.close(null)


def _open_null(root: int) -> int:
    """The /dev/null below the root if it is one, for it may be anything (CVE-2025-31133), else the host's."""
    for directory in (root, libc.AT_FDCWD):
        try:
            fd = libc.openat2(directory, "/dev/null", os.O_PATH, STRICT if directory == root else 0)
        except OSError:
            continue
        found = os.fstat(fd)
        if stat.S_ISCHR(found.st_mode) and found.st_rdev == _NULL_DEVICE:
            return fd
        os.close(fd)
    raise FileNotFoundError(errno.ENOENT, "neither the root nor the host has the device /dev/null")


def _protect(root: int, *paths: str) -> None:
    """Make each of ``paths`` read-only by binding it over itself."""
    for path in paths:
        try:
            target = Target(root, path, FOLLOWING)
        except (FileNotFoundError, NotADirectoryError):
            continue
        with target:
            _attach_copy(target.fd, "", target.fd, libc.MOUNT_ATTR_RDONLY, recursive=True)


OPERATIONS: Final[dict[str, Callable[..., None]]] = {
    "mount": _mount,
    "tree": _tree,
    "bind": _bind,
    "user_bind": _user_bind,
    "lent": _lent,
    "user_mount": _user_mount,
    "directory": _directory,
    "nodes": _nodes,
    "files": _files,
    "links": _links,
    "hide": _hide,
    "protect": _protect,
}
"""Name -> what performs it, given the root's descriptor and the arguments; open to others before a birth."""
