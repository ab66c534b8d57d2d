"""Conducting a suite: schedule -> trials -> result folder, with somebody watching."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

from bench.driver import Driver, Finding, Lab
from bench.drivers import Chosen
from bench.errors import StoreError, UsageError
from bench.fingerprint import conditions, identity
from bench.model import Image, Trial, Workload, WorkloadImage
from bench.result import DriverRecord, Header, Notice, Result, Slot, WorkloadRecord
from bench.schedule import schedule
from bench.store import ResultWriter, done_slots
from bench.suite import Suite
from bench.trial import Aborted, Plan, conduct_trial


class Watcher(Protocol):
    """Is told how a run goes; the command line draws it."""

    def trial_begins(self, slot: Slot) -> None:
        """The trial in ``slot`` is about to start."""

    def trial_ended(self, slot: Slot, trial: Trial) -> None:
        """It ended and is on the disk."""


@dataclass(frozen=True)
class Prepared:
    """Everything a run needs before its first trial."""

    suite: Suite
    workloads: Mapping[str, Workload]
    drivers: Mapping[str, Driver]
    images: Mapping[str, Image]
    header: Header


def prepare(
    suite: Suite,
    workloads: Sequence[Workload],
    chosen: Chosen,
    image: WorkloadImage,
    findings: Sequence[Finding],
    state: Path,
) -> Prepared:
    """Build each driver's form of ``image`` and write down what the run will be.

    Raises:
        ImageError: a driver could not build its form.
    """
    seed = secrets.randbelow(2**32) if suite.seed is None else suite.seed
    images = {driver.name: driver.build(image) for driver in chosen.drivers}
    records = tuple(_driver_record(driver, images[driver.name]) for driver in chosen.drivers)
    header = Header(
        result_id=secrets.token_hex(8),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        isomark_version=version("isomark"),
        suite_name=suite.name,
        suite_title=suite.title,
        suite_source=suite.source,
        seed=seed,
        limits=suite.limits,
        trials_per_case=suite.trials,
        rounds=suite.rounds,
        warmup_rounds=suite.warmup_rounds,
        round_seconds=suite.round_seconds,
        workloads=tuple(WorkloadRecord(w.name, w.title, w.description, w.load, w.metrics) for w in workloads),
        drivers=records,
        absent=chosen.absent,
        schedule=schedule(suite.cases(chosen.names), suite.trials, seed),
        image_reference=image.reference,
        image_digest=image.digest,
        image_compressed_bytes=image.compressed_bytes,
        image_unpacked_bytes=image.unpacked_bytes,
        image_packages=image.packages,
        identity=identity(suite, workloads, image, records),
        conditions=conditions(state),
        notices=tuple(Notice(f.subject, f.severity, f.message, f.remedy) for f in findings if f.severity != "ok"),
    )
    return Prepared(suite, {w.name: w for w in workloads}, {d.name: d for d in chosen.drivers}, images, header)


def resume(prepared: Prepared, earlier: Result) -> Prepared:
    """Return ``prepared`` with the header of the ``earlier`` result, so that its missing trials can be taken.

    Raises:
        StoreError: something that must be equal is not.
    """
    then, now = earlier.header.identity, prepared.header.identity
    changed = [f"{key}: {then.get(key)} then, {now.get(key)} now" for key in sorted(then.keys() | now.keys())
               if then.get(key) != now.get(key)]  # fmt: skip
    if changed:
        raise StoreError(
            "this result cannot be continued here, since its trials would not be comparable:\n  "
            + "\n  ".join(changed),
            hint="start a new one with isomark run",
        )
    return replace(prepared, header=earlier.header)


def suite_of(header: Header, parsed: Suite) -> Suite:
    """Return the ``parsed`` source of a result's suite as it was narrowed when the result was begun."""
    return parsed.narrowed(
        drivers=[driver.name for driver in header.drivers],
        workloads=[workload.name for workload in header.workloads],
        trials=header.trials_per_case,
        seed=header.seed,
    )


def conduct(prepared: Prepared, writer: ResultWriter, done: set[int], lab: Lab, watcher: Watcher) -> None:
    """Take every trial of the schedule that is not in ``done``; each is on the disk before the next begins.

    Raises:
        StoreError: a trial could not be written.
        KeyboardInterrupt: the user stopped it; the trial in flight is recorded as aborted.
    """
    suite, header = prepared.suite, prepared.header
    plan = Plan(header.limits, header.rounds, header.warmup_rounds, header.round_seconds, suite.timeout_seconds)
    for slot in _remaining(header, done):
        watcher.trial_begins(slot)
        driver = prepared.drivers[slot.case.driver]
        workload = prepared.workloads[slot.case.workload]
        try:
            trial = conduct_trial(slot, workload, driver, prepared.images[driver.name], plan, lab)
        except Aborted as stop:
            writer.append(stop.trial)
            raise
        writer.append(trial)
        watcher.trial_ended(slot, trial)


def remaining_slots(result: Result) -> list[Slot]:
    """The slots of ``result`` that still need a trial."""
    return list(_remaining(result.header, done_slots(result)))


def _remaining(header: Header, done: set[int]) -> Iterator[Slot]:
    return (slot for slot in header.schedule if slot.index not in done)


def _driver_record(driver: Driver, image: Image) -> DriverRecord:
    description = dict(driver.describe())
    return DriverRecord(
        name=driver.name,
        kind=driver.kind,
        emulated=description.get("emulated") == "yes",
        description=description,
        image_form=image.form,
        image_compressed_bytes=image.compressed_bytes,
        image_unpacked_bytes=image.unpacked_bytes,
        image_on_disk_bytes=image.on_disk_bytes,
        image_parts=image.parts,
        image_virtual_bytes=image.virtual_bytes,
        image_used_bytes=image.used_bytes,
    )


def require_cases(suite: Suite, chosen: Chosen) -> None:
    """Check that there is something to run.

    Raises:
        UsageError: none of the suite's drivers can run here, each is named with its reason; or it leaves out all cases.
    """
    if not chosen.drivers:
        reasons = "\n".join(f"  {gone.name}: {gone.reason} ({gone.hint})" for gone in chosen.absent)
        raise UsageError(
            f"no driver of the suite {suite.name} can run here:\n{reasons}", hint="isomark doctor says more"
        )
    if not suite.cases(chosen.names):
        left_out = ", ".join(map(str, suite.without))
        raise UsageError(
            f"the suite {suite.name} leaves out all that is asked for: {left_out}", hint="see its `without`"
        )
