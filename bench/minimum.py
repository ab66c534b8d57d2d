"""The least memory with which a workload that serves still completes: instance after instance, by bisection.

An attempt is a whole life: ready, the first answer, a round of load, an end by itself. The first one has the suite's
limit; what it takes bounds the others, for an instance that thrashes completes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from bench import metrics, rounds
from bench.bisection import smallest
from bench.dialogue import Dialogue
from bench.driver import Instance, Launch
from bench.errors import ConsoleTimeout, InstanceError
from bench.model import EventName
from bench.setting import Record, Setting
from bench.units import KIB

FINEST_BYTES: Final = 256 * KIB
FINENESS: Final = 32
"""Up to 2 × this × ``FINEST_BYTES`` candidates are so far apart, above it by 1/32 to 1/64 of themselves."""
SLOWER: Final = 3
MARGIN_SECONDS: Final = 5.0
"""An attempt may take so many times as long as the first one to each of its events and its end, and this."""
FEWER: Final = 10
"""It may answer no fewer than this part of the first one's requests per second."""
_RATE: Final = "http_requests_per_second"


def measure(setting: Setting, record: Record) -> None:
    """Find the smallest limit on memory that the workload completes with.

    Raises:
        InstanceError: it does not complete with the suite's limit, or now it does and now not.
        HostError: the host refused something.
    """
    if setting.driver.describe().get("memory limit") == "not enforced":
        record.lacks("the driver enforces no limit on memory", metrics.MINIMUM_MEMORY, metrics.MINIMUM_UNSTEADY)
        return
    found = smallest(candidates(setting.plan.limits.memory_bytes), Attempts(setting, record).completes)
    record.add(metrics.MINIMUM_MEMORY, found.limit)
    record.add(metrics.MINIMUM_UNSTEADY, found.unsteady)


def candidates(limit_bytes: int) -> tuple[int, ...]:
    """The limits that are attempted, ascending up to ``limit_bytes``.

    Each is a multiple of the power of two by which it differs from the one before, so that from 32 MiB on they are
    whole MiB, to which libvirt rounds a virtual server's memory up.
    """
    found: list[int] = []
    at = 0
    while at < limit_bytes:
        octave = 1 << max(0, at.bit_length() - 1)
        at = min(limit_bytes, at + max(FINEST_BYTES, octave // FINENESS))
        found.append(at)
    return tuple(found)


@dataclass(frozen=True)
class _Completed:
    """An attempt that completed: when it reached what and its end, after its start, and how much it answered."""

    reached: tuple[tuple[EventName, float], ...]
    seconds: float
    requests_per_second: float


class Attempts:
    """The attempts of one trial, written down as they are made."""

    def __init__(self, setting: Setting, record: Record) -> None:
        self._setting = setting
        self._record = record
        self._first: _Completed | None = None
        self._sufficed = setting.plan.limits.memory_bytes
        self._made = 0

    def completes(self, memory_bytes: int) -> bool:
        """Make an attempt with ``memory_bytes``.

        Raises:
            InstanceError: the first one does not complete, or an instance is not even started, and not for its limit.
        """
        number, self._made = self._made, self._made + 1
        completed = self._attempt(self._launch(memory_bytes, f"-m{number}"))
        if completed:
            self._sufficed = memory_bytes
        self._record.add(metrics.MINIMUM_ATTEMPT, memory_bytes, number)
        self._record.add(metrics.MINIMUM_COMPLETED, float(completed), number)
        return completed

    def _attempt(self, launch: Launch) -> bool:
        if self._first is None:
            begun = time.monotonic()
            with self._setting.start(launch) as instance:
                self._record.instance = instance
                self._first = _complete(self._setting, self._record, launch, begun)
            return True
        bound = _bound(self._first.seconds)
        allowed = min(bound, self._setting.plan.timeout_seconds)
        setting = replace(self._setting, plan=replace(self._setting.plan, timeout_seconds=allowed))
        begun = time.monotonic()
        started = self._started(launch)
        if started is None:
            return False
        with started as instance:
            try:
                _await_events(instance, begun, self._first.reached, allowed)
                done = _complete(setting, Record(instance=instance), launch, begun)
            except InstanceError:
                return False
        return done.seconds <= bound and done.requests_per_second >= self._first.requests_per_second / FEWER

    def _started(self, launch: Launch) -> Instance | None:
        """Start an instance; a start that is refused is for its limit only if one that sufficed before is not."""
        try:
            return self._setting.start(launch)
        except InstanceError:
            with self._setting.start(self._launch(self._sufficed, f"-c{self._made}")):
                return None

    def _launch(self, memory_bytes: int, suffix: str) -> Launch:
        return self._setting.launch(suffix, replace(self._setting.plan.limits, memory_bytes=memory_bytes))


def _bound(seconds: float) -> float:
    """How long an attempt may take for what took the first one ``seconds``."""
    return SLOWER * seconds + MARGIN_SECONDS


def _await_events(instance: Instance, begun: float, reached: Sequence[tuple[EventName, float]], allowed: float) -> None:
    """Wait until ``instance`` is ready, but for no event longer than its bound: most that hang do so early.

    Raises:
        InstanceError: it does not get there.
    """
    for name, seconds in reached:
        try:
            Dialogue(instance, max(1.0, begun + min(_bound(seconds), allowed) - time.monotonic())).ready()
        except ConsoleTimeout:
            if all(event.name != name for event in instance.events):
                raise
        else:
            return


def _complete(setting: Setting, record: Record, launch: Launch, begun: float) -> _Completed:
    """Lead the instance of ``record`` through its life, which began at ``begun``.

    Raises:
        InstanceError: it does not get to its end.
    """
    instance = record.instance
    assert instance is not None
    dialogue = Dialogue(instance, setting.plan.timeout_seconds)
    if all(event.name != "ready" for event in instance.events):
        dialogue.ready()
    reached = tuple((event.name, event.at_seconds - begun) for event in instance.events if event.name != "spawned")
    rounds.await_answer(setting, record, launch)
    loaded = time.monotonic()
    figures = rounds.http_round(setting, record, launch)
    record.round_seconds += time.monotonic() - loaded
    status = dialogue.quit(setting.plan.timeout_seconds)
    ended = any(event.name == "exited" for event in instance.events)
    if status != 0 and (status is not None or setting.driver.kind == "vm" or not ended):
        raise InstanceError("the instance did not end by itself", tail=instance.tail)
    return _Completed(reached, time.monotonic() - begun, figures[_RATE])
