"""What weakens a result, as a closed set of cautions; each names the step that would mend it."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from bench import metrics, stats
from bench.footprint import Footprint
from bench.model import OutcomeKind
from bench.observed import Observed
from bench.result import Header, Result

ENOUGH_TRIALS: Final = 10
LATE_CHANNEL: Final = 0.05
WIDE_INTERVAL: Final = 0.25
MOST_NAMED: Final = 4


@dataclass(frozen=True)
class Caution:
    """One thing a reader must know before trusting a figure. ``severity`` is that of doctor's findings."""

    severity: str
    subject: str
    message: str
    remedy: str


def repeat_command(header: Header, trials: int | None = None) -> str:
    """Return the command that repeats the result, with its seed, or with more trials."""
    drivers = ",".join(driver.name for driver in header.drivers)
    workloads = ",".join(workload.name for workload in header.workloads)
    words = ["isomark", "run", header.suite_name, "--drivers", drivers, "--workloads", workloads]
    words += ["--trials", str(trials or header.trials_per_case)]
    return shlex.join(words if trials else [*words, "--seed", str(header.seed)])


def cautions(result: Result, observed: Observed, footprints: Sequence[Footprint] = ()) -> tuple[Caution, ...]:
    """Return everything that weakens ``result``, with the ``footprints`` of its drivers, the gravest first."""
    found = [
        *_different_bits(result),
        *_unfinished(result),
        *_absent(result),
        *_failed(result),
        *_emulated(result),
        *_no_base(observed),
        *_few_trials(result, observed),
        *_wide_intervals(result, observed),
        *_late_channel(observed),
        *_disturbed_memory(observed, footprints),
        *(Caution(note.severity, note.subject, note.message, note.remedy) for note in result.header.notices),
    ]
    order = {"problem": 0, "warning": 1, "note": 2}
    ended = (replace(caution, message=_sentence(caution.message)) for caution in found)
    return tuple(sorted(ended, key=lambda caution: order.get(caution.severity, 3)))


def _sentence(text: str) -> str:
    """Return ``text`` with a full stop: many reasons come without one."""
    stripped = text.rstrip()
    return stripped if stripped.endswith((".", "!", "?")) else f"{stripped}."


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _different_bits(result: Result) -> Iterator[Caution]:
    digest = result.header.image_digest
    for driver in sorted({trial.case.driver for trial in result.trials if trial.image_digest != digest}):
        ran = {trial.image_digest for trial in result.trials if trial.case.driver == driver}
        if digest in ran or len(ran) > 1:
            message = f"Some trials of {driver} ran another image than {digest}: they are not the same bits."
            yield Caution("problem", driver, message, repeat_command(result.header))
        else:
            message = f"{driver} ran an image of the user's, {ran.pop()}: not the same bits as the others."
            yield Caution("warning", driver, message, "read its ratios as those of another image")


def _unfinished(result: Result) -> Iterator[Caution]:
    if result.complete:
        return
    left = len({slot.index for slot in result.header.schedule} - {trial.index for trial in result.trials})
    message = f"The result is not finished: {left} of {len(result.header.schedule)} trials have not been taken."
    yield Caution("warning", "schedule", message, "isomark run --resume, with the folder of this result")


def _absent(result: Result) -> Iterator[Caution]:
    for driver in result.header.absent:
        yield Caution("warning", driver.name, f"{driver.name} could not take part: {driver.reason}", driver.hint)


def _failed(result: Result) -> Iterator[Caution]:
    bad = [trial for trial in result.trials if trial.outcome.kind is not OutcomeKind.OK]
    counts = Counter(trial.case for trial in bad)
    totals = Counter(trial.case for trial in result.trials)
    for case, count in sorted(counts.items()):
        first = next(trial.outcome for trial in bad if trial.case == case)
        message = f"{count} of {totals[case]} trials gave no figure: {first.reason}"
        yield Caution("warning", str(case), message, first.hint or "the console's last lines are under Failures")


