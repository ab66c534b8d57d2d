"""Images of the store below the state directory: found by name or id, unpacked once, tagged, listed, removed."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.errors import ImageError, UsageError
from bench.journal import Journal
from bench.units import GIB
from runtimes.oci.collect import PUBLISHING, Collected, collect, containers_using
from runtimes.oci.descriptor import INDEXES, Descriptor
from runtimes.oci.indexes import index_entries, manifest_blobs, parse_document
from runtimes.oci.ingest import locked_partial, storing
from runtimes.oci.layout import Layout
from runtimes.oci.platform import Platform, select
from runtimes.oci.reference import Reference
from runtimes.oci.trees import Manifest, Tree, find_tree, publish_tree, read_manifest

BUDGET_BYTES: Final = 64 * GIB
"""No image unpacks to more, nor to more than the disk has free."""
_HEX: Final = frozenset("0123456789abcdef")


@dataclass(frozen=True)
class Stored:
    """An image of the store. ``reference`` is empty if it was found by digest and has no name."""

    reference: str
    descriptor: Descriptor
    """Of the manifest for this host's platform."""
    root: Descriptor
    """What the reference names: the manifest, or the index that it was selected from."""
    manifest: Manifest
    id: str
    """The digest of the configuration, which Docker calls the image's id."""

    @property
    def config(self) -> dict[str, Any]:
        """The image configuration (image-spec, config.md), whole: the command is in ``config["config"]``."""
        return self.manifest.config

    @property
    def compressed_bytes(self) -> int:
        """All layers as they are stored."""
        return sum(layer.size for layer, _ in self.manifest.layers)


class NoImage(ImageError):
    """The store has no image of that name or id."""


