"""A result as a value: what one run recorded. ``bench.store`` reads and writes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench.model import Case, Kind, Limits, Metric, OutcomeKind, Trial


@dataclass(frozen=True)
class WorkloadRecord:
    """A workload as it was when the result was taken."""

    name: str
    title: str
    description: str
    load: str
    metrics: tuple[Metric, ...]


@dataclass(frozen=True)
class DriverRecord:
    """A driver that took part. ``description`` is ``Driver.describe()``; sizes are of its ``Image``."""

    name: str
    kind: Kind
    emulated: bool
    description: Mapping[str, str]
    image_form: str
    image_compressed_bytes: int | None
    image_unpacked_bytes: int | None
    image_on_disk_bytes: int | None
    image_parts: Mapping[str, str] = field(default_factory=dict)
    image_virtual_bytes: int | None = None
    image_used_bytes: int | None = None


@dataclass(frozen=True)
class AbsentDriver:
    """A driver that the suite names and this host could not run."""

    name: str
    reason: str
    hint: str


@dataclass(frozen=True)
class Slot:
    """One place in the schedule."""

    index: int
    block: int
    case: Case


@dataclass(frozen=True)
class Notice:
    """A condition found before the run: the ``Finding``s of doctor that are not ``ok``."""

    subject: str
    severity: str
    message: str
    remedy: str


@dataclass(frozen=True)
class Header:
    """Everything that holds for the whole result; written before the first trial.

    ``identity`` is what must be equal for two results to be compared, ``conditions`` what is only
    reported. ``image_packages`` maps Debian package to version. ``suite_source`` is the suite's
    TOML, so that the result alone suffices to repeat it.
    """

    result_id: str
    created_at: str
    isomark_version: str
    suite_name: str
    suite_title: str
    suite_source: str
    seed: int
    limits: Limits
    trials_per_case: int
    rounds: int
    warmup_rounds: int
    round_seconds: float
    workloads: tuple[WorkloadRecord, ...]
    drivers: tuple[DriverRecord, ...]
    absent: tuple[AbsentDriver, ...]
    schedule: tuple[Slot, ...]
    image_reference: str
    image_digest: str
    image_compressed_bytes: int
    image_unpacked_bytes: int
    image_packages: Mapping[str, str]
    identity: Mapping[str, str]
    conditions: Mapping[str, str]
    notices: tuple[Notice, ...]


@dataclass(frozen=True)
class Result:
    """One run's header and the trials recorded so far, in the order they ran."""

    folder: Path
    header: Header
    trials: tuple[Trial, ...]

    @property
    def complete(self) -> bool:
        """Whether every slot of the schedule has a trial that was not aborted."""
        ended = {trial.index for trial in self.trials if trial.outcome.kind is not OutcomeKind.ABORTED}
        return {slot.index for slot in self.header.schedule} <= ended
