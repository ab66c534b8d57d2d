from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def isomark(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench.cli", *arguments],
        capture_output=True, text=True, check=False, cwd=ROOT, timeout=120,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1", **environment},
    )  # fmt: skip


def test_help_names_every_command() -> None:
    ended = isomark("--help")
    assert ended.returncode == 0
    for command in ("doctor", "drivers", "workloads", "run", "report", "clean"):
        assert command in ended.stdout


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['isomark', '--help']\nfrom bench.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    print(*sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(ended.stdout.splitlines()[-1].split())
    heavy = {"pandas", "numpy", "scipy", "matplotlib", "libvirt", "lxml", "pyroute2", "pydantic", "jinja2", "psutil"}
    assert loaded & heavy == set()


@pytest.mark.parametrize(
    ("arguments", "told", "hint"),
    [
        (("run", "quik"), "there is no suite 'quik'", "did you mean 'quick'?"),
        (("run", "quick", "--drivers", "natve"), "there is no driver 'natve'", "did you mean 'native'?"),
        (("run", "quick", "--workloads", "dsk"), "there is no workload 'dsk'", "did you mean 'disk'?"),
        (("run", "quick", "--drivers", ","), "an empty list", "native,container"),
        (("run",), "either a suite or --resume", "isomark run quick"),
        (("run", "quick", "--resume", "x"), "either a suite or --resume", "isomark run quick"),
        (("run", "--resume", "x", "--trials", "3"), "everything from the result", "leave the other"),
        (("run", "./none.toml"), "cannot read the suite", "shipped: isolation, quick"),
        (("run", "quick", "--trials", "0"), "--trials", ""),
        (("frobnicate",), "No such command", ""),
    ],
)
def test_a_wrong_request_exits_2_and_says_what_would_be_right(
    arguments: tuple[str, ...], told: str, hint: str, tmp_path: Path
) -> None:
    ended = isomark(*arguments, ISOMARK_STATE=str(tmp_path))
    assert ended.returncode == 2, ended.stderr
    assert told in ended.stderr
    assert hint in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


def test_a_malformed_suite_is_told_with_every_fault(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text('name = "Bad Name"\ntitle = "x"\nworkloads = []\ndrivers = ["native"]\ntrails = 3\n')
    ended = isomark("run", str(path))
    assert ended.returncode == 2
    for line in ("line 1: name:", "line 3: workloads:", "line 5: trails:", "trials: Field required"):
        assert line in ended.stderr


def test_no_result_exits_1(tmp_path: Path) -> None:
    ended = isomark("report", str(tmp_path))
    assert ended.returncode == 1
    assert "no result folder" in ended.stderr


def test_a_result_folder_that_is_taken_exits_1_before_anything_is_built(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    ended = isomark("run", "quick", "--out", str(tmp_path), ISOMARK_STATE=str(tmp_path / "state"))
    assert ended.returncode == 1
    assert "not empty" in ended.stderr
    assert not (tmp_path / "state").exists()


def test_workloads_lists_metrics_and_suites() -> None:
    ended = isomark("workloads")
    assert ended.returncode == 0
    assert "cpu_events_per_second" in ended.stdout
    assert "quick" in ended.stdout


@pytest.mark.slow
def test_doctor_tells_every_driver_and_gives_each_problem_a_remedy() -> None:
    ended = isomark("doctor")
    assert ended.returncode == 0, ended.stderr
    for name in ("native", "container", "qemu", "kvm"):
        assert f"driver {name}" in ended.stdout


@pytest.mark.slow
def test_a_dry_run_prints_the_schedule_and_the_domain_and_starts_nothing(tmp_path: Path) -> None:
    ended = isomark("run", "quick", "--dry-run", "--seed", "7", "--trials", "1", "--drivers", "native,qemu")
    assert ended.returncode == 0, ended.stderr
    assert "seed 7" in ended.stdout
    assert ended.stdout.count("block 0") == 10 or "without qemu" in ended.stdout
    assert "<domain " in ended.stdout or "without qemu" in ended.stdout
    again = isomark("run", "quick", "--dry-run", "--seed", "7", "--trials", "1", "--drivers", "native,qemu")
    assert again.stdout.partition("# native")[0] == ended.stdout.partition("# native")[0]


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_without_root_what_cannot_run_says_why_and_the_rest_runs(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if parent.stat().st_uid == 0 and str(parent).startswith("/tmp/"):
            parent.chmod(0o755)
    os.chown(home, 65534, 65534)
    command = [sys.executable, "-m", "bench.cli", "drivers"]
    ended = subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *command],
        capture_output=True, text=True, check=False, cwd=ROOT, timeout=120,
        env={"PATH": os.environ["PATH"], "HOME": str(home), "COLUMNS": "200", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "driver container" in ended.stdout
    assert "root" in ended.stdout


def test_clean_with_nothing_to_clean_says_so(tmp_path: Path) -> None:
    ended = isomark("clean", ISOMARK_STATE=str(tmp_path))
    assert ended.returncode == 0
    assert "0 removed, 0 not" in ended.stdout


def test_a_forked_helper_that_is_ended_does_not_unwind_the_run() -> None:
    code = """
import os, signal, time
import bench.cli.app
def app():
    try:
        child = os.fork()
        while child == 0:
            time.sleep(0.01)
        time.sleep(0.2)
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)
    finally:
        print('removed by', os.getpid(), flush=True)
bench.cli.app.app = app
bench.cli.app.main()
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, timeout=30
    )
    assert ended.stdout.count("removed by") == 1
