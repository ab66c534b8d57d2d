"""The daemons beside a QEMU, found by its cgroups of either version; test_options_booted.py finds real ones."""

from __future__ import annotations

from pathlib import Path

from vms.helpers import helpers, is_sharing

QEMU = 100
DAEMON, ITS_CHILD = 200, 201


def host(place: Path, membership: str, groups: dict[str, list[int]]) -> tuple[Path, Path]:
    """Write what the kernel would show: the cgroups of the QEMU, and the processes of ``groups``."""
    (place / f"proc/{QEMU}").mkdir(parents=True)
    (place / f"proc/{QEMU}/cgroup").write_text(membership)
    for group, members in groups.items():
        (place / "cgroup" / group).mkdir(parents=True)
        (place / "cgroup" / group / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in members))
    return place / "cgroup", place / "proc"


def test_of_version_1_the_hierarchies_are_taken_together(tmp_path: Path) -> None:
    domain = "machine/qemu-7-iso-x.libvirt-qemu"
    membership = f"4:memory:/{domain}\n3:cpuset:/{domain}/emulator\n2:pids:/\n0::/\n"
    groups = {
        f"memory/{domain}": [QEMU],
        f"cpuset/{domain}": [],
        f"cpuset/{domain}/emulator": [QEMU, DAEMON, ITS_CHILD],
        "cpuset/machine/qemu-70-iso-xy.libvirt-qemu": [999],
    }
    assert helpers(QEMU, *host(tmp_path, membership, groups)) == [DAEMON, ITS_CHILD]


def test_of_version_2_the_whole_scope_counts(tmp_path: Path) -> None:
    scope = "machine.slice/machine-qemu\\x2d7\\x2diso\\x2dx.scope"
    membership = f"0::/{scope}/libvirt/emulator\n"
    groups = {scope: [], f"{scope}/libvirt": [QEMU, DAEMON], f"{scope}/libvirt/emulator": []}
    assert helpers(QEMU, *host(tmp_path, membership, groups)) == [DAEMON]


def test_a_qemu_in_no_group_of_its_own_has_no_known_helpers(tmp_path: Path) -> None:
    groups = {"cpuset": [1, QEMU, 300], "user.slice": [QEMU, 300]}
    assert helpers(QEMU, *host(tmp_path, "3:cpuset:/\n0::/user.slice\n", groups)) == []


def test_whether_it_shares_a_directory_shows_on_its_command_line(tmp_path: Path) -> None:
    (tmp_path / str(QEMU)).mkdir()
    command = tmp_path / f"{QEMU}/cmdline"
    command.write_bytes(b'qemu-system-x86_64\0-device\0{"driver":"vhost-user-fs-pci","id":"fs0"}\0')
    assert is_sharing(QEMU, tmp_path)
    command.write_bytes(b'qemu-system-x86_64\0-device\0{"driver":"virtio-blk-pci"}\0')
    assert not is_sharing(QEMU, tmp_path)
