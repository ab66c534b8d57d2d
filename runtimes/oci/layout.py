"""A content-addressed store in the OCI image layout (image-spec 1.1, image-layout.md).

Safe under parallel use and against a kill at any moment: a blob is written under ``ingest/`` or ``partial/``,
synced and renamed into place; the index is replaced as a whole under a lock. Every blob is checked against
its digest and size whenever it is read. What a living ``Layout`` wrote or keeps is never collected.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from bench.errors import ImageError
from runtimes.oci.descriptor import (
    INDEX,
    MAX_DOCUMENT_BYTES,
    REFERENCE_NAME,
    Descriptor,
    Hasher,
    canonical_json,
    parse_object,
)
from runtimes.oci.ingest import BlobWriter, Partial, StoreFull, locked_partial, storing, sweep, sync_directory
from runtimes.oci.leases import Leases
from runtimes.oci.names import DAMAGED

CHUNK_BYTES: Final = 1024**2
_VERSION: Final = {"imageLayoutVersion": "1.0.0"}
_DIRECTORIES: Final = ("blobs/sha256", "ingest", "partial", "leases")


class Layout:
    """The store at ``root``, made if it is not there.

    Raises:
        ImageError: ``root`` cannot be written, or is something else.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.leases = Leases(root)
        self._ingest = root / "ingest"
        with storing(root):
            for name in _DIRECTORIES:
                (root / name).mkdir(parents=True, exist_ok=True)
            if not (root / "index.json").exists():
                self._create()
        marker = parse_object((root / "oci-layout").read_bytes(), f"{root}/oci-layout", _RUINED)
        if marker.get("imageLayoutVersion") != _VERSION["imageLayoutVersion"]:
            raise ImageError(
                f"{root} is not an OCI image layout of version 1.0.0", hint="set ISOMARK_STATE to another directory"
            )

    def path(self, descriptor: Descriptor) -> Path:
        """Where the blob is, or would be."""
        return self.root / "blobs" / descriptor.algorithm / descriptor.hex

    def has(self, descriptor: Descriptor) -> bool:
        """Whether a blob of that name and size is there; reading it verifies the rest."""
        try:
            return self.path(descriptor).stat().st_size == descriptor.size
        except FileNotFoundError:
            return False

    def keep(self, descriptors: Iterable[Descriptor]) -> list[Descriptor]:
        """Keep blobs from being collected while this object lives; return those that are not there."""
        wanted = list(descriptors)
        with storing(self.root), self.leases.shared():
            self.leases.note(descriptor.digest for descriptor in wanted)
            return [descriptor for descriptor in wanted if not self.has(descriptor)]

    def chunks(self, descriptor: Descriptor) -> Iterator[bytes]:
        """Yield the blob in pieces; what was read is true only once the last one came.

        Raises:
            ImageError: it is missing, or has another size or digest.
        """
        seen, hashed = 0, descriptor.hasher()
        try:
            with self.path(descriptor).open("rb", buffering=0) as blob:
                while data := blob.read(CHUNK_BYTES):
                    seen += len(data)
                    if seen > descriptor.size:
                        break
                    hashed.update(data)
                    yield data
        except FileNotFoundError as error:
            raise ImageError(f"blob {descriptor.digest} is missing from {self.root}", hint=_REBUILD) from error
        self.verify(descriptor, seen, hashed)

    def verify(self, descriptor: Descriptor, seen: int, hashed: Hasher) -> None:
        """Refuse what was read if it is not the blob: ``seen`` bytes, that ``hashed`` took in.

        Raises:
            ImageError: it is not.
        """
        if seen != descriptor.size or hashed.hexdigest() != descriptor.hex:
            raise ImageError(f"blob {descriptor.digest} in {self.root} is not what its name says", hint=_REBUILD)

    def document(self, descriptor: Descriptor) -> dict[str, Any]:
        """Return a manifest, index or config.

        Raises:
            ImageError: it is missing, corrupt, larger than 4 MiB or no JSON object.
        """
        return parse_object(self.raw(descriptor), f"blob {descriptor.digest}")

    def raw(self, descriptor: Descriptor) -> bytes:
        """Return the bytes of a document, which its digest is of. Raises as ``document`` does."""
        if descriptor.size > MAX_DOCUMENT_BYTES:
            raise ImageError(
                f"document {descriptor.digest} claims {descriptor.size} bytes, more than any should have", hint=DAMAGED
            )
        return b"".join(self.chunks(descriptor))

    @contextmanager
    def writing(self) -> Iterator[BlobWriter]:
        """Write a blob in this block; it appears, whole and synced, when the block ends well.

        Raises:
            ImageError: no space, or no permission.
        """
        with storing(self.root), self._lock():
            sweep(self._ingest)
            fd, name = tempfile.mkstemp(dir=self._ingest)
            fcntl.flock(fd, fcntl.LOCK_EX)
        try:
            blob = BlobWriter(fd, self.root)
            yield blob
            self._publish(fd, name, Descriptor("", blob.digest, blob.size))
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)

    @contextmanager
    def fetching(self, descriptor: Descriptor, waiting: Callable[[], None] = lambda: None) -> Iterator[Partial | None]:
        """Write a blob that is known beforehand; the block gets ``None`` if it is there already.

        What another process fetches is waited for (``waiting`` may end that by raising), what a dead one left is
        gone on with. The blob appears when the block ends well and its digest is right; what came so far stays for
        the next time unless it is wrong or the disk is full.

        Raises:
            ImageError: what was written is another blob; nothing of it stays. Or no space, or no permission.
        """
        with storing(self.root):
            self.keep([descriptor])
            path = self.root / "partial" / _partial_name(descriptor)
            fd = locked_partial(path, waiting)
        try:
            if self.has(descriptor):
                path.unlink(missing_ok=True)
                yield None
                return
            partial = Partial(fd, descriptor, self.root)
            try:
                yield partial
            except StoreFull:
                path.unlink(missing_ok=True)  # whoever frees space should not have to look for this
                raise
            try:
                partial.verify()
            except ImageError:
                path.unlink(missing_ok=True)
                raise
            self._publish(fd, path, descriptor)
        finally:
            os.close(fd)

    def forget(self, descriptors: Iterable[Descriptor]) -> None:
        """Delete what came so far of blobs that nobody fetches any more."""
        for descriptor in descriptors:
            sweep(self.root / "partial", _partial_name(descriptor))

    def add(self, media_type: str, data: bytes) -> Descriptor:
        """Store ``data`` and return what points at it."""
        with self.writing() as blob:
            blob.write(data)
        return Descriptor(media_type, blob.digest, blob.size)

    def put(self, descriptor: Descriptor, data: bytes) -> None:
        """Store ``data``, which shall be what ``descriptor`` says.

        Raises:
            ImageError: it is something else.
        """
        with self.fetching(descriptor) as partial:
            if partial is not None:
                partial.restart()
                partial.write(data)

    def tag(self, reference: str, descriptor: Descriptor) -> None:
        """Make ``reference`` name ``descriptor``, and nothing else.

        Raises:
            ImageError: the store has no such blob.
        """
        with storing(self.root), self.leases.shared(), self._lock():
            if not self.has(descriptor):
                raise ImageError(f"blob {descriptor.digest} is missing from {self.root}", hint=_REBUILD)
            others = [other for other in self._entries() if other.annotations.get(REFERENCE_NAME) != reference]
            self._write_index([*others, descriptor.named(reference)])

    def untag(self, *references: str) -> list[str]:
        """Let ``references`` name nothing; return those that named something. Blobs stay until collected."""
        with storing(self.root), self._lock():
            entries = self._entries()
            gone = [entry for entry in entries if entry.annotations.get(REFERENCE_NAME) in references]
            if gone:
                self._write_index([entry for entry in entries if entry not in gone])
        return [entry.annotations[REFERENCE_NAME] for entry in gone]

    def resolve(self, reference: str) -> Descriptor | None:
        """Return what ``reference`` names, if anything."""
        return self.references().get(reference)

    def references(self) -> dict[str, Descriptor]:
        """Every named manifest of the index."""
        named = ((entry.annotations.get(REFERENCE_NAME), entry) for entry in self._entries())
        return {name: entry for name, entry in named if name is not None}

    def roots(self) -> list[Descriptor]:
        """Every entry of the index, named or not."""
        return self._entries()

    def sweep(self, *, partial: bool) -> None:
        """Delete what dead writers left, and with ``partial`` also downloads that were cut off."""
        with storing(self.root), self._lock():
            sweep(self._ingest)
            if partial:
                sweep(self.root / "partial")

    def _publish(self, fd: int, temporary: str | Path, descriptor: Descriptor) -> None:
        """Bring a finished blob to the disk and make it visible."""
        final = self.path(descriptor)
        with storing(self.root):
            os.fchmod(fd, 0o644)
            os.fsync(fd)
            final.parent.mkdir(exist_ok=True)
            with self.leases.shared():
                self.leases.note([descriptor.digest])
                os.rename(temporary, final)
            sync_directory(final.parent)

    def _create(self) -> None:
        with self._lock():
            if not (self.root / "index.json").exists():
                self._replace("oci-layout", canonical_json(_VERSION))
                self._write_index([])

    def _entries(self) -> list[Descriptor]:
        index = parse_object((self.root / "index.json").read_bytes(), f"{self.root}/index.json", _RUINED)
        manifests = index.get("manifests")
        if not isinstance(manifests, list):
            raise ImageError(
                f"{self.root}/index.json lists no manifests",
                hint=_RUINED,
            )
        return [Descriptor.from_json(entry) for entry in manifests]

    def _write_index(self, entries: list[Descriptor]) -> None:
        manifests = [entry.to_json() for entry in entries]
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}
        self._replace("index.json", canonical_json(index))

    def _replace(self, name: str, data: bytes) -> None:
        """Put ``data`` at ``name``: a reader sees the old or the new content, whole, even after a power cut."""
        fd, temporary = tempfile.mkstemp(dir=self._ingest)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(fd, 0o644)
            os.fsync(fd)
        os.rename(temporary, self.root / name)
        sync_directory(self.root)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Keep other writers from the index and from starting a blob."""
        fd = os.open(self._ingest, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def _partial_name(descriptor: Descriptor) -> str:
    return f"{descriptor.algorithm}-{descriptor.hex}"


_RUINED: Final = "the store is damaged: move it away, then pull and build again"
_REBUILD: Final = "fetch or build the image again; isomark image prune --verify removes blobs that rotted"
