"""Unpacked images: one directory per manifest digest, made whole and never changed afterwards."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import stat
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from bench.errors import ImageError
from bench.journal import Journal
from runtimes.oci.descriptor import COMPRESSIONS, CONFIG, MANIFEST, Descriptor
from runtimes.oci.layout import Layout
from runtimes.oci.stream import LayerStream, decompress
from runtimes.oci.unpack import Skipped, TreeWriter

DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"


@dataclass(frozen=True)
class Tree:
    """An unpacked image and what it measures; see ``bench.model.WorkloadImage`` for the sizes."""

    path: Path
    unpacked_bytes: int
    tree_bytes: int
    skipped_devices: int
    skipped_xattrs: int


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
    if descriptor.media_type not in (MANIFEST, DOCKER_MANIFEST) or claimed != descriptor.media_type:
        raise ImageError(f"{descriptor.digest} is a {claimed!r} said to be a {descriptor.media_type!r}")
    # a document that is manifest and index at once means different things to different readers
    if document.get("schemaVersion") != 2 or "manifests" in document or not isinstance(document.get("layers"), list):
        raise ImageError(f"{descriptor.digest} is no image manifest")
    config_descriptor = Descriptor.from_json(document.get("config"))
    if config_descriptor.media_type not in (CONFIG, DOCKER_CONFIG):
        raise ImageError(f"the config of {descriptor.digest} is a {config_descriptor.media_type!r}")
    layers = [Descriptor.from_json(layer) for layer in document["layers"]]
    for layer in layers:
        if layer.media_type not in COMPRESSIONS:
            raise ImageError(f"a layer of {descriptor.digest} has the unknown media type {layer.media_type!r}")
    config = layout.document(config_descriptor)
    root = config.get("rootfs")
    diff_ids = root.get("diff_ids") if isinstance(root, dict) else None
    if not isinstance(diff_ids, list) or len(diff_ids) != len(layers):
        raise ImageError(f"the config of {descriptor.digest} does not name one diff_id for each layer")
    return Manifest(tuple(zip(layers, diff_ids, strict=True)), config)


def unpack_image(layout: Layout, descriptor: Descriptor, target: Path, budget_bytes: int) -> Skipped:
    """Unpack an image into the empty directory ``target``, of at most ``budget_bytes`` of tar.

    Raises:
        ImageError: anything about it is not as claimed; ``target`` must not be used then.
    """
    with TreeWriter(target) as writer:
        for layer, diff_id in read_manifest(layout, descriptor).layers:
            chunks = decompress(layout.chunks(layer), COMPRESSIONS[layer.media_type])
            stream = LayerStream(chunks, budget_bytes)
            writer.apply(stream)
            if (found := stream.finish()) != diff_id:
                raise ImageError(f"layer {layer.digest} unpacks to {found}, and its config says {str(diff_id)[:80]!r}")
            budget_bytes -= stream.consumed
        writer.finish()
        return writer.skipped


def find_tree(trees: Path, digest: str) -> Tree | None:
    """Return the tree of the manifest ``digest`` if it was published."""
    path = trees / digest.removeprefix("sha256:")
    try:
        facts = json.loads(_facts(path).read_text())
        return Tree(path, **facts) if path.is_dir() else None
    except (FileNotFoundError, ValueError, TypeError):
        return None


def publish_tree(layout: Layout, descriptor: Descriptor, trees: Path, journal: Journal, budget_bytes: int) -> Tree:
    """Unpack an image under its digest below ``trees``; it appears whole or not at all.

    The caller keeps others from publishing the same image at the same time.

    Raises:
        ImageError: see ``unpack_image``; nothing is left then.
    """
    # others on this machine must not reach the image's devices and set-user-ID programs
    trees.mkdir(mode=0o700, parents=True, exist_ok=True)
    final = trees / descriptor.hex
    temporary = trees / f".making-{secrets.token_hex(6)}"
    entry = journal.own("directory", path=str(temporary))
    try:
        temporary.mkdir(mode=0o700)
        skipped = unpack_image(layout, descriptor, temporary, budget_bytes)
        _sync(temporary)
        tree = Tree(final, *_measure(temporary), skipped.devices, skipped.xattrs)
        _discard(final)  # one that has no facts: published by a run that died before writing them
        temporary.rename(final)
    finally:
        _discard(temporary)
        journal.gone(entry)
    _write_facts(tree)
    return tree


def _facts(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _write_facts(tree: Tree) -> None:
    facts = {key: value for key, value in asdict(tree).items() if key != "path"}
    path = _facts(tree.path)
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(facts))
    temporary.rename(path)


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


def _discard(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)
