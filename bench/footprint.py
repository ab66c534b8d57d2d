"""What one more idle instance costs the host's memory: the slope over their number, reconciled with where it went.

Every trial of a density workload has readings with none, one, two … instances running. Each quantity is read as a
series over that number; a slope is fitted in each trial and their mean is the figure (``stats.slope``). The residue is
fitted to what the parts leave of the total at each reading: parts and residue add up, and it has an error of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from bench import memory_metrics
from bench.growth import Growth, Quantity, less, of_host, of_instances
from bench.metrics import MEMORY_CGROUP, MEMORY_HYPERVISOR, MEMORY_PSS
from bench.model import Trial
from bench.observed import Figure, Observed

LOAD: Final = "density"
_UNRECORDED: Final = "its trials did not record this metric"


@dataclass(frozen=True)
class Line:
    """One line of the table, in bytes for one instance; ``metrics`` names what it was computed from."""

    name: str
    definition: str
    figure: Figure
    metrics: tuple[str, ...]


@dataclass(frozen=True)
class Point:
    """Host memory in use with so many ``instances``, above the base reading of the same trial."""

    trial: int
    instances: int
    above_base_bytes: float


@dataclass(frozen=True)
class Footprint:
    """The memory of one driver's instances.

    ``total`` is the slope of the host's memory in use; ``parts`` and ``residue`` add up to it, and the residue holds
    the parts that are missing. ``beside`` are figures that say something of the same memory and are no part of the sum.
    ``instances`` is how many ran at most. ``missing`` is why there is nothing at all, then without lines.
    """

    driver: str
    workload: str
    granted_bytes: int
    instances: int
    trials: int
    total: Line | None
    parts: tuple[Line, ...] = ()
    residue: Line | None = None
    beside: tuple[Line, ...] = ()
    points: tuple[Point, ...] = ()
    missing: str = ""


def footprint(observed: Observed, driver: str) -> Footprint:
    """Return the reconciled memory of ``driver``'s instances; the same result gives the same footprint."""
    granted = observed.header.limits.memory_bytes
    workload = next((record for record in observed.header.workloads if record.load == LOAD), None)
    if workload is None:
        return Footprint(driver, "", granted, 0, 0, None, missing="the suite has no workload that counts instances")
    trials = observed.finished((workload.name,), driver)
    if not trials:
        reason = observed.why_missing(workload.name, driver)
        return Footprint(driver, workload.name, granted, 0, 0, None, missing=reason)
    growth = Growth(trials)
    total, parts = _ELSEWHERE if growth.has(_ELSEWHERE[0]) else _HERE
    beside = (
        *(_line(growth, quantity) for quantity in _BESIDE),
        *_kept(observed, driver, workload.name, trials),
        *_told(observed, driver, workload.name, growth),
    )
    return Footprint(
        driver=driver,
        workload=workload.name,
        granted_bytes=granted,
        instances=growth.instances,
        trials=len(trials),
        total=_line(growth, total),
        parts=tuple(_line(growth, part) for part in parts),
        residue=Line("Residue", _RESIDUE, growth.residue(total, parts), total.metrics),
        beside=tuple(line for line in beside if line.figure.missing != _UNRECORDED),
        points=tuple(Point(*point) for point in growth.above_base(total)),
    )


def _line(growth: Growth, quantity: Quantity) -> Line:
    figure = growth.slope(quantity)
    if figure.estimate is None and not figure.missing:
        figure = Figure(None, _UNRECORDED)
    return Line(quantity.name, quantity.definition, figure, quantity.metrics)


def _told(observed: Observed, driver: str, workload: str, growth: Growth) -> Iterator[Line]:
    """What was told once in each trial, as medians: by the guests, their balloons and KSM."""
    own = next(record for record in observed.header.workloads if record.name == workload).metrics
    for metric in (*own, *_REPORTED):
        figure = observed.figure(workload, driver, metric.name)
        if figure.estimate is None:
            figure = Figure(None, growth.reason((metric.name,)) or _UNRECORDED)
        yield Line(metric.title, metric.definition, figure, (metric.name,))


