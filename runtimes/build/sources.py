"""Reading what COPY and ADD copy: from the context, from another stage, from an image; all of them hostile.

Everything is reached through descriptors below the source's root, so that neither a symbolic link nor a change made
meanwhile leads outside; and nothing but regular files is ever opened to be read.
"""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from bench.errors import ImageError, UsageError
from runtimes import libc
from runtimes.build import glob
from runtimes.build.ignore import Ignore
from runtimes.oci.names import MAX_DEPTH

CHUNK_BYTES: Final = 1024**2
_IN_ROOT: Final = libc.RESOLVE_IN_ROOT | libc.RESOLVE_NO_MAGICLINKS
_KEPT_XATTRS: Final = ("security.capability", "user.")
"""Others belong to the host, or are labels of its own security module."""


@dataclass(frozen=True)
class Item:
    """One thing to copy: ``path`` is below what was named ("" for it itself), reached as ``name`` in ``parent``."""

    path: str
    parent: int
    name: str
    status: os.stat_result

    @property
    def is_directory(self) -> bool:
        """Whether there may be more below it."""
        return stat.S_ISDIR(self.status.st_mode)

    def link(self) -> str:
        """Where a symbolic link points."""
        return os.readlink(self.name, dir_fd=self.parent)

    def xattrs(self) -> Mapping[str, bytes]:
        """The extended attributes that are copied."""
        real = f"/proc/self/fd/{self.parent}/{self.name}"
        names = [name for name in sorted(os.listxattr(real, follow_symlinks=False)) if name.startswith(_KEPT_XATTRS)]
        return {name: os.getxattr(real, name, follow_symlinks=False) for name in names}

    def chunks(self) -> Iterator[bytes]:
        """The content of a regular file.

        Raises:
            ImageError: it is something else by now.
        """
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(self.name, flags, dir_fd=self.parent)
        with open(fd, "rb", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ImageError(f"{self.name} changed while it was copied", hint="build again when nothing writes")
            while data := file.read(CHUNK_BYTES):
                yield data


@dataclass(frozen=True)
class Named:
    """One source of an instruction, found: ``path`` is where it really is below the root, ``name`` how it is called."""

    path: str
    name: str
    is_directory: bool


class SourceRoot:
    """The tree that sources are named in; a context manager. ``what`` names it in messages."""

    def __init__(self, path: str, what: str, ignore: Ignore | None = None) -> None:
        self._fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._prefix = os.readlink(f"/proc/self/fd/{self._fd}").rstrip("/")
        self._ignore = ignore or Ignore()
        self._what = what

    def __enter__(self) -> SourceRoot:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def find(self, pattern: str) -> list[Named]:
        """Every thing that ``pattern`` names, in order; a wildcard may name nothing.

        Raises:
            UsageError: it leads outside, or the pattern is malformed.
            ImageError: nothing is there.
        """
        cleaned = posixpath.normpath(pattern).lstrip("/")
        if cleaned == ".." or cleaned.startswith("../"):
            raise UsageError(f"{pattern!r} leads outside {self._what}", hint="copy it into the context first")
        if not glob.has_wildcard(cleaned):
            return [self._plain(cleaned, pattern)]
        try:
            paths = self._expanded("", [glob.path_tokens(part) for part in cleaned.split("/")])
        except glob.BadPattern as error:
            raise UsageError(str(error), hint="a bracket itself is written [[]") from error
        return [self._plain(path, pattern) for path in paths if not self._ignore.hides(path)]

    def items(self, named: Named) -> Iterator[Item]:
        """Yield ``named`` itself and everything below it, parents before children, sorted by name.

        An item is good only until the next one is asked for.

        Raises:
            ImageError: directories are nested too deep.
        """
        above, _, name = named.path.rpartition("/")
        with self._opened(above) as parent:
            status = os.stat(name or ".", dir_fd=parent, follow_symlinks=False)
            top = Item("", parent, name or ".", status)
            yield top
            if top.is_directory:
                yield from self._below(top, named.path, 1)

    def excluded(self, path: str) -> bool:
        """Whether the ignore file leaves ``path`` out."""
        return self._ignore.hides(path)

    def _below(self, directory: Item, path: str, depth: int) -> Iterator[Item]:
        if depth > MAX_DEPTH:
            raise ImageError(f"{self._what} nests directories deeper than {MAX_DEPTH}", hint="copy less of it")
        fd = os.open(
            directory.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory.parent
        )
        try:
            for name in sorted(os.listdir(fd)):
                real = posixpath.join(path, name)
                item = Item(
                    posixpath.join(directory.path, name), fd, name, os.stat(name, dir_fd=fd, follow_symlinks=False)
                )
                hidden = self._ignore.hides(real)
                if not hidden:
                    yield item
                if item.is_directory and not (hidden and self._ignore.hides_all_below(real)):
                    yield from self._below(item, real, depth + 1)
        finally:
            os.close(fd)

    def _plain(self, path: str, pattern: str) -> Named:
        try:
            fd = libc.openat2(self._fd, path or ".", os.O_PATH, _IN_ROOT)
        except OSError as error:
            raise self._missing(pattern) from error
        try:
            real = os.readlink(f"/proc/self/fd/{fd}")[len(self._prefix) :].lstrip("/")
            is_directory = stat.S_ISDIR(os.fstat(fd).st_mode)
        finally:
            os.close(fd)
        if self._ignore.hides(real) and not (is_directory and self._ignore.has_exceptions):
            raise self._missing(pattern, hidden=True)
        return Named(real, posixpath.basename(path), is_directory)

    def _expanded(self, directory: str, parts: list[list[glob.Token]]) -> list[str]:
        """The paths below ``directory`` that fit the patterns of their parts."""
        names = self._names(directory)
        fitting = [posixpath.join(directory, name) for name in names if glob.matches(parts[0], name)]
        return fitting if len(parts) == 1 else [path for name in fitting for path in self._expanded(name, parts[1:])]

    def _names(self, directory: str) -> list[str]:
        try:
            fd = libc.openat2(self._fd, directory or ".", os.O_RDONLY | os.O_DIRECTORY, _IN_ROOT)
        except (NotADirectoryError, FileNotFoundError):
            return []
        try:
            return sorted(os.listdir(fd))
        finally:
            os.close(fd)

    @contextmanager
    def _opened(self, directory: str) -> Iterator[int]:
        fd = libc.openat2(self._fd, directory or ".", os.O_PATH | os.O_DIRECTORY, libc.RESOLVE_NO_SYMLINKS)
        try:
            yield fd
        finally:
            os.close(fd)

    def _missing(self, pattern: str, *, hidden: bool = False) -> ImageError:
        if hidden:
            return ImageError(f"{pattern!r} is left out of {self._what}", hint="see its .dockerignore")
        return ImageError(
            f"there is no {pattern!r} in {self._what}", hint="sources are named relative to its root; links end inside"
        )
