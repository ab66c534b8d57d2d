"""What doctor tells of the engine: every feature tried, nothing left, and an absent one told with its remedy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_tree import needs_root

from bench.driver import Finding
from bench.state import journal_directory
from runtimes import features, probes
from runtimes.container.hierarchy import detect
from runtimes.features import LACKS, findings


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def found(state: Path) -> dict[str, Finding]:
    return {finding.subject: finding for finding in findings(state)}


def test_every_probe_has_an_answer_and_every_absence_a_remedy(found: dict[str, Finding]) -> None:
    assert probes.PROBES.keys() <= found.keys()
    assert probes.PROBES.keys() == LACKS.keys()
    for finding in found.values():
        assert finding.message
        assert finding.remedy or finding.severity == "ok", finding
    assert not [finding for finding in found.values() if "was not tried" in finding.message]


def test_nothing_is_left(found: dict[str, Finding], state: Path) -> None:
    assert found
    assert [path.name for path in state.rglob("*")] == ["owned"]
    assert not list(journal_directory(state).iterdir())
    for hierarchy in detect().hierarchies:
        groups = Path(hierarchy.top, "isomark").glob("*/probe-*")
        assert not [group for group in groups if str(os.getpid()) in group.name]
    assert "probe" not in Path("/proc/self/mountinfo").read_text()


@needs_root
def test_what_certainly_works_here_is_found_to_work(found: dict[str, Finding]) -> None:
    for name in ("mount namespace", "pid namespace", "overlayfs", "openat2", "clone3", "pidfd", "no_new_privs"):
        assert found[name].severity == "ok", found[name]


@needs_root
def test_each_controller_that_is_mounted_can_limit(found: dict[str, Finding]) -> None:
    layout = detect()
    for name in ("cpu", "memory", "pids", "cpuset"):
        held = layout.holding(name)
        assert (found[f"cgroup controller {name}"].severity == "ok") is (held is not None)
        if held is not None:
            assert f"version {held.version}" in found[f"cgroup controller {name}"].message


@needs_root
def test_an_absent_feature_is_told_with_what_is_lost(tmp_path: Path) -> None:
    """In a process without privilege and programs, most things fail, and none of them breaks the telling."""
    program = (
        "import os, sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from runtimes.features import findings\n"
        "state = Path(sys.argv[2]); state.chmod(0o777)\n"
        "os.environ['PATH'] = '/nowhere'\n"
        "from runtimes.security import capabilities\n"
        "capabilities.limit_bounding(0); capabilities.apply(capabilities.sets(0))\n"
        "for f in findings(state): print(f.severity, f.subject, f.message, f.remedy, sep='|')\n"
    )
    root = str(Path(features.__file__).parent.parent)
    ended = subprocess.run(
        [sys.executable, "-I", "-c", program, root, str(tmp_path)], capture_output=True, text=True, check=False
    )
    told = {row[1]: row for row in (line.split("|") for line in ended.stdout.splitlines())}
    assert told.keys() >= probes.PROBES.keys(), ended.stderr
    for name in ("mount namespace", "overlayfs", "nftables", "fuse-overlayfs", "device rules, version 1"):
        severity, _, message, remedy = told[name]
        assert severity == LACKS[name].severity
        assert LACKS[name].lost in message
        assert remedy == LACKS[name].remedy
    assert told["no_new_privs"][0] == told["openat2"][0] == "ok"


def test_a_state_directory_that_cannot_be_written_is_one_problem_with_a_remedy() -> None:
    (problem,) = [finding for finding in findings(Path("/proc/none")) if finding.severity == "problem"]
    assert problem.remedy


def test_a_probe_that_hangs_or_dies_is_an_absence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "PROBE_SECONDS", 0.2)

    def hang(_state: str) -> str:
        while True:
            os.read(os.pipe()[0], 1)

    def die(_state: str) -> str:
        os._exit(3)

    assert probes._isolated(hang, str(tmp_path))[1] == "gave no answer in 0.2 s"
    assert probes._isolated(die, str(tmp_path))[1] == "ended with 3 and no answer"
