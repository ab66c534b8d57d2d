"""A result, computed once into everything that a report shows.

Reports turn an ``Analysis`` into text and pictures and compute nothing themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from bench import metrics
from bench.cautions import Caution, cautions, repeat_command
from bench.claims import SIDES, Check, CheckedClaim, Scale, Side, Subject, Verdict, check_claims
from bench.model import Case, Kind, Metric, Outcome, OutcomeKind, Trial
from bench.observed import Figure, Milestones, Observed
from bench.published import CLAIMS
from bench.result import DriverRecord, Header, Result
from bench.stats import Estimate

__all__ = [
    "METHOD",
    "SIDES",
    "Analysis",
    "Caution",
    "Cell",
    "Check",
    "CheckedClaim",
    "DriverView",
    "Estimate",
    "Failure",
    "Figure",
    "Milestones",
    "Row",
    "SampleRow",
    "Scale",
    "Side",
    "Verdict",
    "analyse",
]

METHOD: Final[tuple[tuple[str, str, str], ...]] = (
    (
        "trial",
        "Trial",
        "One fresh instance, started, measured and destroyed. Its rounds after the warm-up are reduced to their "
        "median; every statistic is over trials, because the rounds of one instance are not independent.",
    ),
    (
        "interval",
        "95 % interval",
        "The figure is the median over trials. The interval is the percentile bootstrap: trials are drawn with "
        "replacement 9,999 times and the middle 95 % of the medians kept. The seed follows from the result, so the "
        "same result gives the same interval. It never leaves the range of what was measured, so with fewer than six "
        "trials it cannot reach 95 %, and with one there is none.",
    ),
    (
        "ratio",
        "Relative to native",
        "The driver's median divided by the median of the bare process (native); its interval draws the trials of both "
        "sides. For throughput 100 % is no loss; for start, memory and sizes 1× is no cost.",
    ),
    (
        "performance",
        "Mean performance",
        "The geometric mean over workloads of the throughput relative to native, each workload weighing the same. It "
        "is missing as soon as one workload's figure is.",
    ),
    (
        "emulated",
        "Emulated",
        "The virtual server's CPU was emulated in software (QEMU's TCG) because no hypervisor with hardware support "
        "could boot a guest. Its speed says nothing about a virtual server on hardware.",
    ),
)
"""Words of the report that are not metrics: anchor, title, definition."""


@dataclass(frozen=True)
class DriverView:
    """A driver as the report shows it. ``performance`` is missing for the base, which is 1 by definition."""

    record: DriverRecord
    is_base: bool
    ok: int
    failed: int
    aborted: int
    performance: Figure
    parity: tuple[str, ...]

    @property
    def name(self) -> str:
        """The driver's name."""
        return self.record.name

    @property
    def kind(self) -> Kind:
        """What kind of isolation it is."""
        return self.record.kind

    @property
    def emulated(self) -> bool:
        """Whether its figures come from an emulated CPU."""
        return self.record.emulated


@dataclass(frozen=True)
class Cell:
    """One metric of one driver, and its quotient by the base; ``ratio`` is ``None`` for the base itself."""

    driver: str
    figure: Figure
    ratio: Figure | None


@dataclass(frozen=True)
class Row:
    """One metric of one workload over all drivers; image sizes have no workload."""

    workload: str
    metric: Metric
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class SampleRow:
    """One measured value as recorded, warm-up included; a trial without any has one row without a value."""

    trial: int
    block: int
    workload: str
    driver: str
    emulated: bool
    metric: str
    unit: str
    round: int | None
    warmup: bool
    value: float | None
    outcome: str


@dataclass(frozen=True)
class Failure:
    """A trial that gave no figure, with the reason and the console's last lines."""

    trial: int
    case: Case
    emulated: bool
    outcome: Outcome


@dataclass(frozen=True)
class Analysis:
    """Everything a report shows. ``drivers`` come in the order to show them: base, hardware, emulated.

    ``throughput`` are the metrics for which more is better, ``costs`` the workloads' other metrics.
    ``vm`` and ``container`` name the drivers that the claims were checked with.
    """

    header: Header
    complete: bool
    base: str | None
    drivers: tuple[DriverView, ...]
    throughput: tuple[Row, ...]
    costs: tuple[Row, ...]
    start: tuple[Row, ...]
    memory: tuple[Row, ...]
    sizes: tuple[Row, ...]
    milestones: tuple[Milestones, ...]
    claims: tuple[CheckedClaim, ...]
    vm: str | None
    container: str | None
    cautions: tuple[Caution, ...]
    failures: tuple[Failure, ...]
    samples: tuple[SampleRow, ...]
    repeat_command: str

    def driver(self, name: str) -> DriverView:
        """Return the view of the driver called ``name``."""
        return next(view for view in self.drivers if view.name == name)

    @property
    def rows(self) -> tuple[Row, ...]:
        """Every summarised metric in the order of the report."""
        return (*self.throughput, *self.costs, *self.start, *self.memory, *self.sizes)


