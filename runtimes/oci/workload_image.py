"""The one OCI image of a workload set: a Debian layer, and a layer with the payloads.

The Debian layer is an image of its own in the store, found again by its recipe, so that a changed
payload costs no bootstrap. A set is built once; ``refresh`` makes the Debian layer from today's archive.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any, Final

from bench.errors import ImageError
from bench.journal import Journal
from bench.model import Workload, WorkloadImage
from bench.units import GIB
from runtimes.oci import apt, debian
from runtimes.oci.debian import Progress
from runtimes.oci.descriptor import COMPRESSIONS, CONFIG, MANIFEST, Descriptor, canonical_json
from runtimes.oci.layer import Layer, Member, store_layer, tar_chunks
from runtimes.oci.layout import Layout
from runtimes.oci.stream import LayerStream, decompress
from runtimes.oci.tar import entries
from runtimes.oci.trees import Manifest, find_tree, publish_tree, read_manifest

BUDGET_BYTES: Final = 16 * GIB
"""No image of ours unpacks to more."""
PACKAGES_LABEL: Final = "isomark.packages"
RECIPE_LABEL: Final = "isomark.recipe"
WORKLOADS_LABEL: Final = "isomark.workloads"
_CREATED: Final = datetime.fromtimestamp(debian.EPOCH, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
_ARCHITECTURES: Final = {"amd64": "amd64", "arm64": "arm64", "armhf": "arm", "i386": "386", "ppc64el": "ppc64le",
                         "riscv64": "riscv64", "s390x": "s390x"}  # fmt: skip
"""Debian's names -> those of the image specification (Go's)."""
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def build_workload_image(
    workloads: Sequence[Workload], state: Path, journal: Journal, progress: Progress, *, refresh: bool = False
) -> WorkloadImage:
    """Build, or find, the image of ``workloads`` in the store below ``state``, and its unpacked tree.

    ``progress`` is told in words what takes time. With ``refresh`` the Debian layer is made again.

    Raises:
        ImageError: it could not be made; the hint says what would help.
        HostError: apt is missing or broken, or the kernel too old.
    """
    if not workloads:
        raise ImageError("an image needs at least one workload")
    layout = Layout(state / "images")
    with _alone(state / "images", progress):
        recipe = _recipe(workloads)
        payload = list(tar_chunks(_payload_members(workloads)))
        reference = f"isomark/workloads:{_short(recipe, hashlib.sha256(b''.join(payload)).hexdigest())}"
        manifest = None if refresh else _found(layout, reference)
        if manifest is None:
            base = _base(layout, recipe, journal, progress, refresh=refresh)
            progress("storing the payloads")
            manifest = _store_image(layout, base, store_layer(layout, payload), workloads)
            layout.tag(reference, manifest)
        tree = find_tree(state / "trees", manifest.digest)
        if tree is None:
            progress("unpacking the image")
            tree = publish_tree(layout, manifest, state / "trees", journal, BUDGET_BYTES)
    read = read_manifest(layout, manifest)
    return WorkloadImage(
        reference=reference,
        digest=manifest.digest,
        layout=layout.root,
        tree=tree.path,
        compressed_bytes=sum(layer.size for layer, _ in read.layers),
        unpacked_bytes=tree.unpacked_bytes,
        tree_bytes=tree.tree_bytes,
        packages={name: facts["version"] for name, facts in _packages(read).items()},
    )


def _recipe(workloads: Sequence[Workload]) -> dict[str, Any]:
    """Everything but the archive's state that decides the Debian layer."""
    return {
        "suite": apt.SUITE,
        "architecture": apt.architecture(),
        "packages": sorted({package for workload in workloads for package in workload.packages}),
        "epoch": debian.EPOCH,
        "dpkg": debian.DPKG_CONFIG,
        "finish": debian.FINISH,
    }


def _payload_members(workloads: Sequence[Workload]) -> Iterator[Member]:
    """``/isomark``: the shared library, each payload below its workload's name, and the scratch directory."""
    library = resources.files("bench").joinpath("workloads", "lib.sh").read_bytes()
    yield _directory("isomark")
    yield _directory("isomark/scratch", 0o1777)
    yield _file("isomark/lib.sh", library)
    for workload in workloads:
        root = workload.folder / "payload"
        yield _directory(f"isomark/{workload.name}")
        for path in sorted(root.rglob("*")):
            inside = f"isomark/{workload.name}/{path.relative_to(root)}"
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                raise ImageError(f"{path} is neither file nor directory", hint="a payload holds only those")
            yield _directory(inside) if path.is_dir() else _file(inside, path.read_bytes())


def _directory(path: str, mode: int = 0o755) -> Member:
    return Member(path, stat.S_IFDIR | mode, mtime=debian.EPOCH)


