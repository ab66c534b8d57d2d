"""A repository of a registry: the parts of OCI distribution 1.1 that pulling, pushing and looking need."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import httpx

from bench.errors import ImageError
from runtimes.oci.descriptor import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    INDEX,
    INDEXES,
    MANIFEST,
    MANIFESTS,
    Descriptor,
    parse_object,
)
from runtimes.oci.indexes import SCHEMA_1, parse_document
from runtimes.oci.session import RETRIED, Session, read_limited
from runtimes.oci.text import printable

_ACCEPT: Final = ", ".join((INDEX, MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST))
_MAX_ERROR_BYTES: Final = 64 * 1024


@dataclass(frozen=True)
class Document:
    """A manifest or index as a registry gave it, its digest checked."""

    descriptor: Descriptor
    data: bytes
    value: dict[str, Any]


class Repository:
    """One repository, through ``session``."""

    def __init__(self, session: Session, name: str) -> None:
        self.session = session
        self.name = name
        self.label = f"{session.endpoint.registry}/{name}"
        self.pulling = (f"repository:{name}:pull",)
        self.pushing = (f"repository:{name}:pull,push",)

    def path(self, *parts: str) -> str:
        """A path of the API below this repository."""
        return "/".join(("/v2", self.name, *parts))

    def document(self, target: str, expected: Descriptor | None = None) -> Document:
        """Return the manifest or index that ``target``, a tag or digest, names.

        Raises:
            ImageError: there is none, or it is not what its digest or ``expected`` says.
        """
        what = f"{self.label}{'@' if ':' in target else ':'}{target}"
        response = self.session.request(
            "GET", self.path("manifests", target), scopes=self.pulling, headers={"Accept": _ACCEPT}
        )
        if response.status_code != 200:
            raise self.refusal(response, f"reading {what}")
        data = response.content
        header = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        claimed = response.headers.get("docker-content-digest", "")
        media_type = _media_type(header, data, what)
        descriptor = expected or _describe(media_type, data, target, claimed)
        hasher = descriptor.hasher()
        hasher.update(data)
        if hasher.hexdigest() != descriptor.hex or len(data) != descriptor.size:
            raise ImageError(
                f"{what} is not {descriptor.digest}: something else came",
                hint="it was damaged on its way, or the registry is malicious",
            )
        if descriptor.media_type != media_type:
            raise ImageError(
                f"{what} is a {media_type!r}, and the index says {descriptor.media_type[:100]!r}",
                hint="the registry is broken or malicious",
            )
        return Document(descriptor, data, parse_document(data, media_type, what))

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Whether the repository has the blob, so far as it says."""
        response = self.session.request("HEAD", self.path("blobs", descriptor.digest), scopes=self.pushing)
        if response.status_code in (401, 403):
            raise self.refusal(response, f"pushing to {self.label}")
        return response.status_code == 200

    def has_manifest(self, target: str, digest: str) -> bool:
        """Whether ``target`` is the manifest ``digest`` there already."""
        response = self.session.request(
            "HEAD", self.path("manifests", target), scopes=self.pushing, headers={"Accept": _ACCEPT}
        )
        return response.status_code == 200 and response.headers.get("docker-content-digest") == digest

    def put_manifest(self, target: str, descriptor: Descriptor, data: bytes) -> bool:
        """Store a manifest or index under ``target``; return whether the registry took note of its subject.

        Raises:
            ImageError: the registry refused it.
        """
        response = self.session.request(
            "PUT",
            self.path("manifests", target),
            scopes=self.pushing,
            headers={"Content-Type": descriptor.media_type, "Content-Length": str(len(data))},
            content=data,
        )
        if response.status_code not in (200, 201, 202):
            raise self.refusal(response, f"pushing the manifest to {self.label}")
        stored = response.headers.get("docker-content-digest", descriptor.digest)
        if stored.startswith(f"{descriptor.algorithm}:") and stored != descriptor.digest:
            raise ImageError(
                f"{self.label} stored the manifest as {printable(stored, 100)}, not {descriptor.digest}",
                hint="the registry is broken or malicious",
            )
        return "oci-subject" in response.headers

    def referrers(self, digest: str) -> list[Descriptor]:
        """What refers to ``digest`` as its subject: by the API, or by the tag schema of registries without it."""
        for path in (self.path("referrers", digest), self.path("manifests", digest.replace(":", "-"))):
            response = self.session.request("GET", path, scopes=self.pulling, headers={"Accept": INDEX})
            if response.status_code == 200:
                entries = parse_object(response.content, f"the referrers of {digest}").get("manifests")
                return [Descriptor.from_json(entry) for entry in entries] if isinstance(entries, list) else []
            if response.status_code not in (404, 400, 405, 501):
                raise self.refusal(response, f"reading the referrers of {digest}")
        return []

    def refusal(self, response: httpx.Response, doing: str) -> ImageError:
        """The error that a response means."""
        if not response.is_closed:
            with suppress(httpx.HTTPError, ImageError):
                response._content = read_limited(response, _MAX_ERROR_BYTES, "an error")
        status = response.status_code
        said = _said(response)
        registry = self.session.endpoint.registry
        if status in (401, 403):
            reason, hint = "not allowed", f"docker login {registry}, with an account that may"
        elif status == 404:
            reason, hint = "not there", "look at the spelling; a private image needs docker login"
        elif status == 429:
            reason, hint = "too many requests", "wait; a log-in may have a higher limit"
        elif status in RETRIED:
            reason, hint = f"the registry fails with HTTP {status}", "try again later"
        else:
            reason, hint = f"HTTP {status}", "the registry does not support what was asked"
        return ImageError(f"{doing}: {reason}{f' ({said})' if said else ''}", hint=hint)


def _media_type(header: str, data: bytes, what: str) -> str:
    """What a document is: as its header says, or as itself says where the header says nothing."""
    if header in (*INDEXES, *MANIFESTS, *SCHEMA_1):
        return header
    inner = parse_object(data, what).get("mediaType")
    if header in ("", "application/json", "text/plain", "application/octet-stream") and isinstance(inner, str):
        return inner
    return header


def _describe(media_type: str, data: bytes, target: str, claimed: str) -> Descriptor:
    """What a document that was asked for by ``target`` should be; ``claimed`` is the registry's word for a tag."""
    digest = target if ":" in target else claimed
    if not digest.startswith(("sha256:", "sha512:")):
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    return Descriptor(media_type, digest, len(data))


def _said(response: httpx.Response) -> str:
    """The registry's own words, made harmless."""
    try:
        errors = json.loads(response.content or b"{}")["errors"]
        return "; ".join(printable(error.get("message") or error.get("code")) for error in errors[:3])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, httpx.ResponseNotRead):
        return ""
