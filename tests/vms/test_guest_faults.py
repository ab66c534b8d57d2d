"""Guests of this host that come to a bad end: each is an outcome with its reason, and the run goes on."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import usable
from trials import GOOD, Trials, meanwhile

from bench.channel import MAX_LINE_BYTES
from bench.driver import Lab
from bench.model import OutcomeKind, Trial
from vms.domain import Platform
from vms.driver import LibvirtDriver, qemu
from vms.options import DomainOptions
from vms.qemu import QEMU

pytest.importorskip("libvirt")
pytestmark = pytest.mark.slow

BEGIN = "echo isomark ready; read -r x; echo isomark round 0 begin"
RUBBISH = r"""
head -c 100000 /dev/urandom
head -c 50000 /dev/zero
yes endless | busybox tr -d '\n' | head -c 50000
printf '\033[2J\033]0;title\007\302\233\342\200\256\n'
"""
PAYLOADS = {
    "good": GOOD,
    "panicking": f"{BEGIN}; echo c >/proc/sysrq-trigger; sleep 1000",
    "waiting": f"{BEGIN}; sleep 1000",
    "filling": f"{BEGIN}; head -c 64000000 /dev/urandom >/big; busybox sync; echo isomark round 0 end '{{}}'",
    "flooding": "while :; do yes $(seq 300); done",
    "babbling": RUBBISH + GOOD,
}
FLOOD_SECONDS = 10.0


@pytest.fixture(scope="module")
def driver(lab: Lab) -> Iterator[LibvirtDriver]:
    with usable("qemu", lambda: qemu(lab)) as made:
        yield made


@pytest.fixture(scope="module")
def trials(driver: LibvirtDriver, lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trials]:
    made = Trials(driver, lab, PAYLOADS, tmp_path_factory.mktemp("payloads"))
    yield made
    made.close()


def hypervisors(lab: Lab) -> list[int]:
    """The QEMUs of this lab's guests, which bear its name."""
    ended = subprocess.run(["pgrep", "-f", f"guest=iso-{lab.journal.owner.id}-"], capture_output=True, check=False)
    return [int(pid) for pid in ended.stdout.split()]


def failure(trial: Trial, lab: Lab) -> str:
    """The reason of ``trial``, which must have failed and left nothing."""
    assert trial.outcome.kind is OutcomeKind.FAILED
    assert trial.samples == ()
    assert list(lab.scratch.iterdir()) == []
    assert hypervisors(lab) == []
    return trial.outcome.reason


def test_a_panic_is_an_outcome_whose_tail_has_it(trials: Trials, lab: Lab) -> None:
    trial = trials.conduct("panicking")
    assert "the instance ended before it said 'roundend'" in failure(trial, lab)
    tail = "\n".join(trial.outcome.tail)
    assert "Kernel panic - not syncing: sysrq triggered crash" in tail
    assert "Call Trace" in tail


def test_a_kernel_without_its_disk_s_driver_is_an_outcome_that_says_so(
    driver: LibvirtDriver, lab: Lab, tmp_path: Path
) -> None:
    def without(platform: Platform, options: DomainOptions) -> Platform:
        fitted = QEMU.fit(platform, options)
        return replace(fitted, modules=tuple(name for name in fitted.modules if name != "virtio_blk"))

    lacking = LibvirtDriver(lab, replace(QEMU, fit=without))
    bare = Trials(lacking, lab, {"bare": GOOD}, tmp_path)
    try:
        trial = bare.conduct("bare")
    finally:
        bare.close()
        lacking.close()
    assert failure(trial, lab) == "the payload gave up: cannot mount the root disk"
    assert any("/dev/vda" in line and "No such file" in line for line in trial.outcome.tail)


def test_a_killed_hypervisor_is_an_outcome_and_the_next_trial_passes(trials: Trials, lab: Lab) -> None:
    def kill() -> None:
        (pid,) = hypervisors(lab)
        os.kill(pid, signal.SIGKILL)

    with meanwhile(lambda: bool(hypervisors(lab)), kill, later_seconds=1.0):
        trial = trials.conduct("waiting")
    assert "the instance ended before it said" in failure(trial, lab)
    assert trials.conduct("good").outcome.kind is OutcomeKind.OK


def test_no_room_for_a_trial_is_an_outcome_with_a_remedy_and_the_next_one_passes(trials: Trials, lab: Lab) -> None:
    with small(lab.scratch, "1m"):
        trial = trials.conduct("good")
        assert "No space left" in failure(trial, lab)
    assert "df -h" in trial.outcome.hint
    assert trials.conduct("good").outcome.kind is OutcomeKind.OK


@pytest.mark.full
def test_no_room_for_what_a_guest_writes_is_told_instead_of_its_silence(trials: Trials, lab: Lab) -> None:
    with small(lab.scratch, "16m"):
        trial = trials.conduct("filling", timeout_seconds=40.0)
        assert failure(trial, lab) == "the hypervisor stopped the guest: No space left for its disk"
    assert "df -h" in trial.outcome.hint


def test_rubbish_on_the_console_harms_nobody(trials: Trials) -> None:
    trial = trials.conduct("babbling")
    assert trial.outcome.kind is OutcomeKind.OK, trial.outcome
    assert [event.name for event in trial.events][-2:] == ["ready", "exited"]


@pytest.mark.full
def test_a_guest_that_only_prints_is_an_outcome_with_a_bounded_tail(trials: Trials, lab: Lab) -> None:
    before = resident_bytes()
    trial = trials.conduct("flooding", timeout_seconds=FLOOD_SECONDS)
    assert "on the console" in failure(trial, lab)
    assert resident_bytes() - before < 48 * 1024**2
    assert trial.outcome.tail[-1].startswith("1 2 3 4")
    assert all(len(line) <= MAX_LINE_BYTES for line in trial.outcome.tail)


@contextmanager
def small(path: Path, size: str) -> Iterator[None]:
    """A file system of ``size`` at ``path``."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "isomark-test", path]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("may not mount")
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
