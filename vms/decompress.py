"""Whatever a kernel or a kernel module was compressed with, told by its first bytes."""

from __future__ import annotations

import bz2
import lzma
import subprocess
import zlib
from typing import Final

from bench.errors import HostError
from vms.elf import MAGIC

_LZ4_LEGACY: Final = b"\x02\x21\x4c\x18"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"


def decompress(data: bytes) -> bytes:
    """Return ``data`` unpacked; what follows the compressed stream is ignored, an ELF file is returned as it is.

    The forms are those of the Linux build (scripts/Makefile.lib): gzip, xz, lzma, bzip2, zstd and
    LZ4 in its legacy frame, which the program lz4 reads.

    Raises:
        HostError: the form is unknown, the data is damaged, or lz4 is not installed.
    """
    try:
        if data.startswith(MAGIC):
            return data
        if data.startswith(b"\x1f\x8b"):
            return zlib.decompressobj(wbits=31).decompress(data)
        if data.startswith((b"\xfd7zXZ\0", b"\x5d\0\0")):
            return lzma.LZMADecompressor().decompress(data)
        if data.startswith(b"BZh"):
            return bz2.BZ2Decompressor().decompress(data)
        if data.startswith(_ZSTD):
            return _zstd(data)
        if data.startswith(_LZ4_LEGACY):
            return _lz4(data)
    except (zlib.error, lzma.LZMAError, OSError, ValueError) as error:
        raise HostError(f"cannot decompress: {error}", hint="script/bootstrap unpacks the guest kernel anew") from error
    raise HostError(f"unknown compression {data[:6].hex()}", hint="isomark reads what Linux can be built with")


def _zstd(data: bytes) -> bytes:
    import zstandard

    try:
        return zstandard.ZstdDecompressor().decompressobj().decompress(data)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error


def _lz4(data: bytes) -> bytes:
    try:
        ended = subprocess.run(["lz4", "-d", "-c"], input=data, capture_output=True, check=False)
    except FileNotFoundError as error:
        raise HostError("the program lz4 is not installed", hint="apt-get install lz4") from error
    # the size that the kernel build appends to the stream is no block: lz4 stops there, with or without complaint
    if not ended.stdout:
        raise HostError(f"lz4 cannot read it: {ended.stderr.decode(errors='replace').strip()}")
    return ended.stdout
