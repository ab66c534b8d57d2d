"""The one OCI image of a workload set: a Debian layer, and a layer with the payloads, as Containerfile.workloads says.

The Debian is an image of its own in the store, found again by its recipe, so that a changed payload costs no
bootstrap. A set is built once; ``refresh`` makes the Debian from today's archive.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Final

from bench.errors import ImageError
from bench.journal import Journal
from bench.model import Workload, WorkloadImage
from runtimes.build import debian_base
from runtimes.instance import remove_tree
from runtimes.oci import debian
from runtimes.oci.descriptor import Descriptor
from runtimes.oci.images import Images
from runtimes.oci.layer import Member, tar_chunks
from runtimes.oci.layout import Layout

Progress = Callable[[str], None]
REPOSITORY: Final = "isomark/workloads"
_CONTAINERFILE: Final = "Containerfile.workloads"


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
        raise ImageError("an image needs at least one workload", hint="name one; isomark workloads lists them")
    images = Images(state)
    with debian_base.alone(images.layout.root / "builder.lock", progress):
        recipe = debian_base.recipe_of(sorted({package for workload in workloads for package in workload.packages}))
        members = list(_payload_members(workloads))
        reference = f"{REPOSITORY}:{debian_base.short(recipe, _containerfile(), _digest(members))}"
        manifest = None if refresh else debian_base.found(images.layout, reference)
        if manifest is None:
            base = f"{debian_base.REPOSITORY}:{debian_base.short(recipe)}"
            debian_base.make(images.layout, base, recipe, journal, progress, refresh=refresh)
            progress("storing the payloads")
            manifest = _build(images.layout, reference, base, workloads, members, state, journal)
        stored = images.load(reference, manifest)
        if not (images.trees / manifest.hex).is_dir():
            progress("unpacking the image")
        tree = images.tree(stored, journal, debian_base.BUDGET_BYTES)
    return WorkloadImage(
        reference=reference,
        digest=manifest.digest,
        layout=images.layout.root,
        tree=tree.path,
        compressed_bytes=stored.compressed_bytes,
        unpacked_bytes=tree.unpacked_bytes,
        tree_bytes=tree.tree_bytes,
        packages={name: facts["version"] for name, facts in debian_base.packages_of(stored.config).items()},
    )


def _build(
    layout: Layout,
    reference: str,
    base: str,
    workloads: Sequence[Workload],
    members: Sequence[Member],
    state: Path,
    journal: Journal,
) -> Descriptor:
    """Build the image that is called ``reference`` from ``base`` and the payloads."""
    from runtimes.build.command import BuildRequest, build

    with _context(members, layout.root, journal) as context:
        request = BuildRequest(
            context,
            text=_containerfile(),
            tags=[reference],
            arguments={"BASE": base, "PAYLOADS": " ".join(sorted(workload.name for workload in workloads))},
            network="none",
            timestamp=debian.EPOCH,
        )
        build(request, state, journal, lambda _: None)
    found = debian_base.found(layout, reference)
    assert found is not None
    return found


def _containerfile() -> str:
    return resources.files("runtimes.oci").joinpath(_CONTAINERFILE).read_text()


def _digest(members: Sequence[Member]) -> str:
    hashed = hashlib.sha256()
    for chunk in tar_chunks(members):
        hashed.update(chunk)
    return hashed.hexdigest()


def _payload_members(workloads: Sequence[Workload]) -> Iterator[Member]:
    """What becomes ``/isomark``: the shared library, each payload below its workload's name, the scratch directory."""
    library = resources.files("bench").joinpath("workloads", "lib.sh").read_bytes()
    yield _directory("scratch", 0o1777)
    yield _file("lib.sh", library)
    for folder in dict.fromkeys(workload.folder for workload in workloads):  # two may start the same
        root = folder / "payload"
        yield _directory(folder.name)
        for path in sorted(root.rglob("*")):
            inside = f"{folder.name}/{path.relative_to(root)}"
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                raise ImageError(f"{path} is neither file nor directory", hint="a payload holds only those")
            yield _directory(inside) if path.is_dir() else _file(inside, path.read_bytes())


def _directory(path: str, mode: int = 0o755) -> Member:
    return Member(path, stat.S_IFDIR | mode, mtime=debian.EPOCH)


def _file(path: str, data: bytes) -> Member:
    # not the checkout's mode: it depends on umask and on how the package was installed
    mode = 0o755 if data.startswith(b"#!") else 0o644
    return Member(path, stat.S_IFREG | mode, data, mtime=debian.EPOCH)


@contextmanager
def _context(members: Sequence[Member], work: Path, journal: Journal) -> Iterator[Path]:
    """A directory with ``members`` below ``payload``, for the length of the block."""
    context = work / f"context-{secrets.token_hex(6)}"
    entry = journal.own("directory", path=str(context))
    try:
        (context / "payload").mkdir(parents=True)
        (context / "payload").chmod(0o755)
        for member in members:
            path = context / "payload" / member.path
            if stat.S_ISDIR(member.mode):
                path.mkdir()
            else:
                assert isinstance(member.data, bytes)
                path.write_bytes(member.data)
            path.chmod(stat.S_IMODE(member.mode))
        for path in sorted((context / "payload").rglob("*"), reverse=True):
            os.utime(path, (debian.EPOCH, debian.EPOCH))
        yield context
    finally:
        remove_tree(context)
        journal.gone(entry)
