"""``isomark container cp``: files into a container and out of it."""

from __future__ import annotations

import os
import stat
import sys

from bench.errors import HostError, UsageError
from runtimes import identity, libc
from runtimes.engine.command import Command
from runtimes.engine.containers import find
from runtimes.engine.entries import TarSink, TreeSink, of_tar, of_tree
from runtimes.engine.place import Place
from runtimes.engine.reach import Reach

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from runtimes.engine.entries import Entry
    from runtimes.engine.options import Options, Table

COPY: Table = (
    ("archive", "a", "", "Keep owners, set-user-ID bits and device nodes"),
    ("follow-link", "L", "", "Copy what a link leads to instead of the link"),
    ("quiet", "q", "", "Accepted for compatibility"),
)
INSIDE = libc.RESOLVE_IN_ROOT | libc.RESOLVE_NO_MAGICLINKS
"""In a container every path, and every link on it, is meant from its root."""
BELOW = libc.RESOLVE_BENEATH | libc.RESOLVE_NO_SYMLINKS | libc.RESOLVE_NO_MAGICLINKS
"""On the host nothing that a container supplied is followed."""


class Side:
    """One end of a copy: ``root`` is a descriptor of "/", there or here; ``resolve`` is how paths are walked from it.

    ``users`` are the user and group that are 0 to this side.
    """

    def __init__(self, root: int, path: str, resolve: int, users: tuple[int, int] = (0, 0)) -> None:
        self.users = users
        self.root = root
        self.path = path
        self.resolve = resolve

    def open(self, path: str, flags: int) -> int:
        """Open ``path`` on this side."""
        return libc.openat2(self.root, path, flags, self.resolve)

    def kind(self, path: str) -> int | None:
        """The type of what ``path`` leads to; ``None`` if nothing is there."""
        try:
            fd = self.open(path, os.O_PATH)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            return stat.S_IFMT(os.fstat(fd).st_mode)
        finally:
            os.close(fd)


def copy(options: Options) -> int:
    """Copy files between a container and the host."""
    if len(options.rest) != 2:
        raise UsageError("cp takes what and where to", hint="isomark container cp NAME:/path . (or - for a tar stream)")
    (from_name, source), (to_name, target) = map(_split, options.rest)
    if (from_name is None) == (to_name is None):
        raise UsageError("cp copies between a container and the host", hint="one of both is written NAME:/path")
    container = find(Place(), str(from_name or to_name))
    here = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    local = target if to_name is None else source
    host = Side(here, os.path.join(os.getcwd(), local) + ("/." if local.endswith("/.") else ""), 0)
    with Reach(container) as reach:
        there = Side(reach.root, "/" + (source if to_name is None else target).lstrip("/"), INSIDE, reach.users)
        try:
            if from_name is not None:
                _copy_out(options, there, host, to_stream=target == "-")
            else:
                if reach.users != (0, 0):  # the container has no other users, and so no place for files of root's
                    identity.act_as(*reach.users)
                _copy_in(options, host, there, from_stream=source == "-")
        except OSError as error:
            what = error.filename if isinstance(error.filename, str) else ""
            raise HostError(f"cannot copy {what or options.rest[0]}: {error.strerror}") from error
    os.close(here)
    return 0


def _split(text: str) -> tuple[str | None, str]:
    """``NAME:/path`` as (name, path); a path of the host may hold a colon behind a slash."""
    name, colon, path = text.partition(":")
    if not colon or "/" in name or text.startswith((".", "/")):
        return None, text
    return name, path or "/"


def _copy_out(options: Options, there: Side, host: Side, *, to_stream: bool) -> None:
    if to_stream:
        if os.isatty(1):
            raise UsageError("a tar stream is not for a terminal", hint="isomark container cp NAME:/path - | tar t")
        sink = TarSink(sys.stdout.buffer)
        for entry in _entries(options, there, os.path.basename(there.path.rstrip("/")) or "."):
            sink.put(entry)
        sink.close()
        sys.stdout.buffer.flush()
        return
    _copy(options, there, host, BELOW)


