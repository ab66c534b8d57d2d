"""Writing layers: the same entries always give the same tar, the same gzip and the same digests."""

from __future__ import annotations

import hashlib
import os
import stat
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from isal import isal_zlib

from bench.errors import ImageError
from runtimes import libc
from runtimes.oci.descriptor import LAYER_GZIP, Descriptor
from runtimes.oci.layout import Layout
from runtimes.oci.names import WHITEOUT

GZIP_LEVEL: Final = 3
"""The best of isal's four: on a Debian tree 9 % larger than zlib's -6, at eight times its speed."""
GZIP_WBITS: Final = 31
_CHUNK_BYTES: Final = 1024**2
_STRICTLY_BELOW: Final = libc.RESOLVE_IN_ROOT | libc.RESOLVE_NO_SYMLINKS
_CHANGED: Final = "stop or pause whatever writes there, and try again"

_TYPES: Final = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
}


@dataclass(frozen=True)
class FileContent:
    """The bytes of the regular file ``path`` below the directory ``root``, read only when the layer is written.

    Nothing on the way to it is followed if it is, or meanwhile became, a symbolic link.
    """

    root: Path
    path: str
    size: int

    def chunks(self) -> Iterator[bytes]:
        """Yield exactly ``size`` bytes.

        Raises:
            ImageError: the file is gone, cannot be read, or has become shorter.
        """
        left = self.size
        try:
            for chunk in self._read():
                yield chunk[:left]
                left -= len(chunk[:left])
                if not left:
                    return
        except OSError as error:
            raise ImageError(f"cannot read {self.path!r} in {self.root}: {error.strerror}", hint=_CHANGED) from error
        if left:
            raise ImageError(f"{self.path!r} in {self.root} became shorter while it was read", hint=_CHANGED)

    def _read(self) -> Iterator[bytes]:
        root = os.open(self.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # not blocking: what was a file may have become a pipe
            fd = libc.openat2(root, self.path, os.O_RDONLY | os.O_NONBLOCK, _STRICTLY_BELOW)
        finally:
            os.close(root)
        with open(fd, "rb", buffering=0) as file:
            while data := file.read(_CHUNK_BYTES):
                yield data


@dataclass(frozen=True)
class Member:
    """One entry to write. ``mode`` has type and permission bits (inode(7)); ``mtime`` is in seconds.

    ``link`` is the target of a symbolic link; with ``hard`` it is the path of the member that this
    is another name of. ``nanoseconds`` is what the time has beyond ``mtime``, from 0 to 999,999,999.
    """

    path: str
    mode: int
    data: bytes | FileContent = b""
    link: str = ""
    hard: bool = False
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    device: tuple[int, int] = (0, 0)
    xattrs: Mapping[str, bytes] = field(default_factory=dict)
    nanoseconds: int = 0

    @property
    def size(self) -> int:
        """How many bytes of content it has."""
        return self.data.size if isinstance(self.data, FileContent) else len(self.data)


@dataclass(frozen=True)
class Layer:
    """A stored layer: its blob, and ``diff_id``, the digest of the tar inside (image-spec, config.md)."""

    descriptor: Descriptor
    diff_id: str


def tar_chunks(members: Iterable[Member]) -> Iterator[bytes]:
    """Yield a POSIX (pax) tar of ``members``, sorted by path, whiteouts before their siblings, hard links at the end.

    Raises:
        ImageError: see ``FileContent.chunks``.
    """
    for member in sorted(members, key=_place):
        yield _header(member)
        if isinstance(member.data, FileContent):
            yield from member.data.chunks()
        else:
            yield member.data
        yield bytes(-member.size % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)


def store_layer(layout: Layout, tar: Iterable[bytes]) -> Layer:
    """Compress the tar whose pieces ``tar`` yields, and store it.

    The gzip header carries neither time nor name. Raises what ``tar`` raises, and ImageError.
    """
    hashed = hashlib.sha256()
    gzip = isal_zlib.compressobj(GZIP_LEVEL, isal_zlib.DEFLATED, GZIP_WBITS)
    with layout.writing() as blob:
        for chunk in tar:
            hashed.update(chunk)
            blob.write(gzip.compress(chunk))
        blob.write(gzip.flush())
    return Layer(Descriptor(LAYER_GZIP, blob.digest, blob.size), f"sha256:{hashed.hexdigest()}")


def _place(member: Member) -> tuple[bool, list[str]]:
    parts = member.path.split("/")
    if parts[-1].startswith(WHITEOUT):  # one that applies them in turn must not hide what this layer brings
        parts[-1] = f"\0{parts[-1]}"
    return member.hard, parts


def _header(member: Member) -> bytes:
    info = tarfile.TarInfo(member.path)
    info.type = tarfile.LNKTYPE if member.hard else _TYPES[stat.S_IFMT(member.mode)]
    info.mode = stat.S_IMODE(member.mode)
    info.size = member.size
    info.linkname = member.link
    info.uid, info.gid, info.mtime = member.uid, member.gid, member.mtime
    info.devmajor, info.devminor = member.device
    # tarfile writes pax values as UTF-8; the escape brings arbitrary bytes of an xattr through
    info.pax_headers = {
        f"SCHILY.xattr.{name}": value.decode("utf-8", "surrogateescape") for name, value in member.xattrs.items()
    }
    if member.nanoseconds:
        info.pax_headers["mtime"] = _pax_time(member.mtime, member.nanoseconds)
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _pax_time(seconds: int, nanoseconds: int) -> str:
    """Decimal seconds (POSIX.1-2017, pax): the fraction of a time before 1970 counts away from 1970."""
    total = seconds * 10**9 + nanoseconds
    whole, fraction = divmod(abs(total), 10**9)
    return f"{'-' if total < 0 else ''}{whole}.{fraction:09d}"
