"""What processes cost the host's memory; shared, because the figure must mean the same for every driver."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from bench.errors import InstanceError
from bench.model import MemoryReading
from bench.units import KIB

_PSS: Final = re.compile(r"^(Pss(?:_Anon|_Shmem|_File)?|(?:Private|Shared)_Hugetlb):\s+(\d+) kB$", re.MULTILINE)


def read_memory(pids: Iterable[int], cgroup_bytes: int | None) -> MemoryReading:
    """Sum the proportional set sizes of ``pids`` (proc(5), smaps_rollup).

    Helpers that serve all instances of a driver, such as the sandbox or libvirtd, are not to be among them.

    Raises:
        InstanceError: none of them exists any more, or their memory may not be read.
    """
    sizes = [size for size in map(_pss_bytes, pids) if size]
    if not sizes:
        raise InstanceError("the instance is gone", hint="its last console lines may say why")

    def total(name: str) -> int | None:
        return sum(size[name] for size in sizes) if all(name in size for size in sizes) else None

    # no PSS counts huge pages; those that processes share, nobody can divide
    divisible = not any(size.get("Shared_Hugetlb") for size in sizes)
    return MemoryReading(
        pss_bytes=sum(size["Pss"] + size.get("Private_Hugetlb", 0) for size in sizes) if divisible else None,
        processes=len(sizes),
        cgroup_bytes=cgroup_bytes,
        anonymous_bytes=total("Pss_Anon"),
        shmem_bytes=total("Pss_Shmem"),
        file_bytes=total("Pss_File"),
    )


def _pss_bytes(pid: int) -> Mapping[str, int]:
    """The proportional set size of ``pid`` and its kinds; nothing if it is gone or has no memory of its own."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    except PermissionError as error:
        raise InstanceError(f"the memory of process {pid} may not be read", hint="run as root") from error
    return {name: int(kibibytes) * KIB for name, kibibytes in _PSS.findall(text)}
