"""One metric over all drivers: what a report shows as one line of a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.model import Metric
from bench.observed import Figure, Observed


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

    @property
    def is_known(self) -> bool:
        """Whether any driver has a figure."""
        return any(cell.figure.estimate is not None for cell in self.cells)


def row(observed: Observed, drivers: Sequence[str], workload: str, metric: Metric) -> Row:
    """Return one metric over all ``drivers``; without a workload it is an image size."""

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


def table(
    observed: Observed,
    drivers: Sequence[str],
    workload: str,
    shown: Iterable[Metric] = (),
    known: Iterable[Metric] = (),
) -> tuple[Row, ...]:
    """Return the metrics ``shown`` whatever is known of them, then of ``known`` those that any driver has.

    Nothing of a workload of which no trial was taken.
    """
    if workload and not observed.taken(workload):
        return ()
    optional = (row(observed, drivers, workload, metric) for metric in known)
    return (*(row(observed, drivers, workload, metric) for metric in shown), *(one for one in optional if one.is_known))
