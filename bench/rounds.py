"""One instance in one trial: from start to ready, idle or through its rounds, to its end."""

from __future__ import annotations

import statistics
import time
from typing import Final

from bench import load, metrics
from bench.abilities import CountsCpu, OwnDisk
from bench.answer import first_answer
from bench.dialogue import Dialogue
from bench.driver import Launch
from bench.errors import InstanceError
from bench.model import Sample, Step
from bench.setting import Record, Setting

PINGS: Final = 9
SETTLE_SECONDS: Final = 0.3
QUIT_SECONDS: Final = 5.0


def measure(setting: Setting, record: Record) -> None:
    """Start one instance and take its rounds, or what it costs idle where nothing loads it.

    Raises:
        InstanceError: it did not do what it should.
        HostError: the host refused something.
    """
    launch = setting.launch()
    with setting.start(launch) as instance:
        record.instance = instance
        dialogue = Dialogue(instance, setting.plan.timeout_seconds)
        dialogue.ready()
        if setting.workload.load == "none":
            _take_idle(record, dialogue)
        else:
            _take_rounds(setting, record, dialogue, launch)
        add_figures(setting, record, dialogue.figures, None, warmup=False)
        dialogue.quit(QUIT_SECONDS)


def http_target(setting: Setting, record: Record) -> tuple[str, int]:
    """Where the instance of ``record`` serves: address and port.

    Raises:
        InstanceError: it has no address.
    """
    assert record.instance is not None
    assert setting.workload.port is not None
    address = record.instance.address()
    if address is None:
        raise InstanceError("the instance has no network address", hint="the lab network needs root")
    return address, setting.workload.port


def _take_idle(record: Record, dialogue: Dialogue) -> None:
    instance = record.instance
    assert instance is not None
    at = {event.name: event.at_seconds for event in instance.events}
    record.add(metrics.BOOT, at["ready"] - at["spawned"])
    if isinstance(instance, CountsCpu):
        record.add(metrics.BOOT_CPU, instance.cpu_seconds())
    record.add(metrics.CHANNEL_DELAY, statistics.median(dialogue.ping() for _ in range(PINGS)) / 2)
    time.sleep(SETTLE_SECONDS)
    record.round_seconds += SETTLE_SECONDS
    reading = instance.memory()
    record.add(metrics.MEMORY_PSS, reading.pss_bytes)
    record.add(metrics.MEMORY_CGROUP, reading.cgroup_bytes)
    record.add(metrics.MEMORY_HYPERVISOR, reading.hypervisor_bytes)
    if isinstance(instance, OwnDisk):
        record.add(metrics.INSTANCE_DISK, instance.own_disk_bytes())


def _take_rounds(setting: Setting, record: Record, dialogue: Dialogue, launch: Launch) -> None:
    plan = setting.plan
    if setting.workload.load == "http":
        await_answer(setting, record, launch)
    for number in range(plan.warmup_rounds + plan.rounds):
        warmup = number < plan.warmup_rounds
        if setting.workload.load == "http":
            begun = time.monotonic()
            figures = http_round(setting, record, launch)
            length = time.monotonic() - begun
        else:
            figures, length = dialogue.round(number, plan.round_seconds)
        record.round_seconds += length
        add_figures(setting, record, figures, number, warmup=warmup)


def await_answer(setting: Setting, record: Record, launch: Launch) -> None:
    """Have the instance of ``record`` answer its first request, and write down when it did.

    Raises:
        InstanceError: it does not answer.
    """
    address, port = http_target(setting, record)
    network = setting.lab.network if launch.lease is not None else None
    at = first_answer(address, port, setting.plan.timeout_seconds, network)
    record.steps.append(Step(metrics.ANSWER, at))
    spawned = next(event.at_seconds for event in record.events if event.name == "spawned")
    record.add(metrics.FIRST_ANSWER, at - spawned)


def http_round(setting: Setting, record: Record, launch: Launch) -> dict[str, float]:
    """Load the instance of ``record`` for the length of a round; see ``load.http_round``."""
    address, port = http_target(setting, record)
    network = setting.lab.network
    inside = network.inside if launch.lease is not None and network is not None else list
    return load.http_round(address, port, setting.plan.round_seconds, setting.lab.journal.owner.id, inside)


def add_figures(
    setting: Setting, record: Record, figures: dict[str, float], number: int | None, *, warmup: bool
) -> None:
    """Write down what the payload said of round ``number``, ``None`` for outside rounds.

    Raises:
        InstanceError: it said something that its workload does not declare.
    """
    workload = setting.workload
    if strange := figures.keys() - {metric.name for metric in workload.metrics}:
        raise InstanceError(
            f"the payload reports {', '.join(sorted(strange))}, which {workload.name} does not declare",
            hint="add a [[metrics]] table to its workload.toml",
        )
    record.samples.extend(Sample(name, value, number, warmup) for name, value in figures.items())
