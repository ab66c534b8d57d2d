"""Finding drivers by entry point, and choosing those that this host can run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType

from bench.driver import ENTRY_POINTS, Configurable, Driver, Factory, Lab
from bench.errors import DriverUnavailable, OptionsError
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


def load_driver(name: str, lab: Lab, options: Mapping[str, object] | None = None) -> Driver:
    """Make the driver called ``name``, with ``options`` from a suite.

    Raises:
        DriverUnavailable: what it needs cannot even be imported.
        OptionsError: it does not take these options.
    """
    try:
        factory: Factory = driver_entry_points()[name].load()
    except ImportError as error:
        raise DriverUnavailable(f"{name} needs {error.name or error}", hint="script/bootstrap installs it") from error
    driver = factory(lab)
    if not options:
        return driver
    if not isinstance(driver, Configurable):
        raise OptionsError([(key, f"the driver {name} takes no options") for key in options])
    return driver.configured(options)


def checked_driver(name: str, lab: Lab, options: Mapping[str, object] | None = None) -> Driver:
    """Make the driver called ``name`` and let it prove that it runs here; one that does not holds nothing afterwards.

    Raises:
        DriverUnavailable: it does not run here.
        OptionsError: it does not take these options.
    """
    driver = load_driver(name, lab, options)
    try:
        driver.check()
    except BaseException:
        driver.close()
        raise
    return driver


@dataclass(frozen=True)
class Chosen:
    """The drivers that will run, and those that cannot, with the reason."""

    drivers: tuple[Driver, ...]
    absent: tuple[AbsentDriver, ...]

    def close(self) -> None:
        """Close every driver."""
        for driver in self.drivers:
            driver.close()


def choose_drivers(
    choices: Sequence[Sequence[str]], lab: Lab, options: Mapping[str, Mapping[str, object]] = MappingProxyType({})
) -> Chosen:
    """For each choice take the first alternative whose ``check`` passes; ``options`` has those of some by name.

    Raises:
        UsageError: an alternative is not a known driver.
        OptionsError: one does not take its options; keys are as in ``options``, like ``kvm.cache``.
    """
    known = [name for alternatives in choices for name in alternatives]
    require_drivers(known)
    _require_options({name: options[name] for name in known if name in options}, lab)
    drivers: dict[str, Driver] = {}
    absent: dict[str, AbsentDriver] = {}
    for alternatives in choices:
        for name in alternatives:
            if name in drivers:
                break
            try:
                driver = checked_driver(name, lab, options.get(name, {}))
            except DriverUnavailable as error:
                absent[name] = AbsentDriver(name, error.message, error.hint)
                continue
            drivers[name] = driver
            break
    return Chosen(tuple(drivers.values()), tuple(absent.values()))


def _require_options(options: Mapping[str, Mapping[str, object]], lab: Lab) -> None:
    """Check the options of every driver, so that all faults are told at once."""
    faults: list[tuple[str, str]] = []
    for name, table in options.items():
        try:
            load_driver(name, lab, table).close()
        except OptionsError as error:
            faults += [(f"{name}.{key}", reason) for key, reason in error.faults]
        except DriverUnavailable:  # it will not run anyway
            continue
    if faults:
        raise OptionsError(faults)
