"""The small image with the life cycle's payload in it, for trials that need no Debian."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from small_image import small_image

from bench.abilities import Manageable, Verb
from bench.driver import Driver, Instance, Lab
from bench.model import Case, Image, Limits, Trial, WorkloadImage
from bench.result import Slot
from bench.setting import Plan
from bench.trial import conduct_trial
from bench.workload import BUILT_IN, find_workload

MEMORY = 256 * 1024**2


def living_image(root: Path) -> WorkloadImage:
    """Make its tree at ``root``, which must not exist yet."""
    payload = BUILT_IN / "boot/payload/run"
    return small_image(
        root, {"isomark/boot/run": payload.read_text(), "isomark/lib.sh": (BUILT_IN / "lib.sh").read_text()}
    )


def live(driver: Driver, image: Image, lab: Lab, timeout_seconds: float) -> Trial:
    """Conduct one trial of the life cycle."""
    plan = Plan(Limits(memory_bytes=MEMORY), 1, 0, 0.1, timeout_seconds)
    slot = Slot(0, 0, Case("lifecycle", driver.name))
    return conduct_trial(slot, find_workload("lifecycle"), driver, image, plan, lab)


def verbs_of(instance: Instance) -> Mapping[Verb, Callable[[], float]]:
    """What ``instance`` can do."""
    assert isinstance(instance, Manageable)
    return instance.verbs
