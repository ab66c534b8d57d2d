"""Applying layers to a directory: nothing a layer says can change anything outside it.

Every path is resolved by openat2(2) with the directory as its root, so a symbolic link, "..", or an
absolute target ends inside; the last component is never followed. Whiteouts as in image-spec, layer.md.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.errors import HostError, ImageError
from runtimes import libc
from runtimes.oci.stream import LayerStream
from runtimes.oci.tar import Entry, entries

MAX_DEPTH: Final = 256
"""Directories within directories: what removing a tree recursively can still take."""
WHITEOUT: Final = ".wh."
OPAQUE: Final = ".wh..wh..opq"
_REFUSED_XATTRS: Final = ("trusted.overlay.", "user.overlay.")
"""These would steer an overlay mounted over the tree."""
_RESOLVE: Final = libc.RESOLVE_IN_ROOT | libc.RESOLVE_NO_MAGICLINKS
_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY
_MALICIOUS: Final = "the image is damaged or malicious; do not use it"


@dataclass
class Skipped:
    """What the host did not let an unprivileged user, or this file system, make."""

    devices: int = 0
    xattrs: int = 0


@dataclass(frozen=True)
class _Directory:
    """What a directory shall be like once nothing is written below it any more."""

    mtime_ns: int
    mode: int


class TreeWriter:
    """Applies layers, lowest first, to the empty directory ``root``; use as a context manager."""

    def __init__(self, root: Path, max_entries: int = 1_000_000) -> None:
        self.skipped = Skipped()
        self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._prefix = len(os.readlink(f"/proc/self/fd/{self._root}").rstrip("/")) + 1
        self._privileged = os.geteuid() == 0
        self._entries_left = max_entries
        self._parent_path: str | None = None
        self._parent_fd = -1
        self._parent_name = ""
        self._directories = {"": _Directory(0, 0o755)}
        self._upper: set[str] = set()  # what the layer at hand made, and
        self._above_upper: set[str] = set()  # the directories that hold it
        self._hidden: set[str] = set()
        self._absent: set[str] = set()

    def __enter__(self) -> TreeWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._forget_parent()
        os.close(self._root)

    def apply(self, stream: LayerStream) -> None:
        """Apply one layer; its bytes are verified by whoever made ``stream``.

        Raises:
            ImageError: the layer is damaged, hostile or beyond its budget, or the disk is full; what
                was made so far stays and must not be used.
        """
        self._upper.clear()
        self._above_upper.clear()
        self._hidden.clear()
        for entry in entries(stream):
            self._entries_left -= 1
            if self._entries_left < 0:
                raise ImageError("an image holds more entries than any should", hint=_MALICIOUS)
            with _explaining(entry.path):
                self._place(entry, stream)

    def finish(self) -> None:
        """Give directories the mode and time they shall have, deepest first; call after the last layer."""
        self._forget_parent()
        for path in sorted(self._directories, key=lambda path: path.count("/"), reverse=True):
            with _explaining(path):
                self._settle(path, self._directories[path])

    def _settle(self, path: str, wanted: _Directory) -> None:
        try:
            fd = libc.openat2(self._root, path or ".", os.O_RDONLY | os.O_DIRECTORY, libc.RESOLVE_NO_SYMLINKS)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return  # a later entry hid or replaced it
            raise
        try:
            os.fchmod(fd, wanted.mode)
            os.utime(fd, ns=(wanted.mtime_ns, wanted.mtime_ns))
        finally:
            os.close(fd)

    def _place(self, entry: Entry, stream: LayerStream) -> None:
        parts = _parts(entry.path)
        if not parts:
            if entry.kind != "directory":
                raise ImageError('a layer makes "." something else than a directory', hint=_MALICIOUS)
            self._adorn_directory(self._root, "", entry)
            return
        *above, name = parts
        parent = self._parent("/".join(above))
        if name.startswith(WHITEOUT):
            self._white_out(parent, name)
            return
        path = self._below(name)
        self._make(entry, stream, parent, name, path)
        self._upper.add(path)
        while (path := path.rpartition("/")[0]) and path not in self._above_upper:
            self._above_upper.add(path)

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
        self._remove(parent, name)
        if entry.kind == "symlink":
            os.symlink(entry.link, name, dir_fd=parent)
        elif not self._make_node(entry, parent, name):
            self.skipped.devices += 1
            self._absent.add(path)
            return
        self._adorn(entry, parent, name)

    def _make_file(self, entry: Entry, stream: LayerStream, parent: int, name: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(name, flags, 0o600, dir_fd=parent)
        except FileExistsError:
            self._remove(parent, name)
            fd = os.open(name, flags, 0o600, dir_fd=parent)
        try:
            for piece in stream.pieces(entry.size):
                rest = piece
                while rest:
                    rest = rest[os.write(fd, rest) :]
            self._own(fd, entry)
            os.fchmod(fd, entry.mode)  # after chown(2), which clears set-user-ID
            self._set_xattrs(fd, entry)
            os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(fd)

    def _make_directory(self, entry: Entry, parent: int, name: str, path: str) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                self._remove(parent, name)
                os.mkdir(name, 0o700, dir_fd=parent)
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            self._adorn_directory(fd, path, entry)
        finally:
            os.close(fd)

    def _make_hard_link(self, entry: Entry, parent: int, name: str, path: str) -> None:
        *above, target = _parts(entry.link) or [""]
        if not target:
            raise ImageError("a hard link names no file", hint=_MALICIOUS)
        source = libc.openat2(self._root, "/".join(above) or ".", _DIRECTORY, _RESOLVE)
        try:
            if os.path.join(self._name_of(source), target) in self._absent:
                self._absent.add(path)
                return
            found = os.stat(target, dir_fd=source, follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode):
                raise ImageError(f"{entry.path!r} is a hard link to a directory", hint=_MALICIOUS)
            if not _is_same(parent, name, found):
                self._remove(parent, name)
                os.link(target, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(source)

    def _make_node(self, entry: Entry, parent: int, name: str) -> bool:
        """Make a device or FIFO; return whether the host allowed it."""
        kind = {"character": stat.S_IFCHR, "block": stat.S_IFBLK, "fifo": stat.S_IFIFO}[entry.kind]
        try:
            os.mknod(name, kind | 0o600, os.makedev(*entry.device), dir_fd=parent)
        except PermissionError:
            return False
        return True

    def _adorn(self, entry: Entry, parent: int, name: str) -> None:
        """Owner, mode, xattrs and time of a symbolic link or node that was just made."""
        if self._privileged:
            os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
        if entry.kind != "symlink":
            os.chmod(name, entry.mode, dir_fd=parent)
        self._set_xattrs(f"/proc/self/fd/{parent}/{name}", entry)
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=parent, follow_symlinks=False)

    def _adorn_directory(self, fd: int, path: str, entry: Entry) -> None:
        """Owner and xattrs now; mode and time when all below is written."""
        self._own(fd, entry)
        self._set_xattrs(fd, entry)
        self._directories[path] = _Directory(entry.mtime_ns, entry.mode)

    def _own(self, fd: int, entry: Entry) -> None:
        if self._privileged:
            os.fchown(fd, entry.uid, entry.gid)

    def _set_xattrs(self, target: int | str, entry: Entry) -> None:
        for key, value in entry.xattrs.items():
            if key.startswith(_REFUSED_XATTRS):
                raise ImageError(f"{entry.path!r} has the attribute {key!r}", hint=_MALICIOUS)
            try:
                os.setxattr(target, key, value, follow_symlinks=isinstance(target, int))
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EACCES, errno.ENOTSUP):
                    raise
                self.skipped.xattrs += 1

    def _white_out(self, parent: int, name: str) -> None:
        if name == OPAQUE:
            if self._first_time(f"{self._parent_name}/"):
                self._hide_below(parent, ".", self._parent_name)
            return
        hidden = name.removeprefix(WHITEOUT)
        if hidden.startswith(WHITEOUT):  # aufs keeps notes of its own under .wh..wh.
            return
        if hidden in ("", ".", ".."):
            raise ImageError(f"a layer has the whiteout {name!r}", hint=_MALICIOUS)
        if self._first_time(self._below(hidden)):
            self._hide(parent, hidden, self._below(hidden))

    def _first_time(self, path: str) -> bool:
        """Whether ``path`` was not hidden before in this layer: repeating it must not cost time."""
        first = path not in self._hidden
        self._hidden.add(path)
        return first

    def _hide(self, parent: int, name: str, path: str) -> None:
        """Remove what lower layers have at ``name``; what this layer made stays."""
        try:
            found = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return
        if not stat.S_ISDIR(found.st_mode):
            if path not in self._upper:
                os.unlink(name, dir_fd=parent)
            return
        if path in self._upper or path in self._above_upper:
            self._hide_below(parent, name, path)
        else:
            self._remove(parent, name)

    def _hide_below(self, parent: int, name: str, path: str) -> None:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            for other in os.listdir(fd):
                self._hide(fd, other, os.path.join(path, other))
        finally:
            os.close(fd)

    def _remove(self, parent: int, name: str) -> None:
        try:
            os.unlink(name, dir_fd=parent)
        except FileNotFoundError:
            return
        except IsADirectoryError:
            shutil.rmtree(name, dir_fd=parent)

    def _parent(self, path: str) -> int:
        """Return a descriptor of the directory ``path``, made with its own parents if missing."""
        if path != self._parent_path:
            self._forget_parent()
            fd = self._open_or_make(path)
            self._parent_path, self._parent_fd, self._parent_name = path, fd, self._name_of(fd)
        return self._parent_fd

    def _open_or_make(self, path: str) -> int:
        try:
            return libc.openat2(self._root, path or ".", _DIRECTORY, _RESOLVE)
        except FileNotFoundError:
            above, _, name = path.rpartition("/")
        parent = self._open_or_make(above)
        try:
            os.mkdir(name, 0o755, dir_fd=parent)
            self._directories[os.path.join(self._name_of(parent), name)] = _Directory(0, 0o755)
        finally:
            os.close(parent)
        return libc.openat2(self._root, path, _DIRECTORY, _RESOLVE)

    def _name_of(self, directory: int) -> str:
        """Where ``directory`` really is below the root: two paths through links give one name."""
        name = os.readlink(f"/proc/self/fd/{directory}")[self._prefix :]
        if name.count("/") >= MAX_DEPTH:
            raise ImageError(f"an image has directories nested deeper than {MAX_DEPTH}", hint=_MALICIOUS)
        return name

    def _below(self, name: str) -> str:
        return os.path.join(self._parent_name, name)

    def _forget_parent(self) -> None:
        if self._parent_path is not None:
            os.close(self._parent_fd)
            self._parent_path, self._parent_fd = None, -1


def _parts(path: str) -> list[str]:
    """The components of an entry's path, without "." and empty ones.

    Raises:
        ImageError: the path is absolute, climbs with "..", or is deeper than ``MAX_DEPTH``.
    """
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/") or ".." in parts:
        raise ImageError(f"a layer names {path[:200]!r}, which leads outside", hint=_MALICIOUS)
    if len(parts) > MAX_DEPTH:
        raise ImageError(f"an image has directories nested deeper than {MAX_DEPTH}", hint=_MALICIOUS)
    return parts


def _is_same(parent: int, name: str, found: os.stat_result) -> bool:
    """Whether ``name`` is the very file ``found``: removing it first would lose a file linked to itself."""
    try:
        return os.path.samestat(os.stat(name, dir_fd=parent, follow_symlinks=False), found)
    except FileNotFoundError:
        return False


@contextmanager
def _explaining(path: str) -> Iterator[None]:
    """Turn what the kernel refuses into an error that names the entry."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSYS:
            raise HostError("this kernel lacks openat2(2)", hint="use Linux 5.6 or later") from error
        hint = "free some disk space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else _MALICIOUS
        raise ImageError(f"cannot unpack {path[:200]!r}: {error.strerror}", hint=hint) from error
