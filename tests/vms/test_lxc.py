"""Real containers of libvirt: their limits and walls, what goes wrong, and that nothing of them is left."""

from __future__ import annotations

import gc
import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import usable
from private_libvirtd import private_libvirtd
from small_image import PATH, small_image

from bench.clean import clean
from bench.dialogue import Dialogue
from bench.driver import Lab, Launch
from bench.drivers import load_driver
from bench.errors import ConsoleFlood, DriverUnavailable, HostError, InstanceError
from bench.journal import read_journals
from bench.lab import open_lab
from bench.model import Image, Limits
from vms.connection import Connection
from vms.lxc import driver as lxc_driver
from vms.lxc import life
from vms.lxc.container import Container, container_xml
from vms.lxc.controller import misplaced_cgroups
from vms.lxc.driver import LxcDriver, lxc
from vms.lxc.life import LOGS
from vms.lxc.root import make_root
from vms.process import Hypervisor, find_processes
from vms.removal import remove_domain

pytestmark = pytest.mark.slow
READY_SECONDS = 60.0
HANG_SECONDS = 20.0
MEMORY = 64 * 1024**2
ANSWERS = "echo isomark ready; while read word token; do [ $word = ping ] || exit 0; echo isomark pong $token; done"
names = itertools.count()


@pytest.fixture(scope="module")
def driver(lab: Lab) -> Iterator[LxcDriver]:
    with usable("lxc", lambda: lxc(lab)) as made:
        yield made


@pytest.fixture(scope="module")
def image(driver: LxcDriver, tmp_path_factory: pytest.TempPathFactory) -> Image:
    return driver.build(small_image(tmp_path_factory.mktemp("lxc") / "tree"))


def launch(lab: Lab, script: str, limits: Limits | None = None) -> Launch:
    name = f"iso-{lab.journal.owner.id}-l{next(names)}"
    lease = lab.network.lease() if lab.network is not None else None
    return Launch(name, ("/bin/sh", "-c", script), PATH, limits or Limits(memory_bytes=MEMORY), lease)


def printed(driver: LxcDriver, image: Image, request: Launch) -> list[str]:
    with driver.start(image, request) as instance:
        return [line.text for line in instance.lines(READY_SECONDS)]


def test_memory_beyond_its_limit_is_not_to_be_had(driver: LxcDriver, image: Image, lab: Lab) -> None:
    script = "busybox grep -E '^(MemTotal|SwapTotal)' /proc/meminfo; busybox dd if=/dev/zero of=/dev/null bs={} count=1"
    enough = printed(driver, image, launch(lab, script.format("16M")))
    assert "MemTotal:          65536 kB" in enough
    assert "SwapTotal:             0 kB" in enough
    assert enough[-1] == "isomark exit 0"
    assert printed(driver, image, launch(lab, script.format("96M")))[-1] == "isomark exit 137", "killed for it"


def test_its_cpus_are_a_quota_that_libvirt_confirms(driver: LxcDriver, image: Image, lab: Lab) -> None:
    request = launch(lab, "echo isomark ready; read line", Limits(cpus=2, memory_bytes=MEMORY))
    connection = Connection(driver._connection.address)
    with driver.start(image, request) as instance:
        Dialogue(instance, READY_SECONDS).ready()
        told = connection.open().lookupByName(request.name).schedulerParameters()
        assert instance.cpu_seconds() > 0
    connection.close()
    assert told["vcpu_quota"] / told["vcpu_period"] == 2


def test_it_may_do_what_the_built_in_container_may_do(driver: LxcDriver, image: Image, lab: Lab) -> None:
    script = "busybox grep -E '^Cap(Bnd|Prm|Eff)' /proc/self/status; busybox hostname"
    request = launch(lab, script)
    container = load_driver("container", lab)
    try:
        container.check()
        with container.start(image, replace(request, name=f"{request.name}c")) as instance:
            theirs = [line.text for line in instance.lines(READY_SECONDS)]
    except DriverUnavailable as error:
        pytest.skip(error.message)
    finally:
        container.close()
    ours = printed(driver, image, request)
    assert ours[:3] == theirs[:3]
    assert ours[0].startswith("CapPrm:")
    assert ours[3] == request.name


