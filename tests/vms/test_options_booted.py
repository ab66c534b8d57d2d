"""Each option of a virtual server, looked for where it must show: inside a booted guest, or in its QEMU's process."""

from __future__ import annotations

import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import usable
from small_image import PATH, small_image

from bench.abilities import OnHugePages
from bench.clean import clean
from bench.driver import Instance, Lab, Launch
from bench.drivers import load_driver
from bench.errors import DriverUnavailable
from bench.lab import open_lab
from bench.model import Limits, WorkloadImage
from bench.state import journal_directory, state_directory
from vms.helpers import helpers
from vms.process import find_processes

pytestmark = pytest.mark.slow
READY_SECONDS = 400.0
EFFECT_SECONDS = 60.0
MIB = 1024**2
O_DIRECT = 0o40000
HUGE_PAGES = Path("/proc/sys/vm/nr_hugepages")
names = itertools.count()


@dataclass
class Guest:
    """A booted guest: what it said before it was ready, and its QEMU."""

    instance: Instance
    name: str
    said: list[str]
    pid: int

    def threads(self, name: str) -> list[int]:
        """The QEMU's threads whose name begins with ``name``."""
        tasks = Path(f"/proc/{self.pid}/task").iterdir()
        return [int(task.name) for task in tasks if (task / "comm").read_text().startswith(name)]

    def arguments(self) -> str:
        return Path(f"/proc/{self.pid}/cmdline").read_text().replace("\0", " ")

    def anonymous(self) -> int:
        """Memory of the QEMU's own; other guests come and go and change its share of what all map."""
        size = self.instance.memory().anonymous_bytes
        assert size is not None
        return size


@pytest.fixture(scope="module")
def busybox(tmp_path_factory: pytest.TempPathFactory) -> WorkloadImage:
    return small_image(tmp_path_factory.mktemp("busybox") / "tree")


@contextmanager
def booted(
    lab: Lab, bits: WorkloadImage, table: dict[str, object], script: str = "", limits: Limits | None = None
) -> Iterator[Guest]:
    """Boot a guest with the options of ``table``, which does ``script`` and is ready when that is done."""
    name = f"iso-{lab.journal.owner.id}-o{next(names)}"
    lease = lab.network.lease() if lab.network is not None else None
    command = ("/bin/sh", "-c", f'{script}\necho isomark ready; read line; eval "$line"; read line')
    launch = Launch(name, command, PATH, limits or Limits(memory_bytes=256 * MIB), lease)
    with usable("qemu", lambda: load_driver("qemu", lab, table)) as driver:
        image = driver.build(bits)
        try:
            with driver.start(image, launch) as server:
                said = list(_until_ready(server))
                (pid,) = find_processes(lambda words: f"guest={name},debug-threads=on".encode() in words)
                yield Guest(server, name, said, pid)
        finally:
            if bits.reference == "busybox" and "disk" in image.parts:
                for path in (image.location, image.location.with_suffix(".json")):
                    path.unlink(missing_ok=True)


def _until_ready(instance: Instance) -> Iterator[str]:
    for line in instance.lines(READY_SECONDS):
        if line.text == "isomark ready":
            return
        yield line.text
    pytest.fail("it never was ready:\n" + "\n".join(instance.tail))


def topology_and_pinning(guest: Guest) -> None:
    assert guest.said[-2:] == ["cpu0 in socket 0", "cpu1 in socket 1"]
    pinned = [os.sched_getaffinity(tid) for number in range(2) for tid in guest.threads(f"CPU {number}/")]
    assert pinned == [{1}, {0, 1}]


def one_socket(guest: Guest) -> None:
    assert guest.said[-2:] == ["cpu0 in socket 0", "cpu1 in socket 0"]


def disk_past_the_cache(guest: Guest) -> None:
    assert guest.threads("IO iothread1")
    flags = _flags(guest, "disk.qcow2")
    assert flags & O_DIRECT
    assert "[aio]" in Path(f"/proc/{guest.pid}/maps").read_text(), "a ring of the kernel's asynchronous I/O"
    assert "disk read" in guest.said


def disk_in_the_cache(guest: Guest) -> None:
    assert not _flags(guest, "disk.qcow2") & O_DIRECT
    assert "[aio]" not in Path(f"/proc/{guest.pid}/maps").read_text()
    assert not guest.threads("IO iothread1")
    assert '"aio":"io_uring"' in guest.arguments()


