"""Finding drivers by entry point, and choosing those that this host can run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

from bench.driver import ENTRY_POINTS, Driver, Factory, Lab
from bench.errors import DriverUnavailable
from bench.names import require_known
from bench.result import AbsentDriver


def driver_entry_points() -> dict[str, EntryPoint]:
    """Every installed driver's entry point by its name."""
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


def require_drivers(names: Sequence[str]) -> None:
    """Check that every one of ``names`` is an installed driver.

    Raises:
        UsageError: one is not; the nearest name is offered.
    """
    known = driver_entry_points()
    for name in names:
        require_known("driver", name, known)


def load_driver(name: str, lab: Lab) -> Driver:
    """Make the driver called ``name``.

    Raises:
        DriverUnavailable: what it needs cannot even be imported.
    """
    try:
        factory: Factory = driver_entry_points()[name].load()
    except ImportError as error:
        raise DriverUnavailable(f"{name} needs {error.name or error}", hint="script/bootstrap installs it") from error
    return factory(lab)


@dataclass(frozen=True)
class Chosen:
    """The drivers that will run, and those that cannot, with the reason."""

    drivers: tuple[Driver, ...]
    absent: tuple[AbsentDriver, ...]

    def close(self) -> None:
        """Close every driver."""
        for driver in self.drivers:
            driver.close()


def choose_drivers(choices: Sequence[Sequence[str]], lab: Lab) -> Chosen:
    """For each choice take the first alternative whose ``check`` passes.

    Raises:
        UsageError: an alternative is not a known driver.
    """
    require_drivers([name for alternatives in choices for name in alternatives])
    drivers: dict[str, Driver] = {}
    absent: dict[str, AbsentDriver] = {}
    for alternatives in choices:
        for name in alternatives:
            if name in drivers:
                break
            try:
                driver = load_driver(name, lab)
                driver.check()
            except DriverUnavailable as error:
                absent[name] = AbsentDriver(name, error.message, error.hint)
                continue
            drivers[name] = driver
            break
    return Chosen(tuple(drivers.values()), tuple(absent.values()))