def _copy_in(options: Options, host: Side, there: Side, *, from_stream: bool) -> None:
    if from_stream:
        if there.kind(there.path) != stat.S_IFDIR:
            raise HostError(f"{there.path} is no directory in the container", hint="a tar stream is unpacked into one")
        sink = TreeSink(there.root, there.path, INSIDE, there.users, keeps_owner=options.flag("archive"))
        _put(of_tar(sys.stdin.buffer), sink)
        return
    _copy(options, host, there, INSIDE)


def _copy(options: Options, source: Side, target: Side, resolve: int) -> None:
    """Copy as ``docker cp`` does, which depends on what the target is."""
    contents_only = source.path.endswith("/.")
    path = source.path.rstrip("/") if not contents_only else source.path[:-2] or "/"
    kind = _source_kind(options, source, path)
    found = target.kind(target.path)
    if found is None and target.path.endswith("/") and kind != stat.S_IFDIR:
        raise HostError(f"there is no directory {target.path}")
    if kind == stat.S_IFDIR and found not in (None, stat.S_IFDIR):
        raise HostError(f"{target.path} is no directory, and {source.path} is one")
    if found == stat.S_IFDIR:
        top = "" if contents_only else os.path.basename(path)
        directory = target.path
    else:
        directory, top = os.path.split(target.path.rstrip("/"))
        if target.kind(directory) != stat.S_IFDIR:
            raise HostError(f"there is no directory {directory}")
    if top in (".", ".."):
        top = ""
    fd = target.open(directory, os.O_PATH | os.O_DIRECTORY)
    try:
        if resolve == INSIDE:
            sink = TreeSink(target.root, directory, INSIDE, target.users, keeps_owner=options.flag("archive"))
        else:
            sink = TreeSink(fd, "", BELOW, target.users, keeps_owner=options.flag("archive"))
        _put(_entries(options, Side(source.root, path, source.resolve, source.users), top), sink)
    finally:
        os.close(fd)


def _source_kind(options: Options, source: Side, path: str) -> int:
    kind = source.kind(path)
    if kind is None and not options.flag("follow-link"):  # a link that leads nowhere is copied all the same
        directory, name = os.path.split(path)
        parent = source.open(directory or "/", os.O_PATH | os.O_DIRECTORY)
        try:
            kind = stat.S_IFMT(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
        finally:
            os.close(parent)
    if kind is None:
        raise HostError(f"there is no {path}")
    return kind


def _entries(options: Options, source: Side, top: str) -> Iterable[Entry]:
    """What is at the source, under the name ``top``, with owners as that side sees them."""
    for entry in _found(options, source, top):
        entry.own_from(source.users)
        yield entry


def _found(options: Options, source: Side, top: str) -> Iterable[Entry]:
    path = source.path.rstrip("/") or "/"
    directory, name = os.path.split(path)
    if path == "/" or name in (".", ".."):
        directory, name = path, "."
    elif options.flag("follow-link"):
        fd = source.open(path, os.O_PATH)
        found = os.fstat(fd)
        if stat.S_ISDIR(found.st_mode):
            yield from of_tree(fd, ".", top)
            os.close(fd)
            return
        real = os.readlink(f"/proc/self/fd/{fd}")
        os.close(fd)
        directory, name = os.path.split(real) if source.resolve == 0 else _inside(source, path)
    parent = source.open(directory or "/", os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield from of_tree(parent, name, top)
    finally:
        os.close(parent)


def _inside(source: Side, path: str) -> tuple[str, str]:
    """Directory and name of what a link in a container leads to, followed by hand, each step from its root."""
    for _ in range(40):
        directory, name = os.path.split(path)
        parent = source.open(directory or "/", os.O_PATH | os.O_DIRECTORY)
        try:
            if not stat.S_ISLNK(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                return directory, name
            path = os.path.join(directory, os.readlink(name, dir_fd=parent))
        finally:
            os.close(parent)
    raise HostError(f"{path} is a link that leads round in circles")


def _put(entries: Iterable[Entry], sink: TreeSink) -> None:
    for entry in entries:
        sink.put(entry)
    sink.close()
    if sink.skipped:
        sys.stderr.write(f"isomark: {len(sink.skipped)} device nodes were left out; --archive copies them\n")


COMMANDS = {
    "cp": Command(copy, COPY, "[OPTIONS] CONTAINER:PATH PATH|- (or PATH|- CONTAINER:PATH)", "Copy files in or out."),
}
