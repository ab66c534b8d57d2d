"""Cgroups on version 1, 2 and both: on a host made of files, and for real where this host has them."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_tree import needs_root

from bench.errors import HostError
from bench.model import Limits
from runtimes.container import cgroup
from runtimes.container.cgroup import Group
from runtimes.container.hierarchy import HOST_GROUP, Hierarchy, detect

LIMITS = Limits(cpus=2, memory_bytes=256 * 1024**2, pids=99)
V1_LINE = "3{n} 31 0:2{n} / /sys/fs/cgroup/{name} rw,relatime - cgroup cgroup rw,{name}\n"
V2_LINE = "41 31 0:38 {root} {point} rw,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
NAME = f"test{os.getpid()}"


class FakeHost:
    """A host's /proc and /sys/fs/cgroup made of files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "proc/self").mkdir(parents=True)
        self.write("proc/self/mountinfo", "22 27 0:21 / /proc rw,relatime - proc proc rw\n")
        self.write("proc/self/cgroup", "0::/\n")

    def write(self, path: str, text: str) -> None:
        assert not path.startswith("/"), "or it would be the real host's"
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def read(self, path: str) -> str:
        return (self.root / "sys/fs/cgroup" / path).read_text()

    def mount_v1(self, *names: str) -> None:
        with (self.root / "proc/self/mountinfo").open("a") as mountinfo:
            for number, name in enumerate(names):
                mountinfo.write(V1_LINE.format(n=number, name=name))
                (self.root / "sys/fs/cgroup" / name).mkdir(parents=True)

    def mount_v2(self, controllers: str, point: str = "/sys/fs/cgroup", root: str = "/") -> None:
        with (self.root / "proc/self/mountinfo").open("a") as mountinfo:
            mountinfo.write(V2_LINE.format(point=point, root=root))
        self.write(f"{point.lstrip('/')}/cgroup.controllers", controllers)
        self.write(f"{point.lstrip('/')}/cgroup.subtree_control", "")


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path)


def test_limits_on_version_2(host: FakeHost) -> None:
    host.mount_v2("cpuset cpu io memory hugetlb pids")
    host.write("sys/fs/cgroup/isomark/o/n/memory.swap.max", "max")
    layout = detect(host.root, privileged=True)
    Group(layout, "o/n", LIMITS)
    assert layout.version == "v2"
    assert layout.uses_v2
    assert host.read("isomark/o/n/cpu.max") == "200000 100000"
    assert host.read("isomark/o/n/memory.max") == str(256 * 1024**2)
    assert host.read("isomark/o/n/memory.swap.max") == "0"
    assert host.read("isomark/o/n/pids.max") == "99"
    for group in ("", "isomark/", "isomark/o/"):
        assert host.read(f"{group}cgroup.subtree_control") == "+cpu +memory +pids"
    assert not (host.root / "sys/fs/cgroup/isomark/o/n/cgroup.subtree_control").exists(), "the leaf has processes"


def test_limits_on_version_1_with_combined_controllers(host: FakeHost) -> None:
    host.mount_v1("cpu,cpuacct", "memory", "pids", "freezer")
    host.write("sys/fs/cgroup/memory/isomark/o/n/memory.memsw.limit_in_bytes", "max")
    layout = detect(host.root)
    group = Group(layout, "o/n", LIMITS)
    assert layout.version == "v1"
    assert not layout.uses_v2
    assert host.read("cpu,cpuacct/isomark/o/n/cpu.cfs_quota_us") == "200000"
    assert host.read("cpu,cpuacct/isomark/o/n/cpu.cfs_period_us") == "100000"
    assert host.read("memory/isomark/o/n/memory.limit_in_bytes") == str(256 * 1024**2)
    assert host.read("memory/isomark/o/n/memory.memsw.limit_in_bytes") == str(256 * 1024**2)
    assert host.read("pids/isomark/o/n/pids.max") == "99"
    assert not (host.root / "sys/fs/cgroup/freezer/isomark").exists(), "nothing is limited there"
    host.write("sys/fs/cgroup/cpu,cpuacct/isomark/o/n/cpuacct.usage", "1500000000\n")
    assert group.cpu_seconds() == 1.5


def test_without_a_swap_controller_swapping_is_discouraged(host: FakeHost) -> None:
    host.mount_v1("cpu", "memory", "pids")
    host.write("sys/fs/cgroup/memory/isomark/o/n/memory.swappiness", "60")
    Group(detect(host.root), "o/n", LIMITS)
    assert host.read("memory/isomark/o/n/memory.swappiness") == "0"


