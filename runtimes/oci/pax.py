"""Extended headers: what pax records and GNU's long names change of the entry that follows (POSIX.1-2017, pax)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from runtimes.oci.fields import damaged, decimal, nanoseconds
from runtimes.oci.sparse import join_pairs

if TYPE_CHECKING:
    from runtimes.oci.tar import Entry

_XATTR: Final = "SCHILY.xattr."
_OFFSET, _LENGTH = "GNU.sparse.offset", "GNU.sparse.numbytes"


def records_of(content: bytes) -> dict[str, bytes]:
    """Return the records of a pax header; the last one of a name counts, and an empty value is kept.

    Raises:
        ImageError: a record is malformed.
    """
    records: dict[str, bytes] = {}
    sparse: list[tuple[bool, bytes]] = []
    at = 0
    while at < len(content):
        space = content.find(b" ", at, at + 20)
        length = content[at:space] if space > 0 else b""
        end = at + int(length) if length.isdigit() else -1
        name, equals, value = content[space + 1 : end - 1].partition(b"=")
        if end <= space or end > len(content) or content[end - 1 : end] != b"\n" or not equals:
            raise damaged("has a malformed pax header")
        key = name.decode("utf-8", "surrogateescape")
        if key in (_OFFSET, _LENGTH):
            sparse.append((key == _OFFSET, value))
        else:
            records[key] = value
        at = end
    if sparse:
        records["GNU.sparse.map"] = join_pairs(sparse)
    return records


def overrule(entry: Entry, records: Mapping[str, bytes]) -> None:
    """Let ``records`` change ``entry``. An empty value means: as if it were not there.

    Raises:
        ImageError: a value is malformed.
    """
    for key, value in records.items():
        if key.startswith(_XATTR):
            if "\0" in key:
                raise damaged("has an attribute with NUL in its name")
            entry.xattrs[key.removeprefix(_XATTR)] = value
        elif value and key in _FIELDS and (key != "size" or entry.kind == "file"):
            field, parse = _FIELDS[key]
            setattr(entry, field, parse(value))
    if name := records.get("GNU.sparse.name"):
        entry.path = _name(name)


def _name(value: bytes) -> str:
    if b"\0" in value:
        raise damaged("has a name with NUL in it")
    return value.decode("utf-8", "surrogateescape")


_FIELDS: Final[Mapping[str, tuple[str, Callable[[bytes], object]]]] = {
    "path": ("path", _name),
    "linkpath": ("link", _name),
    "mtime": ("mtime_ns", nanoseconds),
    "uid": ("uid", decimal),
    "gid": ("gid", decimal),
    "size": ("size", decimal),
}
"""Record -> the field of an entry that it overrules, and how it is read."""
