"""One trial: a fresh instance is started, measured and destroyed. Only here is anything measured."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from bench import load, metrics
from bench.dialogue import Dialogue
from bench.driver import Driver, Instance, Lab, Launch
from bench.errors import InstanceError, IsomarkError
from bench.model import Image, Limits, Metric, Outcome, OutcomeKind, Sample, Trial, Workload
from bench.result import Slot

PINGS: Final = 9
SETTLE_SECONDS: Final = 0.3
QUIT_SECONDS: Final = 5.0


@dataclass(frozen=True)
class Plan:
    """What is equal for all trials of a suite."""

    limits: Limits
    rounds: int
    warmup_rounds: int
    round_seconds: float
    timeout_seconds: float


def conduct_trial(slot: Slot, workload: Workload, driver: Driver, image: Image, plan: Plan, lab: Lab) -> Trial:
    """Start one instance of ``image``, measure it, destroy it, and return what happened.

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
    measured = _Measurement(workload, plan, lab)
    begun = time.monotonic()
    try:
        launch = _launch(slot, workload, plan, lab, driver)
        with driver.start(image, launch) as instance:
            measured.take(instance, launch)
    except (IsomarkError, OSError) as error:
        trial = replace(trial, outcome=_failed(error, measured.instance))
    except KeyboardInterrupt as stop:
        outcome = Outcome(OutcomeKind.ABORTED, "interrupted")
        raise Aborted(replace(trial, outcome=outcome, wall_seconds=time.monotonic() - begun)) from stop
    return replace(
        trial,
        events=tuple(measured.instance.events) if measured.instance else (),
        samples=tuple(measured.samples) if trial.outcome.kind is OutcomeKind.OK else (),
        wall_seconds=time.monotonic() - begun,
        round_seconds=measured.round_seconds,
    )


class Aborted(KeyboardInterrupt):
    """The user interrupted ``trial``; everything it started has been removed."""

    def __init__(self, trial: Trial) -> None:
        super().__init__()
        self.trial = trial


class _Measurement:
    """Collects the samples of one instance."""

    def __init__(self, workload: Workload, plan: Plan, lab: Lab) -> None:
        self.samples: list[Sample] = []
        self.round_seconds = 0.0
        self.instance: Instance | None = None
        self._workload = workload
        self._plan = plan
        self._lab = lab
        self._known = {metric.name for metric in workload.metrics}

    def take(self, instance: Instance, launch: Launch) -> None:
        self.instance = instance
        dialogue = Dialogue(instance, self._plan.timeout_seconds)
        dialogue.ready()
        if self._workload.load == "none":
            self._take_idle(instance, dialogue)
        else:
            for number in range(self._plan.warmup_rounds + self._plan.rounds):
                self._take_round(number, dialogue, launch)
        self._add(dialogue.figures, None, warmup=False)
        dialogue.quit(QUIT_SECONDS)

    def _take_idle(self, instance: Instance, dialogue: Dialogue) -> None:
        at = {event.name: event.at_seconds for event in instance.events}
        self._sample(metrics.BOOT, at["ready"] - at["spawned"])
        delay = statistics.median(dialogue.ping() for _ in range(PINGS)) / 2
        self._sample(metrics.CHANNEL_DELAY, delay)
        time.sleep(SETTLE_SECONDS)
        self.round_seconds += SETTLE_SECONDS
        reading = instance.memory()
        figures = {
            metrics.MEMORY_PSS: reading.pss_bytes,
            metrics.MEMORY_CGROUP: reading.cgroup_bytes,
            metrics.MEMORY_HYPERVISOR: reading.hypervisor_bytes,
        }
        for metric, figure in figures.items():
            if figure is not None:
                self._sample(metric, figure)

    def _take_round(self, number: int, dialogue: Dialogue, launch: Launch) -> None:
        warmup = number < self._plan.warmup_rounds
        if self._workload.load == "http":
            begun = time.monotonic()
            figures = self._http_round(launch)
            length = time.monotonic() - begun
        else:
            figures, length = dialogue.round(number, self._plan.round_seconds)
        self.round_seconds += length
        self._add(figures, number, warmup=warmup)

    def _http_round(self, launch: Launch) -> dict[str, float]:
        assert self.instance is not None
        assert self._workload.port is not None
        address = self.instance.address()
        if address is None:
            raise InstanceError("the instance has no network address", hint="the lab network needs root")
        network = self._lab.network
        inside = network.inside if launch.lease is not None and network is not None else list
        owner = self._lab.journal.owner.id
        return load.http_round(address, self._workload.port, self._plan.round_seconds, owner, inside)

    def _add(self, figures: dict[str, float], number: int | None, *, warmup: bool) -> None:
        if strange := figures.keys() - self._known:
            raise InstanceError(
                f"the payload reports {', '.join(sorted(strange))}, which {self._workload.name} does not declare",
                hint="add a [[metrics]] table to its workload.toml",
            )
        self.samples.extend(Sample(name, value, number, warmup) for name, value in figures.items())

    def _sample(self, metric: Metric, value: float) -> None:
        self.samples.append(Sample(metric.name, value))


def _launch(slot: Slot, workload: Workload, plan: Plan, lab: Lab, driver: Driver) -> Launch:
    # a bare process has the host's network; every other instance gets an address of its own
    lease = None if driver.kind == "process" or lab.network is None else lab.network.lease()
    environment = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "ISOMARK_WORKLOAD": workload.name,
        "ISOMARK_CPUS": str(plan.limits.cpus),
        "ISOMARK_ROUND_SECONDS": f"{plan.round_seconds:g}",
    }
    if workload.port is not None:
        environment["ISOMARK_PORT"] = str(workload.port)
    name = f"iso-{lab.journal.owner.id}-{slot.index}"
    return Launch(name, workload.command, environment, plan.limits, lease)


def _failed(error: IsomarkError | OSError, instance: Instance | None) -> Outcome:
    tail = error.tail if isinstance(error, InstanceError) else ()
    if not tail and instance is not None:
        tail = tuple(instance.tail)
    if isinstance(error, OSError):
        return Outcome(OutcomeKind.FAILED, f"the host refused: {error}", "isomark doctor", tail)
    return Outcome(OutcomeKind.FAILED, error.message, error.hint, tail)
