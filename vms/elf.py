"""The little of ELF that is needed here (elf(5)): 64-bit, little-endian files."""

from __future__ import annotations

import struct
from typing import Final

from bench.errors import HostError

MAGIC: Final = b"\x7fELF"
_INTERPRETER: Final = 3
"""PT_INTERP: the program wants a dynamic linker."""


def section(data: bytes, wanted: str) -> bytes:
    """Return the contents of section ``wanted``.

    Raises:
        HostError: this is no such ELF file, or has no such section.
    """
    _require_elf(data)
    try:
        (table,) = struct.unpack_from("<Q", data, 0x28)
        size, count, names_index = struct.unpack_from("<HHH", data, 0x3A)
        headers = [struct.unpack_from("<II8x8xQQ", data, table + index * size) for index in range(count)]
        names = headers[names_index][2]
        for name, _, offset, length in headers:
            begin = names + name
            if data[begin : data.index(b"\0", begin)] == wanted.encode():
                return data[offset : offset + length]
    except (struct.error, IndexError, ValueError) as error:
        raise HostError(f"a damaged ELF file: {error}") from error
    raise HostError(f"an ELF file without section {wanted}")


def is_static(data: bytes) -> bool:
    """Whether ELF program ``data`` runs without a dynamic linker.

    Raises:
        HostError: this is no such ELF file.
    """
    _require_elf(data)
    try:
        (table,) = struct.unpack_from("<Q", data, 0x20)
        size, count = struct.unpack_from("<HH", data, 0x36)
        types = [struct.unpack_from("<I", data, table + index * size)[0] for index in range(count)]
    except struct.error as error:
        raise HostError(f"a damaged ELF file: {error}") from error
    return _INTERPRETER not in types


def _require_elf(data: bytes) -> None:
    if data[:6] != MAGIC + b"\x02\x01":
        raise HostError("no 64-bit little-endian ELF file")
