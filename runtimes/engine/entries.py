"""Files on their way between a container and the host, as entries of a tree or of a tar stream."""

from __future__ import annotations

import os
import stat
import tarfile

from bench.errors import HostError
from runtimes import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO

CHUNK = 1 << 20
NOBODY = 65534
"""Whom the kernel shows for users that a namespace does not have (user_namespaces(7))."""
MAX_DEPTH = 256
"""Directories within directories that are followed; a hostile container could nest them without end."""
_WALK = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_KINDS = {
    tarfile.REGTYPE: stat.S_IFREG, tarfile.AREGTYPE: stat.S_IFREG, tarfile.CONTTYPE: stat.S_IFREG,
    tarfile.DIRTYPE: stat.S_IFDIR, tarfile.SYMTYPE: stat.S_IFLNK, tarfile.FIFOTYPE: stat.S_IFIFO,
    tarfile.CHRTYPE: stat.S_IFCHR, tarfile.BLKTYPE: stat.S_IFBLK, tarfile.LNKTYPE: stat.S_IFREG,
    tarfile.GNUTYPE_SPARSE: stat.S_IFREG,
}  # fmt: skip


class Entry:
    """One file, directory or other thing.

    Attributes:
        path: Below what is copied; empty for the top itself.
        mode: Type and permissions.
        link: Text of a symbolic link, or with ``hard`` the path of the entry that this one is another name of.
        device: Numbers of a device node.
    """

    __slots__ = ("_content", "device", "gid", "hard", "link", "mode", "mtime_ns", "path", "size", "uid")

    def __init__(self, path: str, mode: int, content: IO[bytes] | int | None) -> None:
        self.path = path
        self.mode = mode
        self.uid = self.gid = self.mtime_ns = self.size = self.device = 0
        self.link = ""
        self.hard = False
        self._content = content

    def own_from(self, users: tuple[int, int]) -> None:
        """Let the owner be as who sees ``users`` as 0 sees it; who is below is nobody."""
        if users != (0, 0):
            self.uid = self.uid - users[0] if self.uid >= users[0] else NOBODY
            self.gid = self.gid - users[1] if self.gid >= users[1] else NOBODY

    def chunks(self) -> Iterator[bytes]:
        """The content, exactly ``size`` bytes: a file that shrinks meanwhile is filled up, as tar does."""
        left = self.size
        while left and self._content is not None:
            wanted = min(left, CHUNK)
            data = os.read(self._content, wanted) if isinstance(self._content, int) else self._content.read(wanted)
            data = data or bytes(wanted)
            left -= len(data)
            yield data


def of_tree(parent: int, name: str, top: str) -> Iterator[Entry]:
    """``name`` in the directory ``parent`` and all below it, as ``top`` and below; no link is followed.

    Raises:
        OSError: something cannot be read.
        HostError: it is nested too deeply.
    """
    yield from _Tree().walk(parent, name, top, 0)


class _Tree:
    def __init__(self) -> None:
        self._first: dict[tuple[int, int], str] = {}

    def walk(self, parent: int, name: str, path: str, depth: int) -> Iterator[Entry]:
        if depth > MAX_DEPTH:
            raise HostError(f"{path[:200]}… is nested more than {MAX_DEPTH} directories deep")
        found = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if stat.S_ISSOCK(found.st_mode):  # means nothing without the process that listens
            return
        if stat.S_ISREG(found.st_mode):
            yield from self._file(parent, name, path)
            return
        entry = _described(Entry(path, found.st_mode, None), found)
        if stat.S_ISLNK(found.st_mode):
            entry.link = os.readlink(name, dir_fd=parent)
        yield entry
        if stat.S_ISDIR(found.st_mode):
            fd = os.open(name, _WALK | os.O_DIRECTORY, dir_fd=parent)
            try:
                for child in sorted(os.listdir(fd)):
                    yield from self.walk(fd, child, f"{path}/{child}" if path else child, depth + 1)
            finally:
                os.close(fd)

    def _file(self, parent: int, name: str, path: str) -> Iterator[Entry]:
        fd = os.open(name, _WALK | os.O_NONBLOCK | os.O_NOCTTY, dir_fd=parent)
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):  # somebody exchanged it
                return
            entry = _described(Entry(path, found.st_mode, fd), found)
            if found.st_nlink > 1:
                first = self._first.setdefault((found.st_dev, found.st_ino), path)
                if first != path:
                    entry.hard, entry.link, entry.size = True, first, 0
            yield entry
        finally:
            os.close(fd)


