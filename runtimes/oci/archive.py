"""An image archive opened for reading: a tar, of whatever compression, or a directory, by the names in it.

Archives are hostile: names that lead outside, links, absurd sizes and bombs are refused; nothing is ever extracted.
"""

from __future__ import annotations

import bz2
import lzma
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from bench.errors import ImageError, UsageError
from bench.units import format_bytes
from runtimes.oci.descriptor import MAX_DOCUMENT_BYTES
from runtimes.oci.ingest import storing
from runtimes.oci.stream import LayerStream, decompress
from runtimes.oci.tar import Entry, entries

CHUNK_BYTES: Final = 1024**2
_MAX_MEMBERS: Final = 1_000_000
_MAX_LINKS: Final = 8
_MALICIOUS: Final = "the archive is damaged or malicious"
_WANTED: Final = "import takes what skopeo copy, docker save or tar wrote"
_MAGIC: Final = ((b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"\xfd7zXZ\0", "xz"), (b"BZh", "bzip2"))


class Archive(Protocol):
    """Files by name."""

    def has(self, name: str) -> bool:
        """Whether there is a file ``name``."""

    def size(self, name: str) -> int:
        """Its size in bytes. Raises ImageError if there is none."""

    def chunks(self, name: str) -> Iterator[bytes]:
        """Its content. Raises ImageError if there is none."""


def read(archive: Archive, name: str) -> bytes:
    """Return a small file of an archive.

    Raises:
        ImageError: there is none, or it is larger than any document should be.
    """
    if archive.size(name) > MAX_DOCUMENT_BYTES:
        raise ImageError(f"{name} of the archive has {archive.size(name)} bytes", hint=_MALICIOUS)
    return b"".join(archive.chunks(name))


