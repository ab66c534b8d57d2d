"""What isomark itself adds to a trial: the same payload started by hand and by ``conduct_trial``, in turn.

By hand: ``chroot`` into the same tree, wait for ``ready``, the same pings, ``quit``, wait for the end. By isomark: the
native driver's trial of the workload ``boot`` with all it does, and its record fsynced. The settling pause is part
of the metric's definition, not an addition, and is taken out. Prints medians; asserts nothing.

    python tests/benchmarks/trial_overhead.py [PAIRS]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.conduct import prepare
from bench.drivers import Chosen, load_driver
from bench.lab import open_lab
from bench.model import OutcomeKind
from bench.rounds import PINGS, SETTLE_SECONDS
from bench.state import state_directory
from bench.store import ResultWriter
from bench.suite import find_suite
from bench.trial import Plan, conduct_trial
from bench.workload import find_workload
from runtimes.oci.workload_image import build_workload_image


def by_hand(tree: Path) -> float:
    begun = time.monotonic()
    with subprocess.Popen(
        ["chroot", str(tree), "/isomark/boot/run"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        while process.stdout.readline().strip() != "isomark ready":
            pass
        for number in range(PINGS):
            process.stdin.write(f"ping {number}\n")
            process.stdout.readline()
        process.stdin.write("quit\n")
        process.stdin.close()
        process.wait()
    return time.monotonic() - begun


def main(pairs: int) -> None:
    suite = find_suite("quick").narrowed(workloads=["boot"], drivers=["native"], trials=pairs)
    workload = find_workload("boot")
    with open_lab(state_directory()) as lab, tempfile.TemporaryDirectory() as folder:
        driver = load_driver("native", lab)
        image = build_workload_image([workload], lab.state, lab.journal, lambda _: None)
        prepared = prepare(suite, [workload], Chosen((driver,), ()), image, [], lab.state)
        plan = Plan(suite.limits, suite.rounds, suite.warmup_rounds, suite.round_seconds, suite.timeout_seconds)
        hand, trial = [], []
        with ResultWriter.create(Path(folder) / "result", prepared.header) as writer:
            for slot in prepared.header.schedule:
                hand.append(by_hand(image.tree))
                begun = time.monotonic()
                taken = conduct_trial(slot, workload, driver, prepared.images["native"], plan, lab)
                writer.append(taken)
                trial.append(time.monotonic() - begun - SETTLE_SECONDS)
                assert taken.outcome.kind is OutcomeKind.OK, taken.outcome
        driver.close()
    added = [one - other for one, other in zip(trial, hand, strict=True)]
    print(f"pairs                              {pairs}")
    print(f"by hand, median                    {statistics.median(hand) * 1e3:8.1f} ms")
    print(f"as a trial without settling        {statistics.median(trial) * 1e3:8.1f} ms")
    print(f"isomark adds, median of the pairs  {statistics.median(added) * 1e3:8.1f} ms   (target: at most 150 ms)")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 40)
