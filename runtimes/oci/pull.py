"""Pulling an image: manifest, configuration and layers, each verified while it streams, then its name."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from bench.errors import ImageError
from bench.journal import Journal
from runtimes.oci.arriving import ArrivingLayout
from runtimes.oci.descriptor import CONFIG, DOCKER_CONFIG, INDEXES, Descriptor
from runtimes.oci.download import download
from runtimes.oci.images import BUDGET_BYTES, Images, Stored
from runtimes.oci.indexes import index_entries, manifest_blobs
from runtimes.oci.ingest import StoreFull
from runtimes.oci.platform import Platform, select
from runtimes.oci.reference import Reference
from runtimes.oci.registry import Document, Repository
from runtimes.oci.session import Session
from runtimes.oci.transfer import Watcher, in_parallel
from runtimes.oci.trees import read_manifest

_MAX_DEPTH: Final = 3
"""Indexes may hold indexes; nobody nests them deeper."""


@dataclass(frozen=True)
class Pulled:
    """What a pull brought. ``digest`` is what the registry calls it: of the index, if there is one."""

    stored: Stored
    digest: str
    fresh_bytes: int
    """What was not here before, as it was sent."""


class Pull:
    """One pull from ``repository`` into ``images``; one use each."""

    def __init__(self, images: Images, session: Session, watcher: Watcher, parallel: int) -> None:
        self._images = images
        self._layout = images.layout
        self._session = session
        self._watcher = watcher
        self._parallel = parallel
        self.fresh_bytes = 0

    def run(self, reference: Reference, platform: Platform, journal: Journal | None) -> Pulled:
        """Pull what ``reference`` names for ``platform``; with ``journal`` also unpack it, while it comes.

        Raises:
            ImageError: it cannot be had, or is not what it should be; nothing became visible then.
        """
        repository = Repository(self._session, reference.repository)
        top = document = repository.document(reference.target)
        for _ in range(_MAX_DEPTH):
            if document.descriptor.media_type not in INDEXES:
                break
            entry = select(index_entries(document.value, str(reference)), platform, str(reference))
            document = repository.document(entry.digest, entry)
        # what an index says of its images was compared there
        only = platform if document is top else None
        self._bring(repository, document, str(reference), journal, only)
        self._layout.tag(reference.familiar, document.descriptor)
        stored = self._images.find(reference.familiar)
        return Pulled(stored, top.descriptor.digest, self.fresh_bytes)

    def run_all(self, reference: Reference) -> Pulled:
        """Pull what ``reference`` names for every platform, index and all. Raises as ``run`` does."""
        repository = Repository(self._session, reference.repository)
        top = repository.document(reference.target)
        self._bring_tree(repository, top, str(reference), _MAX_DEPTH)
        self._layout.tag(reference.familiar, top.descriptor)
        return Pulled(self._images.find(reference.familiar), top.descriptor.digest, self.fresh_bytes)

    def _bring_tree(self, repository: Repository, document: Document, what: str, depth: int) -> None:
        if document.descriptor.media_type not in INDEXES:
            self._bring(repository, document, what, None)
            return
        if depth == 0:
            raise ImageError(f"{what} nests indexes in indexes without end", hint="the registry is broken or malicious")
        for entry in index_entries(document.value, what):
            self._bring_tree(repository, repository.document(entry.digest, entry), what, depth - 1)
        self._layout.put(document.descriptor, document.data)

    def _bring(
        self,
        repository: Repository,
        document: Document,
        what: str,
        journal: Journal | None,
        only: Platform | None = None,
    ) -> None:
        """Bring one image's configuration, manifest and layers, and unpack these if ``journal`` is given.

        With ``only`` it must be for that platform, as far as it says.
        """
        config, layers = manifest_blobs(document.value, what)
        if config.media_type not in (CONFIG, DOCKER_CONFIG):
            raise ImageError(
                f"{what} is no container image: its config is a {config.media_type[:100]!r}",
                hint="artifacts that are no images need a tool of their own, like oras",
            )
        self._layout.keep([document.descriptor, config, *layers])
        self._fetch(repository, config, "config", None)
        self._layout.put(document.descriptor, document.data)
        # refuse what does not fit together, or not here, before it costs anything
        found = Platform.of(read_manifest(self._layout, document.descriptor).config)
        if only is not None and not only.may_be(found):
            raise ImageError(f"{what} is for {found}, not for {only}", hint=f"--platform {found}")
        arriving = ArrivingLayout(self._layout, layers) if journal is not None else None

        def unpack() -> None:
            assert journal is not None
            assert arriving is not None
            # an error may come from bytes that were not verified yet: the one of verified ones, below, is the truth
            with suppress(ImageError):
                self._images.unpack(arriving, document.descriptor, journal, BUDGET_BYTES)

        try:
            in_parallel(
                self._session,
                layers,
                lambda layer: self._fetch(repository, layer, "layer", arriving),
                self._parallel,
                beside=unpack if arriving is not None else None,
                stop=arriving.fail if arriving is not None else lambda: None,
            )
        except StoreFull:
            self._layout.forget(layers)  # whoever frees space should not have to look for these
            raise
        if journal is not None:  # at once, unless that failed
            self._images.unpack(self._layout, document.descriptor, journal, BUDGET_BYTES)

    def _fetch(self, repository: Repository, blob: Descriptor, what: str, arriving: ArrivingLayout | None) -> None:
        self._watcher.begins(blob, what)

        def advanced(count: int) -> None:
            self._watcher.advanced(blob, count)
            if arriving is not None:
                arriving.advanced()

        how = "there"
        with self._layout.fetching(blob, self._session.check_cancelled) as partial:
            if partial is not None:
                how = "pulled"
                if arriving is not None:
                    arriving.begins(blob, partial)
                before = partial.offset
                self._watcher.advanced(blob, before)
                download(repository, partial, advanced)
                self.fresh_bytes += blob.size - before
        if arriving is not None:
            arriving.arrived(blob)
        self._watcher.ended(blob, how)


def pull(
    images: Images,
    session: Session,
    reference: Reference,
    platform: Platform,
    watcher: Watcher,
    *,
    journal: Journal | None,
    parallel: int,
) -> Pulled:
    """Pull an image; see ``Pull.run``."""
    return Pull(images, session, watcher, parallel).run(reference, platform, journal)
