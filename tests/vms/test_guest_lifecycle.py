"""Real virtual servers that are suspended, saved, kept, rebooted, shut down and destroyed; and killed runs of such."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import usable
from living_image import MEMORY, live, living_image, verbs_of
from session_host import SessionHost, session_host
from small_image import PATH

from bench import metrics
from bench.abilities import Verb
from bench.clean import clean
from bench.dialogue import Dialogue
from bench.driver import Driver, Instance, Lab, Launch
from bench.drivers import load_driver
from bench.errors import ConsoleClosed, DriverUnavailable, InstanceError
from bench.journal import read_journals
from bench.model import Image, Limits, OutcomeKind, WorkloadImage
from bench.state import journal_directory, state_directory
from vms import deadline
from vms.driver import qemu
from vms.lifecycle import missing
from vms.options import DEFAULTS
from vms.process import Hypervisor, find_hypervisors, find_own_hypervisors
from vms.qemu import KVM, QEMU
from vms.xen import XEN_PV

pytestmark = pytest.mark.slow
HANG_SECONDS = 120.0
SERVER_SECONDS = 400.0
SILENT_SECONDS = 0.5
COUNTING = """
count=0
trap 'exit 0' TERM
echo isomark ready
while read -r word argument; do
    case $word in
    ping) echo "isomark pong $argument" ;;
    count) count=$((count + 1)); echo "count $count" ;;
    write) echo "$argument" >/isomark/scratch/written; sync; echo wrote ;;
    esac
