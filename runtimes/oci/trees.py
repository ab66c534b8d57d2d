"""Unpacked images: one directory per manifest digest, made whole and never changed afterwards."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from bench.errors import ImageError
from bench.journal import Journal
from runtimes import usernamespace
from runtimes.oci.descriptor import (
    COMPRESSIONS,
    CONFIG,
    DOCKER_CONFIG,
    MANIFESTS,
    Descriptor,
)
from runtimes.oci.ingest import storing, sync_directory
from runtimes.oci.layout import Layout
from runtimes.oci.names import DAMAGED
from runtimes.oci.stream import open_layer
from runtimes.oci.unpack import Skipped, TreeWriter


@dataclass(frozen=True)
class Tree:
    """An unpacked image and what it measures; see ``bench.model.WorkloadImage`` for the sizes."""

    path: Path
    unpacked_bytes: int
    tree_bytes: int
    skipped_devices: int
    skipped_xattrs: int


_MEASURED: Final = ("unpacked_bytes", "tree_bytes", "skipped_devices", "skipped_xattrs")


@dataclass(frozen=True)
class Manifest:
    """A manifest whose parts fit together: each layer's descriptor with its diff_id, and the config."""

    layers: tuple[tuple[Descriptor, str], ...]
    config: dict[str, Any]


def read_manifest(layout: Layout, descriptor: Descriptor) -> Manifest:
    """Read and check an image manifest with its config.

    Raises:
        ImageError: it is something else, contradicts itself, or names media types that are unknown.
    """
    document = layout.document(descriptor)
    claimed = document.get("mediaType", descriptor.media_type)
    if descriptor.media_type not in MANIFESTS or claimed != descriptor.media_type:
        raise ImageError(f"{descriptor.digest} is a {claimed!r} said to be a {descriptor.media_type!r}", hint=DAMAGED)
    # a document that is manifest and index at once means different things to different readers
    if document.get("schemaVersion") != 2 or "manifests" in document or not isinstance(document.get("layers"), list):
        raise ImageError(f"{descriptor.digest} is no image manifest", hint=DAMAGED)
    config_descriptor = Descriptor.from_json(document.get("config"))
    if config_descriptor.media_type not in (CONFIG, DOCKER_CONFIG):
        raise ImageError(f"the config of {descriptor.digest} is a {config_descriptor.media_type!r}", hint=DAMAGED)
    layers = [Descriptor.from_json(layer) for layer in document["layers"]]
    for layer in layers:
        if layer.media_type not in COMPRESSIONS:
            raise ImageError(
                f"a layer of {descriptor.digest} has the unknown media type {layer.media_type!r}", hint=DAMAGED
            )
    config = layout.document(config_descriptor)
    root = config.get("rootfs")
    diff_ids = root.get("diff_ids") if isinstance(root, dict) else None
    if not isinstance(diff_ids, list) or len(diff_ids) != len(layers):
        raise ImageError(f"the config of {descriptor.digest} does not name one diff_id for each layer", hint=DAMAGED)
    return Manifest(tuple(zip(layers, diff_ids, strict=True)), config)


def unpack_image(layout: Layout, descriptor: Descriptor, target: Path, budget_bytes: int) -> Skipped:
    """Unpack an image into the empty directory ``target``, of at most ``budget_bytes`` of tar.

    Raises:
        ImageError: anything about it is not as claimed; ``target`` must not be used then.
    """
    with TreeWriter(target) as writer:
        for layer, diff_id in read_manifest(layout, descriptor).layers:
            compression = COMPRESSIONS[layer.media_type]
            with open_layer(layout.chunks(layer), compression, budget_bytes, _algorithm(diff_id)) as stream:
                writer.apply(stream)
                found = stream.finish()
                budget_bytes -= stream.consumed
            if found != diff_id:
                raise ImageError(
                    f"layer {layer.digest} unpacks to {found}, and its config says {str(diff_id)[:80]!r}", hint=DAMAGED
                )
        writer.finish()
        return writer.skipped


def find_tree(trees: Path, digest: str) -> Tree | None:
    """Return the tree of the manifest ``digest`` if it was published."""
    path = trees / digest.partition(":")[2]
    try:
        facts = json.loads(_facts(path).read_bytes())
        tree = Tree(path, **{key: facts[key] for key in _MEASURED})
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None
    return tree if path.is_dir() else None


