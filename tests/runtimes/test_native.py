"""The native driver: a bare process, with root and without."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_tree import Rig, make_tree, needs_root, open_rig

from bench.errors import InstanceError
from bench.model import Limits
from runtimes.native import NativeDriver

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with open_rig(NativeDriver, tmp_path) as opened:
        yield opened


@needs_root
def test_it_shares_everything_with_the_host_but_the_mounts(rig: Rig) -> None:
    kinds = ("mnt", "pid", "net", "ipc", "uts", "cgroup", "user")
    inside = rig.output("; ".join(f"stat -L -c %i /proc/self/ns/{kind}" for kind in kinds))
    host = [str(os.stat(f"/proc/self/ns/{kind}").st_ino) for kind in kinds]
    assert [kind for kind, one, other in zip(kinds, inside, host, strict=True) if one != other] == ["mnt"]


@needs_root
def test_it_runs_on_as_many_cpus_as_it_was_granted(rig: Rig) -> None:
    assert rig.output("nproc", limits=Limits(cpus=1)) == ["1"]
    assert rig.output("nproc", limits=Limits(cpus=1000)) == [str(len(os.sched_getaffinity(0)))]


@needs_root
def test_the_root_is_read_only_and_the_usual_places_are_not(rig: Rig) -> None:
    script = "for d in / /etc /isomark /tmp /run /isomark/scratch; do touch $d/x 2>/dev/null && echo $d; done; true"
    assert rig.output(script) == ["/tmp", "/run", "/isomark/scratch"]


@needs_root
def test_an_image_without_a_mount_point_is_refused_by_name(rig: Rig) -> None:
    (rig.tree / "run").rmdir()
    with pytest.raises(InstanceError, match=r"cannot mount /run: No such file or directory") as caught:
        rig.start("/bin/true")
    assert "directory of that name" in caught.value.hint


@needs_root
@pytest.mark.parametrize("point", ["proc", "dev", "tmp", "run", "sys", "isomark"])
def test_a_mount_point_that_is_a_symbolic_link_is_refused(rig: Rig, point: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "scratch").mkdir(parents=True)
    subprocess.run(["rm", "-r", str(rig.tree / point)], check=True)
    (rig.tree / point).symlink_to(outside)
    with pytest.raises(InstanceError, match="Too many levels of symbolic links"):
        rig.start("/bin/true")
    assert [path.name for path in outside.rglob("*")] == ["scratch"]


def test_it_says_that_its_limits_are_not_enforced(tmp_path: Path) -> None:
    with open_rig(NativeDriver, tmp_path) as rig:
        described = rig.driver.describe()
        assert "memory, processes and disk are not enforced" in described["parity"]


@needs_root
def test_without_root_it_works_in_a_user_namespace(tmp_path: Path) -> None:
    python = shutil.which("python3", path="/usr/bin")  # this one may lie where only root can read
    if python is None:
        pytest.skip("needs Debian's python3")
    for room in ("bench", "runtimes"):
        shutil.copytree(ROOT / room, tmp_path / "code" / room, ignore=shutil.ignore_patterns("__pycache__"))
    tree = make_tree(tmp_path / "tree")
    state = tmp_path / "state"
    state.mkdir()
    os.chown(state, 65534, 65534)
    for directory in (tmp_path, *list(tmp_path.parents)[:2]):
        directory.chmod(0o755)
    script = f"""
import sys; sys.path.insert(0, {str(tmp_path / "code")!r})
from pathlib import Path
from bench.driver import Lab, Launch
from bench.journal import Journal
from bench.model import Limits, WorkloadImage
from runtimes.native import NativeDriver
state = Path({str(state)!r})
(state / "scratch").mkdir()
with Journal(state / "owned") as journal:
    driver = NativeDriver(Lab(state, state / "scratch", journal, None))
    driver.check()
    image = driver.build(WorkloadImage("small", "sha256:0", state, Path({str(tree)!r}), 1, 2, 3))
    script = "id -u; echo x > /isomark/scratch/x && cat /isomark/scratch/x; touch /etc/x || echo refused; sleep 1000 &"
    with driver.start(image, Launch("t", ("/bin/sh", "-c", script), {{"PATH": "/bin"}}, Limits(), None)) as instance:
        print([line.text for line in instance.lines(30)], list(instance.tail)[-1], driver.describe()["namespaces"])
    print(list((state / "scratch").iterdir()))
    driver.close()
"""
    ended = subprocess.run(
        [python, "-c", script], user=65534, group=65534, extra_groups=[], capture_output=True, text=True,
        check=False, cwd="/", env={"PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    if "allow user namespaces" in ended.stderr:
        pytest.skip("the kernel grants no user namespaces")
    assert ended.returncode == 0, ended.stderr
    first, second = ended.stdout.splitlines()
    assert first == ("['0', 'x', 'touch: /etc/x: Read-only file system', 'refused'] [exited with status 0] user, mount")
    assert second == "[]"
