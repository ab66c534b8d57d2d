"""Whole trials of small payloads that misbehave, as a run conducts them."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from small_image import small_image
from small_workload import small_workload

from bench.driver import Driver, Lab
from bench.model import Case, Image, Limits, Trial
from bench.result import Slot
from bench.trial import Plan, conduct_trial

GOOD = """
echo isomark ready
while read -r word number; do
    case $word in
    round) echo "isomark round $number begin"; echo "isomark round $number end {\\"work_per_second\\": 1}" ;;
    *) exit 0 ;;
    esac
done
"""
MEMORY = 256 * 1024**2
LIMITS = Limits(memory_bytes=MEMORY)
numbers = itertools.count(1)


class Trials:
    """Conducts trials of ``payloads``, name -> shell script, with ``driver``; their workloads lie in ``folder``."""

    def __init__(self, driver: Driver, lab: Lab, payloads: dict[str, str], folder: Path) -> None:
        self._driver = driver
        self._lab = lab
        self._workloads = {name: small_workload(folder, name, script) for name, script in payloads.items()}
        scripts = {f"isomark/{name}/run": (folder / name / "payload/run").read_text() for name in payloads}
        self.image: Image = driver.build(small_image(folder / "tree", scripts))

    def conduct(self, name: str, timeout_seconds: float = 60.0) -> Trial:
        """Conduct one."""
        plan = Plan(LIMITS, rounds=1, warmup_rounds=0, round_seconds=0.1, timeout_seconds=timeout_seconds)
        slot = Slot(next(numbers), 0, Case(name, self._driver.name))
        return conduct_trial(slot, self._workloads[name], self._driver, self.image, plan, self._lab)

    def close(self) -> None:
        """Remove the disk that was made for them."""
        for path in (self.image.location, self.image.location.with_suffix(".json")):
            path.unlink(missing_ok=True)


@contextmanager
def meanwhile(when: Callable[[], bool], do: Callable[[], None], later_seconds: float = 3.0) -> Iterator[None]:
    """While the block runs: wait until ``when``, let ``later_seconds`` pass, and ``do``; it must have been done."""
    over, done = threading.Event(), threading.Event()

    def act() -> None:
        while not when():
            if over.wait(0.02):
                return
        if not over.wait(later_seconds):
            do()
            done.set()

    thread = threading.Thread(target=act)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert done.is_set(), "the trial was over before anything went wrong"