done
"""
"""A payload that knows how often it was asked: by that a restored guest differs from one that has booted again."""


@pytest.fixture(scope="module")
def driver(lab: Lab) -> Iterator[Driver]:
    with usable("qemu", lambda: load_driver("qemu", lab)) as made:
        yield made


@pytest.fixture(scope="module")
def image(driver: Driver, tmp_path_factory: pytest.TempPathFactory) -> Image:
    return driver.build(living_image(tmp_path_factory.mktemp("image") / "tree"))


@pytest.fixture(scope="module")
def name(driver: Driver, lab: Lab) -> str:
    """What the guest that most tests share is called."""
    assert driver
    return f"iso-{lab.journal.owner.id}-y"


@pytest.fixture(scope="module")
def living(driver: Driver, image: Image, lab: Lab, name: str) -> Iterator[Instance]:
    with driver.start(image, launch(lab, name)) as instance:
        Dialogue(instance, HANG_SECONDS).ready()
        yield instance


def launch(lab: Lab, name: str) -> Launch:
    lease = lab.network.lease() if lab.network is not None else None
    return Launch(name, ("/bin/sh", "-c", COUNTING), PATH, Limits(memory_bytes=MEMORY), lease)


def told(instance: Instance, command: str) -> str:
    """The next line that the payload of ``instance`` prints after ``command``."""
    instance.send(command)
    return next(line.text for line in instance.lines(HANG_SECONDS))


def virsh(*arguments: str) -> str:
    command = ["virsh", "-q", "-c", "qemu:///system", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def test_a_trial_gives_each_verb_its_time_and_leaves_nothing(driver: Driver, image: Image, lab: Lab) -> None:
    trial = live(driver, image, lab, HANG_SECONDS)
    assert trial.outcome.kind is OutcomeKind.OK, trial.outcome
    taken = {sample.metric: sample.value for sample in trial.samples}
    print(", ".join(f"{name} {value:.3f}" for name, value in taken.items()))
    assert taken.keys() == {metric.name for metric in (*metrics.LIFECYCLE, metrics.CHANNEL_DELAY)}
    assert trial.missing == {}
    assert trial.wall_seconds is not None
    assert all(value > 0 for value in taken.values())
    assert sum(taken.values()) < trial.wall_seconds
    assert [event.name for event in trial.events] == ["spawned", "kernel", "init", "ready", "exited"]
    assert not [path for path in lab.scratch.rglob("*") if path.is_file()]


def test_a_suspended_guest_stands_still_until_it_is_resumed(living: Instance, name: str) -> None:
    dialogue, verbs = Dialogue(living, HANG_SECONDS), verbs_of(living)
    verbs["suspend"]()
    assert virsh("domstate", name) == "paused"
    token = dialogue.ask()
    assert not dialogue.answers(token, SILENT_SECONDS)
    verbs["resume"]()
    dialogue.pong(token)
    assert virsh("domstate", name) == "running"


def test_a_saved_guest_is_gone_and_comes_back_as_it_was(living: Instance, lab: Lab, name: str) -> None:
    verbs, uuid = verbs_of(living), virsh("domuuid", name)
    count = int(told(living, "count").removeprefix("count "))
    for number in (1, 2):
        (before,) = find_hypervisors(uuid)
        verbs["save"]()
        assert find_hypervisors(uuid) == []
        assert name not in virsh("list", "--all", "--name")
        assert "exited" not in [event.name for event in living.events]
        verbs["restore"]()
        Dialogue(living, HANG_SECONDS).ping()
        assert told(living, "count") == f"count {count + number}", "its memory is what it was"
        assert find_hypervisors(uuid) not in ([], [before])
    assert living.memory().pss_bytes, "the new process is the one that is read"
    assert is_reachable(living, lab)


def is_reachable(instance: Instance, lab: Lab) -> bool:
    """Whether the guest answers on its network, if only that nobody listens."""
    address = instance.address()
    assert address is not None
    assert lab.network is not None
    with lab.network.tcp_socket() as probe:
        probe.settimeout(HANG_SECONDS)
        try:
            probe.connect((address, 9))
        except ConnectionRefusedError:
            return True
    return False


def test_a_snapshot_keeps_the_disk_as_it_was_while_the_guest_writes(living: Instance, lab: Lab, name: str) -> None:
    folder = lab.scratch / name
    for kept, overlay in itertools.pairwise(folder / each for each in ("disk.qcow2", "disk-1.qcow2", "disk-2.qcow2")):
        assert told(living, "write before") == "wrote"
        verbs_of(living)["snapshot"]()
        before, changed = kept.read_bytes(), kept.stat().st_mtime_ns
        empty = overlay.stat().st_blocks
        assert told(living, "write after") == "wrote"
        assert (kept.read_bytes(), kept.stat().st_mtime_ns) == (before, changed)
        assert overlay.stat().st_blocks > empty


def test_a_guest_that_cannot_be_saved_runs_on(living: Instance, lab: Lab, name: str) -> None:
    blocked = lab.scratch / name / "saved"
    blocked.unlink(missing_ok=True)
    blocked.mkdir()
    with pytest.raises(InstanceError, match=r"libvirt cannot save the guest: .*saved"):
        verbs_of(living)["save"]()
    Dialogue(living, HANG_SECONDS).ping()


def test_a_rebooted_guest_starts_anew_in_the_same_hypervisor_and_ends_when_asked(living: Instance, name: str) -> None:
    uuid = virsh("domuuid", name)
    hypervisors = find_hypervisors(uuid)
    told(living, "count")
    assert told(living, "count") != "count 1"
    verbs_of(living)["reboot"]()
    Dialogue(living, HANG_SECONDS).ready_again()
    assert told(living, "count") == "count 1", "its memory is new"
    assert find_hypervisors(uuid) == hypervisors
    assert living.stop(HANG_SECONDS), "a second Ctrl-Alt-Del ends it"
    assert find_hypervisors(uuid) == []
    assert [event.name for event in living.events] == ["spawned", "kernel", "init", "ready", "exited"]


def test_a_guest_whose_saved_state_is_gone_is_an_error_with_libvirts_reason(
    driver: Driver, image: Image, lab: Lab
) -> None:
    request = launch(lab, f"iso-{lab.journal.owner.id}-z")
    with driver.start(image, request) as instance:
        Dialogue(instance, HANG_SECONDS).ready()
        verbs_of(instance)["save"]()
        (lab.scratch / request.name / "saved").unlink()
        with pytest.raises(InstanceError, match=r"libvirt cannot restore the guest: .*saved"):
            verbs_of(instance)["restore"]()
        assert instance.stop(0), "what is not there has ended"
    assert request.name not in virsh("list", "--all", "--name")
    assert not (lab.scratch / request.name).exists()


@pytest.mark.parametrize("verb", ["suspend", "save"])
def test_a_hypervisor_that_hangs_fails_the_verb_in_bounded_time_and_is_killed(
    driver: Driver, image: Image, lab: Lab, monkeypatch: pytest.MonkeyPatch, verb: Verb
) -> None:
    monkeypatch.setattr(deadline, "CALL_SECONDS", 1.0)
    request = launch(lab, f"iso-{lab.journal.owner.id}-h{verb[:2]}")
    with driver.start(image, request) as instance:
        Dialogue(instance, HANG_SECONDS).ready()
        (pid,) = find_hypervisors(virsh("domuuid", request.name))
        with Hypervisor(pid) as hypervisor:
            os.kill(pid, signal.SIGSTOP)
            begun = time.monotonic()
            with pytest.raises(InstanceError, match=f"libvirt did not {verb} the guest within 1 s") as caught:
                verbs_of(instance)[verb]()
            assert time.monotonic() - begun < HANG_SECONDS / 2
            assert hypervisor.wait(0), "it is dead"
        assert "isomark ready" in caught.value.tail
        assert "hangs" in caught.value.hint
    assert not (lab.scratch / request.name).exists()


@pytest.mark.full
def test_a_hypervisor_that_hangs_while_it_is_restored_is_killed_too(
    driver: Driver, image: Image, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = launch(lab, f"iso-{lab.journal.owner.id}-hr")
    with driver.start(image, request) as instance:
        Dialogue(instance, HANG_SECONDS).ready()
        uuid = virsh("domuuid", request.name)
        verbs_of(instance)["save"]()
        monkeypatch.setattr(deadline, "CALL_SECONDS", 5.0)
        stopping = deadline.begin(lambda: stop_as_it_appears(uuid))
        with pytest.raises(InstanceError, match="libvirt did not restore the guest within 5 s"):
            verbs_of(instance)["restore"]()
        assert stopping.result() > 0
        assert find_hypervisors(uuid) == []
    assert not (lab.scratch / request.name).exists()


def stop_as_it_appears(uuid: str) -> int:
    """Stop the hypervisor of domain ``uuid`` as soon as there is one; return its pid."""
    limit = time.monotonic() + HANG_SECONDS
    while not (pids := find_own_hypervisors(uuid)):
        assert time.monotonic() < limit, "it never came"
        time.sleep(0.01)
    os.kill(pids[0], signal.SIGSTOP)
    return pids[0]


def test_ctrl_c_ends_a_verb_whose_hypervisor_hangs(driver: Driver, image: Image, lab: Lab) -> None:
    request = launch(lab, f"iso-{lab.journal.owner.id}-c")
    with driver.start(image, request) as instance:
        Dialogue(instance, HANG_SECONDS).ready()
        (pid,) = find_hypervisors(virsh("domuuid", request.name))
        with Hypervisor(pid) as hypervisor:
            os.kill(pid, signal.SIGSTOP)
            interrupt = threading.Timer(1.0, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
            interrupt.start()
            begun = time.monotonic()
            with pytest.raises(KeyboardInterrupt):
                verbs_of(instance)["save"]()
            assert time.monotonic() - begun < deadline.CALL_SECONDS / 2
            assert hypervisor.wait(0), "it is dead"


PANICKING = """
trap 'exit 0' TERM
[ -e /isomark/scratch/booted ] && echo c >/proc/sysrq-trigger
echo >/isomark/scratch/booted
sync
echo isomark ready
read -r never
"""


def test_a_guest_that_panics_after_its_reboot_ends_and_does_not_boot_for_ever(
    driver: Driver, image: Image, lab: Lab
) -> None:
    request = replace(launch(lab, f"iso-{lab.journal.owner.id}-x"), command=("/bin/sh", "-c", PANICKING))
    with driver.start(image, request) as instance:
        dialogue = Dialogue(instance, HANG_SECONDS)
        dialogue.ready()
        verbs_of(instance)["reboot"]()
        with pytest.raises(ConsoleClosed):
            dialogue.ready_again()
        assert "sysrq triggered crash" in "\n".join(instance.tail)
        assert instance.events[-1].name == "exited"


RUN = """
import sys
from pathlib import Path
sys.path.insert(0, {folder!r})
from living_image import MEMORY, living_image, verbs_of
from small_image import PATH
from bench.dialogue import Dialogue
from bench.driver import Launch
from bench.drivers import load_driver
from bench.lab import open_lab
from bench.model import Limits
from bench.state import state_directory

