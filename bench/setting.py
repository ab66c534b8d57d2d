"""What a trial is taken in, and what is written down while it is taken; shared by every kind of measurement."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol

from bench.driver import Driver, Instance, Lab, Launch
from bench.model import Event, Image, Limits, Metric, Sample, Step, Workload
from bench.result import Slot


@dataclass(frozen=True)
class Plan:
    """What is equal for all trials of a suite."""

    limits: Limits
    rounds: int
    warmup_rounds: int
    round_seconds: float
    timeout_seconds: float


@dataclass(frozen=True)
class Setting:
    """Where and of what one trial starts its instances."""

    slot: Slot
    workload: Workload
    driver: Driver
    image: Image
    plan: Plan
    lab: Lab

    def launch(self, suffix: str = "", limits: Limits | None = None) -> Launch:
        """Return a request for an instance of this trial; ``suffix`` tells several of them apart.

        Raises:
            HostError: the lab network has no address left.
        """
        # a bare process has the host's network; every other instance gets an address of its own
        network = None if self.driver.kind == "process" else self.lab.network
        granted = limits or self.plan.limits
        environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "LANG": "C.UTF-8",
            "ISOMARK_WORKLOAD": self.workload.name,
            "ISOMARK_CPUS": str(granted.cpus),
            "ISOMARK_ROUND_SECONDS": f"{self.plan.round_seconds:g}",
        }
        if self.workload.port is not None:
            environment["ISOMARK_PORT"] = str(self.workload.port)
        return Launch(
            name=f"iso-{self.lab.journal.owner.id}-{self.slot.index}{suffix}",
            command=self.workload.command,
            environment=environment,
            limits=granted,
            lease=network.lease() if network else None,
        )

    def start(self, launch: Launch) -> Instance:
        """Start an instance; see ``Driver.start``."""
        return self.driver.start(self.image, launch)

    def with_rounds(self, rounds: int, warmup_rounds: int) -> Setting:
        """Return the same with another number of rounds."""
        return replace(self, plan=replace(self.plan, rounds=rounds, warmup_rounds=warmup_rounds))


@dataclass
class Record:
    """What one trial has given so far.

    ``instance`` is the one whose events, steps and last console lines are the trial's. ``steps`` are what the host
    itself saw of it. ``round_seconds`` is how long the rounds and pauses took. ``missing`` is why metrics are missing.
    """

    samples: list[Sample] = field(default_factory=list)
    instance: Instance | None = None
    steps: list[Step] = field(default_factory=list)
    round_seconds: float = 0.0
    missing: dict[str, str] = field(default_factory=dict)

    def lacks(self, reason: str, *metrics: Metric) -> None:
        """Write down why ``metrics`` cannot be taken."""
        self.missing |= {metric.name: reason for metric in metrics}

    def add(
        self, metric: Metric, value: float | None, round_number: int | None = None, *, warmup: bool = False
    ) -> None:
        """Write down one value of a built-in metric; a missing one is none."""
        if value is not None:
            self.samples.append(Sample(metric.name, value, round_number, warmup))

    @property
    def events(self) -> tuple[Event, ...]:
        """The instance's events so far."""
        return tuple(self.instance.events) if self.instance else ()

    @property
    def all_steps(self) -> tuple[Step, ...]:
        """The steps that the instance and the host told of, by the time they began."""
        told = self.instance.steps if self.instance else ()
        return tuple(sorted((*told, *self.steps), key=lambda step: step.at_seconds))


class Measurement(Protocol):
    """One way to measure; ``bench.trial`` has them by the workload's load."""

    def __call__(self, setting: Setting, record: Record) -> None:
        """Start what is needed, measure it into ``record`` and destroy it.

        Raises:
            InstanceError: an instance did not do what it should.
            HostError: the host refused something.
        """