class Images:
    """The images below ``state``. What this object found or made is not collected while it lives."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.trees = state / "trees"
        with storing(state):
            state.mkdir(parents=True, exist_ok=True)
        self.layout = Layout(state / "images")

    def find(self, text: str, platform: Platform | None = None) -> Stored:
        """Return the image that ``text`` names: a reference, or enough of an id or a manifest's digest.

        Raises:
            UsageError: ``text`` is neither.
            NoImage: there is none.
            ImageError: there is more than one, or it is damaged.
        """
        for name in _names(text):
            if (named := self._named(name, platform)) is not None:
                return named
        references = self.layout.references()
        if (found := self._by_digest(text, references, platform)) is not None:
            return found
        reference = Reference.parse(text)
        near = difflib.get_close_matches(reference.familiar, references, n=3, cutoff=0.6)
        known = f"; there is {', '.join(near)}" if near else ""
        raise NoImage(f"no image {text} here{known}", hint=f"isomark image pull {text}")

    def _named(self, name: str, platform: Platform | None) -> Stored | None:
        """What is called ``name``; again if it was removed or moved between looking and keeping."""
        while (root := self.layout.resolve(name)) is not None:
            try:
                return self.load(name, root, platform)
            except ImageError:
                if self.layout.resolve(name) == root:
                    raise
        return None

    def load(self, name: str, root: Descriptor, platform: Platform | None = None) -> Stored:
        """Read the image that ``root`` points at, and keep it from being collected.

        Raises:
            ImageError: parts of it are missing or damaged, or it is for other platforms only.
        """
        self.layout.keep([root])
        descriptor = root
        if root.media_type in INDEXES:
            document = parse_document(self.layout.raw(root), root.media_type, name or root.digest)
            entries = index_entries(document, name or root.digest)
            descriptor = select(entries, platform or Platform.here(), name or root.digest)
        self.layout.keep([descriptor])
        document = parse_document(self.layout.raw(descriptor), descriptor.media_type, name or descriptor.digest)
        config, layers = manifest_blobs(document, name or descriptor.digest)
        self.layout.keep([config, *layers])
        return Stored(name, descriptor, root, read_manifest(self.layout, descriptor), config.digest)

    def list(self) -> Iterator[tuple[str, Stored | ImageError]]:
        """Yield every name in order with its image, or with what is wrong with it.

        Raises:
            ImageError: the store itself cannot be used.
        """
        self.layout.keep([])  # a store of somebody else is no reason to call its images damaged
        for name in sorted(self.layout.references()):
            try:
                if (stored := self._named(name, None)) is not None:
                    yield name, stored
            except ImageError as error:
                yield name, error

    def tree(self, stored: Stored, journal: Journal, budget_bytes: int = BUDGET_BYTES) -> Tree:
        """Return the unpacked tree of an image, unpacking it first if that was not done yet.

        Raises:
            ImageError: the image is not what it claims, or there is no space; nothing is left then.
        """
        return self.unpack(self.layout, stored.descriptor, journal, budget_bytes)

    def unpack(self, layout: Layout, descriptor: Descriptor, journal: Journal, budget_bytes: int) -> Tree:
        """As ``tree``; ``layout`` is where the blobs come from, which may still be arriving."""
        tree = find_tree(self.trees, descriptor.digest)
        if tree is None:
            with self._publishing(descriptor):
                tree = find_tree(self.trees, descriptor.digest)
                if tree is None:
                    budget_bytes = min(budget_bytes, _free_bytes(self.trees))
                    tree = publish_tree(layout, descriptor, self.trees, journal, budget_bytes)
        return tree

    def tag(self, stored: Stored, text: str) -> str:
        """Give an image one more name, and return it as the store writes it.

        Raises:
            UsageError: ``text`` is no reference, or has a digest.
        """
        reference = Reference.parse(text)
        if reference.digest is not None:
            raise UsageError(f"{text} names a digest, which only a pull can", hint="isomark image tag IMAGE NAME:TAG")
        self.layout.tag(reference.familiar, stored.root)
        return reference.familiar

    def remove(self, text: str, *, force: bool = False) -> Sequence[str]:
        """Let an image lose the name ``text``, or all its names if ``text`` is its id; return these.

        The blobs go when ``collect`` finds that nothing needs them.

        Raises:
            ImageError: there is none; or, without ``force``, it is in use by a container or has several names.
        """
        stored = self._find_for_removal(text)
        names = [stored.reference]
        others = [name for name, root in self.layout.references().items() if root.digest == stored.root.digest]
        if not stored.reference or not _is_name(text, stored.reference):
            names = others
            if len(names) > 1 and not force:
                raise ImageError(
                    f"{text} has several names: {', '.join(names)}", hint="remove them by name, or --force"
                )
        users = containers_using(self.state, {stored.descriptor.digest, stored.root.digest})
        if users and set(names) >= set(others) and not force:
            raise ImageError(
                f"{text} is used by container {', '.join(users)}", hint=f"isomark container rm {users[0]}, or --force"
            )
        return self.layout.untag(*names)

    def collect(self, journal: Journal, *, partial: bool = False, verify: bool = False) -> Collected:
        """Remove every blob and tree that no name, container or living process needs; see ``collect.collect``."""
        return collect(self.layout, self.state, journal, partial=partial, verify=verify)

    def _find_for_removal(self, text: str) -> Stored:
        """Find what shall be removed, even if it cannot be read any more."""
        try:
            return self.find(text)
        except ImageError as error:
            for name in _names(text):
                if (root := self.layout.references().get(name)) is not None:
                    return Stored(name, root, root, Manifest((), {}), "")
            if isinstance(error, NoImage):
                raise NoImage(error.message, hint="isomark image ls shows what is here") from error
            raise

    def _by_digest(self, text: str, references: Mapping[str, Descriptor], platform: Platform | None) -> Stored | None:
        """The one image whose id or manifest digest begins with ``text``, or which ``name@digest`` names."""
        name, at, digest = text.rpartition("@")
        prefix = digest.removeprefix("sha256:")
        if not prefix or not set(prefix) <= _HEX or (at and ":" not in digest):
            return None
        repository = Reference.parse(name).name if at else None
        found: dict[str, Stored] = {}
        for reference, root in references.items():
            if repository is not None and Reference.parse(reference).name != repository:
                continue
            try:
                stored = self.load(reference, root, platform)
            except ImageError:
                continue
            digests = (stored.descriptor.digest, root.digest, *([] if at else [stored.id]))
            if any(digest.partition(":")[2].startswith(prefix) for digest in digests):
                found.setdefault(stored.descriptor.digest, stored)
        if len(found) > 1:
            names = ", ".join(stored.reference for stored in found.values())
            raise ImageError(
                f"{text} begins the ids of {len(found)} images",
                hint=f"write more digits of it, or a name: {names[:500]}",
            )
        return next(iter(found.values()), None)

    @contextmanager
    def _publishing(self, descriptor: Descriptor) -> Iterator[None]:
        """Let one process at a time unpack an image; the lock goes with its process."""
        with storing(self.trees):
            self.trees.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = self.trees / f"{PUBLISHING}{descriptor.hex}"
            fd = locked_partial(path)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            os.close(fd)


def _names(text: str) -> tuple[str, ...]:
    """The names under which the store may have what ``text`` says, as written first."""
    try:
        return text, Reference.parse(text).familiar
    except UsageError:
        return (text,)


def _is_name(text: str, reference: str) -> bool:
    return reference in _names(text)


def _free_bytes(path: Path) -> int:
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize
