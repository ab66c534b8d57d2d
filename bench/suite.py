"""Suites: which workloads, drivers and limits, how many trials. A TOML file, shipped or the user's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from bench import toml
from bench.errors import OptionsError, SuiteError, UsageError
from bench.model import Case, Limits
from bench.names import require_known
from bench.units import MIB, parse_bytes
from bench.workload import Name

BUILT_IN = Path(__file__).parent / "suites"
OPTIONS = "options"
DRIVER = "driver"


@dataclass(frozen=True)
class Configuration:
    """What a suite says of one of its drivers: the installed driver that it is, and options, which that one checks."""

    driver: str
    options: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Suite:
    """A suite as it will be run.

    ``drivers`` are alternatives: ``("kvm", "qemu")`` means the first of them that this host can run.
    ``source`` is the TOML it came from; ``configurations`` has its tables ``[options.NAME]``. One with ``driver``
    makes a variant: a driver called NAME within this suite, so that one run compares the same driver's options.
    ``without`` are cases that are not taken, such as a search that would need hours of an emulated CPU.
    """

    name: str
    title: str
    workloads: tuple[str, ...]
    drivers: tuple[tuple[str, ...], ...]
    trials: int
    rounds: int
    warmup_rounds: int
    round_seconds: float
    timeout_seconds: float
    seed: int | None
    limits: Limits
    source: str
    configurations: Mapping[str, Configuration] = field(default_factory=dict)
    without: tuple[Case, ...] = ()

    def cases(self, drivers: Iterable[str]) -> list[Case]:
        """Every workload × driver of ``drivers``, but for those left out."""
        every = (Case(workload, driver) for workload in self.workloads for driver in drivers)
        return [case for case in every if case not in self.without]

    def refused(self, error: OptionsError) -> SuiteError:
        """What to tell of ``error``, with the line of each option in the suite's file."""
        faults = [((OPTIONS, *key.split(".")), reason) for key, reason in error.faults]
        return toml.malformed(self.source, self.name, faults)

    def narrowed(
        self,
        *,
        drivers: Sequence[str] | None = None,
        workloads: Sequence[str] | None = None,
        trials: int | None = None,
        seed: int | None = None,
    ) -> Suite:
        """Return the suite with what the command line says instead of what the file says."""
        return replace(
            self,
            drivers=self.drivers if drivers is None else tuple(_alternatives(name) for name in drivers),
            workloads=self.workloads if workloads is None else tuple(workloads),
            trials=self.trials if trials is None else trials,
            seed=self.seed if seed is None else seed,
        )


def _size(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return parse_bytes(value)
    except UsageError as error:
        raise ValueError(f"{error.message}; {error.hint}") from error


Size = Annotated[int, BeforeValidator(_size)]
CaseName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,23}/[a-z][a-z0-9-]{0,23}$")]
DriverChoice = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*(\|[a-z][a-z0-9-]*)*$")]


class _LimitsFile(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    cpus: int = Field(default=1, ge=1, le=1024)
    memory: Size = Field(default=512 * MIB, ge=64 * MIB)
    disk: Size = Field(default=2048 * MIB, ge=64 * MIB)
    pids: int = Field(default=512, ge=16)


class _SuiteFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Name
    title: str = Field(min_length=1)
    workloads: list[Name] = Field(min_length=1)
    drivers: list[DriverChoice] = Field(min_length=1)
    trials: int = Field(ge=1, le=10_000)
    rounds: int = Field(default=1, ge=1, le=1_000)
    warmup_rounds: int = Field(default=1, ge=0, le=1_000)
    round_seconds: float = Field(default=1.0, gt=0, le=3600)
    timeout_seconds: float = Field(default=60.0, gt=0, le=3600)
    seed: int | None = Field(default=None, ge=0, lt=2**32)
    limits: _LimitsFile = Field(default_factory=_LimitsFile)
    options: dict[Name, dict[str, object]] = Field(default_factory=dict)
    without: list[CaseName] = Field(default_factory=list)

    @model_validator(mode="after")
    def _leaves_out_what_there_is(self) -> _SuiteFile:
        drivers = {name for choice in self.drivers for name in _alternatives(choice)}
        for case in self.without:
            workload, _, driver = case.partition("/")
            if workload not in self.workloads or driver not in drivers:
                raise ValueError(f"without: {case} is no case of this suite: write WORKLOAD/DRIVER")
        return self

    @field_validator("options")
    @classmethod
    def _variants(cls, tables: dict[str, dict[str, object]]) -> dict[str, dict[str, object]]:
        for name, table in tables.items():
            if not isinstance(table.get(DRIVER, ""), str):
                raise ValueError(f"{name}.{DRIVER} names the driver that {name} is a variant of, in quotes")
        return tables


def parse_suite(source: str, name: str) -> Suite:
    """Read a suite from TOML ``source``; ``name`` stands for it in messages.

    Raises:
        SuiteError: it is malformed; every fault is listed with line and key.
    """
    file = toml.parse(source, _SuiteFile, name)
    limits = Limits(file.limits.cpus, file.limits.memory, file.limits.pids, file.limits.disk)
    return Suite(
        name=file.name,
        title=file.title,
        workloads=tuple(dict.fromkeys(file.workloads)),
        drivers=tuple(dict.fromkeys(_alternatives(choice) for choice in file.drivers)),
        trials=file.trials,
        rounds=file.rounds,
        warmup_rounds=file.warmup_rounds,
        round_seconds=file.round_seconds,
        timeout_seconds=file.timeout_seconds,
        seed=file.seed,
        limits=limits,
        source=source,
        configurations={name: _configuration(name, table) for name, table in file.options.items()},
        without=tuple(Case(*case.split("/")) for case in file.without),
    )


def _configuration(name: str, table: Mapping[str, object]) -> Configuration:
    return Configuration(str(table.get(DRIVER, name)), {key: value for key, value in table.items() if key != DRIVER})


def suite_names() -> list[str]:
    """The names of the shipped suites, sorted."""
    return sorted(path.stem for path in BUILT_IN.glob("*.toml"))


def find_suite(name_or_path: str) -> Suite:
    """Load a shipped suite by name, or the user's own by path (anything with a slash or ``.toml``).

    Raises:
        UsageError: there is no such suite, or it is malformed.
    """
    if "/" in name_or_path or name_or_path.endswith(".toml"):
        path = Path(name_or_path)
    else:
        require_known("suite", name_or_path, suite_names())
        path = BUILT_IN / f"{name_or_path}.toml"
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"cannot read the suite {path}: {error}", hint=f"shipped: {', '.join(suite_names())}"
        ) from error
    return parse_suite(source, str(path))


def _alternatives(choice: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in choice.split("|")))
