"""A result, computed once into everything that a report shows.

Reports turn an ``Analysis`` into text and pictures and compute nothing themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench import metrics
from bench.cautions import Caution, cautions, repeat_command
from bench.claims import SIDES, Check, CheckedClaim, Scale, Side, Subject, Verdict, check_claims
from bench.footprint import Footprint, Line, Point, footprint
from bench.method import METHOD
from bench.model import Case, Kind, Metric, Outcome, OutcomeKind, Trial
from bench.observed import STUDIES, Figure, Observed
from bench.published import CLAIMS
from bench.result import DriverRecord, Header, Result
from bench.rows import Cell, Row, table
from bench.searches import Attempt, Search, searches
from bench.stats import Estimate
from bench.waterfall import Answer, Mark, Stretch, Way, way

__all__ = [
    "METHOD",
    "SIDES",
    "Analysis",
    "Answer",
    "Attempt",
    "Caution",
    "Cell",
    "Check",
    "CheckedClaim",
    "DriverView",
    "Estimate",
    "Failure",
    "Figure",
    "Footprint",
    "Line",
    "Mark",
    "Point",
    "Row",
    "SampleRow",
    "Scale",
    "Search",
    "Side",
    "Stretch",
    "Verdict",
    "Way",
    "analyse",
]


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

    ``throughput`` are the workloads' own metrics for which more is better, ``costs`` their others, but for those of
    studies. What the result has nothing of is empty.
    ``vm`` and ``container`` name the drivers that the claims were checked with.
    """

    header: Header
    complete: bool
    base: str | None
    drivers: tuple[DriverView, ...]
    throughput: tuple[Row, ...]
    costs: tuple[Row, ...]
    start: tuple[Row, ...]
    ways: tuple[Way, ...]
    lifecycle: tuple[Row, ...]
    memory: tuple[Row, ...]
    minimum: tuple[Row, ...]
    searches: tuple[Search, ...]
    footprints: tuple[Footprint, ...]
    sizes: tuple[Row, ...]
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
        return (
            *self.throughput, *self.costs, *self.start, *self.lifecycle, *self.memory, *self.minimum, *self.sizes,
        )  # fmt: skip


def analyse(result: Result) -> Analysis:
    """Compute everything a report of ``result`` shows; the same result gives the same analysis."""
    observed = Observed(result)
    drivers = _driver_views(result, observed)
    names = [view.name for view in drivers]
    subject = Subject(observed, _representative(drivers, "vm"), _representative(drivers, "container"))
    idle = observed.idle[0] if observed.idle else ""
    own = [
        found
        for workload in result.header.workloads
        if workload.load not in STUDIES
        for metric in workload.metrics
        for found in table(observed, names, workload.name, (metric,))
    ]

    footprints = _footprints(observed, names)

    def by_load(load: str, *known: Metric) -> tuple[Row, ...]:
        """The ``known`` metrics of every workload with this load."""
        workloads = (workload.name for workload in result.header.workloads if workload.load == load)
        return tuple(found for name in workloads for found in table(observed, names, name, known=known))

    return Analysis(
        header=result.header,
        complete=result.complete,
        base=observed.base,
        drivers=drivers,
        throughput=tuple(found for found in own if found.metric.direction == "higher"),
        costs=tuple(found for found in own if found.metric.direction == "lower"),
        start=(
            *table(observed, names, idle, (metrics.BOOT, metrics.CHANNEL_DELAY), known=(metrics.BOOT_CPU,)),
            *by_load("http", metrics.FIRST_ANSWER),
        ),
        ways=_ways(observed, names),
        lifecycle=by_load("lifecycle", *metrics.LIFECYCLE),
        memory=table(
            observed, names, idle, (metrics.MEMORY_PSS, metrics.MEMORY_CGROUP), known=(metrics.MEMORY_HYPERVISOR,)
        ),
        minimum=by_load("minimum", *metrics.MINIMUM),
        searches=searches(result, names),
        footprints=footprints,
        sizes=table(observed, names, "", known=metrics.IMAGE),
        claims=check_claims(CLAIMS, subject),
        vm=subject.vm.name if subject.vm else None,
        container=subject.container.name if subject.container else None,
        cautions=cautions(result, observed, footprints),
        failures=tuple(_failures(result, observed)),
        samples=tuple(_samples(result, observed)),
        repeat_command=repeat_command(result.header),
    )


def _ways(observed: Observed, drivers: Sequence[str]) -> tuple[Way, ...]:
    """The way of every driver, or none at all where no driver was started for it."""
    return tuple(way(observed, driver) for driver in drivers) if any(map(observed.taken, observed.idle)) else ()


def _footprints(observed: Observed, drivers: Sequence[str]) -> tuple[Footprint, ...]:
    """The memory of every driver's instances, or none at all where they were not counted."""
    found = tuple(footprint(observed, driver) for driver in drivers)
    return found if any(one.workload and observed.taken(one.workload) for one in found) else ()


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