def test_it_sees_neither_the_host_s_processes_nor_its_network_nor_its_cgroups(
    driver: LxcDriver, image: Image, lab: Lab
) -> None:
    script = (
        "cd /proc; echo pids [0-9]*; echo links $(busybox ls /sys/class/net); cd /sys; "
        "echo $(busybox ls -A firmware) $(busybox ls -A fs/cgroup); echo > fs/cgroup/x; cat /proc/keys /proc/interrupts"
    )
    lines = printed(driver, image, replace(launch(lab, script), lease=None))
    assert len(lines[0].split()) <= 4, "init, the shell and itself"
    assert lines[1] == "links lo"
    assert lines[2] == "", "both are empty"
    assert "Read-only file system" in lines[3]
    assert lines[4:] == ["isomark exit 0"]


def test_the_image_is_never_written_to(driver: LxcDriver, image: Image, lab: Lab) -> None:
    before = sorted(image.location.rglob("*"))
    script = (
        "busybox rm /bin/cat && echo new > /bin/new && echo more >> /bin/seq; busybox ls /bin; "
        "busybox head -c 65536 /dev/urandom > /x"
    )
    with driver.start(image, launch(lab, f"{script}; echo isomark ready; read line")) as instance:
        Dialogue(instance, READY_SECONDS).ready()
        assert instance.own_disk_bytes() >= 65536
        assert "new" in instance.tail
        assert "cat" not in instance.tail
    assert sorted(image.location.rglob("*")) == before


def test_what_is_printed_last_is_never_lost(driver: LxcDriver, image: Image, lab: Lab) -> None:
    for _ in range(5):
        assert printed(driver, image, launch(lab, "seq 1 3000; exit 3")) == [
            *(str(number) for number in range(1, 3001)),
            "isomark exit 3",
        ]


def test_a_flood_is_bounded(driver: LxcDriver, image: Image, lab: Lab) -> None:
    with driver.start(image, launch(lab, "yes $(seq 500)")) as instance:
        with pytest.raises(ConsoleFlood):
            list(instance.lines(READY_SECONDS))
        instance.kill()


def test_a_killed_controller_is_the_end_of_the_console(driver: LxcDriver, image: Image, lab: Lab) -> None:
    request = launch(lab, "echo isomark ready; sleep 100")
    with driver.start(image, request) as instance:
        Dialogue(instance, READY_SECONDS).ready()
        (pid,) = _controllers(request.name)
        os.kill(pid, signal.SIGKILL)
        list(instance.lines(HANG_SECONDS))
        assert instance.events[-1].name == "exited"
        with pytest.raises(InstanceError):
            instance.memory()


def test_a_controller_that_hangs_is_killed_with_its_container(driver: LxcDriver, image: Image, lab: Lab) -> None:
    request = launch(lab, "echo isomark ready; sleep 100")
    with driver.start(image, request) as instance:
        Dialogue(instance, READY_SECONDS).ready()
        (pid,) = _controllers(request.name)
        os.kill(pid, signal.SIGSTOP)
        instance.kill()
        assert instance.events[-1].name == "exited"
    _await(lambda: not _controllers(request.name))


