"""Trials of payloads that misbehave: each is an outcome with its reason, never a figure, and leaves nothing."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import usable
from small_workload import small_workload

from bench.driver import Driver, Lab
from bench.drivers import load_driver
from bench.model import Case, Image, Limits, OutcomeKind, Trial, Workload, WorkloadImage
from bench.result import Slot
from bench.trial import Plan, conduct_trial
from runtimes.oci.workload_image import build_workload_image

pytestmark = pytest.mark.slow

BEGIN = "echo isomark ready; read -r x; echo isomark round 0 begin"
PAYLOADS = {
    "good": """
echo isomark ready
while read -r word number; do
    case $word in
    round) echo "isomark round $number begin"; echo "isomark round $number end {\\"work_per_second\\": 1$number}" ;;
    *) exit 0 ;;
    esac
done""",
    "silent": "echo thinking hard; read -r never",
    "crashing": "echo about to fail; exit 3",
    "complaining": "echo isomark error no disk today; exit 1",
    "lying": f"""{BEGIN}; echo 'isomark round 0 end {{"work_per_second": NaN}}'""",
    "inventing": f"""{BEGIN}; echo 'isomark round 0 end {{"x_bytes": 1}}'""",
    "dying": f"{BEGIN}; kill -9 $$",
    "flooding": "while :; do echo all work and no play makes jack a dull boy; done",
    "ringing": "printf 'before \\033[2J\\007after\\n'; exit 1",
}
PLAN = Plan(Limits(), rounds=2, warmup_rounds=1, round_seconds=0.1, timeout_seconds=3.0)


@pytest.fixture(scope="module")
def workloads(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Workload]:
    root = tmp_path_factory.mktemp("workloads")
    return {name: small_workload(root, name, script) for name, script in PAYLOADS.items()}


@pytest.fixture(scope="module", params=["native", "container"])
def driver(request: pytest.FixtureRequest, lab: Lab) -> Iterator[Driver]:
    with usable(request.param, lambda: load_driver(request.param, lab)) as made:
        yield made


@pytest.fixture(scope="module")
def image(driver: Driver, workloads: dict[str, Workload], lab: Lab) -> Image:
    return driver.build(build_workload_image(list(workloads.values()), lab.state, lab.journal, lambda _: None))


def conduct(name: str, workloads: dict[str, Workload], driver: Driver, image: Image, lab: Lab) -> Trial:
    return conduct_trial(Slot(5, 1, Case(name, driver.name)), workloads[name], driver, image, PLAN, lab)


def test_a_good_payload_gives_a_sample_a_round_with_warm_up_marked(
    workloads: dict[str, Workload], driver: Driver, image: Image, lab: Lab
) -> None:
    trial = conduct("good", workloads, driver, image, lab)
    assert trial.outcome.kind is OutcomeKind.OK, trial.outcome
    assert [(s.metric, s.value, s.round, s.warmup) for s in trial.samples] == [
        ("work_per_second", 10.0, 0, True),
        ("work_per_second", 11.0, 1, False),
        ("work_per_second", 12.0, 2, False),
    ]
    assert [event.name for event in trial.events] == ["spawned", "ready", "exited"]
    assert (trial.index, trial.block, trial.image_digest) == (5, 1, image.digest)


@pytest.mark.parametrize(
    ("name", "reason", "tail"),
    [
        ("silent", "no answer on the console within 3 s", "thinking hard"),
        ("crashing", "ended before it said 'ready'", "3"),
        ("complaining", "the payload gave up: no disk today", "isomark error"),
        ("lying", "broke the protocol", "NaN"),
        ("inventing", "reports x_bytes, which inventing does not declare", "x_bytes"),
        ("dying", "ended before it said 'roundend'", "round 0 begin"),
        ("flooding", "on the console", "all work and no play"),
        ("ringing", "ended before it said 'ready'", "before after"),
    ],
)
def test_a_bad_payload_is_a_failed_trial_with_its_reason_and_tail(
    name: str, reason: str, tail: str, workloads: dict[str, Workload], driver: Driver, image: Image, lab: Lab
) -> None:
    trial = conduct(name, workloads, driver, image, lab)
    assert trial.outcome.kind is OutcomeKind.FAILED
    assert reason in trial.outcome.reason
    assert tail in "\n".join(trial.outcome.tail)
    assert trial.samples == ()
    assert not [path for path in lab.scratch.rglob("*") if path.is_file()]


def test_an_image_that_is_gone_is_a_failed_trial(
    workloads: dict[str, Workload], driver: Driver, image: Image, lab: Lab, tmp_path: Path
) -> None:
    gone = dataclasses.replace(image, location=tmp_path / "none")
    trial = conduct("good", workloads, driver, gone, lab)
    assert trial.outcome.kind is OutcomeKind.FAILED
    assert "none" in trial.outcome.reason


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a full file system needs root")
def test_a_full_disk_is_a_failed_trial_and_leaves_nothing_owned(
    workloads: dict[str, Workload], driver: Driver, image: Image, lab: Lab, tmp_path: Path
) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nr_inodes=2", "isomark-test", str(tmp_path)], check=True)
    try:
        full = dataclasses.replace(lab, scratch=tmp_path)
        cramped = load_driver(driver.name, full)
        cramped.build(_workload_image(image))
        trial = conduct("good", workloads, cramped, image, full)
        cramped.close()
        assert trial.outcome.kind is OutcomeKind.FAILED
        assert "No space left on device" in trial.outcome.reason
        assert trial.outcome.hint
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def _workload_image(image: Image) -> WorkloadImage:
    return WorkloadImage("", image.digest, image.location, image.location, 0, 0, 0)