with open_lab(state_directory()) as lab:
    driver = load_driver("qemu", lab)
    image = driver.build(living_image(Path(sys.argv[1])))
    request = Launch(f"iso-{{lab.journal.owner.id}}-k", ("/isomark/boot/run",), PATH,
                     Limits(memory_bytes=MEMORY), lab.network.lease() if lab.network else None)
    instance = driver.start(image, request)
    Dialogue(instance, 120).ready()
    for verb in sys.argv[2].split(","):
        verbs_of(instance)[verb]()
    print(lab.journal.owner.id, flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("verbs", ["save", "snapshot,save,restore"])
def test_a_run_killed_anywhere_in_a_life_leaves_nothing_after_a_clean(
    driver: Driver, verbs: str, tmp_path: Path
) -> None:
    assert driver
    state = state_directory()
    run = subprocess.Popen(
        [sys.executable, "-c", RUN.format(folder=str(Path(__file__).parent)), str(tmp_path / "tree"), verbs],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert run.stdout is not None
    owner = run.stdout.readline().strip()
    assert owner, "it got that far"
    name = f"iso-{owner}-k"
    scratch = state / "scratch" / owner
    uuid = virsh("domuuid", name)
    assert (find_hypervisors(uuid) == []) is (verbs == "save")
    assert (scratch / name).is_dir()
    os.kill(run.pid, signal.SIGKILL)
    run.communicate()
    if verbs.endswith("restore"):
        assert find_hypervisors(uuid), "nothing but the journal knows of a restored domain"
    clean(journal_directory(state))
    assert owner not in [left.owner.id for left in read_journals(journal_directory(state))]
    assert name not in virsh("list", "--all", "--name")
    assert not uuid or find_hypervisors(uuid) == []
    assert not scratch.exists()


@pytest.fixture(scope="module")
def remote() -> Iterator[SessionHost]:
    with session_host() as host:
        yield host


@pytest.mark.full
def test_a_guest_on_another_host_has_the_whole_life_too(
    remote: SessionHost, lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ISOMARK_LIBVIRT_URI", remote.uri)
    driver = qemu(lab)
    try:
        driver.check()
    except DriverUnavailable as error:
        pytest.skip(error.message)
    image = driver.build(living_image(tmp_path / "tree"))
    trial = live(driver, image, lab, HANG_SECONDS)
    driver.close()
    assert trial.outcome.kind is OutcomeKind.OK, trial.outcome
    assert {sample.metric for sample in trial.samples} >= {metric.name for metric in metrics.LIFECYCLE}
    assert [name for name in remote.volumes() if name.startswith("iso-")] == []
    assert remote.hypervisors() == []


def test_what_a_hypervisor_cannot_do_is_missing_with_its_reason() -> None:
    assert missing(QEMU, DEFAULTS) == {}
    assert "host-model" in missing(KVM, DEFAULTS)["save"]
    assert missing(KVM, replace(DEFAULTS, cpu="host-model")) == {}
    assert "virtiofs" in missing(QEMU, replace(DEFAULTS, virtiofs=Path("/srv")))["save"]
    assert missing(QEMU, replace(DEFAULTS, root="virtiofs")).keys() == {"save", "snapshot"}
    users = replace(DEFAULTS, guest="image", image=Path("/srv/server.qcow2"), firmware="bios")
    assert missing(QEMU, users).keys() == {"reboot"}
    assert missing(XEN_PV, DEFAULTS).keys() == {"snapshot", "reboot"}


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize("firmware", ["bios", "ovmf"])
def test_a_whole_server_reboots_by_its_systemd_and_is_shut_down_by_acpi(
    workload_image: WorkloadImage, lab: Lab, firmware: str
) -> None:
    options = {"guest": "full", "firmware": firmware}
    with usable("full", lambda: qemu(lab).configured(options)) as driver:
        trial = live(driver, driver.build(workload_image), lab, SERVER_SECONDS)
    assert trial.outcome.kind is OutcomeKind.OK, trial.outcome
    taken = {sample.metric: sample.value for sample in trial.samples}
    print(f"{firmware}:", ", ".join(f"{name} {value:.3f}" for name, value in taken.items()))
    assert taken.keys() >= {metric.name for metric in metrics.LIFECYCLE}
    assert taken["reboot_seconds"] > taken["shutdown_seconds"] > taken["destroy_seconds"]