def _kept(observed: Observed, driver: str, workload: str, trials: list[Trial]) -> Iterator[Line]:
    """What the guests' kernels kept of the granted memory, where they told the rest."""
    told = [observed.values(workload, driver, name) for name in GUESTS_VIEW]
    if all(len(values) == len(trials) for values in told):
        granted = observed.header.limits.memory_bytes
        kept = [granted - sum(values) for values in zip(*told, strict=True)]
        figure = Figure(observed.estimate(kept, "kept", driver))
        yield Line("Guest's own view: kept by its kernel at boot", _KEPT, figure, GUESTS_VIEW)


GUESTS_VIEW: Final = ("guest_used_bytes", "guest_cache_bytes", "guest_free_bytes")
"""The metrics of the shipped workload that add up to all memory that a guest's kernel knows of."""
_KEPT: Final = (
    "The granted memory less what the guest tells of: the kernel itself, its records of each page, and what the board "
    "reserves, none of which is in the guest's MemTotal."
)
_TOTAL: Final = of_host(memory_metrics.HOST_USED)
_OTHERS: Final = less(
    "Anonymous memory of other processes",
    "AnonPages of the host less the instances' anonymous memory: libvirtd's and isomark's own growth, and whatever "
    "else ran on the host meanwhile.",
    of_host(memory_metrics.HOST_ANONYMOUS),
    of_instances(memory_metrics.MEMORY_ANONYMOUS),
)
_UNMAPPED: Final = less(
    "Shared memory that no instance maps",
    "Shmem of the host less the instances' shared memory: files in tmpfs, those of the instances too.",
    of_host(memory_metrics.HOST_SHMEM),
    of_instances(memory_metrics.MEMORY_SHMEM),
)
_ALONE: Final = less(
    "Host memory in use, without other processes",
    "Host memory in use less the anonymous memory of other processes and the shared memory that no instance maps, as a "
    "slope: what it would be, were nobody else on the host. The better figure where those two lines are large or "
    "uncertain.",
    _TOTAL,
    _OTHERS,
    _UNMAPPED,
)
_HERE: Final = (
    _TOTAL,
    (
        of_instances(memory_metrics.MEMORY_ANONYMOUS),
        of_instances(memory_metrics.MEMORY_SHMEM),
        _OTHERS,
        _UNMAPPED,
        of_host(memory_metrics.HOST_HUGE_PAGES),
        of_host(memory_metrics.HOST_SWAPPED),
        of_host(memory_metrics.HOST_PAGE_TABLES),
        of_host(memory_metrics.HOST_KERNEL_STACKS),
        of_host(memory_metrics.HOST_SLAB),
        of_host(memory_metrics.HOST_PERCPU),
        of_host(memory_metrics.HOST_VMALLOC),
    ),
)
"""The total and its parts, where the instances run on this host."""
_ELSEWHERE: Final = (of_host(memory_metrics.HOST_TOLD), (of_instances(MEMORY_HYPERVISOR),))
"""Likewise, where only libvirt can tell."""
_RESIDUE: Final = (
    "What the parts leave of the total at each reading, as a slope: memory of the kernel that no line of /proc/meminfo "
    "names (buffers of sockets and pipes, devices), and what the kernel's estimate of available memory is off by. Its "
    "sign is that of what is unexplained."
)
_BESIDE: Final = (
    _ALONE,
    of_host(memory_metrics.HOST_USED_FREE),
    of_instances(MEMORY_PSS),
    of_instances(memory_metrics.MEMORY_FILE),
    of_instances(MEMORY_CGROUP),
    of_host(memory_metrics.HOST_PAGE_CACHE),
    of_host(memory_metrics.HOST_RECLAIMABLE),
    of_host(memory_metrics.HOST_CPU_LISTS),
)
"""Slopes that are no part of the sum."""
_REPORTED: Final = (
    *memory_metrics.BALLOON.values(),
    memory_metrics.KSM_SAVED,
    memory_metrics.KSM_HOST_SAVED,
    memory_metrics.KSM_SHARED,
    memory_metrics.KSM_SHARING,
    memory_metrics.KSM_PROFIT,
    memory_metrics.HOST_DRIFT,
)
"""Medians over the trials, after those of the workload's own figures: the guest's view."""
