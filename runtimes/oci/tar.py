"""Reading tar: POSIX ustar and pax, and GNU's long names. Every header is checked, none is trusted.

tarfile is not used for reading: it loads a pax header of any claimed size, and guesses where a
header is damaged. Formats: pax in POSIX.1-2017 (pax, "EXTENDED DESCRIPTION"), GNU tar's manual, chapter D.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from bench.errors import ImageError
from runtimes.oci.stream import LayerStream

BLOCK_BYTES: Final = 512
MAX_EXTENSION_BYTES: Final = 1024**2
"""A pax header or long name beyond this is refused, as Go's archive/tar does."""
MAX_ID: Final = 2**32 - 2
"""The largest uid and gid; one more means "do not change" to chown(2)."""
MAX_SECONDS: Final = 2**34
"""The last second that ext4 can store."""

Kind = Literal["file", "directory", "symlink", "hardlink", "character", "block", "fifo"]

_KINDS: Final[dict[bytes, Kind]] = {
    b"0": "file", b"\0": "file", b"7": "file",
    b"1": "hardlink", b"2": "symlink", b"3": "character", b"4": "block", b"5": "directory", b"6": "fifo",
}  # fmt: skip
_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK = b"x", b"g", b"L", b"K"
_XATTR: Final = "SCHILY.xattr."


@dataclass(frozen=True)
class Entry:
    """One entry of a layer, as its headers claim. ``path`` and ``link`` may hold anything but NUL."""

    path: str
    kind: Kind
    size: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    link: str
    device: tuple[int, int]
    xattrs: dict[str, bytes] = field(default_factory=dict)


def entries(stream: LayerStream) -> Iterator[Entry]:
    """Yield the entries of a tar; read ``entry.size`` bytes of ``stream`` between them, or none.

    Raises:
        ImageError: the tar is damaged, or of a kind that layers do not use.
    """
    globals_: dict[str, bytes] = {}
    while True:
        local: dict[str, bytes] = {}
        block = stream.read(BLOCK_BYTES)
        while (flag := block[156:157]) in (_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK) and any(block):
            content = _extension(block, stream)
            if flag == _PAX:
                local.update(_pax_records(content))
            elif flag == _PAX_GLOBAL:
                globals_.update(_pax_records(content))
            else:
                local["path" if flag == _LONG_NAME else "linkpath"] = content.split(b"\0", 1)[0]
            block = stream.read(BLOCK_BYTES)
        if not any(block):
            if local:
                raise _damaged("ends after an extended header")
            return
        entry = _apply(_header(block), {**globals_, **local})
        padded = entry.size + -entry.size % BLOCK_BYTES
        stream.demand(padded)
        before = stream.consumed
        yield entry
        for _ in stream.pieces(padded - (stream.consumed - before)):
            pass


def _extension(block: bytes, stream: LayerStream) -> bytes:
    size = _header_size(block)
    if size > MAX_EXTENSION_BYTES:
        raise _damaged(f"has an extended header of {size} bytes")
    return stream.read(size + -size % BLOCK_BYTES)[:size]


def _header(block: bytes) -> Entry:
    size = _header_size(block)
    flag = block[156:157]
    if flag not in _KINDS:
        raise ImageError(f"a layer holds a tar entry of type {flag!r}, which is not supported", hint=_HINT)
    kind, path = _KINDS[flag], _text(block[:100])
    if block[257:263] == b"ustar\0" and (prefix := _text(block[345:500])):
        path = f"{prefix}/{path}"
    if flag == b"\0" and path.endswith("/"):  # how tar wrote directories before POSIX
        kind = "directory"
    return Entry(
        path=path,
        kind=kind,
        size=size if kind == "file" else 0,
        mode=_number(block[100:108]) & 0o7777,
        uid=_number(block[108:116]),
        gid=_number(block[116:124]),
        mtime_ns=_number(block[136:148]) * 10**9,
        link=_text(block[157:257]),
        device=(_number(block[329:337]), _number(block[337:345])) if kind in ("character", "block") else (0, 0),
    )


