"""COPY and ADD: what their sources are, as a digest that the cache is keyed by, and writing them into the image's tree.

Both go over the same things in the same order, so that a copy can prove that it wrote what the digest says.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bench.errors import ImageError, UsageError
from runtimes.build import archive
from runtimes.build.ignore import Ignore
from runtimes.build.ownership import find_owner, read_mode
from runtimes.build.placing import Looks, Placer
from runtimes.build.sources import Item, Named, SourceRoot

_NAMES: Final = {
    stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink", stat.S_IFCHR: "character",
    stat.S_IFBLK: "block", stat.S_IFIFO: "fifo",
}  # fmt: skip
"""Sockets are not here: nobody can use one that was copied."""


@dataclass(frozen=True)
class Extra:
    """A file of our own among the sources: a here-document or a download. ``path`` is where it is on the host."""

    path: str
    name: str


@dataclass(frozen=True)
class Order:
    """What one instruction asks for, with all variables replaced.

    ``target`` is absolute and keeps its trailing slash; ``keeps_owner`` is for sources that are images' trees;
    ``unpacks`` is ADD's way with archives; ``what`` names the sources' root in messages.
    """

    sources: tuple[str, ...]
    extras: tuple[Extra, ...]
    target: str
    what: str
    ignored: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    owner: str = ""
    mode: str = ""
    keeps_owner: bool = False
    unpacks: bool = False

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Order:
        """What ``vars`` made of one, after a journey as JSON."""
        fields: dict[str, Any] = {key: tuple(item) if isinstance(item, list) else item for key, item in value.items()}
        fields["extras"] = tuple(Extra(**extra) for extra in value["extras"])
        return cls(**fields)

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON has them."""
        return {**vars(self), "extras": [vars(extra) for extra in self.extras]}


def survey(order: Order, root: str | None) -> str:
    """Return the digest of the sources of ``order`` below the directory ``root``: names, kinds, modes and contents.

    Owners count where they are kept; times never do.

    Raises:
        ImageError: a source is missing.
        UsageError: one leads outside, or a pattern is malformed.
    """
    return _Copier(order, None).run(root)


def copy(order: Order, root: str | None, target: int) -> str:
    """Write the sources of ``order`` below the tree that ``target`` is a descriptor of; return the same digest.

    Raises:
        ImageError: see ``survey``, and what the tree refuses.
        UsageError: see ``survey``; or an owner or mode is malformed.
    """
    owner = find_owner(order.owner, target) if order.owner else None
    placer = Placer(target, owner, read_mode(order.mode) if order.mode else None)
    return _Copier(order, placer).run(root)


