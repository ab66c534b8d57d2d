"""How long a pull from a registry on loopback with unpacking takes, beside skopeo copy and umoci unpack.

    python tests/benchmarks/image_pull.py [--rounds 7] [--state DIRECTORY] [--on ext4|tmpfs] [--tls]

The image is that of image_unpack.py (a Debian of about 380 MB), once with one layer and once with four. It is served
by docker-registry. In every round each way runs once, in random order, as processes of its own (Python's start and
imports included), into a file system that was made for it alone:

- ``isomark image pull``: blobs verified, synced and stored, the tree unpacked meanwhile, synced and published
- ``... --no-unpack``: the same without the tree
- ``skopeo + umoci``: skopeo copy into an OCI layout, then umoci unpack of it
- ``skopeo + umoci, synced``: followed by ``sync --file-system``, which is what isomark did too
- ``skopeo copy``: into an OCI layout, nothing unpacked

Printed as medians and ratios, never asserted. Needs root, docker-registry, skopeo, umoci, mmdebstrap.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "runtimes"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from handmade import fingerprint, image_of
from image_unpack import fresh, make_image, make_tar, measure
from registries import Certificates, registry

from runtimes.oci.descriptor import Descriptor
from runtimes.oci.layer import store_layer
from runtimes.oci.layout import Layout

HERE = Path(__file__).resolve()
BASE = "skopeo + umoci"
LAYERS = 4


def make_layers(state: Path, layout: Layout) -> Descriptor:
    """The same tree in four layers: entries of the tar in turn, by what is uppermost of their path below /usr."""
    found = layout.resolve("layers")
    if found is None or not layout.has(found):
        found = image_of(layout, *(store_layer(layout, part(make_tar(state), number)) for number in range(LAYERS)))
        layout.tag("layers", found)
    return found


def part(path: Path, number: int) -> Iterator[bytes]:
    """Every file of the tar that belongs to layer ``number``, and all directories, so that nothing is lost."""
    with tarfile.open(path) as tar, path.open("rb") as raw:
        members = tar.getmembers()
        ends = [*(member.offset for member in members[1:]), tar.offset]
        for member, end in zip(members, ends, strict=True):
            if number == _layer_of(member):
                raw.seek(member.offset)
                yield raw.read(end - member.offset)
    yield bytes(1024)


def _layer_of(member: tarfile.TarInfo) -> int:
    if member.isdir():
        return 0
    if member.islnk():  # with what it is a link to
        return sum(map(ord, os.path.dirname(member.linkname))) % LAYERS
    return sum(map(ord, os.path.dirname(member.name))) % LAYERS


def ways(host: str, name: str, authority: Path | None) -> dict[str, Sequence[str]]:
    """Way -> a command that pulls to ``$0``."""
    source = f"docker://{host}/bench:{name}"
    tls = f"--src-cert-dir {authority.parent}" if authority else "--src-tls-verify=false"
    ours = f"--ca-file {authority}" if authority else "--insecure"
    skopeo = f'skopeo --insecure-policy copy --quiet {tls} {source} "oci:$0/layout:x"'
    umoci = 'umoci unpack --image "$0/layout:x" "$0/bundle"'
    pull = f'ISOMARK_STATE="$0" exec {sys.executable} -m bench.cli image pull -q {ours} {host}/bench:{name}'
    script = {
        "isomark image pull": pull,
        "... --no-unpack": f"{pull} --no-unpack",
        BASE: f"{skopeo} && {umoci}",
        f"{BASE}, synced": f'{skopeo} && {umoci} && sync --file-system "$0"',
        "skopeo copy": skopeo,
    }
    return {way: ("sh", "-c", f"cd {HERE.parents[2]} && {text}") for way, text in script.items()}


def check_equal(state: Path, kind: str, commands: dict[str, Sequence[str]]) -> None:
    """Both give the same tree, or no figure means anything."""
    with fresh(state, kind) as target:
        measure(commands["isomark image pull"], target)
        measure(commands[BASE], target)
        (tree,) = (path for path in (target / "trees").iterdir() if path.is_dir())
        ours, theirs = fingerprint(tree), fingerprint(target / "bundle/rootfs")
        if {**ours, ".": None} != {**theirs, ".": None}:  # without an entry for it umoci dates the root today
            raise SystemExit("isomark and umoci made different trees")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--state", type=Path, default=Path(tempfile.gettempdir()) / "isomark-image-unpack")
    parser.add_argument("--on", choices=("ext4", "tmpfs"), default="ext4")
    parser.add_argument("--tls", action="store_true")
    arguments = parser.parse_args()
    arguments.state.mkdir(parents=True, exist_ok=True)
    layout, _ = make_image(arguments.state, "gzip")
    make_layers(arguments.state, layout)
    with tempfile.TemporaryDirectory(dir=arguments.state) as scratch:
        certificates = Certificates.make(Path(scratch) / "certificates") if arguments.tls else None
        with registry(Path(scratch) / "registry", certificates=certificates) as server:
            for name in ("gzip", "layers"):
                tls = ("--dest-cert-dir", str(certificates.authority.parent)) if certificates else ()
                insecure = () if certificates else ("--dest-tls-verify=false",)
                subprocess.run(
                    ["skopeo", "copy", "--quiet", *tls, *insecure, f"oci:{layout.root}:{name}",
                     f"docker://{server.host}/bench:{name}"], check=True,
                )  # fmt: skip
                print(f"\n{'one layer' if name == 'gzip' else f'{LAYERS} layers'}, over {'TLS' if tls else 'HTTP'}")
                commands = ways(server.host, name, certificates.authority if certificates else None)
                compare(arguments.state, arguments.on, commands, arguments.rounds)


def compare(state: Path, kind: str, commands: dict[str, Sequence[str]], rounds: int) -> None:
    check_equal(state, kind, commands)
    found: dict[str, list[tuple[float, float]]] = defaultdict(list, {way: [] for way in commands})
    for _ in range(rounds):
        for way in random.sample(list(commands), len(commands)):
            with fresh(state, kind) as target:
                found[way].append(measure(commands[way], target))
    base = statistics.median(wall for wall, _ in found[BASE])
    print(f"{'':24}{'median s':>10}{'least s':>10}{'CPU s':>8}{'x skopeo + umoci':>18}")
    for way, rows in found.items():
        walls, cpus = zip(*rows, strict=True)
        median = statistics.median(walls)
        print(f"{way:24}{median:10.2f}{min(walls):10.2f}{statistics.median(cpus):8.2f}{median / base:18.2f}")


if __name__ == "__main__":
    main()
