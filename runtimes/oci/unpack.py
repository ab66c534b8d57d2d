"""Applying layers to a directory: nothing a layer says can change anything outside it.

The directory that an entry is in is resolved inside the tree (``directories``), and the entry's own name
is never followed.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.errors import HostError, ImageError
from runtimes import libc, usernamespace
from runtimes.oci.directories import DEFAULT_ACL, PATH_ONLY, RESOLVE, Directories, Finish
from runtimes.oci.names import AUFS_NOTES, MALICIOUS, WHITEOUT, parts_of
from runtimes.oci.sparse import Sparse
from runtimes.oci.stream import LayerStream
from runtimes.oci.tar import Entry, entries
from runtimes.oci.whiteouts import Whiteouts, remove

_LEFT_OUT: Final = ("trusted.overlay.", "user.overlay.", "security.selinux", "system.nfs4_acl")
"""Attributes that would steer an overlay mounted over the tree, or belong to the host's policy and file system."""
_NO_NAME: Final = ("", ".", "..")
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NODES: Final = {"character": stat.S_IFCHR, "block": stat.S_IFBLK, "fifo": stat.S_IFIFO}


@dataclass
class Skipped:
    """What the host did not let an unprivileged user, or this file system, make; and attributes no layer may set."""

    devices: int = 0
    xattrs: int = 0


class TreeWriter:
    """Applies layers, lowest first, to the empty directory ``root``; use as a context manager."""

    def __init__(self, root: Path, max_entries: int = 1_000_000) -> None:
        self.skipped = Skipped()
        self._directories = Directories(root)
        self._whiteouts = Whiteouts()
        self._privileged = usernamespace.owns_files()
        self._entries_left = max_entries
        self._absent: set[str] = set()  # devices that could not be made

    def __enter__(self) -> TreeWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._directories.close()

    def apply(self, stream: LayerStream) -> None:
        """Apply one layer; its bytes are verified by whoever made ``stream``.

        Raises:
            ImageError: the layer is damaged, hostile or beyond its budget, or the disk is full; what
                was made so far stays and must not be used.
        """
        self._whiteouts = Whiteouts()
        for entry in entries(stream):
            self._entries_left -= 1
            if self._entries_left < 0:
                raise ImageError("an image holds more entries than any should", hint=MALICIOUS)
            try:
                self._place(entry, stream)
            except OSError as error:
                raise _explained(entry.path, error) from error

    def finish(self) -> None:
        """Give directories the mode and time they shall have; call after the last layer.

        Raises:
            ImageError: the disk is full or fails.
        """
        try:
            self._directories.finish()
        except OSError as error:
            raise _explained("the directories", error) from error

    def _place(self, entry: Entry, stream: LayerStream) -> None:
        above, _, name = entry.path.rstrip("/").rpartition("/")
        if name in _NO_NAME:
            *parts, name = ["", *parts_of(entry.path)]
            above = "/".join(parts)
            if not name:
                self._place_root(entry)
                return
        directories = self._directories
        if above != directories.asked:
            if WHITEOUT in above and _is_in_notes(above):
                return
            directories.enter(above)
        if name.startswith(WHITEOUT):
            self._whiteouts.apply(directories, name)
            return
        path = f"{directories.name}/{name}" if directories.name else name
        self._make(entry, stream, directories.fd, name, path)
        self._whiteouts.spare(directories.name, path)

    def _place_root(self, entry: Entry) -> None:
        if entry.kind != "directory":
            raise ImageError('a layer makes "." something else than a directory', hint=MALICIOUS)
        self._adorn_directory(entry, self._directories.root, ".", "")

    def _make(self, entry: Entry, stream: LayerStream, parent: int, name: str, path: str) -> None:
        if entry.kind == "file":
            self._make_file(entry, stream, parent, name)
            return
        if entry.kind == "directory":
            self._make_directory(entry, parent, name, path)
            return
        if entry.kind == "hardlink":
            self._make_hard_link(entry, parent, name, path)
            return
        remove(parent, name)
        if entry.kind == "symlink":
            os.symlink(entry.link, name, dir_fd=parent)
        elif not self._make_node(entry, parent, name):
            self.skipped.devices += 1
            self._absent.add(path)
            return
        self._adorn(entry, parent, name)

    def _make_file(self, entry: Entry, stream: LayerStream, parent: int, name: str) -> None:
        try:
            fd = os.open(name, _CREATE, 0o600, dir_fd=parent)
        except FileExistsError:
            remove(parent, name)
            fd = os.open(name, _CREATE, 0o600, dir_fd=parent)
        try:
            if entry.sparse is not None:
                _write_sparse(fd, entry.sparse, stream)
            else:
                _write(fd, entry.size, stream)
            if self._privileged:
                os.fchown(fd, entry.uid, entry.gid)
            os.fchmod(fd, entry.mode)  # after chown(2), which clears set-user-ID
            if entry.xattrs:
                self._set_xattrs(entry, fd)
            os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(fd)

    def _make_directory(self, entry: Entry, parent: int, name: str, path: str) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            if stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                _clear_xattrs(f"/proc/self/fd/{parent}/{name}")
            else:
                remove(parent, name)
                os.mkdir(name, 0o700, dir_fd=parent)
        self._adorn_directory(entry, parent, name, path)

    def _make_hard_link(self, entry: Entry, parent: int, name: str, path: str) -> None:
        *above, target = parts_of(entry.link) or [""]
        if not target:
            raise ImageError("a hard link names no file", hint=MALICIOUS)
        source = libc.openat2(self._directories.root, "/".join(above) or ".", PATH_ONLY, RESOLVE)
        try:
            if os.path.join(self._directories.name_of(source), target) in self._absent:
                self._absent.add(path)
                return
            found = os.stat(target, dir_fd=source, follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode):
                raise ImageError(f"{entry.path!r} is a hard link to a directory", hint=MALICIOUS)
            if not _is_same(parent, name, found):
                remove(parent, name)
                os.link(target, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(source)

    def _make_node(self, entry: Entry, parent: int, name: str) -> bool:
        """Make a device or FIFO; return whether the host allowed it."""
        try:
            os.mknod(name, _NODES[entry.kind] | 0o600, os.makedev(*entry.device), dir_fd=parent)
        except PermissionError:
            return False
        return True

    def _adorn(self, entry: Entry, parent: int, name: str) -> None:
        """Owner, mode, xattrs and time of a symbolic link or node that was just made."""
        if self._privileged:
            os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
        if entry.kind != "symlink":
            os.chmod(name, entry.mode, dir_fd=parent)
        if entry.xattrs:
            self._set_xattrs(entry, f"/proc/self/fd/{parent}/{name}")
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=parent, follow_symlinks=False)

    def _adorn_directory(self, entry: Entry, parent: int, name: str, path: str) -> None:
        """Owner and xattrs now; mode and time when all below is written."""
        if self._privileged:
            os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
        default_acl = entry.xattrs.pop(DEFAULT_ACL, None)
        if entry.xattrs:
            self._set_xattrs(entry, f"/proc/self/fd/{parent}/{name}")
        self._directories.finish_later(path, Finish(entry.mtime_ns, entry.mode, default_acl))

    def _set_xattrs(self, entry: Entry, target: int | str) -> None:
        for key, value in entry.xattrs.items():
            if key.startswith(_LEFT_OUT):
                self.skipped.xattrs += 1
                continue
            try:
                os.setxattr(target, key, value, follow_symlinks=isinstance(target, int))
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EACCES, errno.ENOTSUP):
                    raise
                self.skipped.xattrs += 1


