"""One trial: a fresh instance is started, measured and destroyed. Nothing is measured but here and in what it calls."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from bench import density, lifecycle, minimum, rounds
from bench.driver import Driver, Instance, Lab
from bench.errors import InstanceError, IsomarkError
from bench.model import Image, Load, Outcome, OutcomeKind, Trial, Workload
from bench.result import Slot
from bench.setting import Measurement, Plan, Record, Setting

__all__ = ["Aborted", "Plan", "conduct_trial"]

MEASUREMENTS: Final[Mapping[Load, Measurement]] = {
    "none": rounds.measure,
    "payload": rounds.measure,
    "http": rounds.measure,
    "lifecycle": lifecycle.measure,
    "minimum": minimum.measure,
    "density": density.measure,
}


def conduct_trial(slot: Slot, workload: Workload, driver: Driver, image: Image, plan: Plan, lab: Lab) -> Trial:
    """Start a fresh instance of ``image`` (a study starts several), measure, destroy, and return what happened.

    A trial that fails is an outcome, not an error. Ctrl-C removes the instance and passes through
    as ``Aborted``, which carries the trial.
    """
    trial = Trial(
        index=slot.index,
        block=slot.block,
        case=slot.case,
        outcome=Outcome(OutcomeKind.OK),
        image_digest=image.digest,
        started_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )
    record = Record()
    begun = time.monotonic()
    try:
        MEASUREMENTS[workload.load](Setting(slot, workload, driver, image, plan, lab), record)
    except (IsomarkError, OSError) as error:
        trial = replace(trial, outcome=_failed(error, record.instance))
    except KeyboardInterrupt as stop:
        outcome = Outcome(OutcomeKind.ABORTED, "interrupted")
        raise Aborted(replace(trial, outcome=outcome, wall_seconds=time.monotonic() - begun)) from stop
    return replace(
        trial,
        events=record.events,
        steps=record.all_steps,
        samples=tuple(record.samples) if trial.outcome.kind is OutcomeKind.OK else (),
        wall_seconds=time.monotonic() - begun,
        round_seconds=record.round_seconds,
        missing=record.missing,
    )


class Aborted(KeyboardInterrupt):
    """The user interrupted ``trial``; everything it started has been removed."""

    def __init__(self, trial: Trial) -> None:
        super().__init__()
        self.trial = trial


def _failed(error: IsomarkError | OSError, instance: Instance | None) -> Outcome:
    tail = error.tail if isinstance(error, InstanceError) else ()
    if not tail and instance is not None:
        tail = tuple(instance.tail)
    if isinstance(error, OSError):
        return Outcome(OutcomeKind.FAILED, f"the host refused: {error}", "isomark doctor", tail)
    return Outcome(OutcomeKind.FAILED, error.message, error.hint, tail)