def test_a_container_that_does_not_die_is_not_called_gone(
    driver: LxcDriver, image: Image, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = _entries(lab)
    request = replace(launch(lab, "echo isomark ready; sleep 100"), lease=None)
    with monkeypatch.context() as spell:
        instance = driver.start(image, request)
        Dialogue(instance, READY_SECONDS).ready()
        spell.setattr(life, "KILL_SECONDS", 0.1)
        spell.setattr(Hypervisor, "kill", lambda _: None)  # as if all waited for a disk that hangs
        with pytest.raises(HostError, match="does not die"):
            instance.__exit__(None, None, None)
        left = [entry for entry in _entries(lab) if entry not in entries]
    assert any(entry.startswith("domain") for entry in left)
    (mine,) = [each for each in read_journals(Path(lab.journal.path).parent) if each.owner == lab.journal.owner]
    for entry in reversed(mine.entries):
        if f"{entry.kind} {entry.what}" not in left:
            continue
        if entry.kind == "domain":
            remove_domain(entry.what)
        lab.journal.gone(entry)
    assert _controllers(request.name) == []


def test_a_root_that_cannot_be_removed_is_not_called_gone(lab: Lab, tmp_path: Path) -> None:
    entries = _entries(lab)
    undo = ExitStack()
    folder = lab.scratch / f"iso-{lab.journal.owner.id}-r"
    root = make_root(tmp_path, folder, lab.journal, undo)
    subprocess.run(["mount", "--bind", tmp_path, root.parent / "upper"], check=True)  # busy
    with pytest.raises(HostError, match="cannot remove"):
        undo.close()
    left = [entry for entry in _entries(lab) if entry not in entries]
    subprocess.run(["umount", root.parent / "upper"], check=True)
    assert len(left) == 1
    assert str(folder) in left[0]
    (mine,) = [each for each in read_journals(Path(lab.journal.path).parent) if each.owner == lab.journal.owner]
    (entry,) = [entry for entry in mine.entries if entry.what.get("path") == str(folder)]
    shutil.rmtree(folder)
    lab.journal.gone(entry)


def test_libvirt_s_own_destroy_is_the_end_too(driver: LxcDriver, image: Image, lab: Lab) -> None:
    request = launch(lab, "echo isomark ready; sleep 100")
    with driver.start(image, request) as instance:
        Dialogue(instance, READY_SECONDS).ready()
        subprocess.run(["virsh", "-q", "-c", driver._connection.address, "destroy", request.name], check=True)
        list(instance.lines(HANG_SECONDS))
        assert instance.events[-1].name == "exited"


def test_its_memory_counts_what_libvirt_adds(driver: LxcDriver, image: Image, lab: Lab) -> None:
    with driver.start(image, launch(lab, "echo isomark ready; read line")) as instance:
        Dialogue(instance, READY_SECONDS).ready()
        reading = instance.memory()
    assert reading.processes == 3, "controller, init and shell"
    assert reading.pss_bytes is not None
    assert reading.pss_bytes > 1_000_000
    assert reading.cgroup_bytes is not None
    assert 0 < reading.cgroup_bytes < MEMORY


def test_a_tree_that_is_gone_is_an_error_and_leaves_nothing(driver: LxcDriver, image: Image, lab: Lab) -> None:
    entries = _entries(lab)
    request = launch(lab, "true")
    with pytest.raises(InstanceError, match="overlay"):
        driver.start(replace(image, location=Path("/nonexistent/tree")), request)
    assert _entries(lab) == entries
    assert _traces(request.name) == []


def test_a_controller_that_fails_is_an_error_and_leaves_nothing(
    driver: LxcDriver, image: Image, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = _entries(lab)
    request = launch(lab, "true")
    monkeypatch.setattr(lxc_driver, "controller", lambda *_: Path("/bin/false"))
    with pytest.raises(InstanceError, match="libvirt cannot start the container") as caught:
        driver.start(image, request)
    assert caught.value.hint
    assert _entries(lab) == entries
    assert [trace for trace in _traces(request.name) if "log" not in trace] == []


def test_a_start_that_fails_late_leaves_no_process_that_libvirt_has_forgotten(
    driver: LxcDriver, image: Image, lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if (misplaced := misplaced_cgroups()) is None:
        pytest.skip("libvirt finds the cgroups of every controller on this host")
    blind = tmp_path / "libvirt_lxc"
    unmount = f'umount -l {misplaced} && exec {driver._emulator} "$@"'
    blind.write_text(f"#!/bin/sh\nexec unshare --mount sh -c '{unmount}' libvirt_lxc \"$@\"\n")
    blind.chmod(0o755)
    tmp_path.chmod(0o755)
    monkeypatch.setattr(lxc_driver, "controller", lambda *_: blind)
    request = launch(lab, "echo isomark ready; read line")
    with pytest.raises(InstanceError, match="No valid cgroup"):
        driver.start(image, request)
    _await(lambda: not _controllers(request.name))
    _await(lambda: _removed(_cgroups(request.name)))  # libvirtd, which could not find them, leaves them


def test_one_after_another_they_leave_no_descriptor_thread_or_trace(driver: LxcDriver, image: Image, lab: Lab) -> None:
    entries, counts, made = _entries(lab), [], []
    for _ in range(5):
        request = launch(lab, "echo isomark ready; read line")
        made.append(request.name)
        with driver.start(image, request) as instance:
            Dialogue(instance, READY_SECONDS).ready()
        del instance
        gc.collect()
        counts.append((len(os.listdir("/proc/self/fd")), threading.active_count()))
    assert counts[1:] == [counts[1]] * 4
    assert _entries(lab) == entries
    driver.close()
    assert [trace for name in made for trace in _traces(name)] == []


KILLED = """
import os, signal, sys
from pathlib import Path
from bench.dialogue import Dialogue
from bench.driver import Launch
from bench.lab import open_lab
from bench.model import Image, Limits
from vms.lxc.driver import lxc
state, tree, name = sys.argv[1:]
with open_lab(Path(state)) as lab:
    lease = lab.network.lease() if lab.network is not None else None
    script = "echo isomark ready; trap '' TERM; while :; do sleep 1; done"
    image = Image("", "", Path(tree), None, None, None)
    instance = lxc(lab).start(image, Launch(name, ("/bin/sh", "-c", script), {"PATH": "/bin"}, Limits(), lease))
    Dialogue(instance, 60).ready()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run_s_container_is_cleaned_away(driver: LxcDriver, image: Image, tmp_path: Path) -> None:
    name = f"iso-killed-{os.getpid()}"
    ended = subprocess.run([sys.executable, "-c", KILLED, tmp_path, image.location, name], check=False, timeout=120)
    assert ended.returncode == -signal.SIGKILL
    assert any("mount" in trace for trace in _traces(name)), "the overlay is left, whatever libvirtd does"
    removed = clean(tmp_path / "owned")
    assert {"domain", "directory"} <= {one.entry.kind for one in removed}
    assert not [one.fault for one in removed if one.fault]
    assert _traces(name) == []
    assert not list((tmp_path / "scratch").rglob("*"))


def test_a_domain_of_somebody_else_is_not_touched(
    driver: LxcDriver, image: Image, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lxc_driver, "container_xml", replace_in_xml("urn:isomark", "urn:other"))
    request = launch(lab, "echo isomark ready; read line")
    with driver.start(image, request) as instance:
        Dialogue(instance, READY_SECONDS).ready()
        connection = Connection(driver._connection.address)
        uuid = connection.open().lookupByName(request.name).UUIDString()
        connection.close()
        with pytest.raises(HostError, match="not started by isomark"):
            remove_domain({"uri": driver._connection.address, "uuid": uuid, "name": request.name})
        assert Dialogue(instance, READY_SECONDS).quit(READY_SECONDS) == 0


def test_a_container_of_the_same_name_is_not_touched(driver: LxcDriver, image: Image, lab: Lab, tmp_path: Path) -> None:
    request = launch(lab, "echo isomark ready; read line")
    with driver.start(image, request) as instance, open_lab(tmp_path) as other:
        Dialogue(instance, READY_SECONDS).ready()
        entries, rival = _entries(other), lxc(other)
        with pytest.raises(InstanceError, match="already exists"):
            rival.start(image, replace(request, lease=None))
        rival.close()
        assert _entries(other) == entries
        assert Dialogue(instance, READY_SECONDS).quit(READY_SECONDS) == 0


def test_without_libvirtd_a_dead_run_s_container_is_killed_and_nobody_else_s(
    driver: LxcDriver, image: Image, lab: Lab
) -> None:
    request = launch(lab, ANSWERS)
    silent = {"uri": "lxc:///system?socket=/nonexistent", "name": request.name}
    with driver.start(image, request) as instance:
        Dialogue(instance, READY_SECONDS).ready()
        connection = Connection(driver._connection.address)
        uuid = connection.open().lookupByName(request.name).UUIDString()
        connection.close()
        remove_domain({**silent, "uuid": "00000000-0000-4000-8000-000000000001"})
        Dialogue(instance, READY_SECONDS).ping()
        remove_domain({**silent, "uuid": uuid})
        list(instance.lines(HANG_SECONDS))
        assert instance.events[-1].name == "exited"


RESTARTED = """
import sys
from pathlib import Path
from bench.dialogue import Dialogue
from bench.driver import Launch
from bench.lab import open_lab
from bench.model import Image, Limits
from vms.lxc.driver import lxc
state, tree, name, script = sys.argv[1:]
image = Image("", "", Path(tree), None, None, None)
with open_lab(Path(state)) as lab:
    driver = lxc(lab)
    for number in range(2):
        request = Launch(f"{name}-{number}", ("/bin/sh", "-c", script), {"PATH": "/bin"}, Limits(), lab.network.lease())
        with driver.start(image, request) as instance:
            dialogue = Dialogue(instance, 60)
            dialogue.ready()
            print("ready", flush=True)
            if number == 0:
                input()
            dialogue.ping()
            instance.memory()
            print("ended with", dialogue.quit(20), flush=True)
    driver.close()
"""


def test_a_container_outlives_its_libvirtd_and_the_next_one_starts_on_the_new(
    driver: LxcDriver, image: Image, tmp_path: Path
) -> None:
    name = f"iso-outlives-{os.getpid()}"
    with private_libvirtd() as daemon:
        inside = ["nsenter", f"--mount=/proc/{daemon._room.pid}/ns/mnt", sys.executable, "-c", RESTARTED]
        run = subprocess.Popen(
            [*inside, tmp_path / "state", image.location, name, ANSWERS],
            env={**os.environ, "ISOMARK_LXC_URI": f"lxc:///system?socket={daemon.home}/libvirt-sock"},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        with run:
            assert run.stdout is not None
            assert run.stdout.readline() == "ready\n"
            daemon.stop(signal.SIGKILL)
            daemon.start()
            told, _ = run.communicate("\n", timeout=READY_SECONDS)
        assert told.splitlines() == ["ended with 0", "ready", "ended with 0"]
        assert _traces(f"{name}-0") == _traces(f"{name}-1") == []


@pytest.mark.parametrize(
    ("address", "message", "hint"),
    [
        ("lxc+ssh://elsewhere/system", "another host", "ISOMARK_LXC_URI"),
        ("test:///default", "offers no containers", "virsh capabilities"),
        ("lxc:///system?socket=/nonexistent", "does not answer", "libvirtd"),
    ],
)
def test_a_libvirt_that_has_no_containers_for_us_is_told_with_a_remedy(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, address: str, message: str, hint: str
) -> None:
    pytest.importorskip("libvirt")
    monkeypatch.setenv("ISOMARK_LXC_URI", address)
    driver = lxc(lab)
    with pytest.raises(DriverUnavailable, match=message) as caught:
        driver.check()
    driver.close()
    assert hint in caught.value.hint


def replace_in_xml(old: str, new: str) -> Callable[[Container], str]:
    return lambda container: container_xml(container).replace(old, new)


def _controllers(name: str) -> list[int]:
    """Processes that have ``name`` on their command line, but for this one."""
    found = find_processes(lambda words: name.encode() in words)
    return [pid for pid in found if pid != os.getpid()]


def _await(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + HANG_SECONDS
    while not done():
        assert time.monotonic() < deadline, "still there"
        time.sleep(0.01)


def _removed(groups: list[Path]) -> bool:
    """Whether all could be removed; those of the dead are busy until these are reaped."""
    try:
        for group in groups:
            group.rmdir()
    except OSError:
        return False
    return True


def _cgroups(name: str) -> list[Path]:
    return sorted(Path("/sys/fs/cgroup").rglob(f"*{name}*"), reverse=True)


def _traces(name: str) -> list[str]:
    """What a container called ``name`` left on the host."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return [
        *(f"process {pid}" for pid in _controllers(name)),
        *(f"mount {line}" for line in mounts if f"/{name}/" in line),
        *(f"cgroup {path}" for path in _cgroups(name)),
        *(f"log {path}" for path in LOGS.glob(f"{name}*")),
    ]


def _entries(lab: Lab) -> list[str]:
    (mine,) = [left for left in read_journals(Path(lab.journal.path).parent) if left.owner == lab.journal.owner]
    return sorted(f"{entry.kind} {entry.what}" for entry in mine.entries)