def bare(guest: Guest) -> None:
    assert "eth0" not in guest.said
    assert "type 0x060000 0x8086 0x29c0" in guest.said, "the host bridge of q35"
    assert not [line for line in guest.said if line.startswith("type 0x020000")], "no network card"
    assert not guest.threads("IO iothread1")


def named_cpu(guest: Guest) -> None:
    (model,) = [line for line in guest.said if line.startswith("model name")]
    assert "QEMU TCG CPU" not in model


def largest_cpu(guest: Guest) -> None:
    (model,) = [line for line in guest.said if line.startswith("model name")]
    assert "QEMU TCG CPU" in model


PCI = (
    'cd /sys/bus/pci/devices; for d in *; do echo "type $(cat $d/class) $(cat $d/vendor) $(cat $d/device)"; done; cd /'
)
CARDS = "cd /sys/class/net; for n in *; do echo $n; done; cd /"
TOPOLOGY = """\
for t in /sys/devices/system/cpu/cpu[0-9]/topology; do
    c=${t%/*}; echo "${c##*/} in socket $(cat $t/physical_package_id)"
done"""
CPU = "while read line; do case $line in 'model name'*) echo $line;; esac; done </proc/cpuinfo"
FULL = pytest.mark.full


@pytest.mark.parametrize(
    ("table", "cpus", "script", "check"),
    [
        pytest.param(
            {"network": "none", "sockets": 2, "pin": ["1", "0-1"]}, 2, TOPOLOGY, topology_and_pinning,
            id="sockets, pin",
        ),
        pytest.param(
            {"cache": "none", "io": "native", "iothreads": 1, "network": "none"},
            1, "echo 3 >/proc/sys/vm/drop_caches; head -c 99999 /bin/busybox >/dev/null && echo disk read",
            disk_past_the_cache, id="cache none, io native, iothreads",
        ),
        pytest.param({"network": "none"}, 2, TOPOLOGY, one_socket, id="one socket for all CPUs", marks=FULL),
        pytest.param({"io": "io_uring"}, 1, "", disk_in_the_cache, id="io_uring", marks=FULL),
        pytest.param({"network": "none"}, 1, f"{PCI}; {CARDS}", bare, id="network none", marks=FULL),
        pytest.param({"cpu": "maximum"}, 1, CPU, largest_cpu, id="cpu maximum", marks=FULL),
        pytest.param({"cpu": "host-model"}, 1, CPU, named_cpu, id="cpu host-model", marks=FULL),
    ],
)  # fmt: skip
def test_an_option_has_its_effect(
    lab: Lab, busybox: WorkloadImage, table: dict[str, object], cpus: int, script: str, check: Callable[[Guest], None]
) -> None:
    with booted(lab, busybox, table, script, Limits(cpus=cpus, memory_bytes=256 * MIB)) as guest:
        check(guest)


def test_a_virtio_console_carries_the_payload_without_a_serial_port(lab: Lab, busybox: WorkloadImage) -> None:
    script = (
        "for n in /sys/class/tty/hvc0 /proc/tty/driver/serial; do [ -e $n ] && echo has $n; done; cat /proc/consoles"
    )
    with booted(lab, busybox, {"console": "virtio", "network": "none"}, script) as guest:
        assert "isa-serial" not in guest.arguments()
        assert "has /sys/class/tty/hvc0" in guest.said
        assert [line.split()[0] for line in guest.said if "(EC" in line] == ["hvc0"]
        assert [event.name for event in guest.instance.events] == ["spawned", "init", "ready"], (
            "no kernel line: missing"
        )
        guest.instance.send("echo heard")
        assert "heard" in itertools.islice((line.text for line in guest.instance.lines(READY_SECONDS)), 1)
        guest.instance.send("the payload ends")
        assert any(line.text == "isomark exit 0" for line in guest.instance.lines(READY_SECONDS)), "its last line too"


