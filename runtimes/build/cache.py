"""The build cache: what a step made, found again by everything that decided it.

Below ``state/build``: ``keys/`` has a small file for each key, which names a layer; ``layers/`` has, by diff_id, the
directories that steps made, never changed once they are there, which later steps mount as lower ones. A layer's blob
lies in the image store. A directory appears by a rename, then the key by another, so a kill leaves whole entries only.
Every build holds ``lock`` shared, and only ``prune``, which holds it alone, deletes.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
import stat
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.errors import HostError, ImageError
from bench.journal import Journal
from runtimes.instance import remove_tree
from runtimes.oci.descriptor import Descriptor, canonical_json
from runtimes.oci.layer import Layer
from runtimes.oci.layout import Layout

DIRECTORY: Final = "build"
_VERSION: Final = 1
"""Part of every key: raise it when a step's meaning changes."""
_NAME_DIGITS: Final = 32
"""Of a diff_id in a directory's name: a mount's options must hold many of them."""
_KEY: Final = re.compile(r"[0-9a-f]{64}")
_CACHE_ID: Final = re.compile(r"[^A-Za-z0-9_.-]")


@dataclass(frozen=True)
class Made:
    """What a step made: the stored ``layer``, the directory ``path`` with the same, and when, as RFC 3339."""

    layer: Layer
    path: Path
    created: str


class Workplace:
    """The directories of one step in the making: ``upper`` becomes the layer, ``merged`` is where it is seen whole."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.upper = root / "upper"
        self.work = root / "work"
        self.merged = root / "merged"
        self.source = root / "source"
        self.files = root / "files"
        root.mkdir(mode=0o700)
        for path in (self.upper, self.work, self.merged, self.source, self.files):
            path.mkdir()
            path.chmod(0o755)


class Cache:
    """The cache below ``state``, in use; a context manager.

    Raises:
        HostError: it cannot be written.
    """

    def __init__(self, state: Path, layout: Layout) -> None:
        self._root = state / DIRECTORY
        self._layout = layout
        self._keys = self._root / "keys"
        self._layers = self._root / "layers"
        self._mounts = self._root / "mounts"
        self.empty = self._root / "empty"
        """The lowest directory of an image that begins with nothing."""
        try:
            # others on this machine must not reach the devices and set-user-ID programs of images
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in (self._keys, self._layers, self._mounts, self.empty):
                path.mkdir(exist_ok=True)
            self.empty.chmod(0o755)
            self._lock = os.open(self._root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_SH)
        except OSError as error:
            raise HostError(
                f"cannot write the build cache {self._root}: {error.strerror}",
                hint="set ISOMARK_STATE to a directory that you may write",
            ) from error

    def __enter__(self) -> Cache:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._lock)

    def find(self, key: str) -> Made | None:
        """Return what was made under ``key``, if all of it is still there; it is kept from the collector then."""
        record = _read_key(self._keys / key)
        if record is None:
            return None
        layer, created = record
        self._layout.keep([layer.descriptor])
        path = self._path(layer.diff_id)
        if not self._layout.has(layer.descriptor) or not path.is_dir():
            return None
        os.utime(self._keys / key)  # prune goes by when it was last of use
        return Made(layer, path, created)

    @contextmanager
    def workplace(self, journal: Journal) -> Iterator[Workplace]:
        """Directories for one step, which are gone when the block ends."""
        root = self._root / f"making-{secrets.token_hex(6)}"
        entry = journal.own("tree", path=str(root))
        try:
            yield Workplace(root)
        finally:
            remove_tree(root)
            journal.gone(entry)

    def publish(self, key: str, place: Workplace, layer: Layer, created: str) -> Made:
        """Keep what ``place`` holds under ``key``; the same made twice is kept once.

        Raises:
            HostError: the disk does not take it.
        """
        path = self._path(layer.diff_id)
        try:
            _sync_file_system(place.upper)
            if not path.is_dir():
                try:
                    place.upper.rename(path)
                except OSError:  # another build was faster
                    if not path.is_dir():
                        raise
            _write(
                self._keys / key, {"layer": layer.descriptor.to_json(), "diff_id": layer.diff_id, "created": created}
            )
        except OSError as error:
            raise HostError(
                f"cannot write the build cache {self._root}: {error.strerror}", hint="free some disk space"
            ) from error
        return Made(layer, path, created)

    @contextmanager
    def mount(self, name: str, sharing: str, mode: int, owner: tuple[int, int]) -> Iterator[Path]:
        """The directory of ``RUN --mount=type=cache``; unless ``sharing`` is shared, one step at a time has it."""
        readable = _CACHE_ID.sub("_", name)[-40:]
        path = self._mounts / f"{readable}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}"
        if not path.is_dir():
            path.mkdir(exist_ok=True)
            os.chown(path, *owner)
            path.chmod(mode)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH if sharing == "shared" else fcntl.LOCK_EX)
            yield path
        finally:
            os.close(fd)

    def _path(self, diff_id: str) -> Path:
        return self._layers / diff_id.removeprefix("sha256:")[:_NAME_DIGITS]


def key_of(facts: Mapping[str, Any]) -> str:
    """The key of a step: a digest of all that decides what it makes."""
    return hashlib.sha256(json.dumps([_VERSION, facts], sort_keys=True).encode()).hexdigest()


def blobs_in_use(state: Path) -> Iterator[str]:
    """The digests of the layers that the build cache below ``state`` can give back: for the image store's collector."""
    for path in sorted((state / DIRECTORY / "keys").glob("*")):
        if (record := _read_key(path)) is not None:
            yield record[0].descriptor.digest


