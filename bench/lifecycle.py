"""Two instances in one trial: one is put through all that its driver can do with it, another is destroyed.

A verb that a driver has not gives a reason and no sample; one that fails, or does not do what it says, fails the trial.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from bench import metrics
from bench.abilities import Manageable, Verb
from bench.dialogue import Dialogue
from bench.driver import Instance
from bench.errors import InstanceError
from bench.model import Metric
from bench.setting import Record, Setting

PINGS: Final = 9
SILENT_SECONDS: Final = 0.2
SILENT_PINGS: Final = 20
"""A suspended instance is given this many times the length of a ping to betray that it runs, and the above at least."""
_METRICS: Final[Mapping[Verb, tuple[Metric, ...]]] = {
    "suspend": (metrics.SUSPEND, metrics.RESUME),
    "save": (metrics.SAVE, metrics.RESTORE),
    "snapshot": (metrics.SNAPSHOT,),
    "reboot": (metrics.REBOOT,),
}
_ONLY_ENDS: Final = "the driver can do nothing with an instance between its start and its end"
OTHER: Final = "d"
"""Tells the second instance's name from that of the first."""


def measure(setting: Setting, record: Record) -> None:
    """Take one instance through its life to its graceful end, then destroy another as soon as it is ready.

    Raises:
        InstanceError: an instance did not do what it should.
        HostError: the host refused something.
    """
    _live(setting, record)
    _destroy(setting, record)


def _live(setting: Setting, record: Record) -> None:
    timeout = setting.plan.timeout_seconds
    with setting.start(setting.launch()) as instance:
        record.instance = instance
        dialogue = Dialogue(instance, timeout)
        dialogue.ready()
        record.add(metrics.BOOT, _at(instance, "ready") - _at(instance, "spawned"))
        pings = [dialogue.ping() for _ in range(PINGS)]
        record.add(metrics.CHANNEL_DELAY, statistics.median(pings) / 2)
        verbs, lacks = (instance.verbs, instance.lacks) if isinstance(instance, Manageable) else ({}, {})
        stages = _Stages(dialogue, verbs, record, max(SILENT_SECONDS, SILENT_PINGS * max(pings)))
        for verb, stage in stages.in_order.items():
            if verb in verbs:
                stage()
            else:
                record.lacks(lacks.get(verb, _ONLY_ENDS), *_METRICS[verb])
        asked = time.monotonic()
        if not instance.stop(timeout):
            raise InstanceError(
                f"the instance does not end within {timeout:g} s of being asked to",
                hint="its last console lines may say what it waits for",
                tail=instance.tail,
            )
        record.add(metrics.SHUTDOWN, _at(instance, "exited") - asked)


def _destroy(setting: Setting, record: Record) -> None:
    with setting.start(setting.launch(OTHER)) as instance:
        Dialogue(instance, setting.plan.timeout_seconds).ready()
        begun = time.monotonic()
        instance.kill()
        record.add(metrics.DESTROY, _at(instance, "exited") - begun)


@dataclass(frozen=True)
class _Stages:
    """What is done with one ready instance; after each stage it has answered a ping."""

    dialogue: Dialogue
    verbs: Mapping[Verb, Callable[[], float]]
    record: Record
    silent_seconds: float

    @property
    def in_order(self) -> Mapping[Verb, Callable[[], None]]:
        """The stages by the verb that each begins with. The last changes what the instance is."""
        return {"suspend": self.suspend, "save": self.save, "snapshot": self.snapshot, "reboot": self.reboot}

    def suspend(self) -> None:
        """Suspend, see that it stands still, resume."""
        begun = time.monotonic()
        self.record.add(metrics.SUSPEND, self.verbs["suspend"]() - begun)
        token = self.dialogue.ask()
        if self.dialogue.answers(token, self.silent_seconds):
            raise InstanceError("the instance answered while it was suspended", hint="its driver is at fault")
        begun = time.monotonic()
        self.verbs["resume"]()
        self.record.add(metrics.RESUME, self.dialogue.pong(token) - begun)

    def save(self) -> None:
        """Save and restore."""
        begun = time.monotonic()
        self.record.add(metrics.SAVE, self.verbs["save"]() - begun)
        begun = time.monotonic()
        self.verbs["restore"]()
        self.record.add(metrics.RESTORE, self.dialogue.pong(self.dialogue.ask()) - begun)

    def snapshot(self) -> None:
        """Keep the disk as it is, and see that the instance goes on."""
        begun = time.monotonic()
        self.record.add(metrics.SNAPSHOT, self.verbs["snapshot"]() - begun)
        self.dialogue.ping()

    def reboot(self) -> None:
        """Reboot."""
        begun = time.monotonic()
        self.verbs["reboot"]()
        self.record.add(metrics.REBOOT, self.dialogue.ready_again() - begun)
        self.dialogue.ping()


def _at(instance: Instance, name: str) -> float:
    """When the event ``name`` was, which has been."""
    return next(event.at_seconds for event in instance.events if event.name == name)
