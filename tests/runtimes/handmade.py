"""Images made by hand for the tests, and what an unpacked tree looks like."""

from __future__ import annotations

import hashlib
import os
import stat
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from runtimes.oci.descriptor import CONFIG, LAYER_GZIP, MANIFEST, Descriptor, canonical_json
from runtimes.oci.layer import Layer, Member, store_layer, tar_chunks
from runtimes.oci.layout import Layout
from runtimes.oci.platform import Platform

MTIME = 1_600_000_000


def file(path: str, data: bytes = b"data\n", mode: int = 0o644, mtime: int = MTIME, **more: Any) -> Member:
    return Member(path, stat.S_IFREG | mode, data, mtime=mtime, **more)


def folder(path: str, mode: int = 0o755, mtime: int = MTIME, **more: Any) -> Member:
    return Member(path, stat.S_IFDIR | mode, mtime=mtime, **more)


def symlink(path: str, target: str, mtime: int = MTIME, **more: Any) -> Member:
    return Member(path, stat.S_IFLNK | 0o777, link=target, mtime=mtime, **more)


def hard_link(path: str, target: str) -> Member:
    return Member(path, stat.S_IFREG | 0o644, link=target, hard=True, mtime=MTIME)


def device(path: str, kind: int = stat.S_IFCHR, number: tuple[int, int] = (1, 3)) -> Member:
    return Member(path, kind | 0o600, device=number, mtime=MTIME)


def pipe(path: str, mode: int = 0o600) -> Member:
    return Member(path, stat.S_IFIFO | mode, mtime=MTIME)


def header(name: str = "a", kind: bytes = b"0", link: str = "", **fields: bytes) -> bytes:
    """A ustar header with any field as given, and a checksum that fits."""
    at = {"name": (0, 100), "mode": (100, 8), "uid": (108, 8), "size": (124, 12), "mtime": (136, 12),
          "magic": (257, 8), "prefix": (345, 155),
          "old_map": (386, 96), "old_more": (482, 1), "old_size": (483, 12)}  # fmt: skip
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mtime = kind, link, MTIME
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    for field, value in fields.items():
        start, length = at[field]
        block[start : start + length] = value.ljust(length, b"\0")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def records(**values: str | bytes) -> bytes:
    """Pax records with lengths that fit; ``__`` in a name stands for a dot."""
    made = b""
    for key, value in values.items():
        body = f" {key.replace('__', '.')}=".encode() + (value.encode() if isinstance(value, str) else value) + b"\n"
        length = len(body) + 1
        while length != len(b"%d" % length) + len(body):
            length += 1
        made += b"%d" % length + body
    return made


def extension(content: bytes, kind: bytes = b"x") -> bytes:
    """An extended header with ``content``, however malformed."""
    return header("x", kind, size=b"%011o" % len(content)) + content + bytes(-len(content) % 512)


def content(data: bytes) -> bytes:
    """``data`` padded to whole blocks."""
    return data + bytes(-len(data) % 512)


def tar(*members: Member) -> bytes:
    """A tar with ``members`` in this very order."""
    blocks = [b"".join(tar_chunks([member]))[:-1024] for member in members]
    return b"".join(blocks) + bytes(1024)


def config_of(diff_ids: Sequence[object]) -> dict[str, Any]:
    return {
        "architecture": Platform.here().architecture,
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
        "history": [{"created_by": "test"} for _ in diff_ids],
    }


def manifest_of(config: Descriptor, layers: Sequence[Descriptor]) -> dict[str, Any]:
    return {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config.to_json(),
        "layers": [layer.to_json() for layer in layers],
    }


def image_of(layout: Layout, *layers: Layer) -> Descriptor:
    config = layout.add(CONFIG, canonical_json(config_of([layer.diff_id for layer in layers])))
    manifest = manifest_of(config, [layer.descriptor for layer in layers])
    return layout.add(MANIFEST, canonical_json(manifest))


def image_of_tars(layout: Layout, *tars: bytes) -> Descriptor:
    return image_of(layout, *(store_layer(layout, [data]) for data in tars))


def image_of_blob(
    layout: Layout,
    blob: bytes,
    plain: bytes,
    media_type: str = LAYER_GZIP,
    change: Callable[[Layer], Layer] | None = None,
) -> Descriptor:
    """An image with one layer whose stored bytes are ``blob`` and whose diff_id is that of ``plain``."""
    layer = Layer(layout.add(media_type, blob), f"sha256:{hashlib.sha256(plain).hexdigest()}")
    return image_of(layout, change(layer) if change else layer)


def fingerprint(root: Path, *, skip: Path | None = None) -> dict[str, tuple[object, ...]]:
    """Everything to be seen of a tree, without ``skip``: type, mode, owner, time, links, device, xattrs, content."""
    found: dict[str, tuple[object, ...]] = {}
    names: dict[int, str] = {}
    # os.walk, because rglob follows every link to ask what it is, and some of these are longer than a path may be
    below: list[Path] = []
    for folder, folders, files in os.walk(root):
        below += [Path(folder, name) for name in (*folders, *files)]
        folders[:] = [name for name in folders if Path(folder, name) != skip]
    for path in [root, *sorted(path for path in below if path != skip)]:
        status = path.lstat()
        relative = str(path.relative_to(root))
        first = names.setdefault(status.st_ino, relative)
        content = hashlib.sha256(path.read_bytes()).hexdigest() if stat.S_ISREG(status.st_mode) else ""
        found[relative] = (
            oct(status.st_mode),
            (status.st_uid, status.st_gid),
            status.st_mtime_ns,
            status.st_rdev,
            first,
            os.readlink(path) if path.is_symlink() else content,
            tuple((key, os.getxattr(path, key, follow_symlinks=False)) for key in _xattrs(path)),
        )
    return found


def _xattrs(path: Path) -> list[str]:
    return sorted(os.listxattr(path, follow_symlinks=False))