def _described(entry: Entry, found: os.stat_result) -> Entry:
    entry.uid, entry.gid, entry.mtime_ns = found.st_uid, found.st_gid, found.st_mtime_ns
    entry.size = found.st_size if stat.S_ISREG(found.st_mode) else 0
    entry.device = found.st_rdev
    return entry


def of_tar(stream: IO[bytes]) -> Iterator[Entry]:
    """The members of a tar stream, compressed or not, as they come.

    Raises:
        HostError: it is no tar, or has a member of an unknown kind or with a way up in its name.
    """
    try:
        with tarfile.open(fileobj=stream, mode="r|*") as archive:
            for member in archive:
                yield _member(archive, member)
    except tarfile.TarError as error:
        raise HostError(f"our input is no tar archive: {error}") from error


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Entry:
    if member.type not in _KINDS:
        raise HostError(f"{member.name[:200]!r} in the archive is of an unknown kind")
    content = archive.extractfile(member) if member.isreg() else None
    entry = Entry(safe(member.name), _KINDS[member.type] | member.mode & 0o7777, content)
    entry.uid, entry.gid, entry.mtime_ns = member.uid, member.gid, int(member.mtime * 10**9)
    entry.size = member.size if member.isreg() else 0
    entry.hard = member.islnk()
    entry.link = safe(member.linkname) if entry.hard else member.linkname
    if member.isdev() and not member.isfifo():
        entry.device = os.makedev(member.devmajor, member.devminor)
    return entry


def safe(path: str) -> str:
    """``path`` of an archive, relative and without ``.``.

    Raises:
        HostError: it leads up.
    """
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in path:
        raise HostError(f"{path[:200]!r} in the archive leads out of it")
    return "/".join(parts)


class TarSink:
    """Writes entries as a tar stream."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._archive = tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT)  # noqa: SIM115

    def put(self, entry: Entry) -> None:
        """Write one."""
        member = tarfile.TarInfo(entry.path or ".")
        member.mode, member.uid, member.gid = entry.mode & 0o7777, entry.uid, entry.gid
        member.mtime = entry.mtime_ns // 10**9
        member.linkname = entry.link
        member.devmajor, member.devminor = os.major(entry.device), os.minor(entry.device)
        kinds = {kind: code for code, kind in reversed(_KINDS.items())}
        member.type = tarfile.LNKTYPE if entry.hard else kinds[stat.S_IFMT(entry.mode)]
        member.size = entry.size
        self._archive.addfile(member, _Reader(entry))

    def close(self) -> None:
        """Write the archive's end."""
        self._archive.close()


class _Reader:
    """What ``tarfile`` reads a member's content from."""

    def __init__(self, entry: Entry) -> None:
        self._chunks = entry.chunks()
        self._rest = b""

    def read(self, size: int = CHUNK, /) -> bytes:
        """Up to ``size`` bytes, fewer only at the end."""
        while len(self._rest) < size and (data := next(self._chunks, b"")):
            self._rest += data
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken


