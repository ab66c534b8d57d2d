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
from bench.suite import DRIVER, Configuration


def driver_entry_points() -> dict[str, EntryPoint]:
    """Every installed driver's entry point by its name."""
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


def require_drivers(names: Sequence[str], configurations: Mapping[str, Configuration] = MappingProxyType({})) -> None:
    """Check that every one of ``names`` is an installed driver, or a variant of one.

    Raises:
        UsageError: one is not; the nearest name is offered.
        OptionsError: a variant has the name of a driver, or options are for a driver that is not there.
    """
    installed = driver_entry_points()
    faults: list[tuple[str, str]] = []
    for name, configuration in configurations.items():
        if configuration.driver == name:
            if name not in installed:
                faults.append((name, f"there is no driver {name!r}"))
            continue
        if name in installed:
            faults.append((f"{name}.{DRIVER}", f"{name} is a driver itself; a variant needs another name"))
        elif configuration.driver not in installed:
            faults.append((f"{name}.{DRIVER}", f"there is no driver {configuration.driver!r}"))
    if faults:
        raise OptionsError(faults)
    variants = {name for name, configuration in configurations.items() if configuration.driver in installed}
    for name in names:
        require_known("driver", name, installed.keys() | variants)


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


def checked_driver(name: str, lab: Lab, configuration: Configuration | None = None) -> Driver:
    """Make the driver called ``name`` and let it prove that it runs here; one that does not holds nothing afterwards.

    Raises:
        DriverUnavailable: it does not run here.
        OptionsError: it does not take these options.
    """
    configuration = configuration or Configuration(name)
    driver = load_driver(configuration.driver, lab, configuration.options)
    driver.name = name
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

    @property
    def names(self) -> list[str]:
        """What those that will run are called."""
        return [driver.name for driver in self.drivers]

    def close(self) -> None:
        """Close every driver."""
        for driver in self.drivers:
            driver.close()


def choose_drivers(
    choices: Sequence[Sequence[str]], lab: Lab, configurations: Mapping[str, Configuration] = MappingProxyType({})
) -> Chosen:
    """For each choice take the first alternative whose ``check`` passes; ``configurations`` has those of some by name.

    Raises:
        UsageError: an alternative is not a known driver.
        OptionsError: one does not take its options; keys are like ``kvm.cache``.
    """
    known = [name for alternatives in choices for name in alternatives]
    require_drivers(known, configurations)
    _require_options({name: configurations[name] for name in known if name in configurations}, lab)
    drivers: dict[str, Driver] = {}
    absent: dict[str, AbsentDriver] = {}
    for alternatives in choices:
        for name in alternatives:
            if name in drivers:
                break
            try:
                driver = checked_driver(name, lab, configurations.get(name))
            except DriverUnavailable as error:
                absent[name] = AbsentDriver(name, error.message, error.hint)
                continue
            drivers[name] = driver
            break
    return Chosen(tuple(drivers.values()), tuple(absent.values()))


def _require_options(configurations: Mapping[str, Configuration], lab: Lab) -> None:
    """Check the options of every driver, so that all faults are told at once."""
    faults: list[tuple[str, str]] = []
    for name, configuration in configurations.items():
        try:
            load_driver(configuration.driver, lab, configuration.options).close()
        except OptionsError as error:
            faults += [(f"{name}.{key}", reason) for key, reason in error.faults]
        except DriverUnavailable:  # it will not run anyway
            continue
    if faults:
        raise OptionsError(faults)