class DirectoryArchive:
    """An image layout that is a directory."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def has(self, name: str) -> bool:
        """See ``Archive``."""
        return (self._root / name).is_file()

    def size(self, name: str) -> int:
        """See ``Archive``."""
        with self._open(name) as file:
            return os.fstat(file.fileno()).st_size

    def chunks(self, name: str) -> Iterator[bytes]:
        """See ``Archive``."""
        with self._open(name) as file:
            while data := file.read(CHUNK_BYTES):
                yield data

    def _open(self, name: str) -> BinaryIO:
        try:
            # not a link, and no pipe that would keep us waiting
            fd = os.open(self._root / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            raise ImageError(f"cannot read {name} of {self._root}: {error.strerror}", hint=_MALICIOUS) from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise ImageError(f"{name} of {self._root} is no regular file", hint=_MALICIOUS)
        return os.fdopen(fd, "rb", buffering=0)


@dataclass(frozen=True)
class _Member:
    offset: int
    size: int
    link: str | None


class TarArchive:
    """A tar in a file that can be read at any place."""

    def __init__(self, file: BinaryIO, budget_bytes: int) -> None:
        self._file = file
        self._members: dict[str, _Member] = {}
        stream = LayerStream(self._pieces(0, os.fstat(file.fileno()).st_size), budget_bytes)
        for entry in _entries(stream):
            if len(self._members) >= _MAX_MEMBERS:
                raise ImageError(f"the archive holds more than {_MAX_MEMBERS} files", hint=_MALICIOUS)
            if entry.kind in ("file", "symlink", "hardlink"):
                link = _joined(entry.path, entry.link) if entry.kind == "symlink" else entry.link or None
                self._members[_normal(entry.path)] = _Member(stream.consumed, entry.size, link)

    def has(self, name: str) -> bool:
        """See ``Archive``."""
        return self._find(name) is not None

    def size(self, name: str) -> int:
        """See ``Archive``."""
        return self._demand(name).size

    def chunks(self, name: str) -> Iterator[bytes]:
        """See ``Archive``."""
        member = self._demand(name)
        return self._pieces(member.offset, member.size)

    def _demand(self, name: str) -> _Member:
        member = self._find(name)
        if member is None:
            raise ImageError(f"the archive holds no {name[:200]}", hint="it is cut off, or of another kind")
        return member

    def _find(self, name: str) -> _Member | None:
        """The file ``name``, through links: older archives share layers so."""
        for _ in range(_MAX_LINKS):
            member = self._members.get(_normal(name))
            if member is None or member.link is None:
                return member
            name = member.link
        return None

    def _pieces(self, offset: int, size: int) -> Iterator[bytes]:
        while size:
            data = os.pread(self._file.fileno(), min(CHUNK_BYTES, size), offset)
            if not data:
                raise ImageError("the archive became shorter while it was read", hint="import it again")
            offset += len(data)
            size -= len(data)
            yield data


def _entries(stream: LayerStream) -> Iterator[Entry]:
    """As ``entries``; what fails at its first header was never a tar."""
    is_tar = False
    try:
        for entry in entries(stream):
            is_tar = True
            yield entry
    except ImageError as error:
        if is_tar:
            raise
        raise ImageError("that is neither an OCI layout nor a tar", hint=_WANTED) from error


@contextmanager
def opened(source: Path | BinaryIO, scratch: Path, budget_bytes: int) -> Iterator[tuple[Archive, BinaryIO | None]]:
    """Offer what ``source``, a path or a stream, holds, and the plain tar itself if it is one.

    A stream or a compressed file is unpacked into an unnamed file in the directory ``scratch`` first, of at most
    ``budget_bytes``.

    Raises:
        UsageError: there is nothing at that path.
        ImageError: it is neither a tar nor a directory, or is damaged.
    """
    if isinstance(source, Path) and source.is_dir():
        yield DirectoryArchive(source), None
        return
    with _file(source) as file:
        head = file.peek(8)[:8]  # type: ignore[attr-defined]  # both are buffered
        compression = compression_of(head)
        if compression == "none" and isinstance(source, Path) and source.is_file():
            yield TarArchive(file, budget_bytes), file
            return
        with storing(scratch):
            spool = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115 - closed below
        with spool:
            _spool(_plain(file, compression), spool, budget_bytes, scratch)
            yield TarArchive(spool, budget_bytes), spool


def compression_of(head: bytes) -> str:
    """What a file is compressed with, by its first bytes; "none" if with nothing known."""
    return next((name for magic, name in _MAGIC if head.startswith(magic)), "none")


def chunks_of(file: BinaryIO) -> Iterator[bytes]:
    """The rest of a file."""
    while data := file.read(CHUNK_BYTES):
        yield data


@contextmanager
def _file(source: Path | BinaryIO) -> Iterator[BinaryIO]:
    if not isinstance(source, Path):
        yield source
        return
    try:
        file = source.open("rb")
    except OSError as error:
        raise UsageError(f"cannot read {source}: {error.strerror}", hint="name a tar or a directory") from error
    with file:
        yield file


def _plain(file: BinaryIO, compression: str) -> Iterator[bytes]:
    if compression == "xz":
        return _stdlib(file, lzma.LZMADecompressor(memlimit=1024**3))
    if compression == "bzip2":
        return _stdlib(file, bz2.BZ2Decompressor())
    return decompress(chunks_of(file), compression)


def _stdlib(file: BinaryIO, decompressor: lzma.LZMADecompressor | bz2.BZ2Decompressor) -> Iterator[bytes]:
    """One stream of xz or bzip2, in pieces of at most 1 MiB."""
    try:
        while not decompressor.eof:
            data = file.read(CHUNK_BYTES) if decompressor.needs_input else b""
            if not data and decompressor.needs_input:
                raise ImageError("the archive ends too early", hint=_MALICIOUS)
            yield decompressor.decompress(data, CHUNK_BYTES)
    except (OSError, lzma.LZMAError) as error:
        raise ImageError(f"the archive is corrupt: {error}", hint=_MALICIOUS) from error


def _spool(chunks: Iterable[bytes], spool: BinaryIO, budget_bytes: int, scratch: Path) -> None:
    left = budget_bytes
    for chunk in chunks:
        left -= len(chunk)
        if left < 0:
            raise ImageError(
                f"the archive unpacks to more than the {format_bytes(budget_bytes)} allowed", hint=_MALICIOUS
            )
        with storing(scratch):
            spool.write(chunk)
    with storing(scratch):
        spool.flush()


def _normal(name: str) -> str:
    return os.path.normpath(name).lstrip("/")


def _joined(name: str, link: str) -> str:
    """Where a symbolic link in an archive points, within the archive."""
    return os.path.normpath(os.path.join(os.path.dirname(name), link)).lstrip("/")
