"""How long it takes to unpack an image, beside umoci; printed as medians and ratios, never asserted.

    python tests/benchmarks/image_unpack.py [--rounds 7] [--state DIRECTORY] [--on ext4|tmpfs] [--compression gzip|zstd]

The image is a Debian with systemd, Python, nginx, Redis and git, of one layer: about 380 MB in 12,500 entries. It is
made by mmdebstrap once and kept in the state directory. In every round each way runs once, in random order, as a
process of its own (Python's start and imports included), into a file system that was made for it alone:

- ``isomark``: unpack_image, which verifies the blob's and the tar's digests; no sync, like umoci
- ``isomark, synced``: publish_tree, what a pull and a build do: the same, measured, synced (syncfs) and renamed
- ``umoci unpack``: verifies the same digests, and writes an mtree manifest that only ``umoci repack`` needs
- ``umoci raw unpack``: the same without that manifest
- ``umoci unpack, synced``: followed by ``sync --file-system``
- ``tar -xz``: GNU tar and gzip; verifies nothing
- ``skopeo copy``: from the layout to a directory; verifies the blob's digest and unpacks nothing

A fresh file system matters: ext4 does not give out an inode number that was deleted in the last minutes, and looks at
each of them to find that out (recently_deleted() in fs/ext4/ialloc.c). Where a tree of this size has just been removed
every way spends nine tenths of its time there, and all look alike.
Needs root, mmdebstrap, umoci, skopeo.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "runtimes"))

from handmade import fingerprint, image_of, image_of_blob

from bench.journal import Journal
from runtimes.oci import apt
from runtimes.oci.descriptor import Descriptor
from runtimes.oci.layer import store_layer
from runtimes.oci.layout import Layout
from runtimes.oci.trees import publish_tree, unpack_image

HERE = Path(__file__).resolve()
PACKAGES = "systemd,systemd-sysv,python3,nginx,redis-server,sysbench,fio,iperf3,curl,openssh-server,iproute2,procps,git"
BUDGET = 2**34
DISK_BYTES = 4 * 2**30
BASE = "umoci unpack"


def make_tar(state: Path) -> Path:
    """The image's only layer, made by mmdebstrap if it is not there."""
    path = state / "layer.tar"
    if not path.exists():
        settings = state / "apt.conf"
        settings.write_text(apt.settings())
        mirrors = []
        for suffix, text in apt.sources().items():
            mirrors.append(str(state / f"host{suffix}"))
            Path(mirrors[-1]).write_text(text)
        print("making the image", file=sys.stderr)
        subprocess.run(
            ["mmdebstrap", "--mode=root", "--quiet", "--variant=apt", f"--include={PACKAGES}", "--format=tar",
             f"--setup-hook=copy-in {settings} /etc/apt/apt.conf.d", apt.SUITE, path.with_suffix(".new"), *mirrors],
            check=True,
        )  # fmt: skip
        path.with_suffix(".new").rename(path)
    return path


def chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while data := file.read(2**20):
            yield data


def make_image(state: Path, compression: str) -> tuple[Layout, Descriptor]:
    layout = Layout(state / "images")
    found = layout.resolve(compression)
    if found is None or not layout.has(found):
        tar = make_tar(state)
        if compression == "gzip":
            found = image_of(layout, store_layer(layout, chunks(tar)))
        else:
            import zstandard

            plain = tar.read_bytes()
            media_type = "application/vnd.oci.image.layer.v1.tar+zstd"
            found = image_of_blob(layout, zstandard.compress(plain), plain, media_type)
        layout.tag(compression, found)
    return layout, found


@contextmanager
def fresh(state: Path, kind: str) -> Iterator[Path]:
    """A file system that nothing was ever written to."""
    where, disk = state / "mounted", state / "disk"
    where.mkdir(exist_ok=True)
    if kind == "tmpfs":
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", where], check=True)
    else:
        disk.unlink(missing_ok=True)
        with disk.open("wb") as file:
            file.truncate(DISK_BYTES)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", disk], check=True)
        subprocess.run(["mount", "-o", "loop", disk, where], check=True)
    try:
        os.sync()
        yield where
    finally:
        subprocess.run(["umount", where], check=True)
        disk.unlink(missing_ok=True)