def test_a_hybrid_host_may_split_the_controllers(host: FakeHost) -> None:
    host.mount_v1("cpu", "memory")
    host.mount_v2("pids", "/sys/fs/cgroup/unified")
    layout = detect(host.root, privileged=True)
    group = Group(layout, "o/n", LIMITS)
    assert layout.version == "hybrid"
    assert host.read("unified/isomark/o/n/pids.max") == "99"
    assert host.read("memory/isomark/o/n/memory.limit_in_bytes") == str(256 * 1024**2)
    host.write("sys/fs/cgroup/cpu/isomark/o/n/tasks", "")
    host.write("sys/fs/cgroup/memory/isomark/o/n/tasks", "")
    with ExitStack() as stack:
        birthplace, entrances = group.open_entrances(stack)
        assert birthplace is not None
        opened = [os.readlink(f"/proc/self/fd/{fd}") for fd in (birthplace, *entrances)]
    assert [path.removeprefix(f"{host.root}/sys/fs/cgroup/") for path in opened] == [
        "unified/isomark/o/n", "cpu/isomark/o/n/tasks", "memory/isomark/o/n/tasks",
    ]  # fmt: skip


def test_readings_on_version_2(host: FakeHost) -> None:
    host.mount_v2("cpu memory pids")
    group = Group(detect(host.root, privileged=True), "o/n", LIMITS)
    host.write("sys/fs/cgroup/isomark/o/n/memory.current", "4096\n")
    host.write("sys/fs/cgroup/isomark/o/n/memory.events", "low 0\nhigh 0\nmax 9\noom 3\noom_kill 2\noom_group_kill 0\n")
    host.write("sys/fs/cgroup/isomark/o/n/cpu.stat", "usage_usec 2500000\nuser_usec 1\n")
    host.write("sys/fs/cgroup/isomark/o/n/cgroup.procs", "11\n12\n")
    host.write("sys/fs/cgroup/isomark/o/n/sub/cgroup.procs", "13\n")
    assert (group.memory_bytes(), group.oom_kills(), group.cpu_seconds()) == (4096, 2, 2.5)
    assert group.members() == [11, 12, 13]


def test_a_count_that_the_kernel_does_not_keep_is_missing_not_zero(host: FakeHost) -> None:
    host.mount_v1("cpu", "memory", "pids")
    group = Group(detect(host.root), "o/n", LIMITS)
    host.write("sys/fs/cgroup/memory/isomark/o/n/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\n")
    assert group.oom_kills() is None
    assert group.cpu_seconds() is None


def test_without_privilege_the_groups_go_below_the_delegated_one(host: FakeHost) -> None:
    host.mount_v2("cpu memory pids io")
    host.write("proc/self/cgroup", "0::/user.slice/run.scope\n")
    host.write("sys/fs/cgroup/user.slice/run.scope/cgroup.controllers", "memory pids")
    layout = detect(host.root, privileged=False)
    (hierarchy,) = layout.hierarchies
    assert hierarchy.top == host.root / "sys/fs/cgroup/user.slice/run.scope"
    with pytest.raises(HostError, match="controllers cpu are missing"):
        layout.require()


def test_a_mount_that_shows_only_part_of_the_hierarchy(host: FakeHost) -> None:
    host.mount_v2("cpu memory pids", root="/machine/one")
    host.write("proc/self/cgroup", "0::/machine/one/app\n")
    (hierarchy,) = detect(host.root, privileged=False).hierarchies
    assert hierarchy.top == host.root / "sys/fs/cgroup/app"


def test_no_cgroups_at_all_is_an_error_with_a_remedy(host: FakeHost) -> None:
    layout = detect(host.root)
    assert layout.version == "none"
    with pytest.raises(HostError, match="no cgroups are mounted") as caught:
        layout.require()
    assert "mount -t cgroup2" in caught.value.hint


def test_a_second_mount_of_the_same_hierarchy_is_passed_over(host: FakeHost) -> None:
    host.mount_v1("cpu", "memory", "pids")
    with (host.root / "proc/self/mountinfo").open("a") as mountinfo:
        mountinfo.write("99 31 0:35 / /mnt/again rw - cgroup cgroup rw,memory\n")
    assert len(detect(host.root).hierarchies) == 3


@given(st.lists(st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), max_size=60), max_size=4))
def test_strange_cgroup_files_do_not_break_detection(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str]
) -> None:
    host = FakeHost(tmp_path_factory.mktemp("host"))
    host.mount_v1("cpu", "memory", "pids")
    host.write("proc/self/cgroup", "\n".join(lines))
    assert detect(host.root).version == "v1"


@pytest.mark.parametrize("name", ["", "..", "a/../b", "/etc", "a/b/c", "a b", "process_api/x/y"])
def test_a_name_that_is_not_ours_is_not_removed(name: str) -> None:
    with pytest.raises(HostError, match="no cgroup of isomark"):
        cgroup.remove({"name": name})


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