class _Copier:
    def __init__(self, order: Order, placer: Placer | None) -> None:
        self._order = order
        self._placer = placer
        self._hash = hashlib.sha256()
        self._first: dict[tuple[int, int], tuple[str, str]] = {}  # inode -> its first name, here and in the image
        self._kept: set[str] = set()  # directories that were there before
        self._into = order.target.endswith("/")
        self._target = posixpath.normpath(order.target)

    def run(self, root: str | None) -> str:
        ignore = Ignore(self._order.ignored)
        excluded = Ignore(self._order.excluded)
        if root is None:
            self._all([], None, excluded)
        else:
            with SourceRoot(root, self._order.what, ignore) as source:
                found = [named for pattern in self._order.sources for named in source.find(pattern)]
                self._all(found, source, excluded)
        return f"sha256:{self._hash.hexdigest()}"

    def _all(self, found: Sequence[Named], source: SourceRoot | None, excluded: Ignore) -> None:
        self._check_target(found)
        for number, named in enumerate(found):
            assert source is not None
            self._named(number, named, source, excluded)
        for extra in self._order.extras:
            self._extra(extra)

    def _check_target(self, found: Sequence[Named]) -> None:
        count = len(found) + len(self._order.extras)
        if not count:
            raise ImageError(
                f"nothing in {self._order.what} fits {' '.join(self._order.sources)}",
                hint="look at the pattern and at .dockerignore",
            )
        if self._placer is not None and not self._into:
            self._into = self._placer.is_directory(self._target)
        many = count > 1 or len(self._order.sources) + len(self._order.extras) > 1
        # the survey does not know the image's tree; the copy does
        if many and not self._into and self._placer is not None:
            raise UsageError(
                f"several sources cannot become the one file {self._target}", hint=f"end the target: {self._target}/"
            )
        self._record({"names": ["" if named.is_directory else named.name for named in found]})

    def _named(self, number: int, named: Named, source: SourceRoot, excluded: Ignore) -> None:
        base = self._target if named.is_directory or not self._into else posixpath.join(self._target, named.name)
        times: list[tuple[str, int]] = []
        for item in source.items(named):
            if excluded.hides(posixpath.join(named.path, item.path).strip("/")):
                continue
            path = posixpath.join(base, item.path) if item.path else base
            if not self._unpack(item, named.name):
                self._item(f"{number}/{item.path}", item, path)
            if item.is_directory and (item.path or base not in self._kept):
                times.append((path, item.status.st_mtime_ns))
        if self._placer is not None:
            for path, mtime_ns in reversed(times):
                self._placer.settle(path, mtime_ns)

    def _extra(self, extra: Extra) -> None:
        above, name = os.path.split(extra.path)
        parent = os.open(above, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            item = Item("", parent, name, os.stat(name, dir_fd=parent, follow_symlinks=False))
            path = posixpath.join(self._target, extra.name) if self._into else self._target
            self._item(f"extra/{extra.name}", item, path)
        finally:
            os.close(parent)

    def _item(self, key: str, item: Item, path: str) -> None:
        kind = _NAMES.get(stat.S_IFMT(item.status.st_mode))
        if kind is None:
            return
        status = item.status
        owner = (status.st_uid, status.st_gid) if self._order.keeps_owner else (0, 0)
        looks = Looks(status.st_mode, owner, status.st_mtime_ns, {} if kind == "symlink" else item.xattrs())
        record: dict[str, Any] = {
            "name": key, "kind": kind, "mode": 0 if kind == "symlink" else stat.S_IMODE(status.st_mode),
            "owner": owner, "xattrs": {name: value.hex() for name, value in looks.xattrs.items()},
        }  # fmt: skip
        if kind == "file":
            record |= self._file(key, item, path, looks)
        elif kind == "symlink":
            record["link"] = item.link()
            if self._placer is not None:
                self._placer.symlink(path, record["link"], looks)
        elif kind == "directory":
            if self._placer is not None and not self._placer.directory(path, looks, keep=not item.path):
                self._kept.add(path)
        else:
            device = (os.major(status.st_rdev), os.minor(status.st_rdev))
            record["device"] = device
            if self._placer is not None:
                self._placer.node(path, looks, device)
        self._record(record)

    def _file(self, key: str, item: Item, path: str, looks: Looks) -> dict[str, str]:
        inode = (item.status.st_dev, item.status.st_ino)
        if item.status.st_nlink > 1:
            first_key, first_path = self._first.setdefault(inode, (key, path))
            if first_key != key:
                if self._placer is not None:
                    self._placer.hard_link(path, first_path)
                return {"hard": first_key}
        hashed = hashlib.sha256()
        chunks = _hashing(item.chunks(), hashed.update)
        if self._placer is not None:
            self._placer.file(path, looks, chunks)
        else:
            for _ in chunks:
                pass
        return {"content": hashed.hexdigest()}

    def _unpack(self, item: Item, name: str) -> bool:
        """Extract ``item`` if that is what ADD does with it."""
        if not self._order.unpacks or item.path or not stat.S_ISREG(item.status.st_mode):
            return False
        tar = archive.opened(item.chunks())
        if tar is None:
            return False
        hashed = hashlib.sha256()
        for chunk in item.chunks():
            hashed.update(chunk)
        if self._placer is not None:
            self._placer.make_directories(self._target)
            archive.extract(tar, self._placer, self._target, name)
        self._record({"archive": hashed.hexdigest()})
        return True

    def _record(self, record: dict[str, Any]) -> None:
        # escaped to ASCII: a name may hold any bytes
        self._hash.update(json.dumps(record, sort_keys=True).encode() + b"\n")


def _hashing(chunks: Iterator[bytes], update: Any) -> Iterator[bytes]:  # noqa: ANN401 - a hash's update
    for chunk in chunks:
        update(chunk)
        yield chunk
