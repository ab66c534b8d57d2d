"""Words of a report that are not metrics, each with its written definition."""

from __future__ import annotations

from typing import Final

METHOD: Final[tuple[tuple[str, str, str], ...]] = (
    (
        "trial",
        "Trial",
        "One fresh instance, started, measured and destroyed. Its rounds after the warm-up are reduced to their "
        "median; every statistic is over trials, because the rounds of one instance are not independent.",
    ),
    (
        "interval",
        "95 % interval",
        "The figure is the median over trials. The interval is the percentile bootstrap: trials are drawn with "
        "replacement 9,999 times and the middle 95 % of the medians kept. The seed follows from the result, so the "
        "same result gives the same interval. It never leaves the range of what was measured, so with fewer than six "
        "trials it cannot reach 95 %, and with one there is none.",
    ),
    (
        "ratio",
        "Relative to native",
        "The driver's median divided by the median of the bare process (native); its interval draws the trials of both "
        "sides. For throughput 100 % is no loss; for start, memory and sizes 1× is no cost.",
    ),
    (
        "performance",
        "Mean performance",
        "The geometric mean over workloads of the throughput relative to native, each workload weighing the same. It "
        "is missing as soon as one workload's figure is.",
    ),
    (
        "way",
        "Step by step",
        "The way from start to ready over the trials of the idle workload: what the host saw (events) and what the "
        "driver or the guest told of (steps), all on the host's CLOCK_MONOTONIC, the guest's when its console line was "
        "read. A mark begins at the median of the trials that have it, and lasts until the next mark that more than "
        "half of the trials have, so that lengths add up to the start. First answer: see its metric; those trials "
        "serve, and start by themselves.",
    ),
    (
        "slope",
        "For each instance",
        "The host's memory is read with none, one, two … identical idle instances running, and a straight line fitted "
        "to it by least squares, in each trial by itself. The figure is the mean of the trials' slopes and the "
        "interval Student's over them, since the readings of one trial build on each other; with one trial there is "
        "none. The residue is fitted likewise to what the parts leave at each reading, so it has an interval of its "
        "own, and parts and residue add up to the total.",
    ),
    (
        "emulated",
        "Emulated",
        "The virtual server's CPU was emulated in software (QEMU's TCG), or that of the machine which its hypervisor "
        "itself runs in, because no hypervisor with hardware support could boot a guest. Its speed says nothing about "
        "a virtual server on hardware, so it is shown and never ranked, and no claim "
        "rests on it. The sizes of images do not depend on the CPU, and memory that emulation only adds to can still "
        "refute a claim from below.",
    ),
)
"""Anchor, title, definition."""