def _enter(path: Path, process: subprocess.Popen[bytes]) -> None:
    path.mkdir(parents=True, exist_ok=True)
    (path / "cgroup.procs").write_text(str(process.pid))


def _real(controller: str, version: int) -> Path:
    hierarchies = detect().hierarchies
    found = [
        each.top for each in hierarchies if each.version == version and (version == 2 or controller in each.controllers)
    ]
    if not found or not os.access(found[0], os.W_OK):
        pytest.skip(f"no version {version} {controller} hierarchy to write here")
    return found[0] / "isomark"


@needs_root
def test_a_frozen_version_1_group_is_thawed_and_removed(sleeper: subprocess.Popen[bytes]) -> None:
    freezer, pids = (_real(name, 1) / NAME / "frozen" for name in ("freezer", "pids"))
    _enter(freezer, sleeper)
    _enter(pids, sleeper)
    (freezer / "freezer.state").write_text("FROZEN")
    sleeper.send_signal(signal.SIGKILL)
    with pytest.raises(subprocess.TimeoutExpired):
        sleeper.wait(0.2)
    cgroup.remove({"name": f"{NAME}/frozen"})
    assert sleeper.wait(5) == -signal.SIGKILL
    cgroup.remove({"name": NAME})
    assert not freezer.parent.exists()
    assert not pids.parent.exists()
    cgroup.remove({"name": NAME})


@needs_root
def test_a_group_whose_owner_is_frozen_is_thawed_too(sleeper: subprocess.Popen[bytes]) -> None:
    freezer = _real("freezer", 1) / NAME / "inner"
    _enter(freezer, sleeper)
    (freezer.parent / "freezer.state").write_text("FROZEN")
    cgroup.remove({"name": f"{NAME}/inner"})
    assert sleeper.wait(5) == -signal.SIGKILL
    cgroup.remove({"name": NAME})


@needs_root
def test_a_frozen_version_2_group_with_groups_below_is_removed(sleeper: subprocess.Popen[bytes]) -> None:
    unified = _real("", 2) / NAME / "v2"
    _enter(unified / "deep" / "deeper", sleeper)
    if (unified / "cgroup.freeze").exists():
        (unified / "cgroup.freeze").write_text("1")
    cgroup.remove({"name": NAME})
    assert sleeper.wait(5) == -signal.SIGKILL
    assert not unified.parent.exists()


@needs_root
def test_a_new_process_is_born_in_a_version_2_group() -> None:
    top = _real("", 2)
    (top / NAME).mkdir(parents=True)
    program = (
        "import os, sys; sys.path.insert(0, sys.argv[1])\n"
        "from runtimes.libc import clone3\n"
        "fd = os.open(sys.argv[2], os.O_PATH | os.O_DIRECTORY)\n"
        "pid, _ = clone3(0, 17, fd)\n"
        "if pid == 0:\n"
        "    os.write(1, [line for line in open('/proc/self/cgroup', 'rb') if line.startswith(b'0::')][0])\n"
        "    os._exit(0)\n"
        "os.waitpid(pid, 0)\n"
    )
    try:
        ended = subprocess.run(
            ["python3", "-I", "-c", program, str(Path(__file__).resolve().parents[2]), str(top / NAME)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    finally:
        cgroup.remove({"name": NAME})
    assert ended.stdout == f"0::/isomark/{NAME}\n", ended.stderr


@needs_root
def test_a_delegated_group_is_vacated_before_its_controllers_are_passed_on(sleeper: subprocess.Popen[bytes]) -> None:
    top = _real("", 2).parent
    controllers = (top / "cgroup.controllers").read_text().split()
    if not controllers:
        pytest.skip("no controller is bound to version 2 here")
    wanted = controllers[0]
    was_on = wanted in (top / "cgroup.subtree_control").read_text().split()
    scope = top / "isomark" / NAME
    try:
        Hierarchy(2, frozenset(controllers), top).make(f"{NAME}/x", frozenset({wanted}))
        (scope / "x").rmdir()
        (scope / "cgroup.subtree_control").write_text(f"-{wanted}")
        _enter(scope, sleeper)
        made = Hierarchy(2, frozenset(controllers), scope).make("own/leaf", frozenset({wanted}))
        assert wanted in (made / "cgroup.controllers").read_text().split()
        assert (scope / HOST_GROUP / "cgroup.procs").read_text().split() == [str(sleeper.pid)]
    finally:
        cgroup.remove({"name": NAME})
        if not was_on:
            (top / "cgroup.subtree_control").write_text(f"-{wanted}")
