"""Uploading one blob: not at all where it is, mounted where a neighbour has it, else whole or in chunks, resumed.

OCI distribution 1.1, "Pushing blobs". A registry that knows no chunks gets the blob in one piece; after a fault it
is asked how much of it arrived.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final
from urllib.parse import urljoin

import httpx

from bench.errors import ImageError
from bench.units import MIB
from runtimes.oci.descriptor import Descriptor
from runtimes.oci.layout import CHUNK_BYTES, Layout
from runtimes.oci.registry import Repository
from runtimes.oci.session import RETRIED

CHUNKED_BYTES: Final = 64 * MIB
"""Blobs larger than this are sent in chunks of it, so that a fault costs no more."""
_NO_CHUNKS: Final = (400, 404, 405, 411, 415, 501)

Advanced = Callable[[int], None]


class Upload:
    """Brings blobs of ``layout`` to ``repository``."""

    def __init__(self, repository: Repository, layout: Layout, chunk_bytes: int = CHUNKED_BYTES) -> None:
        self._repository = repository
        self._session = repository.session
        self._layout = layout
        self._chunk_bytes = chunk_bytes

    def send(self, descriptor: Descriptor, neighbours: Sequence[str], advanced: Advanced) -> str:
        """Make sure that the repository has the blob; return "there", "mounted" or "sent".

        ``neighbours`` are repositories of the same registry that may have it; the first is tried.

        Raises:
            ImageError: the registry refuses it, or keeps breaking off; or our blob is missing or damaged.
        """
        if self._repository.has_blob(descriptor):
            return "there"
        location = self._begin(descriptor, neighbours[0] if neighbours else None)
        if location is None:
            return "mounted"
        self._finish(descriptor, location, advanced)
        return "sent"

    def _begin(self, descriptor: Descriptor, neighbour: str | None) -> str | None:
        """Open an upload session and return where; ``None`` if the blob was mounted from ``neighbour``."""
        query = ""
        scopes: tuple[str, ...] = self._repository.pushing
        if neighbour is not None:
            query = f"?mount={descriptor.digest}&from={neighbour}"
            scopes = (*scopes, f"repository:{neighbour}:pull")
        response = self._session.request(
            "POST", self._repository.path("blobs", "uploads", "") + query, scopes=scopes,
            headers={"Content-Length": "0"},
        )  # fmt: skip
        if response.status_code == 201 and neighbour is not None:
            return None
        if response.status_code in (401, 403) and neighbour is not None:
            return self._begin(descriptor, None)  # we may not read the neighbour
        if response.status_code not in (201, 202) or "location" not in response.headers:
            raise self._repository.refusal(response, f"starting an upload to {self._repository.label}")
        return self._location(response)

    def _finish(self, descriptor: Descriptor, location: str, advanced: Advanced) -> None:
        """Send the blob to ``location``, in as many tries as we are patient for."""
        pauses = self._session.pauses()
        chunked, done = descriptor.size > self._chunk_bytes, 0
        for left in reversed(range(self._session.patience.tries)):
            try:
                if chunked:
                    location, done = self._send_chunks(descriptor, location, done, advanced)
                self._close(descriptor, location, done, advanced)
            except httpx.HTTPError as error:
                self._session.explain(error, last=left == 0)
                self._session.pause(next(pauses))
            except _Refused as refused:
                unsupported = refused.status in _NO_CHUNKS and chunked and done == 0
                if left == 0 or not (unsupported or refused.status in (*RETRIED, 404, 416)):
                    raise refused.error from refused
                chunked = chunked and not unsupported
                if not unsupported:
                    self._session.pause(next(pauses))
            else:
                return
            location, found = self._resume(descriptor, location)
            advanced(found - done)
            done = found

    def _send_chunks(self, descriptor: Descriptor, location: str, done: int, advanced: Advanced) -> tuple[str, int]:
        while done < descriptor.size:
            size = min(self._chunk_bytes, descriptor.size - done)
            response = self._session.request(
                "PATCH", location, scopes=self._repository.pushing, tries=1,
                headers={
                    "Content-Type": "application/octet-stream",
                    "Content-Length": str(size),
                    "Content-Range": f"{done}-{done + size - 1}",
                },
                content=self._body(descriptor, done, size),
            )  # fmt: skip
            if response.status_code not in (201, 202, 204):
                raise _Refused(response, self._repository, descriptor)
            location = self._location(response, location)
            done += size
            advanced(size)
        return location, done

    def _close(self, descriptor: Descriptor, location: str, done: int, advanced: Advanced) -> None:
        """Send what is left, which for a small blob is all of it, and name its digest."""
        joint = "&" if "?" in location else "?"
        rest = descriptor.size - done
        response = self._session.request(
            "PUT", f"{location}{joint}digest={descriptor.digest}", scopes=self._repository.pushing, tries=1,
            headers={"Content-Type": "application/octet-stream", "Content-Length": str(rest)},
            content=self._body(descriptor, done, rest) if rest else b"",
        )  # fmt: skip
        if response.status_code not in (201, 204):
            raise _Refused(response, self._repository, descriptor)
        advanced(rest)

    def _resume(self, descriptor: Descriptor, location: str) -> tuple[str, int]:
        """Ask how much of the upload arrived; begin another where the registry forgot it or cannot say."""
        if self._session.is_ours(location):
            response = self._session.request("GET", location, scopes=self._repository.pushing)
            first, dash, last = response.headers.get("range", "").removeprefix("bytes=").partition("-")
            # "0-0" is one byte or none, and registries differ
            if response.status_code == 204 and dash and first == "0" and last.isdecimal() and last != "0":
                return self._location(response, location), min(int(last) + 1, descriptor.size)
        fresh = self._begin(descriptor, None)
        assert fresh is not None
        return fresh, 0

    def _body(self, descriptor: Descriptor, start: int, size: int) -> Callable[[], Iterator[bytes]]:
        def pieces() -> Iterator[bytes]:
            if start == 0 and size == descriptor.size:
                for chunk in self._layout.chunks(descriptor):  # verified; a rotten blob breaks the request off
                    self._session.check_cancelled()
                    yield chunk
                return
            with self._layout.path(descriptor).open("rb") as blob:
                blob.seek(start)
                left = size
                while left and (chunk := blob.read(min(CHUNK_BYTES, left))):
                    self._session.check_cancelled()
                    left -= len(chunk)
                    yield chunk

        return pieces

    def _location(self, response: httpx.Response, before: str = "") -> str:
        """Where to go on. A proxy that hides TLS from its registry makes it say http; that is put right."""
        base = before or self._session.endpoint.url
        location: str = urljoin(base, response.headers.get("location", before))
        url, ours = httpx.URL(location), httpx.URL(self._session.endpoint.url)
        if url.scheme == "http" and ours.scheme == "https":
            if url.host != ours.host:
                raise ImageError(
                    f"{self._repository.label} wants an upload to {location[:200]!r}, which is not https",
                    hint="the registry is misconfigured or malicious",
                )
            location = str(url.copy_with(scheme="https", port=ours.port))
        return location


class _Refused(Exception):
    def __init__(self, response: httpx.Response, repository: Repository, descriptor: Descriptor) -> None:
        super().__init__(response.status_code)
        self.status = response.status_code
        self.error = repository.refusal(response, f"pushing blob {descriptor.digest} to {repository.label}")
