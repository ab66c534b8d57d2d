"""A user's disk image, taken in: a copy named by its content, which nobody changes under a running guest.

The user's file may lie where QEMU's user cannot go, may be written to while guests run on it, or be exchanged between
the look at it and QEMU's opening it. The copy can be none of that, and a remote host gets it under the same name.
"""

from __future__ import annotations

import errno
import hashlib
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from bench.errors import ImageError
from vms.cache import making
from vms.full.user_image import UserImage, inspect_image

_CHUNK: Final = 1 << 20


@dataclass(frozen=True)
class TakenImage:
    """Our copy ``image``, the ``sha256`` of the whole file, as sha256sum(1) prints it, and its length."""

    image: UserImage
    sha256: str
    file_bytes: int


def take_image(source: Path, directory: Path) -> TakenImage:
    """Return the copy of the disk image ``source`` in ``directory``, made unless one of the same content is there.

    Only its owner may read it, whoever may read ``source``: an image may hold passwords and keys. Nobody writes to it.

    Raises:
        ImageError: it is no image that may be used, or changes while it is read.
        HostError: the copy cannot be written.
    """
    looked_at = inspect_image(source)
    sha256 = image_sha256(source)
    path = directory / f"{sha256}.{looked_at.format}"
    if not path.exists():
        # entered by who knows the name, and listed by nobody
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o711)
        with making(path, mode=0o400) as temporary:
            if temporary is not None:
                _copy(source, temporary)
                if _sha256(temporary) != sha256:
                    raise ImageError(f"{source} changed while it was read", hint="wait until its writer has finished")
                inspect_image(temporary)
    return TakenImage(inspect_image(path), sha256, path.stat().st_size)


def image_sha256(path: Path) -> str:
    """Return the SHA-256 of ``path``, read again only if its inode says that it was written to (inode(7), ctime).

    Raises:
        ImageError: it cannot be read.
    """
    try:
        status = path.stat()
        key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        return _remembered_sha256(path, key)
    except OSError as error:
        raise ImageError(f"cannot read {path}: {error.strerror}", hint="name a qcow2 or raw disk image") from error


@lru_cache(maxsize=8)
def _remembered_sha256(path: Path, _key: tuple[int, ...]) -> str:
    return _sha256(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _copy(source: Path, target: Path) -> None:
    """Copy what ``source`` holds and leave its holes (lseek(2), SEEK_DATA)."""
    target.touch(0o600, exist_ok=False)
    with source.open("rb") as read, target.open("wb") as write:
        size = os.fstat(read.fileno()).st_size
        write.truncate(size)
        end = 0
        while end < size and (begin := _next_data(read.fileno(), end)) is not None:
            end = os.lseek(read.fileno(), begin, os.SEEK_HOLE)
            os.lseek(write.fileno(), begin, os.SEEK_SET)
            while begin < end:
                sent = os.sendfile(write.fileno(), read.fileno(), begin, min(_CHUNK, end - begin))
                if sent == 0:  # it was cut off meanwhile; its digest will tell
                    return
                begin += sent


def _next_data(fd: int, offset: int) -> int | None:
    try:
        return os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise
