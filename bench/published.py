"""The published table that isomark was written to check: a virtual server against a container.

No source of it was found word for word. Its memory figures read like allocations rather than use,
and its 65 % and 90 % name neither base nor benchmark; the definitions below are the readings tested.
"""

from __future__ import annotations

from typing import Final

from bench.claims import Claim, Definition, Measure, Published
from bench.metrics import MINIMUM_MEMORY
from bench.observed import Figure, Observed
from bench.stats import counted

TOLERANCE: Final = 0.10
MINUTE: Final = 60.0
TENFOLD: Final = 10.0
XEN: Final = "xen-hvm"


def _at_least(text: str, bound: float) -> Published:
    return Published(text, bound * (1 - TOLERANCE), float("inf"))


def _about(text: str, value: float) -> Published:
    return Published(text, value * (1 - TOLERANCE), value * (1 + TOLERANCE))


def _size(metric: str) -> Measure:
    def measure(observed: Observed, driver: str, other: str | None = None) -> Figure:
        return observed.size(driver, metric) if other is None else observed.size_ratio(driver, other, metric)

    return measure


def _idle(metric: str) -> Measure:
    def measure(observed: Observed, driver: str, other: str | None = None) -> Figure:
        if not observed.idle:
            return Figure(None, "no workloads")
        workload = observed.idle[0]
        if other is None:
            return observed.figure(workload, driver, metric)
        return observed.ratio(workload, driver, other, metric)

    return measure


def _minimum(observed: Observed, driver: str, other: str | None = None) -> Figure:
    searched = next((workload.name for workload in observed.header.workloads if workload.load == "minimum"), None)
    if searched is None:
        return Figure(None, "the suite has no workload that looks for the minimum")
    if other is None:
        return observed.figure(searched, driver, MINIMUM_MEMORY.name)
    return observed.ratio(searched, driver, other, MINIMUM_MEMORY.name)


def _performance(only: str | None) -> Measure:
    def measure(observed: Observed, driver: str, other: str | None = None) -> Figure:
        base = other or observed.base
        return Figure(None, "no native base took part") if base is None else observed.performance(driver, base, only)

    return measure


def _worst(observed: Observed, driver: str, other: str | None = None) -> Figure:
    base = other or observed.base
    return Figure(None, "no native base took part") if base is None else observed.worst(driver, base)


def _slowest_start(observed: Observed, driver: str, other: str | None = None) -> Figure:
    return observed.slowest_start(driver, other)


def _granted(observed: Observed, _driver: str, other: str | None = None) -> Figure:
    return Figure(counted(1.0 if other else observed.header.limits.memory_bytes))


_TEN_PERCENT = "Reproduced if the whole 95 % interval lies within ±10 % of the published figure."
_SIZE_RULE = (
    "Sizes are counted and have no interval. “At least” is reproduced from 10 % below the published size upwards; "
    "the quotient of the two sizes is reproduced within ±10 % of 7.7. MB and GB are powers of ten."
)
_START_RULE = (
    "“Minutes” is reproduced if the whole 95 % interval is at least 60 s, “seconds” if it lies from 1 s to below 60 s; "
    "their quotient if it is at least 10. That tenfold is our own reading of minutes against seconds."
)
_THROUGHPUT = (
    "The throughput relative to the bare process: 100 % is no loss. The quotient is virtual server ÷ container."
)