def analyse(result: Result) -> Analysis:
    """Compute everything a report of ``result`` shows; the same result gives the same analysis."""
    observed = Observed(result)
    drivers = _driver_views(result, observed)
    names = [view.name for view in drivers]
    subject = Subject(observed, _representative(drivers, "vm"), _representative(drivers, "container"))
    own = [(workload.name, metric) for workload in result.header.workloads for metric in workload.metrics]
    idle = observed.idle[0] if observed.idle else ""

    def built_in(*chosen: Metric) -> tuple[Row, ...]:
        return tuple(_row(observed, names, idle, metric) for metric in chosen)

    return Analysis(
        header=result.header,
        complete=result.complete,
        base=observed.base,
        drivers=drivers,
        throughput=tuple(_row(observed, names, *pair) for pair in own if pair[1].direction == "higher"),
        costs=tuple(_row(observed, names, *pair) for pair in own if pair[1].direction == "lower"),
        start=built_in(metrics.BOOT, metrics.CHANNEL_DELAY),
        memory=built_in(metrics.MEMORY_PSS, metrics.MEMORY_CGROUP),
        sizes=tuple(
            _row(observed, names, "", metric)
            for metric in (metrics.IMAGE_COMPRESSED, metrics.IMAGE_UNPACKED, metrics.IMAGE_ON_DISK)
        ),
        milestones=tuple(observed.milestones(name) for name in names),
        claims=check_claims(CLAIMS, subject),
        vm=subject.vm.name if subject.vm else None,
        container=subject.container.name if subject.container else None,
        cautions=cautions(result, observed),
        failures=tuple(_failures(result, observed)),
        samples=tuple(_samples(result, observed)),
        repeat_command=repeat_command(result.header),
    )


def _driver_views(result: Result, observed: Observed) -> tuple[DriverView, ...]:
    counts = Counter((trial.case.driver, trial.outcome.kind) for trial in result.trials)

    def view(record: DriverRecord) -> DriverView:
        if observed.base is None:
            performance = Figure(None, "no native base took part")
        elif record.name == observed.base:
            performance = Figure(None, "it is the base itself")
        else:
            performance = observed.performance(record.name, observed.base)
        return DriverView(
            record=record,
            is_base=record.name == observed.base,
            ok=counts[record.name, OutcomeKind.OK],
            failed=counts[record.name, OutcomeKind.FAILED],
            aborted=counts[record.name, OutcomeKind.ABORTED],
            performance=performance,
            parity=tuple(line.strip() for line in record.description.get("parity", "").splitlines() if line.strip()),
        )

    views = [view(record) for record in result.header.drivers]
    return tuple(sorted(views, key=lambda one: (not one.is_base, one.emulated)))  # stable: the suite's order otherwise


def _representative(drivers: Sequence[DriverView], kind: Kind) -> DriverRecord | None:
    """The driver that stands for its kind in the claims: one on hardware before an emulated one."""
    return next((view.record for view in drivers if view.kind == kind), None)


def _row(observed: Observed, drivers: Sequence[str], workload: str, metric: Metric) -> Row:
    """Return one metric over all drivers; without a workload it is an image size."""

    def cell(driver: str) -> Cell:
        is_base = observed.base in (None, driver)
        base = observed.base or driver
        if workload:
            figure = observed.figure(workload, driver, metric.name)
            ratio = observed.ratio(workload, driver, base, metric.name)
        else:
            figure, ratio = observed.size(driver, metric.name), observed.size_ratio(driver, base, metric.name)
        return Cell(driver, figure, None if is_base else ratio)

    return Row(workload, metric, tuple(cell(driver) for driver in drivers))


def _failures(result: Result, observed: Observed) -> Iterator[Failure]:
    for trial in result.trials:
        if trial.outcome.kind is not OutcomeKind.OK:
            yield Failure(trial.index, trial.case, _is_emulated(trial, observed), trial.outcome)


def _samples(result: Result, observed: Observed) -> Iterator[SampleRow]:
    units = {
        (workload.name, metric.name): metric.unit for workload in result.header.workloads for metric in workload.metrics
    }
    built_in = {metric.name: metric.unit for metric in metrics.BUILT_IN}
    for trial in result.trials:
        emulated = _is_emulated(trial, observed)
        outcome = str(trial.outcome.kind)
        place = (trial.index, trial.block, trial.case.workload, trial.case.driver, emulated)
        if not trial.samples:
            yield SampleRow(*place, "", "", None, False, None, outcome)
        for sample in trial.samples:
            unit = units.get((trial.case.workload, sample.metric), built_in.get(sample.metric, ""))
            yield SampleRow(*place, sample.metric, unit, sample.round, sample.warmup, sample.value, outcome)


def _is_emulated(trial: Trial, observed: Observed) -> bool:
    record = observed.drivers.get(trial.case.driver)
    return record is not None and record.emulated
