"""Images from archives: OCI layouts, what ``docker save`` writes, and plain root file systems."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Final

from bench.errors import ImageError, UsageError
from runtimes.oci.archive import Archive, chunks_of, compression_of, opened, read
from runtimes.oci.descriptor import (
    CONFIG,
    INDEXES,
    LAYER_GZIP,
    MANIFEST,
    REFERENCE_NAME,
    Descriptor,
    canonical_json,
    parse_object,
)
from runtimes.oci.images import BUDGET_BYTES, Images, Stored
from runtimes.oci.indexes import index_entries, manifest_blobs, parse_document
from runtimes.oci.layer import Layer, store_layer
from runtimes.oci.platform import Platform, select
from runtimes.oci.reference import Reference
from runtimes.oci.stream import LayerStream, decompress
from runtimes.oci.tar import entries
from runtimes.oci.trees import read_manifest

_CONTAINERD_NAME: Final = "io.containerd.image.name"
_BROKEN: Final = "the archive is damaged, cut off or malicious"
_MAX_IMAGES: Final = 1000


@dataclass(frozen=True)
class _Found:
    """An image in the store that has no name yet."""

    root: Descriptor
    names: tuple[str, ...]


class Importer:
    """Takes images into ``images``; ``platform`` chooses where an archive holds only part of an index."""

    def __init__(self, images: Images, platform: Platform, budget_bytes: int = BUDGET_BYTES) -> None:
        self._images = images
        self._layout = images.layout
        self._platform = platform
        self._budget_bytes = budget_bytes

    def take(self, source: Path | BinaryIO, name: str | None) -> list[Stored]:
        """Import everything in ``source``: under ``name``, which then must be one image, or under its own names.

        Raises:
            UsageError: a name is needed, or does not fit.
            ImageError: the archive is damaged, or holds something else; nothing became visible then.
        """
        reference = Reference.parse(name) if name is not None else None
        if reference is not None and reference.digest is not None:
            raise UsageError(f"{name} names a digest, which the archive decides", hint="write it like name:tag")
        with opened(source, self._layout.root / "ingest", self._budget_bytes) as (archive, tar):
            if archive.has("oci-layout") and archive.has("index.json"):
                found = self._from_layout(archive)
            elif archive.has("manifest.json"):
                found = self._from_docker(archive)
            elif tar is None:
                raise ImageError(
                    f"{source} is no OCI image layout", hint="tar -C DIRECTORY -c . | isomark image import - NAME"
                )
            elif reference is None:
                raise UsageError(
                    "the archive is a plain file system, which has no name", hint="isomark image import FILE NAME"
                )
            else:
                found = [self._from_file_system(tar)]
        return self._name(found, reference)

    def _name(self, found: Sequence[_Found], reference: Reference | None) -> list[Stored]:
        if reference is not None:
            if len({one.root.digest for one in found}) != 1:
                names = ", ".join(name for one in found for name in one.names) or "nameless"
                raise UsageError(
                    f"the archive holds {len(found)} images: {names[:500]}",
                    hint="leave the name out to import them all",
                )
            wanted = [(reference.familiar, found[0].root)]
        else:
            wanted = [(Reference.parse(name).familiar, one.root) for one in found for name in one.names]
            if len({root.digest for _, root in wanted}) < len(found):
                raise UsageError(
                    "an image of the archive has no full name in it", hint="isomark image import ARCHIVE NAME"
                )
        for name, root in wanted:
            self._layout.tag(name, root)
        return [self._images.load(name, root, self._platform) for name, root in wanted]

    def _from_layout(self, archive: Archive) -> list[_Found]:
        index = parse_object(read(archive, "index.json"), "index.json")
        listed = index.get("manifests")
        if not isinstance(listed, list) or not 0 < len(listed) <= _MAX_IMAGES:
            raise ImageError("index.json of the archive lists no images", hint=_BROKEN)
        found: dict[str, _Found] = {}
        for value in listed:
            entry = Descriptor.from_json(value)
            root = self._copy_image(archive, entry)
            names = found[root.digest].names if root.digest in found else ()
            found[root.digest] = _Found(root, (*names, *_names(entry)))
        return list(found.values())

    def _copy_image(self, archive: Archive, entry: Descriptor) -> Descriptor:
        """Copy what ``entry`` points at; of an index that is not whole, only the image for our platform."""
        root = Descriptor(entry.media_type, entry.digest, entry.size)
        data = read(archive, _blob(entry))
        document = parse_document(data, entry.media_type, entry.digest)
        if entry.media_type in INDEXES:
            children = index_entries(document, entry.digest)
            if not all(archive.has(_blob(child)) for child in children):
                present = [child for child in children if archive.has(_blob(child))]
                return self._copy_image(archive, select(present, self._platform, entry.digest))
            for child in children:
                self._copy_image(archive, child)
        else:
            config, layers = manifest_blobs(document, entry.digest)
            for blob in (config, *layers):
                self._copy_blob(archive, blob)
        self._layout.put(root, data)
        if entry.media_type not in INDEXES:
            read_manifest(self._layout, root)
        return root

    def _copy_blob(self, archive: Archive, blob: Descriptor) -> None:
        with self._layout.fetching(blob) as partial:
            if partial is not None:
                partial.restart()
                for chunk in archive.chunks(_blob(blob)):
                    partial.write(chunk)

    def _from_docker(self, archive: Archive) -> list[_Found]:
        """The format of ``docker save`` (image-spec of Docker 1.2: manifest.json)."""
        try:
            listed = json.loads(read(archive, "manifest.json"))
            wanted = [(str(one["Config"]), [str(path) for path in one["Layers"]], one.get("RepoTags") or [])
                      for one in listed]  # fmt: skip
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ImageError("manifest.json of the archive is malformed", hint=_BROKEN) from error
        if not 0 < len(wanted) <= _MAX_IMAGES:
            raise ImageError("manifest.json of the archive lists no images", hint=_BROKEN)
        return [self._docker_image(archive, *one) for one in wanted]

    def _docker_image(self, archive: Archive, config: str, layers: Sequence[str], names: Sequence[Any]) -> _Found:
        data = read(archive, config)
        root = parse_object(data, config).get("rootfs")
        diff_ids = root.get("diff_ids") if isinstance(root, dict) else None
        if not isinstance(diff_ids, list) or len(diff_ids) != len(layers):
            raise ImageError(f"{config[:200]} does not name one diff_id for each layer", hint=_BROKEN)
        stored = []
        for path, diff_id in zip(layers, diff_ids, strict=True):
            layer = self._store(archive.chunks(path))
            if layer.diff_id != diff_id:
                raise ImageError(
                    f"{path[:200]} is {layer.diff_id}, and its config says {str(diff_id)[:80]!r}", hint=_BROKEN
                )
            stored.append(layer)
        return _Found(self._manifest(self._layout.add(CONFIG, data), stored), tuple(map(str, names)))

    def _from_file_system(self, tar: BinaryIO) -> _Found:
        tar.seek(0)
        stream = LayerStream(chunks_of(tar), self._budget_bytes)
        count = sum(1 for _ in entries(stream))
        if count == 0:
            raise ImageError("the archive holds nothing", hint="import a tar of a root file system")
        tar.seek(0)
        layer = store_layer(self._layout, chunks_of(tar))
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        config = {
            "created": now,
            "architecture": self._platform.architecture,
            "os": self._platform.os,
            **({"variant": self._platform.variant} if self._platform.variant else {}),
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id]},
            "history": [{"created": now, "created_by": "isomark image import"}],
        }
        return _Found(self._manifest(self._layout.add(CONFIG, canonical_json(config)), [layer]), ())

    def _store(self, chunks: Iterator[bytes]) -> Layer:
        """Store one layer of a docker archive: plain ones compressed, compressed ones plain first."""
        first = next(chunks, b"")
        compression = compression_of(first)
        if compression not in ("none", "gzip", "zstd"):
            raise ImageError(f"a layer of the archive is compressed with {compression}", hint=_BROKEN)

        def all_chunks() -> Iterator[bytes]:
            yield first
            yield from chunks

        left = self._budget_bytes

        def within_budget() -> Iterator[bytes]:
            nonlocal left
            for chunk in decompress(all_chunks(), compression):
                left -= len(chunk)
                if left < 0:
                    raise ImageError("a layer of the archive unpacks to more than is allowed", hint=_BROKEN)
                yield chunk

        return store_layer(self._layout, within_budget())

    def _manifest(self, config: Descriptor, layers: Sequence[Layer]) -> Descriptor:
        document = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config.to_json(),
            "layers": [Descriptor(LAYER_GZIP, one.descriptor.digest, one.descriptor.size).to_json() for one in layers],
        }
        descriptor = self._layout.add(MANIFEST, canonical_json(document))
        read_manifest(self._layout, descriptor)
        return descriptor


def _blob(descriptor: Descriptor) -> str:
    return f"blobs/{descriptor.algorithm}/{descriptor.hex}"


def _names(entry: Descriptor) -> tuple[str, ...]:
    """The full name in an entry of a layout's index; a tag alone is none."""
    for key in (_CONTAINERD_NAME, REFERENCE_NAME):
        name = entry.annotations.get(key)
        if isinstance(name, str) and (key == _CONTAINERD_NAME or any(mark in name for mark in "/:")):
            return (name,)
    return ()
