"""Whole servers through libvirt and the driver: ours under both firmwares, and a cloud image of somebody else's.

Each boots for a minute or more under emulation; they run with ``pytest -m full`` only.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from cloud_image import cloud_image
from conftest import skip_or_fail, usable
from session_host import SessionHost, session_host

from bench.dialogue import Dialogue
from bench.driver import Driver, Lab, Launch
from bench.drivers import load_driver
from bench.errors import HostError, ImageError
from bench.lab import open_lab
from bench.load import http_round
from bench.model import Case, Image, Limits, OutcomeKind, Workload, WorkloadImage
from bench.result import Slot
from bench.state import state_directory
from bench.trial import Plan, conduct_trial
from bench.workload import find_workload
from vms.process import find_processes

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]

SECONDS = 900.0
"""For everything that a guest does: a limit for hangs."""
VARIABLES = Path("/var/lib/libvirt/qemu/nvram")
"""Where libvirt would keep the UEFI variables of its guests."""
GIB = 1024**3
ODD = 'it\'s $HOME "and"\nmore\t;'
names = itertools.count()


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with open_lab(state_directory()) as opened:
        if opened.network is None:
            skip_or_fail("full", "there is no lab network without root")
        yield opened


@pytest.fixture(scope="module")
def remote() -> Iterator[SessionHost]:
    with session_host() as host:
        yield host


@pytest.fixture(scope="module")
def cloud(lab: Lab) -> Path:
    try:
        return cloud_image(lab.state, lab.journal)
    except (HostError, ImageError) as error:
        skip_or_fail("full", f"{error.message} ({error.hint})")
        raise


@contextmanager
def qemu(lab: Lab, workload_image: WorkloadImage, **options: object) -> Iterator[tuple[Driver, Image]]:
    """A driver with ``options``, and its form of ``workload_image``."""
    with usable("full", lambda: load_driver("qemu", lab, options)) as driver:
        yield driver, driver.build(workload_image)


def launch(lab: Lab, *command: str, workload: Workload | None = None, **variables: str) -> Launch:
    """A request to run ``workload``, or ``command``."""
    environment = variables | {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
    if workload is not None and workload.port is not None:
        environment["ISOMARK_PORT"] = str(workload.port)
    name = f"iso-{lab.journal.owner.id}-f{next(names)}"
    assert lab.network is not None
    words = command or (workload.command if workload else ())
    return Launch(name, words, environment, Limits(memory_bytes=GIB), lab.network.lease())


def figures_of_a_round(lab: Lab, workload: Workload, address: str | None) -> Mapping[str, float]:
    assert address is not None
    assert lab.network is not None
    assert workload.port is not None
    return http_round(address, workload.port, 1.0, lab.journal.owner.id, lab.network.inside)


def virsh(*arguments: str) -> str:
    command = ["virsh", "-q", "-c", "qemu:///system", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def require_nothing_left(lab: Lab, request: Launch) -> None:
    """Call it with the driver closed: libvirt itself notices an end a moment later."""
    assert request.name not in virsh("list", "--all", "--name")
    assert find_processes(lambda words: request.name.encode() in b" ".join(words)) == []
    assert not (lab.scratch / request.name).exists()
    if VARIABLES.exists():
        assert [path.name for path in VARIABLES.iterdir() if request.name in path.name] == []


@pytest.mark.parametrize("firmware", ["bios", "ovmf"])
def test_a_server_starts_in_order_answers_a_round_and_ends_by_its_power_button(
    firmware: str, lab: Lab, workload_image: WorkloadImage
) -> None:
    http = find_workload("http")
    script = (
        'printf "odd %s\\n" "$ODD" | od -An -c | tr -d " \\n"; echo; ip -4 -o addr; systemctl is-active ssh '
        f"systemd-journald; systemctl --failed --no-legend; hostname; exec {http.command[0]}"
    )
    with qemu(lab, workload_image, guest="full", firmware=firmware) as (driver, image):
        request = launch(lab, "/bin/sh", "-c", script, workload=http, ODD=ODD)
        with driver.start(image, request) as server:
            document = ET.fromstring(virsh("dumpxml", request.name))
            loader, variables = document.findtext("os/loader"), document.findtext("os/nvram")
            assert loader == image.parts.get("UEFI"), "it runs the firmware that was named, and no other"
            assert variables is None or Path(variables).parent == lab.scratch / request.name
            assert (firmware == "ovmf") == (loader is not None) == (variables is not None)
            Dialogue(server, SECONDS).ready()
            said = list(server.tail)
            assert any("BdsDxe" in line for line in said) == (firmware == "ovmf")
            steps = [line.removeprefix("isomark ") for line in said if line.startswith(("isomark loader", "isomark u"))]
            assert steps[:4] == ["loader", "unit sysinit.target", "unit basic.target", "unit network-online.target"]
            assert said.index("isomark loader") < said.index("isomark init") < said.index("isomark unit sysinit.target")
            assert [event.name for event in server.events] == ["spawned", "kernel", "init", "ready"]
            text = "\n".join(said)
            assert 'oddit\'s$HOME"and"\\nmore\\t;\\n' in text, "the environment arrives byte for byte"
            assert f"{server.address()}/16" in text
            assert text.count("\nactive") == 2
            assert request.name in said
            assert not [line for line in said if "failed" in line]
            figures = figures_of_a_round(lab, http, server.address())
            assert figures["http_requests_per_second"] > 0
            assert server.stop(SECONDS), "systemd-logind hears the power button"
            texts = [line.text for line in server.lines(SECONDS)]
            assert "isomark exit 0" in texts, "the payload ended by itself, before the machine"
            assert server.events[-1].name == "exited"
    require_nothing_left(lab, request)


def test_a_panic_of_a_server_is_its_end_and_the_tail_says_why(lab: Lab, workload_image: WorkloadImage) -> None:
    script = "echo isomark ready; sleep 1; echo c >/proc/sysrq-trigger; sleep 3600"
    with qemu(lab, workload_image, guest="full", firmware="bios") as (driver, image):
        request = launch(lab, "/bin/sh", "-c", script)
        with driver.start(image, request) as server:
            Dialogue(server, SECONDS).ready()
            list(server.lines(SECONDS))
            assert server.events[-1].name == "exited"
            told = "\n".join(server.tail)
        assert "sysrq triggered crash" in told
    require_nothing_left(lab, request)


def test_a_server_on_another_host_gets_disk_and_firmware_from_here_and_leaves_neither(
    lab: Lab, workload_image: WorkloadImage, remote: SessionHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISOMARK_LIBVIRT_URI", remote.uri)
    with qemu(lab, workload_image, guest="full", firmware="ovmf") as (driver, image):
        request = launch(lab, workload=find_workload("boot"))
        with driver.start(image, request) as server:
            assert f"{request.name}.uefi" in remote.volumes()
            Dialogue(server, SECONDS).ready()
            assert any("BdsDxe" in line for line in server.tail)
            server.send("quit")
            assert "isomark exit 0" in [line.text for line in server.lines(SECONDS)]
            assert server.events[-1].name == "exited", "the machine ends after its payload"
        assert not [name for name in remote.volumes() if name.startswith("iso-")]
        assert not [path for path in remote.home.rglob("*") if request.name in path.name and path.suffix != ".log"]
        assert remote.hypervisors() == []


def test_a_cloud_image_gets_the_workload_from_its_seed_and_serves_it(
    lab: Lab, workload_image: WorkloadImage, cloud: Path
) -> None:
    http = find_workload("http")
    with qemu(lab, workload_image, guest="image", image=str(cloud), firmware="bios") as (driver, image):
        assert image.digest == f"sha256:{sha256sum(cloud)}"
        assert image.parts["format"] == "qcow2"
        request = launch(lab, "/bin/sh", "-c", f"df -k /; hostname; exec {http.command[0]}", workload=http)
        with driver.start(image, request) as server:
            dialogue = Dialogue(server, SECONDS)
            dialogue.ready()
            assert dialogue.ping() > 0
            said = list(server.tail)
            assert request.name in said
            (root,) = [line.split() for line in said if line.endswith(" /") and line.startswith("/dev/")]
            assert int(root[1]) * 1024 > 3 * GIB, "limits.disk came on top of the image's 2 GiB"
            assert [event.name for event in server.events] == ["spawned", "kernel", "ready"], "its init is not ours"
            assert figures_of_a_round(lab, http, server.address())["http_requests_per_second"] > 0
            assert server.stop(SECONDS)
            assert "isomark exit 0" in [line.text for line in server.lines(SECONDS)]
    require_nothing_left(lab, request)
    assert image.digest == f"sha256:{sha256sum(cloud)}", "the user's image is as it was"


def test_a_workload_whose_program_the_image_lacks_fails_with_its_own_reason_on_another_host_too(
    lab: Lab, workload_image: WorkloadImage, cloud: Path, remote: SessionHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISOMARK_LIBVIRT_URI", remote.uri)
    plan = Plan(Limits(memory_bytes=GIB), rounds=1, warmup_rounds=0, round_seconds=1.0, timeout_seconds=SECONDS)
    with qemu(lab, workload_image, guest="image", image=str(cloud), firmware="ovmf") as (driver, image):
        slot = Slot(next(names), 0, Case("cpu", driver.name))
        trial = conduct_trial(slot, find_workload("cpu"), driver, image, plan, lab)
    assert trial.outcome.kind is OutcomeKind.FAILED
    assert "sysbench" in trial.outcome.reason
    assert [event.name for event in trial.events][:3] == ["spawned", "kernel", "ready"]
    assert not [name for name in remote.volumes() if name.startswith("iso-")]


def sha256sum(path: Path) -> str:
    """By another program than ours."""
    assert shutil.which("sha256sum", path=os.defpath) is not None
    return subprocess.run(["sha256sum", str(path)], capture_output=True, text=True, check=True).stdout.split()[0]
