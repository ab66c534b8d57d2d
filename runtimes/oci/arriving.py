"""Reading blobs that are still being downloaded, so that unpacking need not wait for the last byte.

What is handed out was not verified yet: whoever reads must throw all away if the transfer fails, as an
unpacked tree is that was not published.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from typing import Final

from bench.errors import ImageError
from runtimes.oci.descriptor import Descriptor
from runtimes.oci.ingest import Partial
from runtimes.oci.layout import CHUNK_BYTES, Layout
from runtimes.oci.session import Cancelled

_POLL_SECONDS: Final = 1.0
"""How long a wait lasts before it looks again; nobody is kept waiting by it."""


class ArrivingLayout(Layout):
    """The store of ``layout``, whose blobs ``pending`` are on their way."""

    def __init__(self, layout: Layout, pending: Iterable[Descriptor]) -> None:
        super().__init__(layout.root)
        self._pending = {descriptor.digest for descriptor in pending}
        self._partials: dict[str, Partial] = {}
        self._failed = False
        self._changed = threading.Condition()

    def chunks(self, descriptor: Descriptor) -> Iterator[bytes]:
        """As ``Layout.chunks``, waiting for what is not there yet.

        Raises:
            ImageError: the download failed, or began again after part of it was handed out.
        """
        partial = self._wait_for_start(descriptor)
        if partial is None:
            yield from super().chunks(descriptor)
            return
        try:
            fd = os.open(f"/proc/self/fd/{partial.fd}", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:  # it was finished and closed just now
            self._wait_for_end(descriptor)
            yield from super().chunks(descriptor)
            return
        try:
            yield from self._follow(descriptor, partial, fd)
        finally:
            os.close(fd)

    def begins(self, descriptor: Descriptor, partial: Partial) -> None:
        """``partial`` grows from now on; call ``advanced`` as it does, and ``arrived`` once it is visible."""
        with self._changed:
            self._partials[descriptor.digest] = partial
            self._changed.notify_all()

    def advanced(self) -> None:
        """Wake those who wait for more."""
        with self._changed:
            self._changed.notify_all()

    def arrived(self, descriptor: Descriptor) -> None:
        """The blob is verified and in the store."""
        with self._changed:
            self._pending.discard(descriptor.digest)
            self._partials.pop(descriptor.digest, None)
            self._changed.notify_all()

    def fail(self) -> None:
        """Nothing more will come."""
        with self._changed:
            self._failed = True
            self._changed.notify_all()

    def _wait_for_start(self, descriptor: Descriptor) -> Partial | None:
        """The growing file, or ``None`` once the blob is in the store."""
        with self._changed:
            while descriptor.digest in self._pending:
                if (partial := self._partials.get(descriptor.digest)) is not None:
                    return partial
                self._wait(descriptor)
        return None

    def _wait_for_end(self, descriptor: Descriptor) -> None:
        with self._changed:
            while descriptor.digest in self._pending:
                self._wait(descriptor)

    def _wait(self, descriptor: Descriptor) -> None:
        if self._failed:
            raise Cancelled(f"blob {descriptor.digest} did not arrive")
        self._changed.wait(_POLL_SECONDS)

    def _follow(self, descriptor: Descriptor, partial: Partial, fd: int) -> Iterator[bytes]:
        at, restarts = 0, partial.restarts
        while at < descriptor.size:
            available = self._wait_for_more(descriptor, partial, at)
            if partial.restarts != restarts:
                break
            while at < available:
                data = os.pread(fd, min(CHUNK_BYTES, available - at), at)
                if self._failed:
                    raise Cancelled(f"blob {descriptor.digest} did not arrive")
                if not data or partial.restarts != restarts:
                    raise ImageError(f"blob {descriptor.digest} is downloaded again", hint="pull it again")
                at += len(data)
                yield data
        self._wait_for_end(descriptor)  # only then it was verified
        if partial.restarts != restarts:
            raise ImageError(f"blob {descriptor.digest} was downloaded again", hint="pull it again")

    def _wait_for_more(self, descriptor: Descriptor, partial: Partial, at: int) -> int:
        """How much is there, once that is a piece worth reading."""
        enough = min(at + CHUNK_BYTES, descriptor.size)
        with self._changed:
            while descriptor.digest in self._pending and at <= partial.offset < enough:
                self._wait(descriptor)
            # once it is in the store all of it is there
            return partial.offset if descriptor.digest in self._pending else descriptor.size
