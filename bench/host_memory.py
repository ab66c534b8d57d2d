"""What the host's memory is used for, by its kernel's own account (proc(5))."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from bench import memory_metrics as metrics
from bench.errors import HostError
from bench.model import Metric
from bench.units import KIB

READINGS: Final = 5
PAUSE_SECONDS: Final = 0.1
MEMINFO: Final = Path("/proc/meminfo")
ZONEINFO: Final = Path("/proc/zoneinfo")
STAT_REFRESH: Final = Path("/proc/sys/vm/stat_refresh")
CPU_LISTS: Final = "CpuLists"
"""Our name for what /proc/meminfo lacks: the bytes of the free pages that CPUs keep in stock."""
_STOCK: Final = re.compile(r"^ +count: +(\d+)$", re.MULTILINE)
"""In /proc/zoneinfo: pages in the pageset of one zone and CPU."""

Account = Mapping[str, int]
"""The fields of /proc/meminfo and ``CPU_LISTS``, in bytes."""


def read_meminfo(path: Path = MEMINFO) -> Account:
    """Return the fields of /proc/meminfo in bytes; those that count huge pages (HugePages_Free) too."""
    rows = [line.replace(":", " ").split() for line in path.read_text().splitlines()]
    sizes = {row[0]: int(row[1]) * KIB for row in rows if row[2:] == ["kB"]}
    huge = {row[0]: int(row[1]) * sizes["Hugepagesize"] for row in rows if row[0].startswith("HugePages_")}
    return sizes | huge


def cpu_lists_bytes(path: Path = ZONEINFO) -> int:
    """Return how much memory is free on the CPUs' own lists."""
    return sum(map(int, _STOCK.findall(path.read_text()))) * os.sysconf("SC_PAGE_SIZE")


def read_host(pause_seconds: float = PAUSE_SECONDS) -> Mapping[Metric, float]:
    """Return the host's figures, but no figure that its kernel does not tell: the median one of five readings.

    They are all of one reading, so that they add up although others start and end processes meanwhile.

    Raises:
        HostError: the kernel does not tell how much memory is in use.
    """
    accounts: list[Account] = []
    for number in range(READINGS):
        if number:
            time.sleep(pause_seconds)
        accounts.append(_read_account())
    return median_figures(accounts)


def available_bytes() -> int:
    """How much memory new processes can have before the host swaps."""
    return read_meminfo().get("MemAvailable", 0)


def median_figures(accounts: Sequence[Account]) -> Mapping[Metric, float]:
    """Return the figures of the one of ``accounts`` with the median memory in use that is not anonymous.

    Raises:
        HostError: they do not tell how much is in use.
    """
    read = [_figures(account) for account in accounts]
    return sorted(read, key=_steady)[len(read) // 2]


def _steady(figures: Mapping[Metric, float]) -> float:
    """What is in use and not anonymous: it shows where pages moved between reading one file and the other."""
    return figures[metrics.HOST_USED] - figures.get(metrics.HOST_ANONYMOUS, 0.0)


def _read_account() -> Account:
    """Read everything at once, or as nearly so as the kernel grants.

    Each CPU keeps a share of the counters to itself, which may be off by some 100 pages; the first write adds them up.
    """
    with suppress(OSError):  # not root, or a kernel without it: then they are that much off
        STAT_REFRESH.write_text("1")
    try:
        return {**read_meminfo(), CPU_LISTS: cpu_lists_bytes()}
    except OSError as error:
        raise HostError(f"the host does not tell its memory: {error}", hint="is /proc mounted whole?") from error


def _figures(account: Account) -> Mapping[Metric, float]:
    found: dict[Metric, float] = {}
    for metric, formula in _FORMULAS.items():
        try:
            found[metric] = formula(account)
        except KeyError as missing:
            if metric is metrics.HOST_USED:
                raise HostError(f"/proc/meminfo does not tell {missing}", hint="Linux 3.14 and later do") from missing
    return found


_FORMULAS: Final[Mapping[Metric, Callable[[Account], float]]] = {
    metrics.HOST_USED: lambda a: (
        a["MemTotal"] - a["MemAvailable"] + a["SwapTotal"] - a["SwapFree"] - a[CPU_LISTS] - a.get("HugePages_Free", 0)
    ),
    metrics.HOST_USED_FREE: lambda a: (
        a["MemTotal"]
        - a["MemFree"]
        - a["Buffers"]
        - (a["Cached"] - a["Shmem"])
        - a["SReclaimable"]
        - a.get("HugePages_Free", 0)
    ),
    metrics.HOST_HUGE_PAGES: lambda a: a["Hugetlb"] - a["HugePages_Free"],
    metrics.HOST_CPU_LISTS: lambda a: a[CPU_LISTS],
    metrics.HOST_ANONYMOUS: lambda a: a["AnonPages"],
    metrics.HOST_SHMEM: lambda a: a["Shmem"],
    metrics.HOST_SWAPPED: lambda a: a["SwapTotal"] - a["SwapFree"],
    metrics.HOST_PAGE_TABLES: lambda a: a["PageTables"] + a.get("SecPageTables", 0),
    metrics.HOST_KERNEL_STACKS: lambda a: a["KernelStack"],
    metrics.HOST_SLAB: lambda a: a["SUnreclaim"],
    metrics.HOST_PERCPU: lambda a: a["Percpu"],
    metrics.HOST_VMALLOC: lambda a: a["VmallocUsed"] - a["KernelStack"],
    metrics.HOST_PAGE_CACHE: lambda a: a["Buffers"] + a["Cached"] - a["Shmem"],
    metrics.HOST_RECLAIMABLE: lambda a: a["SReclaimable"],
}
