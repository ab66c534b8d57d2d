"""Descriptors and media types (OCI image-spec 1.1, descriptor.md), and JSON that hashes the same every time."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

from bench.errors import ImageError
from runtimes.oci.names import DAMAGED

INDEX: Final = "application/vnd.oci.image.index.v1+json"
MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
CONFIG: Final = "application/vnd.oci.image.config.v1+json"
LAYER_GZIP: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
EMPTY: Final = "application/vnd.oci.empty.v1+json"
DOCKER_INDEX: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
INDEXES: Final = (INDEX, DOCKER_INDEX)
MANIFESTS: Final = (MANIFEST, DOCKER_MANIFEST)

COMPRESSIONS: Final[Mapping[str, str]] = {
    "application/vnd.oci.image.layer.v1.tar": "none",
    LAYER_GZIP: "gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd": "zstd",
    "application/vnd.docker.image.rootfs.diff.tar": "none",
    "application/vnd.docker.image.rootfs.diff.tar.gzip": "gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd": "zstd",
}
"""Media type of a layer -> how it is compressed."""

REFERENCE_NAME: Final = "org.opencontainers.image.ref.name"
MAX_DOCUMENT_BYTES: Final = 4 * 1024**2
"""Manifests, indexes and configs larger than this are refused, as registries do."""

_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")


class Hasher(Protocol):
    """What hashlib's objects offer."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Take in ``data``."""

    def hexdigest(self) -> str:
        """The digest of all that was taken in."""


@dataclass(frozen=True)
class Descriptor:
    """Points at a blob by its digest (``sha256:`` or ``sha512:`` and hexadecimal digits) and size in bytes."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)
    platform: Mapping[str, Any] | None = None
    """In an index: what the manifest runs on (image-index.md)."""

    @property
    def hex(self) -> str:
        """The digest without its algorithm."""
        return self.digest.partition(":")[2]

    @property
    def algorithm(self) -> str:
        """``sha256`` or ``sha512``."""
        return self.digest.partition(":")[0]

    def hasher(self) -> Hasher:
        """A fresh hash of the digest's algorithm."""
        return hashlib.new(self.algorithm, usedforsecurity=True)

    def named(self, reference: str) -> Descriptor:
        """The same blob under the name ``reference``."""
        return replace(self, annotations={**self.annotations, REFERENCE_NAME: reference})

    @classmethod
    def from_json(cls, value: object) -> Descriptor:
        """Return the descriptor in parsed JSON ``value``.

        Raises:
            ImageError: it is no descriptor, or its digest is neither sha256 nor sha512.
        """
        if not isinstance(value, dict):
            raise ImageError("a descriptor is not a JSON object", hint=DAMAGED)
        media_type, size, annotations = value.get("mediaType"), value.get("size"), value.get("annotations") or {}
        if not isinstance(media_type, str) or not isinstance(annotations, dict):
            raise ImageError("a descriptor has no media type, or annotations that are no object", hint=DAMAGED)
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise ImageError(f"a descriptor has the size {size!r}", hint=DAMAGED)
        platform = value.get("platform")
        if platform is not None and not isinstance(platform, dict):
            raise ImageError("a descriptor has a platform that is no object", hint=DAMAGED)
        return cls(media_type, checked_digest(value.get("digest")), size, annotations, platform)

    def to_json(self) -> dict[str, Any]:
        """The descriptor as the specification writes it."""
        value: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        if self.platform is not None:
            value["platform"] = dict(self.platform)
        return {**value, "annotations": dict(self.annotations)} if self.annotations else value


def checked_digest(value: object) -> str:
    """Return ``value`` if it is a sha256 or sha512 digest.

    Raises:
        ImageError: it is anything else.
    """
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise ImageError(f"{str(value)[:100]!r} is neither a sha256 nor a sha512 digest", hint=DAMAGED)
    return value


def canonical_json(value: object) -> bytes:
    """Return ``value`` as JSON that is the same bytes every time."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def parse_object(data: bytes, what: str, hint: str = DAMAGED) -> dict[str, Any]:
    """Return the JSON object in ``data``; ``hint`` says what to do if it is none.

    Raises:
        ImageError: it holds anything else.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ImageError(f"{what} is not JSON", hint=hint) from error
    if not isinstance(value, dict):
        raise ImageError(f"{what} is not a JSON object", hint=hint)
    return value
