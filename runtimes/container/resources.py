"""What a group may use, and the control files of cgroup version 1 and 2 that say so. Light.

Files and their meaning: kernel, Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/*.rst; conversions between the
versions as in crun(1), "Cgroup v2". Figures have OCI's meaning (runtime-spec, config-linux.md).
"""

from __future__ import annotations

from bench.errors import HostError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Final

    from runtimes.container.hierarchy import Layout
    from runtimes.security.device_rules import Rule

    Write = tuple[str, str, str]
    """Controller, file, text."""

PERIOD_MICROSECONDS: Final = 100_000
MIN_QUOTA_MICROSECONDS: Final = 1000
UNLIMITED: Final = -1
MAX_SHARES: Final = 262_144
MAX_WEIGHT: Final = 10_000


class Resources:
    """What a group may use; ``None``: not asked for, so the kernel's default, or on an update as it is.

    Attributes:
        cpus: CPU time per time, fractional; or
        cpu_quota: microseconds of CPU time in each period, -1 without limit, and
        cpu_period: its length in microseconds.
        cpu_shares: Weight among its neighbours in version 1's measure, 2 to 262144, where 1024 is the kernel's default.
        cpuset_cpus: CPUs, as in ``0-2,4``.
        cpuset_mems: Memory nodes.
        memory: Bytes, -1 without limit.
        memory_reservation: Bytes that the group is brought down to when memory is short.
        memory_swap: Bytes of memory and swap together, -1 without limit; equal to ``memory``: no swap at all.
        swappiness: 0 to 100, version 1 only.
        oom_kill_disable: Let processes wait instead, version 1 only.
        pids: Processes and threads, -1 without limit.
        devices: Rules; the last that is about a device decides.
        blkio_weight: 10 to 1000.
        hugetlb: Page size as the kernel names it (``2MB``) -> bytes.
        unified: File of version 2 -> text, written as it is and last.
    """

    __slots__ = (
        "blkio_weight", "cpu_period", "cpu_quota", "cpu_shares", "cpus", "cpuset_cpus", "cpuset_mems", "devices",
        "hugetlb", "memory", "memory_reservation", "memory_swap", "oom_kill_disable", "pids", "swappiness", "unified",
    )  # fmt: skip

    def __init__(
        self,
        *,
        cpus: float | None = None,
        cpu_quota: int | None = None,
        cpu_period: int | None = None,
        cpu_shares: int | None = None,
        cpuset_cpus: str | None = None,
        cpuset_mems: str | None = None,
        memory: int | None = None,
        memory_reservation: int | None = None,
        memory_swap: int | None = None,
        swappiness: int | None = None,
        oom_kill_disable: bool | None = None,
        pids: int | None = None,
        devices: Sequence[Rule] | None = None,
        blkio_weight: int | None = None,
        hugetlb: Mapping[str, int] | None = None,
        unified: Mapping[str, str] | None = None,
    ) -> None:
        if cpus is not None and (cpu_quota is not None or cpu_period is not None):
            raise UsageError("a number of CPUs and a quota contradict each other", hint="give one of them")
        if cpus is not None and not cpus * PERIOD_MICROSECONDS >= MIN_QUOTA_MICROSECONDS:
            least = MIN_QUOTA_MICROSECONDS / PERIOD_MICROSECONDS
            raise UsageError(f"{cpus} CPUs are too few", hint=f"the kernel gives {least} at least")
        self.cpus = cpus
        self.cpu_quota = cpu_quota if cpus is None else round(cpus * PERIOD_MICROSECONDS)
        self.cpu_period = cpu_period if cpus is None else PERIOD_MICROSECONDS
        self.cpu_shares = cpu_shares
        self.cpuset_cpus = cpuset_cpus
        self.cpuset_mems = cpuset_mems
        self.memory = memory
        self.memory_reservation = memory_reservation
        self.memory_swap = memory_swap
        self.swappiness = swappiness
        self.oom_kill_disable = oom_kill_disable
        self.pids = pids
        self.devices = devices
        self.blkio_weight = blkio_weight
        self.hugetlb = hugetlb
        self.unified = unified

    def controllers(self) -> set[str]:
        """Which controllers it takes to set what is asked for; ``devices`` and ``unified`` are not among them."""
        asked = {
            "cpu": (self.cpu_quota, self.cpu_period, self.cpu_shares),
            "cpuset": (self.cpuset_cpus, self.cpuset_mems),
            "memory": (
                self.memory, self.memory_reservation, self.memory_swap, self.swappiness, self.oom_kill_disable or None,
            ),
            "pids": (self.pids,),
            "hugetlb": (self.hugetlb or None,),
        }  # fmt: skip
        return {name for name, values in asked.items() if any(value is not None for value in values)}

    def block_controller(self, layout: Layout) -> str | None:
        """What the controller of block devices is called here, if a weight is asked for."""
        if self.blkio_weight is None:
            return None
        return "io" if layout.holding("io") is not None else "blkio"


