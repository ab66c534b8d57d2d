"""Descriptors and media types (OCI image-spec 1.1, descriptor.md), and JSON that hashes the same every time."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from bench.errors import ImageError

INDEX: Final = "application/vnd.oci.image.index.v1+json"
MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
CONFIG: Final = "application/vnd.oci.image.config.v1+json"
LAYER_GZIP: Final = "application/vnd.oci.image.layer.v1.tar+gzip"

COMPRESSIONS: Final[Mapping[str, str]] = {
    "application/vnd.oci.image.layer.v1.tar": "none",
    LAYER_GZIP: "gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd": "zstd",
    "application/vnd.docker.image.rootfs.diff.tar": "none",
    "application/vnd.docker.image.rootfs.diff.tar.gzip": "gzip",
}
"""Media type of a layer -> how it is compressed."""

REFERENCE_NAME: Final = "org.opencontainers.image.ref.name"
MAX_DOCUMENT_BYTES: Final = 4 * 1024**2
"""Manifests, indexes and configs larger than this are refused, as registries do."""

_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Descriptor:
    """Points at a blob by its digest (``sha256:`` and 64 hexadecimal digits) and size in bytes."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def hex(self) -> str:
        """The digest without its algorithm."""
        return self.digest.removeprefix("sha256:")

    @classmethod
    def from_json(cls, value: object) -> Descriptor:
        """Return the descriptor in parsed JSON ``value``.

        Raises:
            ImageError: it is no descriptor, or its digest is not sha256.
        """
        if not isinstance(value, dict):
            raise ImageError("a descriptor is not a JSON object")
        media_type, size, annotations = value.get("mediaType"), value.get("size"), value.get("annotations") or {}
        if not isinstance(media_type, str) or not isinstance(annotations, dict):
            raise ImageError("a descriptor has no media type, or annotations that are no object")
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise ImageError(f"a descriptor has the size {size!r}")
        return cls(media_type, checked_digest(value.get("digest")), size, annotations)

    def to_json(self) -> dict[str, Any]:
        """The descriptor as the specification writes it."""
        value: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        return {**value, "annotations": dict(self.annotations)} if self.annotations else value


def checked_digest(value: object) -> str:
    """Return ``value`` if it is a sha256 digest.

    Raises:
        ImageError: it is anything else.
    """
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise ImageError(f"{str(value)[:100]!r} is not a sha256 digest")
    return value


def canonical_json(value: object) -> bytes:
    """Return ``value`` as JSON that is the same bytes every time."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def parse_object(data: bytes, what: str) -> dict[str, Any]:
    """Return the JSON object in ``data``.

    Raises:
        ImageError: it holds anything else.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ImageError(f"{what} is not JSON") from error
    if not isinstance(value, dict):
        raise ImageError(f"{what} is not a JSON object")
    return value
