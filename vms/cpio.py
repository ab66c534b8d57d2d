"""Archives for an initramfs: the newc form of cpio.

See the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
The same entries give the same bytes: no times, no owners, inode numbers by position.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass

_BLOCK = 512


@dataclass(frozen=True)
class Entry:
    """One member. ``mode`` has the file type; ``data`` is a file's bytes or a symbolic link's text."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(name: str, mode: int = 0o755) -> Entry:
    """A directory."""
    return Entry(name, stat.S_IFDIR | mode)


def file(name: str, data: bytes, mode: int = 0o644) -> Entry:
    """A regular file."""
    return Entry(name, stat.S_IFREG | mode, data)


def link(name: str, target: str) -> Entry:
    """A symbolic link."""
    return Entry(name, stat.S_IFLNK | 0o777, target.encode())


def character_device(name: str, major: int, minor: int, mode: int = 0o600) -> Entry:
    """A character device."""
    return Entry(name, stat.S_IFCHR | mode, device=(major, minor))


def archive(entries: Iterable[Entry]) -> bytes:
    """Return the archive of ``entries``, in their order; a directory must come before what is in it.

    Archives may follow one another in an initramfs; each ends on a 512-byte boundary.
    """
    parts = [_member(entry, number) for number, entry in enumerate(entries, start=1)]
    parts.append(_member(Entry("TRAILER!!!", 0), 0))
    body = b"".join(parts)
    return body + bytes(-len(body) % _BLOCK)


def _member(entry: Entry, number: int) -> bytes:
    name = entry.name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (number, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
    header = b"070701" + b"".join(b"%08x" % field for field in fields) + name
    return header + bytes(-len(header) % 4) + entry.data + bytes(-len(entry.data) % 4)