def publish_tree(layout: Layout, descriptor: Descriptor, trees: Path, journal: Journal, budget_bytes: int) -> Tree:
    """Unpack an image under its digest below ``trees``; it appears whole and synced, or not at all.

    Beside it stand its facts, with which a container starts without opening a blob: ``manifest`` (its digest),
    ``diff_ids``, and ``config``, the image configuration without its history. The caller keeps others from publishing
    the same image at the same time.

    Raises:
        ImageError: see ``unpack_image``; nothing is left then.
    """
    with storing(trees):
        # others on this machine must not reach the image's devices and set-user-ID programs
        trees.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _owned(trees, journal) as new, _owned(trees, journal) as old, _owned(trees, journal) as facts:
            new.mkdir(mode=0o700)
            # an ordinary user's subordinate ids are the image's users only inside a user namespace
            make = partial(_make, layout, descriptor, new, budget_bytes)
            tree = Tree(trees / descriptor.hex, *(usernamespace.within(make) if _has_users() else make()))
            if tree.path.exists():  # without facts that can be read: half collected, or damaged
                tree.path.rename(old)
            _write_facts(facts, tree, descriptor, read_manifest(layout, descriptor))
            facts.rename(_facts(tree.path))
            new.rename(tree.path)
            sync_directory(trees)
    return tree


def _make(layout: Layout, descriptor: Descriptor, target: Path, budget_bytes: int) -> tuple[int, int, int, int]:
    """Unpack an image and bring it to the disk; what ``_MEASURED`` names."""
    skipped = unpack_image(layout, descriptor, target, budget_bytes)
    _sync(target)
    return (*_measure(target), skipped.devices, skipped.xattrs)


def _has_users() -> bool:
    """Whether this is an ordinary user with subordinate ids."""
    return os.geteuid() != 0 and len(usernamespace.maps()[0]) > 1


@contextmanager
def _owned(trees: Path, journal: Journal) -> Iterator[Path]:
    """A name in ``trees`` for what shall not stay there."""
    path = trees / f".making-{secrets.token_hex(6)}"
    entry = journal.own("tree", path=str(path))
    try:
        yield path
    finally:
        if path.is_dir():
            remove_tree(path)
        path.unlink(missing_ok=True)
        journal.gone(entry)


def remove_tree(path: Path) -> None:
    """Remove a tree, also where it holds directories that its owner, not being root, may not write.

    Raises:
        OSError: it cannot be removed.
    """
    if _has_users():
        usernamespace.within(lambda: shutil.rmtree(path))
        return
    if os.geteuid() != 0:
        path.chmod(0o700)
        for folder, names, _ in os.walk(path):
            for name in names:
                below = os.path.join(folder, name)
                if not os.path.islink(below):
                    os.chmod(below, 0o700)
    shutil.rmtree(path)


def _algorithm(diff_id: object) -> str:
    """What to hash a layer with; where ``diff_id`` is none, any will differ."""
    return "sha512" if str(diff_id).startswith("sha512:") else "sha256"


def _facts(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _write_facts(path: Path, tree: Tree, descriptor: Descriptor, manifest: Manifest) -> None:
    facts = {
        **{key: getattr(tree, key) for key in _MEASURED},
        "manifest": descriptor.digest,
        "diff_ids": [diff_id for _, diff_id in manifest.layers],
        "config": {key: value for key, value in manifest.config.items() if key not in ("history", "rootfs")},
    }
    try:
        text = json.dumps(facts)
    except RecursionError as error:
        raise ImageError(f"the config of {descriptor.digest} is nested too deeply", hint=DAMAGED) from error
    with path.open("wb") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def _measure(tree: Path) -> tuple[int, int]:
    """The bytes in regular files, and the bytes allocated for everything; hard links counted once."""
    sizes = {-1: (0, tree.stat().st_blocks * 512)}
    pending = [str(tree)]
    while pending:
        with os.scandir(pending.pop()) as found:
            for entry in found:
                status = entry.stat(follow_symlinks=False)
                content = status.st_size if stat.S_ISREG(status.st_mode) else 0
                sizes[status.st_ino] = (content, status.st_blocks * 512)
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
    return sum(content for content, _ in sizes.values()), sum(blocks for _, blocks in sizes.values())


def _sync(tree: Path) -> None:
    """Bring the tree to the disk before it is published: blocks are allocated, and a power cut leaves it whole."""
    synced = subprocess.run(["sync", "--file-system", str(tree)], check=False, capture_output=True, text=True)
    if synced.returncode != 0:
        raise ImageError(
            f"the disk did not take the image: {synced.stderr.strip()}", hint="look for disk errors in dmesg"
        )
