"""Containers of libvirt as text: their golden XML, and what a host makes of them."""

from __future__ import annotations

import os
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree as ET

import pytest

from bench.network import example_lease
from runtimes.security.capabilities import DEFAULT, NAMES
from vms.lxc import covered
from vms.lxc.container import CAPABILITIES, Container, container_xml
from vms.lxc.controller import controller, misplaced_cgroups
from vms.lxc.life import last_words
from vms.lxc.parity import limits, parity
from vms.schema import SCHEMA, validate

GOLDEN = Path(__file__).parent / "golden"
LIBVIRTS = "/usr/lib/libvirt/libvirt_lxc"
CONTAINER = Container(
    name="iso-x-1", uuid="00000000-0000-4000-8000-000000000001", owner="0badcafe", cpus=2,
    memory_bytes=512 * 1024**2, root=PurePosixPath("/s/scratch/root"), busybox=PurePosixPath("/bin/busybox"),
    emulator=PurePosixPath(LIBVIRTS), lease=example_lease(), files=("/proc/keys",), directories=("/sys/fs/cgroup",),
)  # fmt: skip


@pytest.mark.parametrize("lease", [example_lease(), None], ids=["network", "alone"])
def test_a_container_is_the_golden_one_and_valid(lease: object) -> None:
    xml = container_xml(replace(CONTAINER, lease=lease))
    golden = GOLDEN / f"lxc-{'network' if lease else 'alone'}.xml"
    if os.environ.get("ISOMARK_REGENERATE"):
        golden.write_text(xml)
    assert xml == golden.read_text()
    if not SCHEMA.exists():
        pytest.skip(f"{SCHEMA} is not installed")
    validate(xml)


def test_one_without_a_lease_has_no_interface_and_yet_a_network_namespace_of_its_own() -> None:
    root = ET.fromstring(container_xml(replace(CONTAINER, lease=None)))
    assert root.find("devices/interface") is None
    assert root.find("features/privnet") is not None


def test_it_keeps_the_capabilities_that_the_built_in_container_keeps() -> None:
    assert {f"CAP_{name.upper()}" for name in CAPABILITIES} == {
        name for number, name in enumerate(NAMES) if DEFAULT >> number & 1
    }


def test_a_path_that_xml_cannot_carry_is_refused() -> None:
    with pytest.raises(ValueError, match="XML cannot carry"):
        container_xml(replace(CONTAINER, root=PurePosixPath("/s/\x01")))


def _host(folder: Path, kind: str, point: Path, controllers: str) -> Path:
    point.mkdir(parents=True, exist_ok=True)
    (point / "cgroup.controllers").write_text(controllers)
    mounts = folder / "mounts"
    mounts.write_text(f"proc /proc proc rw 0 0\n{kind} {point} {kind} rw,nosuid 0 0\n")
    return mounts


def test_only_version_2_with_controllers_beside_version_1_is_in_libvirt_s_way(tmp_path: Path) -> None:
    unified = tmp_path / "cgroup/unified"
    assert misplaced_cgroups(_host(tmp_path, "cgroup2", unified, "hugetlb\n")) == str(unified)
    assert misplaced_cgroups(_host(tmp_path, "cgroup2", unified, "\n")) is None, "as systemd's hybrid has it"
    assert misplaced_cgroups(_host(tmp_path, "cgroup", unified, "hugetlb\n")) is None
    pure = tmp_path / "pure"
    pure.write_text("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n")
    assert misplaced_cgroups(pure) is None, "a container's sysfs has this directory"
    assert controller(LIBVIRTS, tmp_path, pure) == Path(LIBVIRTS)


def test_what_takes_it_out_of_the_way_runs_libvirt_s_program_with_its_arguments(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounts in a namespace of its own")
    unified = tmp_path / "odd'place$"
    mounts = _host(tmp_path, "cgroup2", unified, "memory\n")
    teller = tmp_path / "libvirt_lxc"
    teller.write_text(f'#!/bin/sh\nls -A /sys/firmware {shlex.quote(str(unified))}; printf "<%s>" "$@"\n')
    teller.chmod(0o755)
    script = controller(str(teller), tmp_path, mounts)
    assert script != teller
    within = 'mount -t tmpfs none "$0" && touch "$0/moved" && exec "$@"'
    ended = subprocess.run(
        ["unshare", "--mount", "sh", "-c", within, str(unified), str(script), "--name", "a 'b'"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout == f"/sys/firmware:\nmoved\n\n{unified}:\ncgroup.controllers\n<--name><a 'b'>"
    assert script == controller(str(teller), tmp_path, mounts), "made once"


def test_only_what_the_kernel_has_is_covered(tmp_path: Path) -> None:
    (tmp_path / "proc/irq").mkdir(parents=True)
    (tmp_path / "proc/keys").touch()
    assert covered.paths(tmp_path) == (("/proc/keys",), ("/proc/irq",))


def test_that_version_2_lets_it_swap_is_told(tmp_path: Path) -> None:
    assert "without swap" in limits(tmp_path)
    assert not any("swap" in sentence for sentence in parity(tmp_path))
    assert "as much swap" in limits(tmp_path / "none")
    assert any("as much swap" in sentence for sentence in parity(tmp_path / "none"))


def test_of_the_controller_s_log_its_last_errors_are_told(tmp_path: Path) -> None:
    lines = ["2026: starting up", *(f"2026: 1: error : f:{number} : no {number}" for number in range(5)), "PATH=/bin"]
    (tmp_path / "x.log").write_text("\n".join(lines))
    assert last_words("x", tmp_path) == lines[3:6]
    assert last_words("y", tmp_path) == []