def _header_size(block: bytes) -> int:
    """Verify the checksum and return the size field."""
    claimed = _number(block[148:156])
    blanked = block[:148] + b" " * 8 + block[156:]
    total = sum(blanked)
    # some old tars added signed bytes
    if claimed != total and claimed != total - 256 * sum(byte > 127 for byte in blanked):
        raise _damaged("has a header with a wrong checksum")
    size = _number(block[124:136])
    if size < 0:
        raise _damaged("has an entry of negative size")
    return size


def _number(raw: bytes) -> int:
    """A numeric field: octal, or base-256 (GNU) where the first bit is set."""
    if raw[0] & 0x80:
        value = int.from_bytes(bytes([raw[0] & 0x7F]) + raw[1:], "big")
        return value - (1 << (8 * len(raw) - 1)) if raw[0] & 0x40 else value
    text = raw.split(b"\0", 1)[0].strip(b" ")
    if not text:
        return 0
    if text.strip(b"01234567"):
        raise _damaged("has a header with a number that is none")
    return int(text, 8)


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _pax_records(content: bytes) -> dict[str, bytes]:
    records: dict[str, bytes] = {}
    at = 0
    while at < len(content):
        space = content.find(b" ", at, at + 20)
        length = content[at:space] if space > 0 else b""
        end = at + int(length) if length.isdigit() else -1
        key, equals, value = content[space + 1 : end - 1].partition(b"=")
        if end <= space or end > len(content) or content[end - 1 : end] != b"\n" or not equals:
            raise _damaged("has a malformed pax header")
        records[key.decode("utf-8", "surrogateescape")] = value
        at = end
    return records


def _apply(entry: Entry, records: dict[str, bytes]) -> Entry:
    """Let pax records overrule the fixed header. An empty value means: as if it were not there."""
    changes: dict[str, object] = {}
    for key, value in records.items():
        if key.startswith("GNU.sparse."):
            raise ImageError("a layer holds a sparse file, which is not supported", hint=_HINT)
        if key.startswith(_XATTR):
            entry.xattrs[key.removeprefix(_XATTR)] = value
        elif not value:
            continue
        elif key in ("path", "linkpath"):
            changes["path" if key == "path" else "link"] = value.decode("utf-8", "surrogateescape")
        elif key in ("uid", "gid", "size"):
            changes[key] = _decimal(value)
        elif key == "mtime":
            changes["mtime_ns"] = _nanoseconds(value)
    if entry.kind != "file":
        changes.pop("size", None)
    return _checked(replace(entry, **changes))  # type: ignore[arg-type]


def _checked(entry: Entry) -> Entry:
    if "\0" in entry.path or "\0" in entry.link:
        raise _damaged("has a name with NUL in it")
    if not (0 <= entry.uid <= MAX_ID and 0 <= entry.gid <= MAX_ID):
        raise _damaged(f"has an entry owned by {entry.uid}:{entry.gid}")
    if abs(entry.mtime_ns) > MAX_SECONDS * 10**9:
        raise _damaged("has an entry from an impossible time")
    return entry


def _decimal(value: bytes) -> int:
    if not value.isdigit() or len(value) > 19:
        raise _damaged("has a malformed number in a pax header")
    return int(value)


def _nanoseconds(value: bytes) -> int:
    whole, _, fraction = value.removeprefix(b"-").partition(b".")
    if not whole.isdigit() or len(whole) > 12 or (fraction and not fraction.isdigit()):
        raise _damaged("has a malformed time in a pax header")
    total = int(whole) * 10**9 + int(fraction[:9].ljust(9, b"0"))
    return -total if value.startswith(b"-") else total


def _damaged(what: str) -> ImageError:
    return ImageError(f"a layer {what}", hint="the image is damaged or malicious; fetch or build it again")


_HINT: Final = "build the image without it"
