"""Hiding what lower layers hold, and sparing what the layer at hand made (image-spec 1.1, layer.md, "Whiteouts")."""

from __future__ import annotations

import os
import shutil
import stat

from bench.errors import ImageError
from runtimes.oci.directories import Directories
from runtimes.oci.names import AUFS_NOTES, MALICIOUS, OPAQUE, WHITEOUT


class Whiteouts:
    """The whiteouts of one layer, and what it made itself; names are relative to the tree's root, links resolved."""

    def __init__(self) -> None:
        self._made: set[str] = set()  # what this layer made, and
        self._above: set[str] = {""}  # the directories that hold it
        self._hidden: set[str] = set()

    def spare(self, directory: str, path: str) -> None:
        """Note that this layer made ``path`` in ``directory``."""
        self._made.add(path)
        while directory not in self._above:
            self._above.add(directory)
            directory = directory.rpartition("/")[0]

    def apply(self, directories: Directories, name: str) -> None:
        """Do what the whiteout ``name`` says in the directory entered last.

        Raises:
            ImageError: it names no file.
            OSError: the kernel refuses.
        """
        if name == OPAQUE:
            if self._is_first(f"{directories.name}/"):
                self._hide_below(directories.fd, ".", directories.name)
            return
        if name.startswith(AUFS_NOTES):
            return
        hidden = name.removeprefix(WHITEOUT)
        if hidden in ("", ".", ".."):
            raise ImageError(f"a layer has the whiteout {name!r}", hint=MALICIOUS)
        path = os.path.join(directories.name, hidden)
        if self._is_first(path):
            self._hide(directories.fd, hidden, path)

    def _is_first(self, path: str) -> bool:
        """Whether ``path`` was not hidden before in this layer: repeating it must not cost time."""
        first = path not in self._hidden
        self._hidden.add(path)
        return first

    def _hide(self, parent: int, name: str, path: str) -> None:
        try:
            found = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return
        if not stat.S_ISDIR(found.st_mode):
            if path not in self._made:
                os.unlink(name, dir_fd=parent)
        elif path in self._made or path in self._above:
            self._hide_below(parent, name, path)
        else:
            remove(parent, name)

    def _hide_below(self, parent: int, name: str, path: str) -> None:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            for other in os.listdir(fd):
                self._hide(fd, other, os.path.join(path, other))
        finally:
            os.close(fd)


def remove(parent: int, name: str) -> None:
    """Remove ``name`` with all below it, if it is there; no link is followed.

    Raises:
        OSError: the kernel refuses.
    """
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        return
    except IsADirectoryError:
        shutil.rmtree(name, dir_fd=parent)
