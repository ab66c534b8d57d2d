"""Pushing an image: blobs that the registry lacks, then manifests, then the name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.errors import ImageError
from runtimes.oci.descriptor import INDEX, INDEXES, Descriptor, canonical_json
from runtimes.oci.images import Images, Stored
from runtimes.oci.indexes import index_entries, manifest_blobs, parse_document
from runtimes.oci.reference import Reference
from runtimes.oci.registry import Repository
from runtimes.oci.session import Session
from runtimes.oci.transfer import Watcher, in_parallel
from runtimes.oci.upload import CHUNKED_BYTES, Upload


@dataclass(frozen=True)
class Pushed:
    """What a push did."""

    digest: str
    sent_bytes: int


class Push:
    """One push from ``images``; one use each."""

    def __init__(
        self, images: Images, session: Session, watcher: Watcher, parallel: int, chunk_bytes: int = CHUNKED_BYTES
    ) -> None:
        self._images = images
        self._session = session
        self._watcher = watcher
        self._parallel = parallel
        self._chunk_bytes = chunk_bytes
        self._sent_bytes = 0

    def run(self, stored: Stored, reference: Reference) -> Pushed:
        """Push ``stored``, with all it has of an index, under the name ``reference``.

        Raises:
            ImageError: parts of it are not here, or the registry refused it.
        """
        repository = Repository(self._session, reference.repository)
        upload = Upload(repository, self._images.layout, self._chunk_bytes)
        self._push(repository, upload, stored.root, reference)
        self._watcher.stage(f"naming it {reference}")
        if not repository.has_manifest(reference.target, stored.root.digest):
            repository.put_manifest(reference.target, stored.root, self._images.layout.raw(stored.root))
        return Pushed(stored.root.digest, self._sent_bytes)

    def _push(self, repository: Repository, upload: Upload, root: Descriptor, reference: Reference) -> None:
        """Push what ``root`` points at, and itself by its digest unless it is what will be named."""
        layout = self._images.layout
        document = parse_document(layout.raw(root), root.media_type, root.digest)
        if root.media_type in INDEXES:
            for entry in index_entries(document, root.digest):
                if not layout.has(entry):
                    raise ImageError(
                        f"{reference} is for several platforms, and not all of them are here",
                        hint=f"isomark image pull --platform all {reference}",
                    )
                self._push(repository, upload, entry, reference)
                repository.put_manifest(entry.digest, entry, layout.raw(entry))
            return
        config, layers = manifest_blobs(document, root.digest)
        neighbours = self._neighbours(reference)

        def send(blob: Descriptor) -> None:
            self._watcher.begins(blob, "config" if blob == config else "layer")
            how = upload.send(blob, neighbours.get(blob.digest, ()), lambda n: self._watcher.advanced(blob, n))
            self._sent_bytes += blob.size if how == "sent" else 0
            self._watcher.ended(blob, how)

        in_parallel(self._session, [*layers, config], send, self._parallel)
        if (subject := document.get("subject")) is not None:
            self._refer(repository, root, Descriptor.from_json(subject), document)

    def _neighbours(self, reference: Reference) -> dict[str, Sequence[str]]:
        """Blob -> repositories of the same registry that other images here came from, or went to."""
        found: dict[str, list[str]] = {}
        for name, image in self._images.list():
            other = Reference.parse(name)
            if isinstance(image, ImageError) or other.registry != reference.registry:
                continue
            if other.repository != reference.repository:
                for digest in (image.id, *(layer.digest for layer, _ in image.manifest.layers)):
                    found.setdefault(digest, []).append(other.repository)
        return {digest: tuple(dict.fromkeys(names)) for digest, names in found.items()}

    def _refer(self, repository: Repository, root: Descriptor, subject: Descriptor, document: dict[str, Any]) -> None:
        """Make a referrer found where the registry has no referrers API: an index under the subject's tag."""
        if repository.put_manifest(root.digest, root, self._images.layout.raw(root)):
            return
        known = [entry for entry in repository.referrers(subject.digest) if entry.digest != root.digest]
        entry = {**root.to_json(), "artifactType": document.get("artifactType") or document["config"]["mediaType"]}
        entry["annotations"] = document.get("annotations") or {}
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [*(one.to_json() for one in known), entry]}
        data = canonical_json(index)
        target = subject.digest.replace(":", "-")
        described = Descriptor(INDEX, subject.digest, len(data))
        hasher = described.hasher()
        hasher.update(data)
        repository.put_manifest(
            target, Descriptor(INDEX, f"{described.algorithm}:{hasher.hexdigest()}", len(data)), data
        )