def _file(path: str, data: bytes) -> Member:
    # not the checkout's mode: it depends on umask and on how the package was installed
    mode = 0o755 if data.startswith(b"#!") else 0o644
    return Member(path, stat.S_IFREG | mode, data, mtime=debian.EPOCH)


def _found(layout: Layout, reference: str) -> Descriptor | None:
    """What ``reference`` names, if all its blobs are there."""
    descriptor = layout.resolve(reference)
    if descriptor is None or not layout.has(descriptor):
        return None
    return descriptor if all(layout.has(layer) for layer, _ in read_manifest(layout, descriptor).layers) else None


def _base(
    layout: Layout,
    recipe: Mapping[str, Any],
    journal: Journal,
    progress: Progress,
    *,
    refresh: bool,
) -> Manifest:
    """The image that holds only the Debian layer of ``recipe``."""
    reference = f"isomark/debian:{_short(recipe)}"
    descriptor = None if refresh else _found(layout, reference)
    if descriptor is None:
        progress("making the Debian tree")
        with debian.debian_tree(recipe["packages"], layout.root, journal, progress) as tar:
            layer = store_layer(layout, tar)
        packages = _read_packages(layout, layer)
        labels = {PACKAGES_LABEL: _text(packages), RECIPE_LABEL: _text(recipe)}
        config = _config(recipe["architecture"], [layer.diff_id], ["mmdebstrap"], labels)
        descriptor = _store_manifest(layout, config, [layer.descriptor], "Debian for isomark's workloads")
        layout.tag(reference, descriptor)
    return read_manifest(layout, descriptor)


def _read_packages(layout: Layout, layer: Layer) -> dict[str, dict[str, str]]:
    """Package -> version, architecture and archive digest, as the finished tree says.

    Raises:
        ImageError: the tree does not say so.
    """
    chunks = decompress(layout.chunks(layer.descriptor), COMPRESSIONS[layer.descriptor.media_type])
    stream = LayerStream(chunks, BUDGET_BYTES)
    for entry in entries(stream):
        if entry.path.removeprefix("./") == debian.PACKAGES_PATH:
            rows = [line.split() for line in stream.read(entry.size).decode().splitlines()]
            return {name: {"version": version, "architecture": arch, "sha256": digest}
                    for name, version, arch, digest in rows}  # fmt: skip
    raise ImageError(f"the Debian tree holds no {debian.PACKAGES_PATH}")


def _store_image(layout: Layout, base: Manifest, payload: Layer, workloads: Sequence[Workload]) -> Descriptor:
    names = sorted(workload.name for workload in workloads)
    labels = {**base.config["config"]["Labels"], WORKLOADS_LABEL: " ".join(names)}
    diff_ids = [*(diff_id for _, diff_id in base.layers), payload.diff_id]
    config = {
        **_config("", diff_ids, ["mmdebstrap", "isomark payloads"], labels),
        **{key: base.config[key] for key in ("architecture", "os")},
    }
    layers = [*(layer for layer, _ in base.layers), payload.descriptor]
    return _store_manifest(layout, config, layers, f"isomark workloads {', '.join(names)}")


def _config(architecture: str, diff_ids: list[str], steps: list[str], labels: Mapping[str, str]) -> dict[str, Any]:
    """An image configuration (image-spec, config.md)."""
    return {
        "created": _CREATED,
        "architecture": _ARCHITECTURES.get(architecture, architecture),
        "os": "linux",
        "config": {
            "Env": [f"PATH={_PATH}", "LANG=C.UTF-8"],
            "Cmd": ["/bin/sh"],
            "WorkingDir": "/",
            "Labels": dict(labels),
        },
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [{"created": _CREATED, "created_by": step} for step in steps],
    }


def _store_manifest(layout: Layout, config: Mapping[str, Any], layers: list[Descriptor], title: str) -> Descriptor:
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": layout.add(CONFIG, canonical_json(config)).to_json(),
        "layers": [layer.to_json() for layer in layers],
        "annotations": {
            "org.opencontainers.image.title": title,
            "org.opencontainers.image.created": _CREATED,
        },
    }
    return layout.add(MANIFEST, canonical_json(document))


def _packages(manifest: Manifest) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = json.loads(manifest.config["config"]["Labels"][PACKAGES_LABEL])
    return found


def _short(*parts: object) -> str:
    return hashlib.sha256(canonical_json(parts)).hexdigest()[:16]


def _text(value: object) -> str:
    return canonical_json(value).decode()


@contextmanager
def _alone(directory: Path, progress: Progress) -> Iterator[None]:
    """Let one builder at a time work in the store; the lock goes with its process."""
    fd = os.open(directory / "builder.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another isomark that builds an image")
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