def version_1(wanted: Resources, controllers: frozenset[str]) -> Iterator[Write]:
    """What to write to the version 1 groups of ``controllers``, in order; swap has its own function."""
    if "cpu" in controllers:
        yield from _numbers(
            "cpu",
            {
                "cpu.cfs_period_us": wanted.cpu_period,
                "cpu.cfs_quota_us": wanted.cpu_quota,
                "cpu.shares": wanted.cpu_shares,
            },
        )
    if "cpuset" in controllers:
        yield from _texts("cpuset", {"cpuset.cpus": wanted.cpuset_cpus, "cpuset.mems": wanted.cpuset_mems})
    if "memory" in controllers:
        yield from _numbers(
            "memory",
            {
                "memory.limit_in_bytes": wanted.memory,
                "memory.soft_limit_in_bytes": wanted.memory_reservation,
                "memory.swappiness": wanted.swappiness,
                "memory.oom_control": 1 if wanted.oom_kill_disable else None,
            },
        )
    if "pids" in controllers and wanted.pids is not None:
        yield "pids", "pids.max", _or_max(wanted.pids)
    if "blkio" in controllers:
        yield from _numbers("blkio", {"blkio.weight": wanted.blkio_weight})
    if "hugetlb" in controllers:
        limits = {f"hugetlb.{size}.limit_in_bytes": limit for size, limit in (wanted.hugetlb or {}).items()}
        yield from _numbers("hugetlb", limits)


def version_2(wanted: Resources, controllers: frozenset[str]) -> Iterator[Write]:
    """What to write to a version 2 group that has ``controllers``, in order."""
    if "cpu" in controllers:
        if wanted.cpu_quota is not None or wanted.cpu_period is not None:
            quota = UNLIMITED if wanted.cpu_quota is None else wanted.cpu_quota
            yield "cpu", "cpu.max", f"{_or_max(quota)} {wanted.cpu_period or PERIOD_MICROSECONDS}"
        if wanted.cpu_shares is not None:
            yield "cpu", "cpu.weight", str(_weight(wanted.cpu_shares, 2, MAX_SHARES))
    if "cpuset" in controllers:
        yield from _texts("cpuset", {"cpuset.cpus": wanted.cpuset_cpus, "cpuset.mems": wanted.cpuset_mems})
    if "memory" in controllers:
        yield from _memory_2(wanted)
    if "pids" in controllers and wanted.pids is not None:
        yield "pids", "pids.max", _or_max(wanted.pids)
    if "io" in controllers and wanted.blkio_weight is not None:
        yield "io", "io.weight", str(_weight(wanted.blkio_weight, 10, 1000))
    if "hugetlb" in controllers:
        limits = {f"hugetlb.{size}.max": limit for size, limit in (wanted.hugetlb or {}).items()}
        yield from _numbers("hugetlb", limits)


def unified(wanted: Resources) -> Iterator[tuple[str, str]]:
    """The raw files of version 2, checked to be names and not paths.

    Raises:
        UsageError: one is a path.
    """
    for name, text in (wanted.unified or {}).items():
        if "/" in name or "." not in name:
            raise UsageError(f"{name!r} is no control file of cgroup version 2", hint='for instance "memory.high"')
        yield name, text


def swap_2(wanted: Resources) -> str | None:
    """What memory.swap.max is to be: version 2 counts swap by itself.

    Raises:
        UsageError: less of both than of memory.
    """
    if wanted.memory_swap is None:
        return None
    if wanted.memory_swap == UNLIMITED:
        return "max"
    if wanted.memory is None or wanted.memory == UNLIMITED or wanted.memory_swap < wanted.memory:
        raise UsageError(
            f"{wanted.memory_swap} bytes of memory and swap together need a smaller limit on memory",
            hint="give --memory as well, at most as much",
        )
    return str(wanted.memory_swap - wanted.memory)


def _memory_2(wanted: Resources) -> Iterator[Write]:
    if wanted.swappiness is not None or wanted.oom_kill_disable:
        raise HostError("cgroup version 2 has no swappiness and no waiting when out of memory", hint="leave them out")
    if wanted.memory is not None:
        yield "memory", "memory.max", _or_max(wanted.memory)
    if wanted.memory_reservation is not None:
        yield "memory", "memory.low", _or_max(wanted.memory_reservation)


def _numbers(controller: str, values: Mapping[str, int] | Mapping[str, int | None]) -> Iterator[Write]:
    for file, value in values.items():
        if value is not None:
            yield controller, file, str(value)


def _texts(controller: str, values: Mapping[str, str | None]) -> Iterator[Write]:
    for file, value in values.items():
        if value is not None:
            yield controller, file, value


def _or_max(value: int) -> str:
    return "max" if value < 0 else str(value)


def _weight(value: int, least: int, most: int) -> int:
    """Version 2's weight, 1 to 10000, in proportion to version 1's."""
    clipped = min(max(value, least), most)
    return 1 + (clipped - least) * (MAX_WEIGHT - 1) // (most - least)
