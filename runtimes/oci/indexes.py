"""What manifests and indexes point at, checked: a document is exactly one of them, and of the type it claims."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from bench.errors import ImageError
from runtimes.oci.descriptor import COMPRESSIONS, INDEXES, MANIFESTS, Descriptor, parse_object

SCHEMA_1: Final = (
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
)
FOREIGN: Final = ("nondistributable", "foreign")
"""In the media types of layers that registries do not hold (Windows base layers)."""
MAX_ENTRIES: Final = 1000
MAX_LAYERS: Final = 1000
_MALICIOUS: Final = "the registry or archive is broken, or tries to be read in two ways"


def parse_document(data: bytes, media_type: str, what: str) -> dict[str, Any]:
    """Return the manifest or index in ``data``, which was offered as ``media_type``.

    Raises:
        ImageError: it is something else, or could be read as something else too.
    """
    document = parse_object(data, what)
    if media_type in SCHEMA_1 or document.get("schemaVersion") == 1:
        raise ImageError(
            f"{what} is in Docker's schema 1, which cannot be verified", hint="push it again with any Docker since 1.10"
        )
    if media_type not in (*INDEXES, *MANIFESTS):
        raise ImageError(f"{what} is offered as {media_type[:100]!r}, which is no image", hint=_MALICIOUS)
    claimed = document.get("mediaType", media_type)
    if claimed != media_type:
        raise ImageError(f"{what} is a {str(claimed)[:100]!r} offered as {media_type!r}", hint=_MALICIOUS)
    mine, other = ("manifests", "layers") if media_type in INDEXES else ("layers", "manifests")
    # CVE-2021-41190: a document that is manifest and index at once means different things to different readers
    if other in document or (mine == "manifests" and "config" in document):
        raise ImageError(f"{what} is a manifest and an index at once", hint=_MALICIOUS)
    if document.get("schemaVersion") != 2 or not isinstance(document.get(mine), list):
        raise ImageError(f"{what} is no {'index' if mine == 'manifests' else 'image manifest'}", hint=_MALICIOUS)
    return document


def index_entries(document: Mapping[str, Any], what: str) -> list[Descriptor]:
    """The manifests of an index.

    Raises:
        ImageError: an entry is no descriptor, or there are absurdly many.
    """
    entries = document["manifests"]
    if len(entries) > MAX_ENTRIES:
        raise ImageError(f"{what} lists {len(entries)} images", hint=_MALICIOUS)
    return [Descriptor.from_json(entry) for entry in entries]


def manifest_blobs(document: Mapping[str, Any], what: str) -> tuple[Descriptor, list[Descriptor]]:
    """The configuration and the layers of a manifest.

    Raises:
        ImageError: it names something that is no layer, or one that registries do not hold.
    """
    if len(document["layers"]) > MAX_LAYERS:
        raise ImageError(f"{what} has {len(document['layers'])} layers", hint=_MALICIOUS)
    layers = [Descriptor.from_json(layer) for layer in document["layers"]]
    for layer in layers:
        if any(word in layer.media_type for word in FOREIGN):
            raise ImageError(
                f"{what} has a layer that may not be distributed ({layer.media_type})",
                hint="such layers are parts of Windows; choose a Linux image with --platform",
            )
        if layer.media_type not in COMPRESSIONS:
            raise ImageError(
                f"{what} is no container image: it holds a {layer.media_type[:100]!r}",
                hint="artifacts that are no images need a tool of their own, like oras",
            )
    return Descriptor.from_json(document.get("config")), layers
