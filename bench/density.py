"""More and more identical idle instances on one host, and after each what the host, they and KSM say of its memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final

from bench import host_memory, ksm, metrics
from bench import memory_metrics as memory
from bench.abilities import Ballooned, House, Housed, OnHugePages
from bench.dialogue import Dialogue
from bench.driver import Instance
from bench.errors import HostError, InstanceError
from bench.model import MemoryReading, Metric
from bench.rounds import QUIT_SECONDS, add_figures
from bench.setting import Record, Setting
from bench.units import format_bytes

_KSM: Final = (memory.KSM_SAVED, memory.KSM_HOST_SAVED, memory.KSM_SHARED, memory.KSM_SHARING, memory.KSM_PROFIT)
_HOSTS_OWN: Final = "only a virtual server is asked: elsewhere /proc/meminfo is the host's"
_NO_BALLOON: Final = 'libvirt does not tell: the guest has no balloon (balloon = "virtio"), or no driver for it'
_NO_PSS: Final = "an instance has no proportional set size: nobody can divide the huge pages that processes share"
_ELSEWHERE: Final = "the instances' memory is not this kernel's"


def measure(setting: Setting, record: Record) -> None:
    """Start the workload's number of instances one after another and read the memory after each.

    Where the suite has warm-up rounds one instance is started and destroyed before, so that what all of them share
    (helpers, page cache, libvirt's own) is not charged to the first.

    Raises:
        InstanceError: one of them did not do what it should; all are destroyed.
        HostError: the host has no room for them, or refused something.
    """
    _require_room(setting)
    if setting.plan.warmup_rounds:
        with ExitStack() as brief:
            _start(setting, record, brief, 0).dialogue.quit(QUIT_SECONDS)
    base = _read_host(setting, record, 0)
    running: list[_Running] = []
    with ExitStack() as stack:
        while len(running) < _count(setting):
            running.append(_start(setting, record, stack, len(running) + 1))
            record.instance = running[0].instance
            _read_host(setting, record, len(running))
            for one in running:
                _add_reading(record, one.memory(), len(running))
        _ask(setting, record, running)
        _merge(setting, record, running)
    if base is not None:
        _settle(setting, record)
        record.add(memory.HOST_DRIFT, host_memory.read_host()[memory.HOST_USED] - base)


@dataclass(frozen=True)
class _Running:
    """One instance that is ready; ``title`` tells it apart in messages."""

    title: str
    instance: Instance
    dialogue: Dialogue

    def memory(self) -> MemoryReading:
        with _named(self.title):
            return self.instance.memory()


def _count(setting: Setting) -> int:
    assert setting.workload.instances is not None
    return setting.workload.instances


def _require_room(setting: Setting) -> None:
    """Check that all instances fit, should each use what it is granted.

    Of huge pages, which were reserved beforehand, each start sees for itself whether there are enough.

    Raises:
        HostError: they do not.
    """
    if isinstance(setting.driver, OnHugePages) and setting.driver.on_huge_pages:
        return
    count, granted = _count(setting), setting.plan.limits.memory_bytes
    house = _house(setting)
    free = host_memory.available_bytes() if house is None else house.free_bytes
    if count * granted > free:
        raise HostError(
            f"{count} instances of {format_bytes(granted)} may need {format_bytes(count * granted)}, "
            f"and the host has {format_bytes(free)} available",
            hint=f"lower limits.memory in the suite, or instances in {setting.workload.name}'s workload.toml",
        )


def _house(setting: Setting) -> House | None:
    return setting.driver.house() if isinstance(setting.driver, Housed) else None


def _start(setting: Setting, record: Record, stack: ExitStack, number: int) -> _Running:
    """Start an instance that ``stack`` destroys, and wait until it is ready; 0 is that of the warm-up."""
    title = f"instance {number} of {_count(setting)}" if number else "the instance of the warm-up"
    record.instance = None
    with _named(title):
        instance = stack.enter_context(setting.start(setting.launch(f"-{number}")))
        record.instance = instance
        dialogue = Dialogue(instance, setting.plan.timeout_seconds)
        dialogue.ready()
    return _Running(title, instance, dialogue)


@contextmanager
def _named(title: str) -> Iterator[None]:
    """Say of which instance an error is."""
    try:
        yield
    except InstanceError as error:
        raise InstanceError(f"{title}: {error.message}", hint=error.hint, tail=error.tail) from error


def _settle(setting: Setting, record: Record) -> None:
    time.sleep(setting.plan.round_seconds)
    record.round_seconds += setting.plan.round_seconds


def _read_host(setting: Setting, record: Record, count: int) -> float | None:
    """Read the host's memory with ``count`` instances; return what is in use, ``None`` if it is not this kernel's."""
    _settle(setting, record)
    if _house(setting) is not None:
        record.lacks(_ELSEWHERE, memory.HOST_USED)
        record.add(memory.HOST_TOLD, _told(setting), count)
        return None
    figures = host_memory.read_host()
    for metric, value in figures.items():
        record.add(metric, value, count)
    return figures[memory.HOST_USED]


def _told(setting: Setting) -> float:
    """The median of as many answers as there are readings of a host."""
    answers: list[int] = []
    while len(answers) < host_memory.READINGS:
        time.sleep(host_memory.PAUSE_SECONDS)
        if (house := _house(setting)) is not None:
            answers.append(house.used_bytes)
    return statistics.median(answers)


def _add_reading(record: Record, reading: MemoryReading, count: int) -> None:
    record.add(metrics.MEMORY_PSS, reading.pss_bytes, count)
    record.add(metrics.MEMORY_CGROUP, reading.cgroup_bytes, count)
    record.add(metrics.MEMORY_HYPERVISOR, reading.hypervisor_bytes, count)
    record.add(memory.MEMORY_ANONYMOUS, reading.anonymous_bytes, count)
    record.add(memory.MEMORY_SHMEM, reading.shmem_bytes, count)
    record.add(memory.MEMORY_FILE, reading.file_bytes, count)


def _ask(setting: Setting, record: Record, running: Sequence[_Running]) -> None:
    """What the instances and their hypervisor say: asked once, at the end, because asking needs memory too."""
    if setting.driver.kind != "vm":
        record.lacks(_HOSTS_OWN, *setting.workload.metrics)
        return
    for one in running:
        with _named(one.title):
            figures, seconds = one.dialogue.round(len(running), setting.plan.round_seconds)
        record.round_seconds += seconds
        add_figures(setting, record, figures, len(running), warmup=False)
    for one in running:  # last, for the balloon's own figures are as old as libvirt's period
        if isinstance(one.instance, Ballooned):
            with _named(one.title):
                _add_balloon(record, one.instance.balloon(), len(running))


def _add_balloon(record: Record, told: Mapping[str, int], count: int) -> None:
    for key, metric in memory.BALLOON.items():
        record.add(metric, told.get(key), count)
        if key not in told:
            record.lacks(_NO_BALLOON, metric)


def _merge(setting: Setting, record: Record, running: Sequence[_Running]) -> None:
    """Have KSM merge what it can, and note what that saves."""
    if _house(setting) is not None:
        record.lacks(_ELSEWHERE, *_KSM)
        return
    if reason := ksm.why_untouched():
        record.lacks(reason, memory.KSM_SAVED, memory.KSM_HOST_SAVED)
        _add_counters(record, len(running))
        return
    before, used = _pss_bytes(running), host_memory.read_host()[memory.HOST_USED]
    with ksm.merging(setting.lab.journal):
        begun = time.monotonic()
        reason = ksm.await_scans()
        record.round_seconds += time.monotonic() - begun
        if reason:
            record.lacks(reason, *_KSM)
            return
        after = _pss_bytes(running)
        if before is None or after is None:
            record.lacks(_NO_PSS, memory.KSM_SAVED)
        else:
            record.add(memory.KSM_SAVED, (before - after) / len(running), len(running))
        now = host_memory.read_host()[memory.HOST_USED]
        record.add(memory.KSM_HOST_SAVED, (used - now) / len(running), len(running))
        _add_counters(record, len(running))


def _pss_bytes(running: Sequence[_Running]) -> int | None:
    """The sum over the instances; ``None`` where one of them has no such figure."""
    found = [one.memory().pss_bytes for one in running]
    told = [size for size in found if size is not None]
    return sum(told) if len(told) == len(found) else None


def _add_counters(record: Record, count: int) -> None:
    counters = ksm.read_counters()
    found: dict[Metric, int | None] = {memory.KSM_SHARED: None, memory.KSM_SHARING: None, memory.KSM_PROFIT: None}
    if counters is not None:
        found[memory.KSM_SHARED] = counters.shared_bytes
        found[memory.KSM_SHARING] = counters.sharing_bytes
        found[memory.KSM_PROFIT] = counters.profit_bytes
    for metric, value in found.items():
        record.add(metric, value, count)
        if value is None:
            record.lacks("the kernel does not tell", metric)