def _is_in_notes(above: str) -> bool:
    """Whether ``above`` is a directory of aufs's own notes; one that only looks like a whiteout is refused."""
    for part in parts_of(above):
        if part.startswith(AUFS_NOTES):
            return True
        if part.startswith(WHITEOUT):
            raise ImageError(f"a layer has entries below the whiteout {part[:100]!r}", hint=MALICIOUS)
    return False


def _write(fd: int, size: int, stream: LayerStream) -> None:
    for piece in stream.pieces(size):
        rest = piece[os.write(fd, piece) :]
        while rest:
            rest = rest[os.write(fd, rest) :]


def _write_sparse(fd: int, sparse: Sparse, stream: LayerStream) -> None:
    os.ftruncate(fd, sparse.size)
    for offset, length in sparse.extents:
        os.lseek(fd, offset, os.SEEK_SET)
        _write(fd, length, stream)


def _clear_xattrs(path: str) -> None:
    """What an upper layer says of a directory is all that holds of it: no attribute of a lower layer stays."""
    try:
        for name in os.listxattr(path, follow_symlinks=False):
            if not name.startswith(_LEFT_OUT):
                os.removexattr(path, name, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EACCES, errno.ENOTSUP):
            raise


def _is_same(parent: int, name: str, found: os.stat_result) -> bool:
    """Whether ``name`` is the very file ``found``: removing it first would lose a file linked to itself."""
    try:
        return os.path.samestat(os.stat(name, dir_fd=parent, follow_symlinks=False), found)
    except FileNotFoundError:
        return False


def _explained(path: str, error: OSError) -> ImageError | HostError:
    """What the kernel refused, as an error that names the entry."""
    if error.errno == errno.ENOSYS:
        return HostError("this kernel lacks openat2(2)", hint="use Linux 5.6 or later")
    hint = "free some disk space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else MALICIOUS
    return ImageError(f"cannot unpack {path[:200]!r}: {error.strerror}", hint=hint)