def test_a_root_on_virtiofs_is_the_image_itself_and_cannot_be_changed(lab: Lab, busybox: WorkloadImage) -> None:
    busybox.tree.joinpath("isomark/told").write_text("by the host\n")
    write = "cat /isomark/told; echo mine >/isomark/told; cat /isomark/told"
    attack = "/bin/busybox mkdir /l; /bin/busybox mount -t virtiofs isomark /l && echo evil >/l/isomark/told"
    with booted(lab, busybox, {"root": "virtiofs", "network": "none"}, f"{write}; {attack}") as guest:
        assert guest.said[-3:-1] == ["by the host", "mine"]
        assert "Read-only file system" in guest.said[-1]
        assert busybox.tree.joinpath("isomark/told").read_text() == "by the host\n"
        assert "virtio-blk" not in guest.arguments(), "no disk"
        daemons = helpers(guest.pid)
        assert {Path(f"/proc/{pid}/comm").read_text().strip() for pid in daemons} == {"virtiofsd"}
        assert guest.instance.memory().processes == 1 + len(daemons)
        os.kill(guest.pid, signal.SIGKILL)
        _within(EFFECT_SECONDS, lambda: not any(map(_runs, daemons)))
    assert str(lab.scratch) not in Path("/proc/self/mounts").read_text()
    assert list(lab.scratch.iterdir()) == []


@pytest.mark.full
def test_free_pages_come_back_to_the_host_and_the_balloon_tells(lab: Lab, busybox: WorkloadImage) -> None:
    table: dict[str, object] = {"balloon": "virtio", "free_page_reporting": True, "network": "none"}
    fill = f"head -c {96 * MIB} /dev/zero >/dev/shm/full"
    with booted(lab, busybox, table, fill) as guest:
        full = guest.anonymous()
        guest.instance.send(": >/dev/shm/full")
        _within(EFFECT_SECONDS, lambda: guest.anonymous() < full - 32 * MIB)  # whole blocks of 2 MiB only
        assert {"unused", "available", "usable", "disk_caches"} <= _statistics(guest.name).keys()


def test_a_guest_on_a_network_of_its_own_reaches_the_host_and_nobody_it(lab: Lab, busybox: WorkloadImage) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with booted(lab, busybox, {"network": "user", "machine": "pc"}, f"{PCI}; {CARDS}") as guest:
            assert "type 0x060000 0x8086 0x1237" in guest.said, "the host bridge of pc, Intel's 82441FX"
            assert "eth0" in guest.said
            assert guest.instance.address() is None
            guest.instance.send(f"echo hello | /bin/busybox nc 10.0.2.2 {port}")
            listener.settimeout(EFFECT_SECONDS)
            peer, _ = listener.accept()
            with peer:
                assert peer.recv(16) == b"hello\n"


def hold(tree: Path) -> None:
    """Boot a guest on virtiofs, say which it is, and wait to be killed: the run of the test below."""
    with open_lab(state_directory()) as lab, booted(lab, small_image(tree), {"root": "virtiofs"}) as guest:
        print(guest.pid, lab.scratch, flush=True)
        signal.pause()


@pytest.mark.full
def test_a_killed_run_leaves_no_daemon_no_mount_and_the_image_as_it_was(tmp_path: Path) -> None:
    code = f"import pathlib, test_options_booted; test_options_booted.hold(pathlib.Path({str(tmp_path / 'tree')!r}))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as run:
        assert run.stdout is not None
        pid, scratch = run.stdout.readline().split()
        left = [int(pid), *helpers(int(pid))]
        assert len(left) > 1
        run.kill()
    _within(EFFECT_SECONDS, lambda: not any(map(_runs, left)))
    clean(journal_directory(state_directory()))
    assert scratch not in Path("/proc/self/mounts").read_text()
    assert not Path(scratch).exists()
    assert (tmp_path / "tree/bin/busybox").exists()


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_whole_server_finds_its_disks_on_another_bus(lab: Lab, workload_image: WorkloadImage) -> None:
    table: dict[str, object] = {"guest": "full", "firmware": "bios", "disk_bus": "scsi"}
    limits = Limits(memory_bytes=1024 * MIB)
    with booted(lab, workload_image, table, "for d in /sys/block/*; do echo $d; done", limits) as guest:
        assert "/sys/block/sda" in guest.said
        assert "/sys/block/sdb" in guest.said, "the trial's own disk"
        assert not [line for line in guest.said if line.startswith("/sys/block/vd")]


