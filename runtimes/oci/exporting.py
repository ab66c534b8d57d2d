"""Images into archives: OCI layouts, as a tar or a directory, and what ``docker load`` reads.

The same images always give the same bytes.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from bench.errors import HostError, ImageError, UsageError
from bench.journal import Journal
from runtimes.oci.descriptor import COMPRESSIONS, INDEX, INDEXES, Descriptor, canonical_json
from runtimes.oci.images import Images, Stored
from runtimes.oci.indexes import index_entries, manifest_blobs, parse_document
from runtimes.oci.layout import Layout
from runtimes.oci.stream import decompress

FORMATS: Final = ("oci", "oci-dir", "docker")
_MARKER: Final = canonical_json({"imageLayoutVersion": "1.0.0"})


def export(images: Images, chosen: Sequence[Stored], target: Path | BinaryIO, form: str, journal: Journal) -> None:
    """Write ``chosen`` to ``target`` in one of ``FORMATS``; a path appears whole or not at all.

    Raises:
        UsageError: the format is unknown, or does not fit the target.
        ImageError: parts of an image are missing or damaged.
        HostError: the target cannot be written.
    """
    if form not in FORMATS:
        raise UsageError(f"{form!r} is no format of an image archive", hint=f"one of {', '.join(FORMATS)}")
    if form == "oci-dir":
        if not isinstance(target, Path) or target.exists():
            raise UsageError(f"{target} exists, and a layout is made anew", hint="name a directory that does not exist")
        with _appearing(target, journal) as temporary:
            _write_directory(images.layout, chosen, temporary)
        return
    if not isinstance(target, Path):
        _write_tar(images.layout, chosen, target, form)
        return
    if target.is_dir():
        raise UsageError(f"{target} is a directory", hint="name a file, or use --format oci-dir")
    with _appearing(target, journal) as temporary, temporary.open("wb") as file:
        _write_tar(images.layout, chosen, file, form)
        file.flush()
        os.fsync(file.fileno())


def _write_directory(layout: Layout, chosen: Sequence[Stored], target: Path) -> None:
    for blob in _blobs(layout, [stored.root for stored in chosen]):
        path = target / _path(blob)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for chunk in layout.chunks(blob):
                file.write(chunk)
    (target / "oci-layout").write_bytes(_MARKER)
    (target / "index.json").write_bytes(_index(chosen))


def _write_tar(layout: Layout, chosen: Sequence[Stored], file: BinaryIO, form: str) -> None:
    file.writelines(_docker(layout, chosen) if form == "docker" else _oci(layout, chosen))


def _oci(layout: Layout, chosen: Sequence[Stored]) -> Iterator[bytes]:
    yield from _member("oci-layout", [_MARKER], len(_MARKER))
    index = _index(chosen)
    yield from _member("index.json", [index], len(index))
    for blob in _blobs(layout, [stored.root for stored in chosen]):
        yield from _member(_path(blob), layout.chunks(blob), blob.size)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _docker(layout: Layout, chosen: Sequence[Stored]) -> Iterator[bytes]:
    """manifest.json, configurations and plain layers; the layers' paths are free (Docker 1.10 and later)."""
    images: dict[str, tuple[Stored, list[str]]] = {}
    for stored in chosen:
        images.setdefault(stored.id, (stored, []))[1].extend([stored.reference] if stored.reference else [])
    listed, written = [], set()
    for stored, names in images.values():
        config, layers = manifest_blobs(layout.document(stored.descriptor), stored.reference)
        if config.digest not in written:
            written.add(config.digest)
            yield from _member(f"{config.hex}.json", layout.chunks(config), config.size)
        paths = []
        for layer, (_, diff_id) in zip(layers, stored.manifest.layers, strict=True):
            path = f"{str(diff_id).partition(':')[2]}/layer.tar"
            paths.append(path)
            if diff_id not in written:
                written.add(diff_id)
                compression = COMPRESSIONS[layer.media_type]
                # twice, because the size stands before the content; the second time costs no disk
                size = sum(len(chunk) for chunk in decompress(layout.chunks(layer), compression))
                yield from _member(path, decompress(layout.chunks(layer), compression), size)
        listed.append({"Config": f"{config.hex}.json", "RepoTags": sorted(names) or None, "Layers": paths})
    data = canonical_json(listed)
    yield from _member("manifest.json", [data], len(data))
    yield bytes(2 * tarfile.BLOCKSIZE)


def _member(name: str, chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    yield info.tobuf(tarfile.PAX_FORMAT)
    seen = 0
    for chunk in chunks:
        seen += len(chunk)
        yield bytes(chunk)
    if seen != size:
        raise ImageError(f"{name} has {seen} bytes, not {size}", hint="isomark image prune --verify, then pull again")
    yield bytes(-size % tarfile.BLOCKSIZE)


def _index(chosen: Sequence[Stored]) -> bytes:
    entries = []
    for stored in chosen:
        plain = Descriptor(stored.root.media_type, stored.root.digest, stored.root.size)
        entries.append((plain.named(stored.reference) if stored.reference else plain).to_json())
    return canonical_json({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries})


def _blobs(layout: Layout, roots: Iterable[Descriptor]) -> list[Descriptor]:
    """All that ``roots`` need, each once, in an order that depends on nothing else."""
    found: dict[str, Descriptor] = {}
    pending = list(roots)
    while pending:
        root = pending.pop()
        if root.digest in found:
            continue
        found[root.digest] = root
        document = parse_document(layout.raw(root), root.media_type, root.digest)
        if root.media_type in INDEXES:
            # what a partly pulled index lacks is lacking in the archive too
            pending.extend(child for child in index_entries(document, root.digest) if layout.has(child))
        else:
            config, layers = manifest_blobs(document, root.digest)
            found.update({blob.digest: blob for blob in (config, *layers)})
    return sorted(found.values(), key=lambda blob: blob.digest)


def _path(blob: Descriptor) -> str:
    return f"blobs/{blob.algorithm}/{blob.hex}"


@contextmanager
def _appearing(target: Path, journal: Journal) -> Iterator[Path]:
    """Write beside ``target`` in this block; it takes that name when the block ends well."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    entry = journal.own("directory", path=str(temporary.absolute()))
    try:
        try:
            yield temporary
            temporary.rename(target)
        except OSError as error:
            raise HostError(f"cannot write {target}: {error.strerror}", hint="choose another place") from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)
        journal.gone(entry)
