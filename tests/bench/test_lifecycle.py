"""The life cycle of real processes and containers, and of instances that do not do what they say."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from conftest import usable

from bench import metrics
from bench.abilities import Manageable, Verb
from bench.clean import clean
from bench.dialogue import Dialogue
from bench.driver import Driver, Instance, Lab, Launch
from bench.drivers import load_driver
from bench.errors import HostError
from bench.journal import read_journals
from bench.model import Case, Image, Limits, OutcomeKind, Trial, Workload
from bench.result import Slot
from bench.setting import Plan
from bench.state import journal_directory, state_directory
from bench.trial import conduct_trial
from bench.workload import BUILT_IN, find_workload, load_workload
from runtimes.oci.workload_image import build_workload_image

pytestmark = pytest.mark.slow
PLAN = Plan(Limits(), rounds=1, warmup_rounds=0, round_seconds=0.1, timeout_seconds=3.0)
READY_SECONDS = 30.0
SILENT_SECONDS = 0.5


@pytest.fixture(scope="module")
def deaf(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    """A workload that does not end when it is asked to."""
    folder = Path(shutil.copytree(BUILT_IN / "boot", tmp_path_factory.mktemp("w") / "deaf"))
    settings = (BUILT_IN / "lifecycle/workload.toml").read_text().replace('name = "lifecycle"', 'name = "deaf"')
    (folder / "workload.toml").write_text(settings.replace('payload = "boot"', ""))
    run = folder / "payload/run"
    run.write_text(run.read_text().replace("isomark_serve", "prepare() { trap '' TERM; }\nisomark_serve"))
    return load_workload(folder)


@pytest.fixture(scope="module", params=["native", "container"])
def driver(request: pytest.FixtureRequest, lab: Lab) -> Iterator[Driver]:
    with usable(request.param, lambda: load_driver(request.param, lab)) as made:
        yield made


@pytest.fixture(scope="module")
def image(driver: Driver, lab: Lab, deaf: Workload) -> Image:
    return driver.build(
        build_workload_image([find_workload("lifecycle"), deaf], lab.state, lab.journal, lambda _: None)
    )


class Changed:
    """``driver``, but with instances that ``change`` makes of its own: real ones, and what the trial asks of them."""

    def __init__(self, driver: Driver, change: Callable[[Instance], Mapping[Verb, Callable[[], float]]]) -> None:
        self._driver = driver
        self._change = change
        self.kind = driver.kind

    def start(self, image: Image, launch: Launch) -> Instance:
        started = self._driver.start(image, launch)
        kind = type(started)
        verbs = self._change(started)
        started.__class__ = type(kind.__name__, (kind,), {"verbs": property(lambda _: verbs), "lacks": {}})
        return started


def conduct(driver: Driver | Changed, image: Image, lab: Lab, workload: Workload | None = None) -> Trial:
    workload = workload or find_workload("lifecycle")
    slot = Slot(0, 0, Case(workload.name, "driver"))
    return conduct_trial(slot, workload, driver, image, PLAN, lab)  # type: ignore[arg-type]


def test_each_verb_that_a_driver_has_is_timed_once_and_those_it_lacks_are_missing(
    driver: Driver, image: Image, lab: Lab
) -> None:
    trial = conduct(driver, image, lab)
    assert trial.outcome.kind is OutcomeKind.OK, trial.outcome
    expected = {metrics.BOOT, metrics.CHANNEL_DELAY, metrics.SHUTDOWN, metrics.DESTROY}
    if driver.kind == "container":
        expected |= {metrics.SUSPEND, metrics.RESUME}
    assert sorted(sample.metric for sample in trial.samples) == sorted(metric.name for metric in expected)
    assert trial.wall_seconds is not None
    assert all(0 < sample.value < trial.wall_seconds for sample in trial.samples)
    assert [event.name for event in trial.events] == ["spawned", "ready", "exited"]
    assert {*trial.missing, *(sample.metric for sample in trial.samples)} >= {each.name for each in metrics.LIFECYCLE}
    assert all(trial.missing.values())
    assert not [path for path in lab.scratch.rglob("*") if path.is_file()]


def test_who_does_not_end_when_asked_fails_the_trial(driver: Driver, image: Image, lab: Lab, deaf: Workload) -> None:
    trial = conduct(driver, image, lab, deaf)
    assert trial.outcome.kind is OutcomeKind.FAILED
    assert "does not end within 3 s of being asked to" in trial.outcome.reason
    assert trial.samples == ()


def test_who_answers_while_suspended_fails_the_trial(driver: Driver, image: Image, lab: Lab) -> None:
    trial = conduct(Changed(driver, lambda _: {"suspend": time.monotonic, "resume": time.monotonic}), image, lab)
    assert trial.outcome.kind is OutcomeKind.FAILED
    assert "answered while it was suspended" in trial.outcome.reason


def test_who_is_silent_after_a_resume_fails_the_trial(driver: Driver, image: Image, lab: Lab) -> None:
    def never_resumed(instance: Instance) -> Mapping[Verb, Callable[[], float]]:
        own = verbs_of(instance)
        return {"suspend": own["suspend"], "resume": time.monotonic}

    if driver.kind == "process":
        pytest.skip("a process cannot be suspended")
    trial = conduct(Changed(driver, never_resumed), image, lab)
    assert trial.outcome.kind is OutcomeKind.FAILED
    assert "no answer on the console" in trial.outcome.reason


def test_a_verb_that_the_host_refuses_fails_the_trial_with_its_reason(driver: Driver, image: Image, lab: Lab) -> None:
    def refused() -> float:
        raise HostError("no space for it", hint="df -h")

    trial = conduct(Changed(driver, lambda _: {"snapshot": refused}), image, lab)
    assert (trial.outcome.kind, trial.outcome.reason) == (OutcomeKind.FAILED, "no space for it")
    assert trial.outcome.hint == "df -h"


def test_who_never_comes_back_from_a_reboot_fails_the_trial(driver: Driver, image: Image, lab: Lab) -> None:
    def ends(instance: Instance) -> Mapping[Verb, Callable[[], float]]:
        def end() -> float:
            instance.send("quit")
            return time.monotonic()

        return {"reboot": end}

    trial = conduct(Changed(driver, ends), image, lab)
    assert trial.outcome.kind is OutcomeKind.FAILED
    assert "ended before it said" in trial.outcome.reason


def test_a_suspended_container_does_nothing_until_it_is_resumed(driver: Driver, image: Image, lab: Lab) -> None:
    if driver.kind == "process":
        pytest.skip("a process cannot be suspended")
    with started(driver, image, lab) as instance:
        dialogue = Dialogue(instance, READY_SECONDS)
        dialogue.ready()
        verbs = verbs_of(instance)
        for _ in range(3):
            verbs["suspend"]()
            token = dialogue.ask()
            assert not dialogue.answers(token, SILENT_SECONDS)
            verbs["resume"]()
            dialogue.pong(token)


def test_a_suspended_container_is_killed_at_once_and_leaves_nothing(driver: Driver, image: Image, lab: Lab) -> None:
    if driver.kind == "process":
        pytest.skip("a process cannot be suspended")
    with started(driver, image, lab) as instance:
        Dialogue(instance, READY_SECONDS).ready()
        verbs_of(instance)["suspend"]()
        asked = time.monotonic()
        instance.kill()
        assert time.monotonic() - asked < 5, "it was not waited for until the time-out"
        assert instance.events[-1].name == "exited"


SUSPENDED = """
import sys
from bench.dialogue import Dialogue
from bench.driver import Launch
from bench.drivers import load_driver
from bench.lab import open_lab
from bench.model import Limits
from bench.state import state_directory
from bench.workload import find_workload
from runtimes.oci.workload_image import build_workload_image

