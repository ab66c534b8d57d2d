"""Debian images made on this host, found again by their recipe."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from bench.errors import ImageError, UsageError
from bench.journal import Journal
from bench.units import GIB
from runtimes.oci import apt, debian
from runtimes.oci.compression import decompress
from runtimes.oci.descriptor import COMPRESSIONS, CONFIG, MANIFEST, Descriptor, canonical_json
from runtimes.oci.images import Images, Stored
from runtimes.oci.layer import Layer, store_layer
from runtimes.oci.layout import Layout
from runtimes.oci.stream import LayerStream
from runtimes.oci.tar import entries
from runtimes.oci.trees import read_manifest

REPOSITORY: Final = "isomark/debian"
BUDGET_BYTES: Final = 16 * GIB
"""No Debian of ours unpacks to more."""
PACKAGES_LABEL: Final = "isomark.packages"
RECIPE_LABEL: Final = "isomark.recipe"
CREATED: Final = datetime.fromtimestamp(debian.EPOCH, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ARCHITECTURES: Final = {"amd64": "amd64", "arm64": "arm64", "armhf": "arm", "i386": "386", "ppc64el": "ppc64le",
                         "riscv64": "riscv64", "s390x": "s390x"}  # fmt: skip
"""Debian's names -> those of the image specification (Go's)."""
_APT_SETTINGS: Final = """\
APT::AutoRemove::SuggestsImportant "false";
Acquire::GzipIndexes "true";
Acquire::Languages "none";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb /var/cache/apt/archives/partial/*.deb || true"; };
"""
"""As in Debian's own images: what apt downloads stays in no layer."""
_FINISH: Final = f"""\
{debian.FINISH}\
rm -f var/cache/apt/*.bin
cat > etc/apt/apt.conf.d/image <<'END'
{_APT_SETTINGS}END
"""
"""Without sources: a build lends its steps the host's, and whoever uses the image elsewhere has another mirror."""
_PACKAGES: Final = ("apt",)

Say = Callable[[str], None]


def suite_of(name: str) -> str | None:
    """The suite that ``name`` asks for, if it is one of ours to make.

    Raises:
        UsageError: it asks for one that cannot be made.
    """
    repository, _, tag = name.partition(":")
    if repository.removeprefix("docker.io/") != REPOSITORY or "@" in name or _is_recipe(tag):
        return None
    if tag not in ("", "latest", apt.SUITE):
        raise UsageError(f"{REPOSITORY} has no {tag[:40]!r}", hint=f"there is {REPOSITORY}:{apt.SUITE}")
    return apt.SUITE


def ensure(images: Images, suite: str, journal: Journal, say: Say, *, refresh: bool) -> Stored:
    """Return the Debian ``suite``, made first if it is not there, under the name ``isomark/debian:SUITE``.

    Raises:
        ImageError: it cannot be made.
        HostError: the host has no apt.
    """
    reference = f"{REPOSITORY}:{suite}"
    recipe = recipe_of(_PACKAGES, _FINISH)
    descriptor = make(images.layout, reference, recipe, journal, say, refresh=refresh)
    return images.load(reference, descriptor)


def recipe_of(packages: Sequence[str], finish: str = debian.FINISH) -> dict[str, Any]:
    """Everything but the archive's state that decides a Debian image."""
    return {
        "suite": apt.SUITE,
        "architecture": apt.architecture(),
        "packages": sorted(packages),
        "epoch": debian.EPOCH,
        "dpkg": debian.DPKG_CONFIG,
        "finish": finish,
    }


def make(
    layout: Layout, reference: str, recipe: Mapping[str, Any], journal: Journal, say: Say, *, refresh: bool
) -> Descriptor:
    """Return the manifest of the image that holds only the Debian tree of ``recipe``; it is called ``reference``.

    Raises:
        ImageError: it cannot be made.
    """
    with alone(layout.root / "debian.lock", say):
        descriptor = None if refresh else _found(layout, reference, recipe)
        if descriptor is None:
            say("making the Debian tree")
            packages, finish = recipe["packages"], recipe["finish"]
            with debian.debian_tree(packages, layout.root, journal, say, finish=finish) as tar:
                layer = store_layer(layout, tar)
            labels = {PACKAGES_LABEL: text_of(_read_packages(layout, layer)), RECIPE_LABEL: text_of(recipe)}
            config = _config(recipe["architecture"], layer.diff_id, labels)
            descriptor = _store(layout, config, layer)
            layout.tag(reference, descriptor)
    return descriptor


def found(layout: Layout, reference: str) -> Descriptor | None:
    """What ``reference`` names, if all its blobs are there; they are kept from the collector then."""
    descriptor = layout.resolve(reference)
    if descriptor is None or layout.keep([descriptor]):
        return None
    return None if layout.keep(layer for layer, _ in read_manifest(layout, descriptor).layers) else descriptor


def packages_of(config: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Package -> version, architecture and archive digest, of an image made from one of ours."""
    packages: dict[str, dict[str, str]] = json.loads(config["config"]["Labels"][PACKAGES_LABEL])
    return packages


def short(*parts: object) -> str:
    """A short digest of ``parts``, for a tag."""
    return hashlib.sha256(canonical_json(parts)).hexdigest()[:_DIGITS]


def text_of(value: object) -> str:
    """``value`` as JSON that is the same every time."""
    return canonical_json(value).decode()


@contextmanager
def alone(path: Path, say: Say) -> Iterator[None]:
    """Let one process at a time into the block; the lock goes with its process."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another isomark that builds an image")
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


_DIGITS: Final = 16


def _is_recipe(tag: str) -> bool:
    return len(tag) == _DIGITS and set(tag) <= set("0123456789abcdef")


def _found(layout: Layout, reference: str, recipe: Mapping[str, Any]) -> Descriptor | None:
    """What ``reference`` names if it is there and was made by this very recipe."""
    descriptor = found(layout, reference)
    if descriptor is None:
        return None
    labels = read_manifest(layout, descriptor).config.get("config", {}).get("Labels") or {}
    return descriptor if labels.get(RECIPE_LABEL) == text_of(recipe) else None


def _read_packages(layout: Layout, layer: Layer) -> dict[str, dict[str, str]]:
    """What the finished tree says it is made of.

    Raises:
        ImageError: it does not say so.
    """
    chunks = decompress(layout.chunks(layer.descriptor), COMPRESSIONS[layer.descriptor.media_type])
    stream = LayerStream(chunks, BUDGET_BYTES)
    for entry in entries(stream):
        if entry.path.removeprefix("./") == debian.PACKAGES_PATH:
            rows = [line.split() for line in stream.read(entry.size).decode().splitlines()]
            return {name: {"version": version, "architecture": arch, "sha256": digest}
                    for name, version, arch, digest in rows}  # fmt: skip
    raise ImageError(
        f"the Debian tree holds no {debian.PACKAGES_PATH}",
        hint="build it again; isomark image build --pull makes the tree anew",
    )


def _config(architecture: str, diff_id: str, labels: Mapping[str, str]) -> dict[str, Any]:
    """An image configuration (image-spec, config.md)."""
    return {
        "created": CREATED,
        "architecture": _ARCHITECTURES.get(architecture, architecture),
        "os": "linux",
        "config": {
            "Env": [f"PATH={DEFAULT_PATH}", "LANG=C.UTF-8"],
            "Cmd": ["/bin/sh"],
            "WorkingDir": "/",
            "Labels": dict(labels),
        },
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created": CREATED, "created_by": "mmdebstrap"}],
    }


def _store(layout: Layout, config: Mapping[str, Any], layer: Layer) -> Descriptor:
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": layout.add(CONFIG, canonical_json(config)).to_json(),
        "layers": [layer.descriptor.to_json()],
    }
    return layout.add(MANIFEST, canonical_json(document))
