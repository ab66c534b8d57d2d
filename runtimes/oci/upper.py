"""What a container changed, as layer members: the upper directory of its overlay mount.

A whiteout is a character device 0:0 there, and an opaque directory has an attribute (kernel
documentation, filesystems/overlayfs.rst); in a layer both are files named ``.wh.`` (image-spec, layer.md).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.errors import ImageError
from runtimes import libc
from runtimes.oci.layer import FileContent, Layer, Member, store_layer, tar_chunks
from runtimes.oci.layout import Layout
from runtimes.oci.names import MAX_DEPTH, OPAQUE, WHITEOUT

_OVERLAY: Final = ("trusted.overlay.", "user.overlay.")
"""The overlay's own notes; the second form with the mount option userxattr, as without privilege."""
_ELSEWHERE: Final = ("redirect", "metacopy")
"""Notes that say: what is meant lies in another layer under another name, or only its attributes are here."""


@dataclass
class UpperCounts:
    """What a layer cannot hold, and was left out."""

    sockets: int = 0


def store_upper(layout: Layout, upper: Path, *, newest_seconds: int | None = None) -> tuple[Layer, UpperCounts]:
    """Store the changes in ``upper`` as a layer; see ``upper_members``."""
    counts = UpperCounts()
    members = upper_members(upper, newest_seconds=newest_seconds, counts=counts)
    return store_layer(layout, tar_chunks(members)), counts


def upper_members(
    upper: Path, *, newest_seconds: int | None = None, counts: UpperCounts | None = None
) -> Iterator[Member]:
    """Yield the changes in the upper directory ``upper``, sorted; the mount may exist, but nothing should write.

    Times after ``newest_seconds`` (since 1970) are cut to it. The contents of files are read when the
    layer is written. The directory ``upper`` itself is not among the members.

    Raises:
        ImageError: it cannot be read, or was written by an overlay with redirect_dir or metacopy.
    """
    try:
        root = os.open(upper, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield from _Walk(upper, root, newest_seconds, UpperCounts() if counts is None else counts).members("")
        finally:
            os.close(root)
    except OSError as error:
        raise ImageError(
            f"cannot read the container's changes in {upper}: {error.strerror}",
            hint="stop or pause the container, and try again as the user who started it",
        ) from error


class _Walk:
    """``root`` is an open descriptor of ``upper``; nothing on the way below it is followed if it is a link."""

    def __init__(self, upper: Path, root: int, newest_seconds: int | None, counts: UpperCounts) -> None:
        self._upper = upper
        self._root = root
        self._newest = newest_seconds
        self._counts = counts
        self._first: dict[int, str] = {}  # inode -> the name it had first

    def members(self, directory: str) -> Iterator[Member]:
        """The members below ``directory``, depth first. A descriptor is open only while names are read."""
        for member, is_directory in self._children(directory):
            yield member
            if is_directory:
                yield from self.members(member.path)

    def _children(self, directory: str) -> list[tuple[Member, bool]]:
        if directory.count("/") >= MAX_DEPTH:
            raise ImageError(f"the changes nest directories deeper than {MAX_DEPTH}", hint="remove them first")
        fd = libc.openat2(self._root, directory or ".", os.O_RDONLY | os.O_DIRECTORY, libc.RESOLVE_NO_SYMLINKS)
        try:
            found: list[tuple[Member, bool]] = []
            for name in sorted(os.listdir(fd)):
                path = os.path.join(directory, name)
                if name.startswith(WHITEOUT):
                    raise ImageError(f"{path!r} has a name that means a removal in a layer", hint="rename it first")
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                found += self._member(path, f"/proc/self/fd/{fd}/{name}", status)
            return found
        finally:
            os.close(fd)

    def _member(self, path: str, real: str, status: os.stat_result) -> Iterator[tuple[Member, bool]]:
        """Zero, one or two members: an opaque directory has its marker beside it."""
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFSOCK:
            self._counts.sockets += 1
            return
        if kind == stat.S_IFCHR and status.st_rdev == 0:
            above, _, name = path.rpartition("/")
            yield _marker(os.path.join(above, WHITEOUT + name)), False
            return
        first = path if kind == stat.S_IFDIR else self._first.setdefault(status.st_ino, path)
        if first != path:
            yield self._plain(path, status, link=first, hard=True), False
            return
        xattrs, notes = _split(path, real)
        yield self._content(path, real, status, xattrs), kind == stat.S_IFDIR
        if kind == stat.S_IFDIR and notes.get("opaque") == b"y":
            yield _marker(f"{path}/{OPAQUE}"), False

    def _content(self, path: str, real: str, status: os.stat_result, xattrs: dict[str, bytes]) -> Member:
        if stat.S_ISREG(status.st_mode):
            return self._plain(path, status, data=FileContent(self._upper, path, status.st_size), xattrs=xattrs)
        if stat.S_ISLNK(status.st_mode):
            return self._plain(path, status, link=os.readlink(real), xattrs=xattrs)
        if stat.S_ISDIR(status.st_mode) or stat.S_ISFIFO(status.st_mode):
            return self._plain(path, status, xattrs=xattrs)
        device = os.major(status.st_rdev), os.minor(status.st_rdev)
        return self._plain(path, status, device=device, xattrs=xattrs)

    def _plain(
        self,
        path: str,
        status: os.stat_result,
        *,
        data: bytes | FileContent = b"",
        link: str = "",
        hard: bool = False,
        device: tuple[int, int] = (0, 0),
        xattrs: dict[str, bytes] | None = None,
    ) -> Member:
        seconds, nanoseconds = divmod(status.st_mtime_ns, 10**9)
        if self._newest is not None and (seconds, nanoseconds) > (self._newest, 0):
            seconds, nanoseconds = self._newest, 0
        return Member(
            path,
            status.st_mode,
            data,
            link=link,
            hard=hard,
            uid=status.st_uid,
            gid=status.st_gid,
            mtime=seconds,
            nanoseconds=nanoseconds,
            device=device,
            xattrs=xattrs or {},
        )


def _marker(path: str) -> Member:
    """A whiteout; nobody reads its owner or time, so they are always the same."""
    return Member(path, stat.S_IFREG | 0o600)


def _split(path: str, real: str) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The attributes to keep, sorted, and the overlay's notes without their prefix."""
    kept: dict[str, bytes] = {}
    notes: dict[str, bytes] = {}
    for name in sorted(os.listxattr(real, follow_symlinks=False)):
        note = next((name.removeprefix(prefix) for prefix in _OVERLAY if name.startswith(prefix)), None)
        try:
            value = os.getxattr(real, name, follow_symlinks=False)
        except OSError as error:
            if error.errno in (errno.ENODATA, errno.EPERM) and note is not None:
                continue
            raise
        (kept if note is None else notes)[name if note is None else note] = value
    if any(note in notes for note in _ELSEWHERE):
        raise ImageError(
            f"{path!r} is only a reference into a lower layer",
            hint="mount the overlay with redirect_dir=off and metacopy=off",
        )
    return kept, notes
