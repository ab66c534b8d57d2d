"""What processes cost the host's memory; shared, because the figure must mean the same for every driver."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from bench.errors import InstanceError
from bench.model import MemoryReading
from bench.units import KIB

_PSS: Final = re.compile(rb"^Pss:\s+(\d+) kB$", re.MULTILINE)


def read_memory(pids: Iterable[int], cgroup_bytes: int | None) -> MemoryReading:
    """Sum the proportional set sizes of ``pids`` (proc(5), smaps_rollup).

    Helpers that serve all instances of a driver, such as the sandbox or libvirtd, are not to be among them.

    Raises:
        InstanceError: none of them exists any more, or their memory may not be read.
    """
    sizes = [size for size in map(_pss_bytes, pids) if size is not None]
    if not sizes:
        raise InstanceError("the instance is gone", hint="its last console lines may say why")
    return MemoryReading(sum(sizes), len(sizes), cgroup_bytes)


def _pss_bytes(pid: int) -> int | None:
    try:
        found = _PSS.search(Path(f"/proc/{pid}/smaps_rollup").read_bytes())
    except (FileNotFoundError, ProcessLookupError):
        return None
    except PermissionError as error:
        raise InstanceError(f"the memory of process {pid} may not be read", hint="run as root") from error
    return int(found[1]) * KIB if found else None