class TreeSink:
    """Makes entries below ``prefix`` in the directory ``root``; ``resolve``: how ways to them are walked (openat2(2)).

    ``users`` are the user and group that are 0 there. ``keeps_owner``: entries keep their owner, set-user-ID bits and
    device nodes; otherwise all belongs to who copies.
    """

    def __init__(
        self, root: int, prefix: str, resolve: int, users: tuple[int, int] = (0, 0), *, keeps_owner: bool
    ) -> None:
        self.skipped: list[str] = []
        self._root = root
        self._prefix = prefix
        self._resolve = resolve
        self._users = users
        self._keeps_owner = keeps_owner
        self._directories: list[Entry] = []

    def put(self, entry: Entry) -> None:
        """Make one; what is there under its name gives way, but a directory stays one.

        Raises:
            OSError: it cannot be made.
        """
        parent_path, _, name = entry.path.rpartition("/")
        if not name:
            return
        try:
            parent = self._open(parent_path)
        except FileNotFoundError:  # an archive need not name the directories on the way
            self.put(Entry(parent_path, stat.S_IFDIR | 0o755, None))
            parent = self._open(parent_path)
        try:
            self._make(parent, name, entry)
        finally:
            os.close(parent)

    def close(self) -> None:
        """Give new directories their permissions and times, which making something in them needs and changes."""
        for entry in reversed(self._directories):
            parent = self._open(entry.path.rpartition("/")[0])
            self._dress(parent, entry.path.rpartition("/")[2], entry)
            os.close(parent)

    def _open(self, path: str) -> int:
        return libc.openat2(
            self._root, f"{self._prefix}/{path}".strip("/") or ".", os.O_RDONLY | os.O_DIRECTORY, self._resolve
        )

    def _make(self, parent: int, name: str, entry: Entry) -> None:
        kind = stat.S_IFMT(entry.mode)
        if kind == stat.S_IFDIR and self._is_directory(parent, name):
            return
        if kind in (stat.S_IFCHR, stat.S_IFBLK) and not self._keeps_owner:
            self.skipped.append(entry.path)
            return
        self._clear(parent, name)
        if entry.hard:
            self._link(parent, name, entry)
            return
        if kind == stat.S_IFREG:
            self._write(parent, name, entry)
        elif kind == stat.S_IFDIR:
            os.mkdir(name, 0o700, dir_fd=parent)
            self._directories.append(entry)
            return
        elif kind == stat.S_IFLNK:
            os.symlink(entry.link, name, dir_fd=parent)
        else:
            os.mknod(name, kind | 0o600, entry.device, dir_fd=parent)
        self._dress(parent, name, entry)

    def _is_directory(self, parent: int, name: str) -> bool:
        """Whether a directory, or here a link to one, is there already."""
        try:
            fd = libc.openat2(parent, name, os.O_PATH | os.O_DIRECTORY, libc.RESOLVE_BENEATH | libc.RESOLVE_NO_SYMLINKS)
        except OSError:
            return False
        os.close(fd)
        return True

    def _clear(self, parent: int, name: str) -> None:
        try:
            os.unlink(name, dir_fd=parent)
        except FileNotFoundError:
            return

    def _link(self, parent: int, name: str, entry: Entry) -> None:
        source = self._open(entry.link.rpartition("/")[0])
        try:
            os.link(entry.link.rpartition("/")[2], name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(source)

    def _write(self, parent: int, name: str, entry: Entry) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=parent)
        try:
            for chunk in entry.chunks():
                view = memoryview(chunk)
                while view:
                    view = view[os.write(fd, view) :]
        finally:
            os.close(fd)

    def _dress(self, parent: int, name: str, entry: Entry) -> None:
        if self._keeps_owner:
            user, group = entry.uid + self._users[0], entry.gid + self._users[1]
            os.chown(name, user, group, dir_fd=parent, follow_symlinks=False)
        if not stat.S_ISLNK(entry.mode):
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            try:
                os.chmod(f"/proc/self/fd/{fd}", entry.mode & (0o7777 if self._keeps_owner else 0o1777))
            finally:
                os.close(fd)
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=parent, follow_symlinks=False)
