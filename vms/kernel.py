"""The guest kernel: Debian's, unpacked from its package by the host playbook, never installed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from bench.errors import DriverUnavailable


@dataclass(frozen=True)
class GuestKernel:
    """One unpacked kernel. ``image`` is the bzImage as shipped, ``modules`` is /lib/modules/VERSION."""

    version: str
    image: Path
    modules: Path


def find_kernel(state: Path) -> GuestKernel:
    """Return the newest kernel in ``state/kernels/PACKAGE/``.

    The host's own kernel is not a substitute: it need not be there, nor have virtio, and results
    would differ from host to host.

    Raises:
        DriverUnavailable: there is none with its modules.
    """
    found = [
        GuestKernel(version, image, modules)
        for image in (state / "kernels").glob("linux-image-*/boot/vmlinuz-*")
        for version in (image.name.removeprefix("vmlinuz-"),)
        for modules in _modules(image.parent.parent, version)
    ]
    if not found:
        raise DriverUnavailable(f"there is no guest kernel in {state / 'kernels'}", hint="script/bootstrap")
    return max(found, key=lambda kernel: _age(kernel.version))


def _modules(package: Path, version: str) -> list[Path]:
    """The modules' directory, which merged-/usr packages keep below /usr."""
    places = (package / "lib/modules" / version, package / "usr/lib/modules" / version)
    return [place for place in places if place.is_dir()][:1]


def _age(version: str) -> tuple[tuple[int, ...], str]:
    """Order versions by their numbers: 6.1.0-9 before 6.1.0-10."""
    return tuple(int(number) for number in re.findall(r"\d+", version)), version