@pytest.mark.full
def test_a_guest_hangs_on_a_bridge_of_the_host(lab: Lab, busybox: WorkloadImage) -> None:
    bridge = f"br{lab.journal.owner.id}"
    subprocess.run(["ip", "link", "add", bridge, "type", "bridge"], check=True)
    try:
        with booted(lab, busybox, {"network": f"bridge:{bridge}"}, CARDS) as guest:
            assert "eth0" in guest.said
            ports = os.listdir(f"/sys/class/net/{bridge}/brif")
            assert len(ports) == 1
    finally:
        subprocess.run(["ip", "link", "delete", bridge], check=True)


@pytest.mark.full
def test_a_directory_of_the_host_is_shared_with_the_guest(lab: Lab, busybox: WorkloadImage, tmp_path: Path) -> None:
    (tmp_path / "told").write_text("by the host\n")
    script = "mkdir /h; mount -t virtiofs host /h; cat /h/told; echo by the guest >/h/answer".replace(
        "m", "/bin/busybox m", 2
    )
    with booted(lab, busybox, {"virtiofs": str(tmp_path), "network": "none"}, script) as guest:
        assert guest.said[-1] == "by the host"
        assert (tmp_path / "answer").read_text() == "by the guest\n"
        assert guest.instance.memory().processes == 1 + len(helpers(guest.pid)) > 1


@pytest.fixture
def huge_pages() -> Iterator[int]:
    """Reserve huge pages for one guest of 256 MiB, and give them back."""
    before = int(HUGE_PAGES.read_text())
    wanted = before + 128
    try:
        HUGE_PAGES.write_text(str(wanted))
        if int(HUGE_PAGES.read_text()) < wanted:
            pytest.skip("this host's memory is too fragmented for 128 more huge pages, or they may not be reserved")
        yield wanted
    except PermissionError:
        pytest.skip("huge pages may not be reserved here")
    finally:
        HUGE_PAGES.write_text(str(before))


@pytest.mark.full
def test_huge_pages_hold_the_guest_and_are_counted(lab: Lab, busybox: WorkloadImage, huge_pages: int) -> None:
    free = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
    before = int(free.read_text())
    with booted(lab, busybox, {"huge_pages": True, "network": "none"}) as guest:
        assert int(free.read_text()) == before - 128
        size = guest.instance.memory().pss_bytes
        assert size is not None
        assert size > 256 * MIB
    assert int(free.read_text()) == before


@pytest.mark.parametrize("huge", [True, False])
def test_whether_guests_need_ordinary_memory_is_asked_of_their_driver(lab: Lab, huge: bool) -> None:
    driver = load_driver("qemu", lab, {"huge_pages": huge})
    assert isinstance(driver, OnHugePages)
    assert driver.on_huge_pages is huge
    driver.close()


def test_missing_huge_pages_are_told_with_how_to_reserve_them(lab: Lab, busybox: WorkloadImage) -> None:
    if int(HUGE_PAGES.read_text()):
        pytest.skip("this host has huge pages")
    driver = load_driver("qemu", lab, {"huge_pages": True})
    with pytest.raises(DriverUnavailable, match="huge pages of 2 MiB, and its host has 0 free") as caught:
        driver.check()
    driver.close()
    assert "vm.nr_hugepages" in caught.value.hint


def _runs(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def _statistics(name: str) -> dict[str, str]:
    told = subprocess.run(
        ["virsh", "-q", "-c", "qemu:///system", "dommemstat", name], capture_output=True, text=True, check=True
    ).stdout
    return dict(line.split() for line in told.splitlines() if line)


def _within(seconds: float, holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def _flags(guest: Guest, name: str) -> int:
    """How the QEMU has opened the file called ``name`` for writing (proc(5), fdinfo)."""
    found = []
    for fd in Path(f"/proc/{guest.pid}/fd").iterdir():
        if os.readlink(fd).endswith(f"/{name}"):
            (flags,) = re.findall(
                r"^flags:\s+(\d+)$", Path(f"/proc/{guest.pid}/fdinfo/{fd.name}").read_text(), re.MULTILINE
            )
            found.append(int(flags, 8))
    assert found
    return next(flags for flags in found if flags & os.O_ACCMODE == os.O_RDWR)