def ways(state: Path, layout: Layout, image: Descriptor, name: str) -> dict[str, Sequence[str]]:
    """Way -> a command that unpacks to ``$0``."""
    blob = max((layout.root / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    ours = f'exec {sys.executable} {HERE} --state {state} --compression {name} --child "$0"'
    script = {"isomark": ours, "isomark, synced": f"{ours}/published"}
    if name == "gzip":  # neither umoci 0.4 nor Debian's tar in this form reads zstd
        umoci = f'umoci {{}} --image {layout.root}:{name} "$0/bundle"'
        script |= {
            BASE: umoci.format("unpack"),
            "umoci raw unpack": umoci.format("raw unpack"),
            "umoci unpack, synced": umoci.format("unpack") + ' && sync --file-system "$0"',
            "tar -xz": f'tar --extract --gzip --preserve-permissions --file {blob} --directory "$0"',
            "skopeo copy": f'skopeo --insecure-policy copy --quiet oci:{layout.root}:{name} "dir:$0/copy"',
        }
    return {way: ("sh", "-c", text) for way, text in script.items()}


def child(layout: Layout, image: Descriptor, target: Path) -> None:
    """What isomark's process does."""
    if target.name != "published":
        (target / "tree").mkdir()
        unpack_image(layout, image, target / "tree", BUDGET)
        return
    with Journal(target / "owned") as journal:
        publish_tree(layout, image, target / "trees", journal, BUDGET)


def measure(command: Sequence[str], target: Path) -> tuple[float, float]:
    """Wall seconds and CPU seconds."""
    begun = time.monotonic()
    process = subprocess.Popen([*command, str(target)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.monotonic() - begun
    process.returncode = status
    process.stderr.close()
    if status != 0:
        raise SystemExit(f"{command} failed:\n{said.decode()}")
    return wall, usage.ru_utime + usage.ru_stime


def check_equal(state: Path, kind: str, commands: dict[str, Sequence[str]]) -> None:
    """Both give the same tree, or no figure means anything."""
    if BASE not in commands:
        return
    with fresh(state, kind) as target:
        measure(commands["isomark"], target)
        measure(commands[BASE], target)
        if fingerprint(target / "tree") != fingerprint(target / "bundle" / "rootfs"):
            raise SystemExit("isomark and umoci made different trees")
    print("isomark and umoci make the same tree: content, mode, owner, time, attributes, links\n")


def show(found: dict[str, list[tuple[float, float]]]) -> None:
    base = {way: statistics.median(wall for wall, _ in rows) for way, rows in found.items()}.get(BASE)
    print(f"{'':24}{'median s':>10}{'least s':>10}{'CPU s':>8}{'x umoci unpack':>16}")
    for way, rows in found.items():
        walls, cpus = zip(*rows, strict=True)
        median = statistics.median(walls)
        ratio = f"{median / base:16.2f}" if base else ""
        print(f"{way:24}{median:10.2f}{min(walls):10.2f}{statistics.median(cpus):8.2f}{ratio}")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--state", type=Path, default=Path(tempfile.gettempdir()) / "isomark-image-unpack")
    parser.add_argument("--on", choices=("ext4", "tmpfs"), default="ext4")
    parser.add_argument("--compression", choices=("gzip", "zstd"), default="gzip")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.state.mkdir(parents=True, exist_ok=True)
    layout, image = make_image(arguments.state, arguments.compression)
    if arguments.child:
        child(layout, image, arguments.child)
        return
    commands = ways(arguments.state, layout, image, arguments.compression)
    check_equal(arguments.state, arguments.on, commands)
    found: dict[str, list[tuple[float, float]]] = defaultdict(list, {way: [] for way in commands})
    for _ in range(arguments.rounds):
        for way in random.sample(list(commands), len(commands)):
            with fresh(arguments.state, arguments.on) as target:
                if way == "isomark, synced":
                    (target / "published").mkdir()
                found[way].append(measure(commands[way], target))
    show(found)


if __name__ == "__main__":
    main()
