"""What a full guest's disk costs beside mke2fs alone, and what a trial's part of it costs; nothing asserted.

    python tests/benchmarks/full_disk.py [--rounds 5] [--tree DIRECTORY]

In turns: ``mke2fs -d`` of a tree into a file, and the same into the root partition of a disk that gets its partition
table, both boot loaders and its EFI partition. Target: at most 1.2. Then the files of a trial: overlay and trial disk,
or overlay and NoCloud seed, and UEFI's variables. Target: at most 50 ms. Installing the server's packages, which
happens once for each image, is timed apart and needs root.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.driver import Launch
from bench.errors import IsomarkError
from bench.model import Image, Limits, WorkloadImage
from bench.network import example_lease
from bench.state import state_directory
from bench.units import GIB, MIB
from vms.disk import mke2fs_command
from vms.forms import PAYLOAD, UEFI_CODE, UEFI_VARIABLES
from vms.full.disk import make_full_disk, write_frame
from vms.full.firmware import uefi_files
from vms.guest_files import write_trial
from vms.kernel import find_kernel

SIZE = 17 * GIB


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tree", type=Path, default=None)
    given = parser.parse_args()
    tree = given.tree or max((path for path in (state_directory() / "trees").iterdir() if path.is_dir()), key=size_of)
    image = WorkloadImage("benchmark", f"sha256:{tree.name:0>64}", tree, tree, 1, size_of(tree), size_of(tree))
    print(f"tree of {size_of(tree) / MIB:.0f} MiB")
    with tempfile.TemporaryDirectory(dir=state_directory()) as folder:
        disks(image, Path(folder), given.rounds)
        trials(image, Path(folder))
        server(image, Path(folder))


def disks(image: WorkloadImage, folder: Path, rounds: int) -> None:
    """The ratio that has a target."""
    alone, whole = [], []
    for _ in range(rounds):
        alone.append(timed(lambda: plain(image, folder / "plain")))
        whole.append(timed(lambda: framed(image, folder / "framed")))
        for name in ("plain", "framed"):
            (folder / name).unlink()
    ratio = statistics.median(whole) / statistics.median(alone)
    print(f"mke2fs alone   {statistics.median(alone):7.3f} s")
    print(f"bootable disk  {statistics.median(whole):7.3f} s   {ratio:.2f} x (target 1.2)")


def trials(image: WorkloadImage, folder: Path) -> None:
    """A trial's own files, as the driver writes them."""
    base = folder / "base"
    base.write_bytes(bytes(510) + b"\x55\xaa")
    os.truncate(base, SIZE)
    launch = Launch("t1", ("/isomark/boot/run",), {"PATH": "/usr/bin"}, Limits(), example_lease())
    code, variables = uefi_files(folder)
    firmwares: dict[str, dict[str, str]] = {"BIOS": {}, "UEFI": {UEFI_CODE: str(code), UEFI_VARIABLES: str(variables)}}
    for title, parts in (("trial disk", {}), ("NoCloud seed", {PAYLOAD: str(image.tree)})):
        for firmware, files in firmwares.items():
            form = Image("", "", base, None, None, None, parts={**parts, **files})
            taken = []
            for number in range(50):
                own = folder / f"{title}-{firmware}-{number}"
                own.mkdir()
                taken.append(timed(partial(write_trial, form, launch, own, PurePosixPath(base))))
            print(f"overlay, {title:12} {firmware} {1000 * statistics.median(taken):7.2f} ms (target 50)")


def server(image: WorkloadImage, folder: Path) -> None:
    """The whole of it, once."""
    try:
        kernel = find_kernel(state_directory())
        taken = timed(lambda: make_full_disk(image, kernel, folder / "disks"))
    except IsomarkError as error:
        print(f"server: {error.message}")
        return
    print(f"with packages installed and the size of its compressed copy taken: {taken:.1f} s")


def plain(image: WorkloadImage, path: Path) -> None:
    path.touch()
    os.truncate(path, SIZE)
    mke2fs(image, path, 0)


def framed(image: WorkloadImage, path: Path) -> None:
    mke2fs(image, path, write_frame(path, SIZE + 32 * MIB, uuid.NAMESPACE_OID))


def mke2fs(image: WorkloadImage, path: Path, offset: int) -> None:
    command, environment = mke2fs_command(image, image.tree, path, SIZE, offset)
    subprocess.run(command, env={**os.environ, **environment}, check=True, capture_output=True)


def size_of(tree: Path) -> int:
    """Allocated bytes, as du counts them."""
    return int(subprocess.run(["du", "-sxB1", str(tree)], capture_output=True, text=True, check=True).stdout.split()[0])


def timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