with open_lab(state_directory()) as lab:
    driver = load_driver("container", lab)
    image = driver.build(build_workload_image([find_workload("lifecycle")], lab.state, lab.journal, lambda _: None))
    name = f"iso-{lab.journal.owner.id}-k"
    instance = driver.start(image, Launch(name, ("/isomark/boot/run",), {"PATH": "/bin"}, Limits(), None))
    Dialogue(instance, 30).ready()
    instance.verbs["suspend"]()
    print(lab.journal.owner.id, *instance._group.members(), flush=True)
    sys.stdin.read()
"""


def test_a_run_killed_while_its_container_is_suspended_leaves_nothing_after_a_clean(driver: Driver) -> None:
    if driver.kind == "process":
        pytest.skip("a process cannot be suspended")
    run = subprocess.Popen([sys.executable, "-c", SUSPENDED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    owner, *pids = run.stdout.readline().split()
    assert pids
    run.kill()
    run.communicate()
    clean(journal_directory(state_directory()))
    assert owner not in [left.owner.id for left in read_journals(journal_directory(state_directory()))]
    assert not [pid for pid in pids if Path(f"/proc/{pid}/root").exists()]
    assert not list(Path("/sys/fs/cgroup").glob(f"**/{owner}"))
    assert not (state_directory() / "scratch" / owner).exists()


def test_an_instance_with_nothing_but_start_and_end_is_not_manageable(driver: Driver, image: Image, lab: Lab) -> None:
    with started(driver, image, lab) as instance:
        assert isinstance(instance, Manageable) is (driver.kind == "container")


def started(driver: Driver, image: Image, lab: Lab) -> Instance:
    lease = lab.network.lease() if lab.network is not None and driver.kind != "process" else None
    name = f"iso-{lab.journal.owner.id}-l"
    return driver.start(image, Launch(name, ("/isomark/boot/run",), {"PATH": "/usr/bin:/bin"}, Limits(), lease))


def verbs_of(instance: Instance) -> Mapping[Verb, Callable[[], float]]:
    assert isinstance(instance, Manageable)
    return instance.verbs
