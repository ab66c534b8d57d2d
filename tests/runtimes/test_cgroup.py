"""Cgroups on version 1, 2 and both: on a host made of files, and for real where this host has them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_tree import needs_root

from bench.errors import HostError, UsageError
from runtimes.container import cgroup
from runtimes.container.cgroup import Group, NoGroup, group_or_none
from runtimes.container.hierarchy import HOST_GROUP, Hierarchy, Layout, detect
from runtimes.container.resources import Resources

LIMITS = Resources(cpus=2, memory=256 * 1024**2, memory_swap=256 * 1024**2, pids=99)
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
    assert hierarchy.top == f"{host.root}/sys/fs/cgroup/user.slice/run.scope"
    with pytest.raises(HostError, match="controllers cpu are missing"):
        layout.require()


def test_a_mount_that_shows_only_part_of_the_hierarchy(host: FakeHost) -> None:
    host.mount_v2("cpu memory pids", root="/machine/one")
    host.write("proc/self/cgroup", "0::/machine/one/app\n")
    (hierarchy,) = detect(host.root, privileged=False).hierarchies
    assert hierarchy.top == f"{host.root}/sys/fs/cgroup/app"


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
    return Path(found[0]) / "isomark"


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
        Hierarchy(2, frozenset(controllers), str(top)).make(f"{NAME}/x", frozenset({wanted}))
        (scope / "x").rmdir()
        (scope / "cgroup.subtree_control").write_text(f"-{wanted}")
        _enter(scope, sleeper)
        made = Path(Hierarchy(2, frozenset(controllers), str(scope)).make("own/leaf", frozenset({wanted})))
        assert wanted in (made / "cgroup.controllers").read_text().split()
        assert (scope / HOST_GROUP / "cgroup.procs").read_text().split() == [str(sleeper.pid)]
    finally:
        cgroup.remove({"name": NAME})
        if not was_on:
            (top / "cgroup.subtree_control").write_text(f"-{wanted}")


def test_every_setting_has_its_file_on_version_2(host: FakeHost) -> None:
    host.mount_v2("cpuset cpu io memory hugetlb pids")
    host.write("sys/fs/cgroup/isomark/o/n/memory.swap.max", "max")
    Group(
        detect(host.root, privileged=True),
        "o/n",
        Resources(
            cpu_quota=50_000, cpu_period=200_000, cpu_shares=1024, cpuset_cpus="0-1", cpuset_mems="0", memory=1 << 30,
            memory_swap=3 << 29, memory_reservation=1 << 29, pids=-1, blkio_weight=500, hugetlb={"2MB": 1 << 21},
            unified={"memory.high": "1000000"},
        ),
    )  # fmt: skip
    written = {
        "cpu.max": "50000 200000", "cpu.weight": "39", "cpuset.cpus": "0-1", "cpuset.mems": "0",
        "memory.max": str(1 << 30), "memory.swap.max": str(1 << 29), "memory.low": str(1 << 29), "pids.max": "max",
        "io.weight": "4950", "hugetlb.2MB.max": str(1 << 21), "memory.high": "1000000",
    }  # fmt: skip
    assert {name: host.read(f"isomark/o/n/{name}") for name in written} == written


def test_every_setting_has_its_file_on_version_1(host: FakeHost) -> None:
    host.mount_v1("cpu", "cpuset", "memory", "pids", "blkio", "hugetlb", "devices")
    for group in ("", "isomark/", "isomark/o/", "isomark/o/n/"):
        for file in ("cpus", "mems"):
            host.write(f"sys/fs/cgroup/cpuset/{group}cpuset.{file}", "" if group else "0\n")
    host.write("sys/fs/cgroup/memory/isomark/o/n/memory.memsw.limit_in_bytes", "-1")
    Group(
        detect(host.root),
        "o/n",
        Resources(
            cpu_quota=-1, cpu_period=200_000, cpu_shares=512, cpuset_cpus="0-1", memory=1 << 30, memory_swap=3 << 29,
            memory_reservation=1 << 29, swappiness=10, oom_kill_disable=True, pids=7, blkio_weight=500,
            hugetlb={"2MB": 1 << 21},
        ),
    )  # fmt: skip
    written = {
        "cpu/{}/cpu.cfs_quota_us": "-1", "cpu/{}/cpu.cfs_period_us": "200000", "cpu/{}/cpu.shares": "512",
        "cpuset/{}/cpuset.cpus": "0-1", "cpuset/{}/cpuset.mems": "0", "memory/{}/memory.limit_in_bytes": str(1 << 30),
        "memory/{}/memory.memsw.limit_in_bytes": str(3 << 29), "memory/{}/memory.soft_limit_in_bytes": str(1 << 29),
        "memory/{}/memory.swappiness": "10", "memory/{}/memory.oom_control": "1", "pids/{}/pids.max": "7",
        "blkio/{}/blkio.weight": "500", "hugetlb/{}/hugetlb.2MB.limit_in_bytes": str(1 << 21),
    }  # fmt: skip
    assert {name: host.read(name.format("isomark/o/n")) for name in written} == written
    assert not (host.root / "sys/fs/cgroup/devices/isomark").exists(), "no device rules were asked for"


def test_version_1_is_not_used_for_what_is_not_asked(host: FakeHost) -> None:
    host.mount_v1("cpu", "cpuset", "memory", "pids", "blkio", "freezer", "devices", "cpuacct")
    host.mount_v2("", "/sys/fs/cgroup/unified")
    Group(detect(host.root), "o/n", Resources())
    made = sorted(path.parent.parent.parent.name for path in (host.root / "sys/fs/cgroup").glob("*/isomark/o/n"))
    assert made == ["memory", "unified"]


@pytest.mark.parametrize(
    ("wanted", "missing"),
    [
        (Resources(cpus=1), "cpu"),
        (Resources(pids=3), "pids"),
        (Resources(cpuset_cpus="0"), "cpuset"),
        (Resources(blkio_weight=100), "blkio"),
        (Resources(hugetlb={"2MB": 0}), "hugetlb"),
    ],
)
def test_a_limit_whose_controller_is_missing_is_an_error(host: FakeHost, wanted: Resources, missing: str) -> None:
    host.mount_v1("memory")
    with pytest.raises(HostError, match=f"controllers {missing} are missing"):
        Group(detect(host.root), "o/n", wanted)
    assert not (host.root / "sys/fs/cgroup/memory/isomark").exists()


@pytest.mark.parametrize(
    "wanted",
    [
        {"cpus": 0}, {"cpus": 0.009}, {"cpus": -1}, {"cpus": float("nan")}, {"cpus": 1, "cpu_quota": 5},
        {"cpus": 1, "cpu_period": 5},
    ],
)  # fmt: skip
def test_a_share_of_the_cpu_that_the_kernel_would_not_take_is_refused(wanted: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Resources(**wanted)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["../memory.max", "/memory.max", "memory", ""])
def test_a_raw_setting_is_a_file_and_no_path(host: FakeHost, name: str) -> None:
    host.mount_v2("cpu memory pids")
    with pytest.raises(UsageError, match="no control file"):
        Group(detect(host.root, privileged=True), "o/n", Resources(unified={name: "max"}))


def test_swap_without_a_limit_on_memory_is_refused_on_version_2(host: FakeHost) -> None:
    host.mount_v2("cpu memory pids")
    with pytest.raises(UsageError, match="memory and swap together"):
        Group(detect(host.root, privileged=True), "o/n", Resources(memory_swap=1 << 20))


def test_a_limit_on_swap_that_nobody_counts_is_an_error(host: FakeHost) -> None:
    host.mount_v1("memory")
    with pytest.raises(HostError, match="does not count swap"):
        Group(detect(host.root), "o/n", Resources(memory=1 << 20, memory_swap=1 << 21))


def test_an_absolute_path_is_taken_from_the_top_and_what_was_made_above_is_remembered(host: FakeHost) -> None:
    host.mount_v1("memory")
    host.write("sys/fs/cgroup/memory/there/tasks", "")
    layout = detect(host.root)
    group = Group(layout, "/there/new/leaf", Resources(memory=1 << 20))
    assert host.read("memory/there/new/leaf/memory.limit_in_bytes") == str(1 << 20)
    assert group.made_above == ("/there/new",)
    (host.root / "sys/fs/cgroup/memory/there/new/leaf/memory.limit_in_bytes").unlink()
    group.remove()
    cgroup.remove_empty(layout, group.made_above)
    assert not (host.root / "sys/fs/cgroup/memory/there/new").exists()
    assert (host.root / "sys/fs/cgroup/memory/there").exists()


@pytest.mark.parametrize("name", ["/", "//", "/a/../b", "/a/./b", "/a//b", "/a/", "/a\0b", "/isomark/x", "a/b/c", ""])
def test_a_path_that_leads_elsewhere_is_refused(host: FakeHost, name: str) -> None:
    host.mount_v1("memory")
    with pytest.raises(HostError):
        Group(detect(host.root), name, Resources())


def test_a_path_with_a_space_in_mountinfo_is_found(host: FakeHost) -> None:
    (host.root / "mnt/a b").mkdir(parents=True)
    with (host.root / "proc/self/mountinfo").open("a") as mountinfo:
        mountinfo.write("99 31 0:35 / /mnt/a\\040b rw - cgroup cgroup rw,memory\n")
    (hierarchy,) = detect(host.root).hierarchies
    assert hierarchy.top == f"{host.root}/mnt/a b"


def test_an_ordinary_user_without_delegation_gets_no_group_and_is_told(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    host.mount_v2("")
    group = group_or_none(detect(host.root), "o/n", Resources(memory=1 << 20))
    assert isinstance(group, NoGroup)
    assert "memory" in group.reason.message
    assert group.entrances() == (None, [])
    assert group.stats().memory_bytes is None
    with pytest.raises(HostError, match="memory"):
        group.freeze()
    group.remove()


def layouts() -> dict[str, Layout]:
    layout = detect()
    v1 = tuple(each for each in layout.hierarchies if each.version == 1)
    return {layout.version: layout, **({"v1": Layout(v1)} if v1 else {})}


KINDS = [kind for kind in ("v1", "v2", "hybrid") if os.geteuid() == 0 and kind in layouts()] or ["none"]


@contextmanager
def real(kind: str, wanted: Resources, name: str = "real") -> Iterator[Group]:
    if kind == "none":
        pytest.skip("no cgroups to write here")
    layout = layouts()[kind]
    try:
        yield Group(layout, f"{NAME}/{name}", wanted)
    finally:
        cgroup.remove_group(layout, f"{NAME}/{name}")
        cgroup.remove_group(layout, NAME)


@contextmanager
def running(group: Group, program: str) -> Iterator[subprocess.Popen[str]]:
    """A Python program in ``group`` from its first instruction; it may print to us."""
    born, tasks = group.entrances()

    def enter() -> None:
        for fd in tasks:
            os.write(fd, b"0")
        if born is not None:
            procs = os.open("cgroup.procs", os.O_WRONLY, dir_fd=born)
            os.write(procs, b"0")
            os.close(procs)

    command = [sys.executable, "-I", "-c", program]
    with subprocess.Popen(command, preexec_fn=enter, stdout=subprocess.PIPE, text=True) as process:  # noqa: PLW1509
        for fd in (*tasks, *([born] if born is not None else [])):
            os.close(fd)
        yield process
        process.kill()


def spin(seconds: float) -> str:
    return f"import time\nend = time.monotonic() + {seconds}\nwhile time.monotonic() < end: pass\n"


@pytest.mark.parametrize("kind", KINDS)
def test_a_fraction_of_a_cpu_is_all_that_is_used(kind: str) -> None:
    with real(kind, Resources(cpus=0.25)) as group, running(group, spin(1)) as process:
        process.wait(20)
        stats = group.stats()
    assert stats.cpu_seconds is not None
    assert 0.1 < stats.cpu_seconds < 0.5
    assert stats.throttled_periods
    assert stats.throttled_seconds
    assert stats.cpu_user_seconds is not None
    assert stats.cpu_system_seconds is not None


@pytest.mark.parametrize("kind", KINDS)
def test_who_exceeds_memory_is_killed_and_counted(kind: str) -> None:
    program = "x = bytearray(1 << 29)\nfor i in range(0, len(x), 4096): x[i] = 1\n"
    wanted = Resources(memory=32 << 20, memory_swap=32 << 20)
    with real(kind, wanted) as group, running(group, program) as process:
        assert process.wait(20) == -signal.SIGKILL
        stats = group.stats()
    assert stats.oom_kills == 1
    assert stats.memory_limit_bytes == 32 << 20
    assert stats.memory_peak_bytes is None or stats.memory_peak_bytes <= 32 << 20


@pytest.mark.parametrize("kind", KINDS)
def test_no_more_processes_than_allowed(kind: str) -> None:
    program = (
        "import os, time\nforked = 0\ntry:\n"
        "    while True:\n"
        "        if os.fork() == 0: time.sleep(1000)\n"
        "        forked += 1\n"
        "except BlockingIOError: print(forked, flush=True); time.sleep(1000)\n"
    )
    with real(kind, Resources(pids=5)) as group, running(group, program) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "4\n"
        stats = group.stats()
        assert (stats.pids, stats.pids_limit) == (5, 5)
        assert len(group.members()) == 5
        group.remove()
        assert process.wait(5) == -signal.SIGKILL


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_group_stands_still_and_goes_on(kind: str) -> None:
    program = "import os, time\nos.fork()\nwhile True: print('x', flush=True); time.sleep(0.001)\n"
    with real(kind, Resources()) as group, running(group, program) as process:
        assert process.stdout is not None
        process.stdout.read(100)
        group.freeze()
        assert group.frozen()
        os.set_blocking(process.stdout.fileno(), False)
        while process.stdout.buffer.read(1 << 20):
            continue
        time.sleep(0.1)
        assert process.stdout.buffer.read(1 << 20) is None, "somebody printed"
        group.thaw()
        assert not group.frozen()
        os.set_blocking(process.stdout.fileno(), True)
        assert len(process.stdout.buffer.read(100)) == 100
        group.thaw()


@pytest.mark.parametrize("kind", KINDS)
def test_a_group_that_forks_without_end_is_frozen_and_removed(kind: str) -> None:
    program = (
        "import os\nwhile True:\n    try:\n"
        "        if os.fork() == 0: os.fork() or os._exit(0)\n        else: os._exit(0)\n"
        "    except BlockingIOError: pass\n"  # the limit, where process 1 is slow to reap: the last may not die of it
    )
    with real(kind, Resources(pids=200)) as group, running(group, program):
        time.sleep(0.05)
        group.freeze()
        assert group.frozen()
        assert group.members() == group.members() != []
        group.remove()
        with pytest.raises(HostError):
            Group.existing(layouts()[kind], group.name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_group_is_removed_by_another_process(kind: str) -> None:
    with real(kind, Resources()) as group, running(group, "import time; time.sleep(1000)") as process:
        time.sleep(0.05)
        group.freeze()
        found = Group.existing(layouts()[kind], group.name)
        assert found.frozen()
        assert found.members() == [process.pid]
        cgroup.remove_group(layouts()[kind], group.name)
        assert process.wait(5) == -signal.SIGKILL


@pytest.mark.parametrize("kind", KINDS)
def test_limits_change_in_both_directions_while_it_runs(kind: str) -> None:
    with real(kind, Resources(memory=64 << 20, memory_swap=64 << 20)) as group:
        for memory in (256 << 20, 32 << 20):
            group.update(Resources(memory=memory, memory_swap=memory))
            assert group.stats().memory_limit_bytes == memory
        with running(group, "import time; time.sleep(1000)") as process:
            group.update(Resources(pids=9, cpus=0.5))
            assert group.stats().pids_limit == 9
            assert group.stats().pids == 1, "whoever ran already is counted"
            assert group.stats().memory_limit_bytes == 32 << 20, "what was not named stays"
            assert process.poll() is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_set_of_cpus_is_all_that_is_seen(kind: str) -> None:
    if layouts().get(kind, Layout(())).holding("cpuset") is None:
        pytest.skip("no cpuset controller here")
    first = min(os.sched_getaffinity(0))
    program = "import os; print(os.sched_getaffinity(0), flush=True)"
    with real(kind, Resources(cpuset_cpus=str(first))) as group, running(group, program) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"{{{first}}}\n"


@pytest.mark.parametrize("kind", KINDS)
def test_many_groups_come_and_go_without_a_trace(kind: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for number in range(50):
        with real(kind, Resources(cpus=1.5, memory=1 << 26, memory_swap=1 << 26, pids=10), f"n{number}") as group:
            born, tasks = group.entrances()
            for fd in (*tasks, *([born] if born is not None else [])):
                os.close(fd)
    assert len(os.listdir("/proc/self/fd")) == before
    assert not any(os.path.exists(each.group(NAME)) for each in layouts()[kind].hierarchies)


def test_the_modules_on_the_way_of_a_start_are_light() -> None:
    root = str(Path(__file__).resolve().parents[2])
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import runtimes.container.cgroup\n"
        "print([name for name in ('collections', 'contextlib', 'ctypes', 'dataclasses', 'enum', 'functools', 'json',"
        " 'pathlib', 're', 'signal', 'socket', 'subprocess', 'typing') if name in sys.modules])\n"
    )
    ended = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program, root], capture_output=True, text=True, check=False
    )
    assert ended.stdout == "[]\n", ended.stderr
