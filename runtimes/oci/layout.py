"""A content-addressed store in the OCI image layout (image-spec 1.1, image-layout.md).

Safe under parallel use and against a kill at any moment: a blob is written under ``ingest/``, synced
and renamed into place; the index is replaced as a whole under a lock. Every blob is checked against
its digest and size whenever it is read.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from bench.errors import ImageError
from runtimes.oci.descriptor import (
    INDEX,
    MAX_DOCUMENT_BYTES,
    REFERENCE_NAME,
    Descriptor,
    canonical_json,
    parse_object,
)

CHUNK_BYTES: Final = 1024**2
_VERSION: Final = {"imageLayoutVersion": "1.0.0"}


class BlobWriter:
    """Takes the bytes of one blob; ``Layout.writing`` makes it visible under its digest."""

    def __init__(self, fd: int, root: Path) -> None:
        self.size = 0
        self._fd = fd
        self._root = root
        self._hash = hashlib.sha256()

    @property
    def digest(self) -> str:
        """The digest of what was written so far."""
        return f"sha256:{self._hash.hexdigest()}"

    def write(self, data: bytes) -> None:
        """Append ``data``.

        Raises:
            ImageError: no space is left.
        """
        self._hash.update(data)
        self.size += len(data)
        view = memoryview(data)
        with _storing(self._root):
            while view:
                view = view[os.write(self._fd, view) :]


class Layout:
    """The store at ``root``, made if it is not there.

    Raises:
        ImageError: ``root`` cannot be written, or is something else.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._blobs = root / "blobs" / "sha256"
        self._ingest = root / "ingest"
        with _storing(root):
            if not (root / "index.json").exists():
                self._create()
        marker = parse_object((root / "oci-layout").read_bytes(), f"{root}/oci-layout")
        if marker.get("imageLayoutVersion") != _VERSION["imageLayoutVersion"]:
            raise ImageError(f"{root} is not an OCI image layout of version 1.0.0")

    def path(self, descriptor: Descriptor) -> Path:
        """Where the blob is, or would be."""
        return self._blobs / descriptor.hex

    def has(self, descriptor: Descriptor) -> bool:
        """Whether a blob of that name and size is there; reading it verifies the rest."""
        try:
            return self.path(descriptor).stat().st_size == descriptor.size
        except FileNotFoundError:
            return False

    def chunks(self, descriptor: Descriptor) -> Iterator[bytes]:
        """Yield the blob in pieces; what was read is true only once the last one came.

        Raises:
            ImageError: it is missing, or has another size or digest.
        """
        seen, hashed = 0, hashlib.sha256()
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
        if seen != descriptor.size or hashed.hexdigest() != descriptor.hex:
            raise ImageError(f"blob {descriptor.digest} in {self.root} is not what its name says", hint=_REBUILD)

    def document(self, descriptor: Descriptor) -> dict[str, Any]:
        """Return a manifest, index or config.

        Raises:
            ImageError: it is missing, corrupt, larger than 4 MiB or no JSON object.
        """
        if descriptor.size > MAX_DOCUMENT_BYTES:
            raise ImageError(f"document {descriptor.digest} claims {descriptor.size} bytes, more than any should have")
        return parse_object(b"".join(self.chunks(descriptor)), f"blob {descriptor.digest}")

    @contextmanager
    def writing(self) -> Iterator[BlobWriter]:
        """Write a blob in this block; it appears, whole and synced, when the block ends well.

        Raises:
            ImageError: no space, or no permission.
        """
        with _storing(self.root), self._lock():
            self._sweep()
            fd, name = tempfile.mkstemp(dir=self._ingest)
            fcntl.flock(fd, fcntl.LOCK_EX)
        try:
            blob = BlobWriter(fd, self.root)
            yield blob
            with _storing(self.root):
                os.fchmod(fd, 0o644)
                os.fsync(fd)
                os.rename(name, self._blobs / blob.digest.removeprefix("sha256:"))
                _sync_directory(self._blobs)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)

    def add(self, media_type: str, data: bytes) -> Descriptor:
        """Store ``data`` and return what points at it."""
        with self.writing() as blob:
            blob.write(data)
        return Descriptor(media_type, blob.digest, blob.size)

    def tag(self, reference: str, descriptor: Descriptor) -> None:
        """Make ``reference`` name ``descriptor``, and nothing else."""
        named = Descriptor(
            descriptor.media_type,
            descriptor.digest,
            descriptor.size,
            {**descriptor.annotations, REFERENCE_NAME: reference},
        )
        with _storing(self.root), self._lock():
            others = [other for other in self._entries() if other.annotations.get(REFERENCE_NAME) != reference]
            self._write_index([*others, named])

    def resolve(self, reference: str) -> Descriptor | None:
        """Return what ``reference`` names, if anything."""
        return self.references().get(reference)

    def references(self) -> dict[str, Descriptor]:
        """Every named manifest of the index."""
        named = ((entry.annotations.get(REFERENCE_NAME), entry) for entry in self._entries())
        return {name: entry for name, entry in named if name is not None}

    def _create(self) -> None:
        self._blobs.mkdir(parents=True, exist_ok=True)
        self._ingest.mkdir(exist_ok=True)
        with self._lock():
            if not (self.root / "index.json").exists():
                self._replace("oci-layout", canonical_json(_VERSION))
                self._write_index([])

    def _entries(self) -> list[Descriptor]:
        index = parse_object((self.root / "index.json").read_bytes(), f"{self.root}/index.json")
        manifests = index.get("manifests")
        if not isinstance(manifests, list):
            raise ImageError(f"{self.root}/index.json lists no manifests")
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
        _sync_directory(self.root)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Keep other writers from the index and from starting a blob."""
        fd = os.open(self._ingest, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _sweep(self) -> None:
        """Remove what writers left that no longer live: a live one holds the lock on its file."""
        for path in self._ingest.iterdir():
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
            except BlockingIOError:
                continue
            finally:
                os.close(fd)


_REBUILD: Final = "remove that blob and build or fetch the image again"


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def _storing(root: Path) -> Iterator[None]:
    """Turn what the file system refuses into an ImageError with its remedy."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = "free some disk space, or set ISOMARK_STATE to a larger disk"
        else:
            hint = "set ISOMARK_STATE to a directory that you may write"
        raise ImageError(f"cannot write the image store {root}: {error.strerror}", hint=hint) from error
