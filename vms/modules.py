"""Which kernel modules a guest needs, in the order to load them.

``dpkg-deb -x`` makes no modules.dep, and depmod would read every module of the kernel to find out
about a handful; each module says itself what it needs, in its ELF section .modinfo.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.errors import DriverUnavailable, HostError
from vms.decompress import decompress
from vms.elf import section


def load_order(modules: Path, wanted: Sequence[str]) -> dict[str, bytes]:
    """Return name -> uncompressed module for ``wanted`` and all they depend on, dependencies first.

    ``modules`` is /lib/modules/VERSION. A module that is built into the kernel is left out.

    Raises:
        DriverUnavailable: the kernel has not got one.
        HostError: a module cannot be read.
    """
    files = {_name(path.name.partition(".ko")[0]): path for path in (modules / "kernel").rglob("*.ko*")}
    builtin = {_name(Path(line).stem) for line in _lines(modules / "modules.builtin")}
    ordered: dict[str, bytes] = {}

    def add(name: str, path: tuple[str, ...]) -> None:
        if name in ordered or name in builtin:
            return
        if name not in files:
            raise DriverUnavailable(
                f"the guest kernel {modules.name} has no {' -> '.join((*path, name))}",
                hint="script/bootstrap unpacks Debian's cloud kernel, which has virtio",
            )
        if name in path:
            raise HostError(f"kernel modules need each other in a circle: {' -> '.join((*path, name))}")
        data = decompress(files[name].read_bytes())
        for needed in dependencies(data):
            add(needed, (*path, name))
        ordered[name] = data

    for name in wanted:
        add(_name(name), ())
    return ordered


def dependencies(module: bytes) -> list[str]:
    """Return what an ELF module's ``depends=`` names (kernel, scripts/mod/modpost.c).

    Raises:
        HostError: it is no kernel module.
    """
    strings = section(module, ".modinfo").decode("utf-8", "replace").split("\0")
    listed = [text.removeprefix("depends=") for text in strings if text.startswith("depends=")]
    return [_name(name) for text in listed for name in text.split(",") if name]


def _name(text: str) -> str:
    """The kernel takes - and _ in module names for the same."""
    return text.replace("-", "_")


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
