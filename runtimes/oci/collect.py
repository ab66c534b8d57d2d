"""Removing what nobody needs: blobs and trees that neither a name, nor a container, nor a living process keeps.

Marked and swept under the collector's lock, so nothing can come into use in between. Sweeping only renames;
deleting happens afterwards, and a kill in between leaves files that the next writer or collector removes.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.errors import ImageError
from bench.journal import Journal
from runtimes.oci.descriptor import MAX_DOCUMENT_BYTES, Descriptor
from runtimes.oci.ingest import storing, sweep
from runtimes.oci.layout import Layout
from runtimes.oci.trees import remove_tree

CONTAINERS: Final = "containers"
"""Below the state directory: a directory for each container; "manifest" in its config.json names its image."""

PUBLISHING: Final = ".publishing-"
"""How the names of lock files among the trees begin."""


@dataclass(frozen=True)
class Collected:
    """What was removed; ``blob_bytes`` counts no trees."""

    blobs: int
    blob_bytes: int
    trees: int
    rotten: tuple[str, ...] = ()


def collect(layout: Layout, state: Path, journal: Journal, *, partial: bool, verify: bool) -> Collected:
    """Sweep the store and the trees below ``state``.

    With ``partial`` also what cut-off downloads left; with ``verify`` every blob is read, and one that is not
    what its name says is removed even if it is needed, so that the next pull brings it again.

    Raises:
        ImageError: a container's record cannot be read, so that it is unknown what it needs.
    """
    from runtimes.build.cache import blobs_in_use  # which itself stands on the store

    suspects = _rotten(layout, [_digest(path) for path in _all_blobs(layout)]) if verify else ()
    with storing(layout.root):
        with layout.leases.exclusive():
            named = (root.digest for root in layout.roots())
            kept = _marked(layout, [*named, *in_use(state), *blobs_in_use(state), *layout.leases.live()])
            rotten = _rotten(layout, suspects)  # once more, now that nobody puts them right
            blobs, size = _sweep_blobs(layout, kept, rotten)
            trees = _sweep_trees(state / "trees", kept, journal)
        layout.sweep(partial=partial)
        sweep(state / "trees", f"{PUBLISHING}*")
    for tree, entry in trees:
        remove_tree(tree)
        journal.gone(entry)
    return Collected(blobs, size, len(trees), rotten)


def sweep_dead(state: Path) -> None:
    """Remove what killed writers left in the store below ``state``: half a blob, leases, locks. For ``isomark clean``.

    Every living writer holds a lock on what is its own. Downloads that were cut off stay, to be gone on with.

    Raises:
        ImageError: the store cannot be written.
    """
    root = state / "images"
    if not root.is_dir():
        return
    layout = Layout(root)
    layout.sweep(partial=False)
    with storing(root):
        with layout.leases.exclusive():
            layout.leases.live()
        sweep(state / "trees", f"{PUBLISHING}*")


def in_use(state: Path) -> Iterator[str]:
    """The manifest digests that containers below ``state`` run from.

    Raises:
        ImageError: a container's record is damaged.
    """
    yield from (digest for _, digest in _containers(state))


def containers_using(state: Path, digests: Iterable[str]) -> list[str]:
    """The containers, by the name of their directory, that run from one of ``digests``. Raises as ``in_use``."""
    wanted = set(digests)
    return [name for name, digest in _containers(state) if digest in wanted]


def _containers(state: Path) -> Iterator[tuple[str, str]]:
    for path in sorted((state / CONTAINERS).glob("*/config.json")):
        try:
            record = json.loads(path.read_bytes())
        except FileNotFoundError:
            continue
        except ValueError as error:
            raise ImageError(f"{path} is damaged", hint=f"isomark container rm {path.parent.name}") from error
        manifest = record.get("manifest") if isinstance(record, dict) else None
        if isinstance(manifest, str):
            yield path.parent.name, manifest


def _marked(layout: Layout, roots: Iterable[str]) -> set[str]:
    """All digests that can be reached from ``roots``."""
    marked: set[str] = set()
    pending = list(roots)
    while pending:
        digest = pending.pop()
        if digest not in marked:
            marked.add(digest)
            pending.extend(_children(layout.path(Descriptor("", digest, 0))))
    return marked


def _children(path: Path) -> Iterator[str]:
    """The digests that a blob names if it is a manifest or an index; nothing for all others."""
    try:
        with path.open("rb") as file:
            # layers are never JSON; this spares reading them
            data = file.read(MAX_DOCUMENT_BYTES + 1) if file.peek(1)[:1] in (b"{", b" ", b"\n", b"\t") else b""
        document: Any = json.loads(data) if 0 < len(data) <= MAX_DOCUMENT_BYTES else None
    except (FileNotFoundError, ValueError, RecursionError):
        return
    if not isinstance(document, dict):
        return
    for value in (document.get("config"), *_list(document, "layers"), *_list(document, "manifests")):
        if isinstance(value, dict) and isinstance(value.get("digest"), str):
            yield value["digest"]


def _list(document: dict[str, Any], key: str) -> list[Any]:
    value = document.get(key)
    return value if isinstance(value, list) else []


def _sweep_blobs(layout: Layout, kept: set[str], rotten: Iterable[str]) -> tuple[int, int]:
    """Move every unmarked or rotten blob to where the next ``sweep`` deletes it."""
    count = size = 0
    for path in _all_blobs(layout):
        digest = _digest(path)
        if digest not in kept or digest in rotten:
            size += path.stat().st_size
            count += 1
            path.rename(layout.root / "ingest" / f"gone-{secrets.token_hex(8)}")
    return count, size


def _all_blobs(layout: Layout) -> list[Path]:
    return sorted((layout.root / "blobs").glob("*/*"))


def _digest(path: Path) -> str:
    return f"{path.parent.name}:{path.name}"


def _sweep_trees(trees: Path, kept: set[str], journal: Journal) -> list[tuple[Path, Any]]:
    """Move every tree of an unmarked image aside, under a name that the journal knows."""
    gone = []
    for path in sorted(trees.glob("*")):
        name = path.name.removesuffix(".json")
        digest = f"{'sha256' if len(name) == 64 else 'sha512'}:{name}"
        if len(name) not in (64, 128) or digest in kept:
            continue
        if name != path.name:  # facts; a tree that has none does not count as published
            path.unlink()
            continue
        aside = trees / f".gone-{secrets.token_hex(6)}"
        entry = journal.own("tree", path=str(aside))
        path.rename(aside)
        gone.append((aside, entry))
    return gone


def _rotten(layout: Layout, digests: Iterable[str]) -> tuple[str, ...]:
    """Those of ``digests`` whose blobs are there and are not what their names say."""
    found = []
    for digest in digests:
        path = layout.path(Descriptor("", digest, 0))
        try:
            for _ in layout.chunks(Descriptor("", digest, path.stat().st_size)):
                pass
        except FileNotFoundError:
            continue
        except ImageError:
            found.append(digest)
    return tuple(found)