def _emulated(result: Result) -> Iterator[Caution]:
    names = [driver.name for driver in result.header.drivers if driver.emulated]
    if names:
        message = (
            f"The figures of {', '.join(names)} come from a CPU emulated in software. They say nothing of the speed of "
            "a virtual server on hardware and are not ranked with the other drivers."
        )
        yield Caution("warning", ", ".join(names), message, "isomark doctor says what KVM lacks on this host")


def _no_base(observed: Observed) -> Iterator[Caution]:
    if observed.base is None:
        message = "No bare process took part, so no figure is relative to anything."
        yield Caution("warning", "base", message, "add the driver native to --drivers")


def _few_trials(result: Result, observed: Observed) -> Iterator[Caution]:
    done = Counter(trial.case for trial in result.trials if trial.outcome.kind is OutcomeKind.OK)
    counts = [done[case] for case in {slot.case for slot in result.header.schedule} if done[case]]
    if not counts or min(counts) >= ENOUGH_TRIALS:
        return
    fewest = min(counts)
    coverage = stats.best_coverage(fewest)
    if fewest < 2:
        message = "A case with a single finished trial has no interval."
    elif coverage < stats.CONFIDENCE:
        message = (
            f"The fewest finished trials of a case are {fewest}: an interval over so few holds the true median in at "
            f"most {_percent(coverage)} of cases, not in 95 %."
        )
    else:
        message = f"The fewest finished trials of a case are {fewest}: their intervals are a little too narrow."
    yield Caution("warning", "trials", message, repeat_command(observed.header, ENOUGH_TRIALS))


def _wide_intervals(result: Result, observed: Observed) -> Iterator[Caution]:
    wide: list[str] = []
    for workload in result.header.workloads:
        for metric in workload.metrics:
            for driver in observed.drivers:
                found = observed.figure(workload.name, driver, metric.name).estimate
                if found is None or found.low is None or found.high is None:
                    continue
                if (found.high - found.low) / 2 > WIDE_INTERVAL * abs(found.value):
                    wide.append(f"{workload.name}/{driver} {metric.title}")
    if wide:
        shown = [*wide[:MOST_NAMED], *([f"and {len(wide) - MOST_NAMED} more"] if len(wide) > MOST_NAMED else [])]
        message = f"The interval is wider than ±{_percent(WIDE_INTERVAL)} of the figure: {', '.join(shown)}."
        yield Caution(
            "note", "spread", message, "quiet the host, then " + repeat_command(observed.header, ENOUGH_TRIALS)
        )


def _late_channel(observed: Observed) -> Iterator[Caution]:
    for driver in observed.drivers:
        for workload in observed.idle[:1]:
            delays = observed.values(workload, driver, metrics.CHANNEL_DELAY.name)
            boots = observed.values(workload, driver, metrics.BOOT.name)
            if delays and boots and stats.median(delays) > LATE_CHANNEL * stats.median(boots):
                message = (
                    f"The console of {driver} is late by more than {_percent(LATE_CHANNEL)} of its start to ready."
                )
                yield Caution("note", driver, message, "subtract the channel delay, which stands beside the start")


def _disturbed_memory(observed: Observed, footprints: Sequence[Footprint]) -> Iterator[Caution]:
    """Name the drivers whose instances are not seen in the host's memory: its total may as well not grow with them.

    A single trial has no interval to judge by, which ``_few_trials`` says; that the host shrank it can tell.
    """
    totals = [(one.driver, one.total.figure.estimate) for one in footprints if one.total is not None]
    hidden = [
        driver
        for driver, total in totals
        if total is not None and (total.value if total.low is None else total.low) <= 0
    ]
    if hidden:
        message = (
            f"The host's memory did not grow clearly with the instances of {', '.join(hidden)}: the trials are too few "
            "for what others there took and freed, so the total of their reconciled memory says little. The total "
            "without other processes stands below the residue."
        )
        remedy = "quiet the host, then " + repeat_command(observed.header, ENOUGH_TRIALS)
        yield Caution("warning", "memory", message, remedy)