@dataclass(frozen=True)
class Pruned:
    """What ``prune`` removed: keys, directories, and the bytes of the files in them."""

    keys: int
    layers: int
    bytes: int


def prune(state: Path, journal: Journal, *, unused_seconds: float = 0.0) -> Pruned:
    """Forget every step not of use for ``unused_seconds``, and delete the directories that no other one names.

    With 0 also the contents of cache mounts go. The blobs go with the image store's next collection.

    Raises:
        HostError: a build runs.
    """
    root = state / DIRECTORY
    if not root.is_dir():
        return Pruned(0, 0, 0)
    lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise HostError("a build runs and needs the cache", hint="prune when it has ended") from error
        return _prune(root, journal, time.time() - unused_seconds, everything=unused_seconds <= 0)
    finally:
        os.close(lock)


def _prune(root: Path, journal: Journal, before: float, *, everything: bool) -> Pruned:
    old = [path for path in (root / "keys").glob("*") if path.stat().st_mtime <= before or _read_key(path) is None]
    for path in old:
        path.unlink()
    kept = {
        record[0].diff_id.removeprefix("sha256:")[:_NAME_DIGITS]
        for path in (root / "keys").glob("*")
        if (record := _read_key(path)) is not None
    }
    layers = [path for path in (root / "layers").glob("*") if path.name not in kept]
    gone = [*layers, *((root / "mounts").glob("*") if everything else ())]
    size = sum(_size(path) for path in gone)
    for path in gone:
        aside = root / f"making-{secrets.token_hex(6)}"
        with journal.owning("tree", path=str(aside)):
            path.rename(aside)
            remove_tree(aside)
    return Pruned(len(old), len(layers), size)


def _size(path: Path) -> int:
    total = 0
    for folder, _, files in os.walk(path):
        for name in files:
            status = os.lstat(os.path.join(folder, name))
            total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total


def _read_key(path: Path) -> tuple[Layer, str] | None:
    try:
        value = json.loads(path.read_bytes())
        layer = Layer(Descriptor.from_json(value["layer"]), str(value["diff_id"]))
        return (layer, str(value["created"])) if _KEY.fullmatch(path.name) else None
    except (OSError, ValueError, KeyError, TypeError, ImageError):
        return None


def _write(path: Path, value: Mapping[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    with temporary.open("wb") as file:
        file.write(canonical_json(value))
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


def _sync_file_system(path: Path) -> None:
    """A power cut must not leave a half directory behind a whole key."""
    synced = subprocess.run(["sync", "--file-system", str(path)], check=False, capture_output=True, text=True)
    if synced.returncode != 0:
        raise HostError(f"the disk did not take the layer: {synced.stderr.strip()}", hint="look into dmesg")
