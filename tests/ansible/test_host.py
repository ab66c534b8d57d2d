"""The description of a lab host, and the scripts and pins that lead to it."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bench import doctor
from bench.state import state_directory
from vms import host

ROOT = Path(__file__).parents[2]
PLAYBOOK = ROOT / "ansible" / "host.yml"
PINS = (ROOT / "constraints.txt").read_text()
ENTRY = re.compile(r"^(?P<name>[a-z0-9-]+)==(?P<version>[^ ;\\]+)(?P<rest>.*\n(?: .*\n)*)", re.MULTILINE)
BOOTSTRAPPED = (ROOT / ".venv" / "stamp-host-test").exists()
"""Whether script/test (or script/bootstrap --test) has set up this host from this clone."""


def _run(*command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run one of the environment's own programs, or another, with the environment's first on the path."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    program = shutil.which(command[0], path=path)
    if program is None:
        pytest.skip(f"{command[0]} is not installed: script/test does that")
    environment = os.environ | {"PATH": path, "ANSIBLE_CONFIG": str(ROOT / "ansible" / "ansible.cfg")} | variables
    return subprocess.run(
        [program, *command[1:]], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def _shell_scripts() -> list[str]:
    candidates = [path for folder in ("script", ".ci", "bench", "vms") for path in (ROOT / folder).rglob("*")]
    files = [path for path in candidates if path.is_file() and "__pycache__" not in path.parts]
    return sorted(str(path.relative_to(ROOT)) for path in files if re.match(rb"#!/bin/(ba)?sh\b", path.read_bytes()))


def _requirements() -> list[Requirement]:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = pyproject["project"]
    extras = [line for extra in project["optional-dependencies"].values() for line in extra]
    return [Requirement(line) for line in [*pyproject["build-system"]["requires"], *project["dependencies"], *extras]]


@pytest.mark.slow
def test_the_playbook_meets_the_strictest_profile_of_ansible_lint() -> None:
    ended = _run("ansible-lint", "--offline", "--profile", "production", "--strict", "ansible")
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.slow
def test_the_playbook_parses() -> None:
    ended = _run("ansible-playbook", "--inventory", "localhost,", "--syntax-check", PLAYBOOK)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_the_playbook_installs_every_program_that_isomark_misses_when_absent() -> None:
    variables = yaml.safe_load((PLAYBOOK.parent / "group_vars" / "all.yml").read_text())
    needed = {package for package, _ in doctor.PROGRAMS.values()} | set(host.PROGRAMS.values())
    assert needed <= set(variables["isomark_packages"])


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="playing the host's description needs root")
@pytest.mark.skipif(not BOOTSTRAPPED, reason="script/bootstrap --test has not set up this host from here")
def test_a_host_that_was_set_up_is_not_changed_by_playing_again() -> None:
    local = ["--inventory", "localhost,", "--connection", "local"]
    variables = f"isomark_state={state_directory()} ansible_python_interpreter={sys.executable}"
    ended = _run("ansible-playbook", *local, "--extra-vars", variables, PLAYBOOK)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert re.search(r"changed=0 .* failed=0", ended.stdout), ended.stdout


@pytest.mark.skipif(not BOOTSTRAPPED, reason="script/bootstrap --test has not set up this host from here")
def test_a_second_bootstrap_finds_nothing_to_do() -> None:
    ended = _run(ROOT / "script" / "bootstrap", "--test")
    assert (ended.returncode, "ready after" in ended.stderr) == (0, False), ended.stderr


def test_the_shell_scripts_satisfy_shellcheck() -> None:
    # A payload's ../lib.sh is one directory further up here than in the image.
    ended = _run("shellcheck", "--external-sources", "--source-path", "SCRIPTDIR/..", *_shell_scripts())
    assert ended.returncode == 0, ended.stdout


def test_what_the_readme_names_can_be_executed_by_anyone() -> None:
    scripts = [ROOT / "script" / name for name in ("bootstrap", "run", "test", "constraints")]
    assert all(path.stat().st_mode & 0o555 == 0o555 for path in [*scripts, ROOT / ".ci" / "run"])


@pytest.mark.parametrize(
    ("arguments", "variables", "expected"),
    [
        (["--bad"], {}, "unknown argument --bad"),
        ([], {"ISOMARK_STATE": "here"}, "ISOMARK_STATE=here is not an absolute path"),
    ],
)
def test_a_bootstrap_asked_wrongly_says_so_in_a_line_and_a_hint(
    arguments: list[str], variables: dict[str, str], expected: str
) -> None:
    ended = _run(ROOT / "script" / "bootstrap", *arguments, **variables)
    error, hint = ended.stderr.splitlines()
    assert ended.returncode == 1
    assert expected in error
    assert hint.startswith("  hint: ")


@pytest.mark.parametrize("requirement", _requirements(), ids=lambda requirement: requirement.name)
def test_every_requirement_has_a_pin_within_its_bounds(requirement: Requirement) -> None:
    pinned = {match["name"]: match["version"] for match in ENTRY.finditer(PINS)}
    assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)])


def test_every_pin_has_hashes_and_stands_once() -> None:
    entries = list(ENTRY.finditer(PINS))
    names = [entry["name"] for entry in entries]
    assert len(names) == len(set(names)) == len(re.findall(r"^[^ #\n]", PINS, re.MULTILINE))
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}\n", entry["rest"]) for entry in entries)


def test_the_pins_name_no_address() -> None:
    lines = [line for line in PINS.splitlines() if not line.startswith("#")]
    options = {word.partition("=")[0] for line in lines for word in line.split() if word.startswith("-")}
    assert options == {"--hash"}
    assert not [line for line in PINS.splitlines() if "://" in line or " @ " in line or re.search(r"(^|\s)/\w", line)]


@pytest.mark.skipif(Path(sys.prefix) != ROOT / ".venv", reason="not the environment of script/bootstrap")
def test_the_environment_holds_exactly_the_pinned_versions() -> None:
    expected = {entry["name"]: entry["version"] for entry in ENTRY.finditer(PINS) if ";" not in entry["rest"]}
    assert {name: importlib.metadata.version(name) for name in expected} == expected