CLAIMS: Final[tuple[Claim, ...]] = (
    Claim(
        name="image",
        title="Image size (CentOS 7.4)",
        scale="bytes",
        published={
            "vm": _at_least("at least 1.54 GB", 1.54e9),
            "container": _at_least("at least 0.20 GB", 0.20e9),
            "relation": _about("7.7×", 1.54 / 0.20),
        },
        below="smaller than claimed",
        above="larger than claimed",
        emulation="harmless",
        definitions=(
            Definition(
                "image-compressed",
                "Bytes to ship",
                "The metric image_compressed_bytes of an image with the same content in both forms, which is not "
                f"CentOS: the claim read as one about servers in general. {_SIZE_RULE}",
                _size("image_compressed_bytes"),
            ),
            Definition(
                "image-on-disk",
                "Bytes on the host's disk",
                "The metric image_on_disk_bytes of an image with the same content in both forms, which is not "
                f"CentOS: the claim read as one about servers in general. {_SIZE_RULE}",
                _size("image_on_disk_bytes"),
            ),
            Definition(
                "image-literal",
                "CentOS 7.4 itself",
                "The size of CentOS 7.4 as a virtual server's disk and as a container image. isomark measures the "
                "image of the suite, not that system.",
                None,
                "The image measured is not CentOS 7.4, so the claim's literal wording is neither shown nor disproved.",
            ),
        ),
    ),
    Claim(
        name="memory",
        title="Memory use",
        scale="bytes",
        published={
            "vm": _about("640 MB by default", 640e6),
            "container": _about("512 MB by default", 512e6),
            "relation": _about("1.25×", 640 / 512),
        },
        below="less than claimed",
        above="more than claimed",
        emulation="adds",
        definitions=(
            Definition(
                "memory-pss",
                "Host memory of an idle instance (PSS)",
                f"The metric memory_pss_bytes of an idle instance. {_TEN_PERCENT} MB are powers of ten. Emulation can "
                "only enlarge a virtual server's figure, so an emulated one can refute the claim from below, and "
                "decides nothing else.",
                _idle("memory_pss_bytes"),
            ),
            Definition(
                "memory-cgroup",
                "Host memory of an idle instance (cgroup)",
                f"The metric memory_cgroup_bytes of an idle instance. {_TEN_PERCENT} Emulated figures as for PSS.",
                _idle("memory_cgroup_bytes"),
            ),
            Definition(
                "memory-minimum",
                "Minimum memory",
                "The metric minimum_memory_bytes: the smallest limit with which the workload completes, since the "
                f"published figures read like allocations. {_TEN_PERCENT} MB are powers of ten. A virtual server's "
                "limit is the memory of its machine. Emulated virtual servers decide nothing.",
                _minimum,
                emulation="invalid",
            ),
            Definition(
                "memory-granted",
                "Memory limit granted",
                "What the suite grants to each instance. It is chosen, not measured, and the same for every driver.",
                _granted,
                "The limit is chosen by the suite; that it agrees or not with a published default shows nothing.",
            ),
        ),
    ),
    Claim(
        name="performance",
        title="Benchmark performance",
        scale="percent",
        published={
            "vm": _about("65 % (Xen HVM)", 0.65),
            "container": _about("90 %", 0.90),
            "relation": _about("0.72×", 0.65 / 0.90),
        },
        below="slower than claimed",
        above="faster than claimed",
        emulation="invalid",
        definitions=(
            Definition(
                "performance-mean",
                "Mean over the workloads",
                "The geometric mean over all workloads that have a throughput, each weighing the same. "
                f"{_THROUGHPUT} {_TEN_PERCENT} Emulated virtual servers decide nothing.",
                _performance(None),
            ),
            Definition(
                "performance-worst",
                "Worst workload",
                f"The throughput metric on which the driver does worst. {_THROUGHPUT} {_TEN_PERCENT} Emulated virtual "
                "servers decide nothing.",
                _worst,
            ),
            Definition(
                "performance-cpu",
                "CPU only",
                f"The throughput of the workload cpu alone. {_THROUGHPUT} {_TEN_PERCENT} Emulated virtual servers "
                "decide nothing.",
                _performance("cpu"),
            ),
            Definition(
                "performance-literal",
                "Xen HVM itself",
                "As the mean over the workloads, for a Xen HVM virtual server only: others say nothing about "
                f"Xen. {_TEN_PERCENT} Emulated virtual servers decide nothing.",
                _performance(None),
                sides=("vm",),
                driver=XEN,
            ),
        ),
    ),
    Claim(
        name="start",
        title="Start of the OS",
        scale="seconds",
        published={
            "vm": Published("minutes", MINUTE, float("inf")),
            "container": Published("seconds", 1.0, MINUTE),
            "relation": Published("at least 10×", TENFOLD, float("inf")),
        },
        below="faster than claimed",
        above="slower than claimed",
        emulation="invalid",
        definitions=(
            Definition(
                "start-ready",
                "Start to ready",
                f"The metric boot_seconds. {_START_RULE} Emulated virtual servers decide nothing.",
                _idle("boot_seconds"),
            ),
            Definition(
                "start-slowest",
                "Start to ready, slowest workload",
                "From spawned to ready of the workload that takes longest, its server included. "
                f"{_START_RULE} Emulated virtual servers decide nothing.",
                _slowest_start,
            ),
        ),
    ),
)
