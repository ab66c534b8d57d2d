"""``--timing``: what each step of a container's start took, and how the steps follow what is asked for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import pytest
from engine_rig import Engine, needs_root, open_engine, until

pytestmark = needs_root

ROUNDING_MS = 0.0021
"""Of two printed numbers that are added and compared with a third."""


class Step(NamedTuple):
    begin_ms: float
    took_ms: float
    process: str
    name: str


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with open_engine(tmp_path_factory.mktemp("timing")) as opened:
        yield opened
        opened.clear()
        until(lambda: not opened.leftovers(), "the bridge that nobody uses is gone")


@pytest.fixture(autouse=True)
def _clear(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    request.getfixturevalue("engine").clear()


def steps_of(table: str) -> tuple[list[Step], float]:
    """The rows of a table, and the whole time in milliseconds."""
    head, *lines, last = table.splitlines()
    assert head.split() == ["begin", "ms", "took", "ms", "process", "step"]
    found = [re.fullmatch(r" *([\d.]+) +([\d.]+)  (\w+) +(.+)", line) for line in lines]
    whole, who, what = last.split(maxsplit=2)
    assert (who, what) == ("container", "its command runs")
    return [Step(float(row[1]), float(row[2]), row[3], row[4]) for row in found if row], float(whole)


def run(engine: Engine, *arguments: str) -> tuple[list[Step], float]:
    ended = engine("run", "--rm", "--timing", *arguments, "busy", "echo", "out")
    assert (ended.returncode, ended.stdout) == (0, "out\n"), ended.stderr
    return steps_of(ended.stderr)


def names(steps: list[Step]) -> str:
    return "\n".join(step.name for step in steps)


@pytest.mark.parametrize("options", [(), ("--userns", "private"), ("--timens", "private")])
def test_the_steps_of_each_process_follow_each_other_without_a_gap(engine: Engine, options: tuple[str, ...]) -> None:
    steps, whole = run(engine, "--network", "none", *options)
    assert [step.begin_ms for step in steps] == sorted(step.begin_ms for step in steps)
    for process in ("command", "monitor", "container"):
        own = [step for step in steps if step.process == process]
        assert len(own) > 3
        for one, following in pairwise(own):
            assert one.begin_ms + one.took_ms == pytest.approx(following.begin_ms, abs=ROUNDING_MS)
        assert own[-1].begin_ms + own[-1].took_ms == pytest.approx(whole, abs=ROUNDING_MS)
    assert steps[0].begin_ms == 0
    began = {step.process: step.begin_ms for step in reversed(steps)}
    assert 0 < began["monitor"] < began["container"] < whole


def test_every_part_of_isolation_has_its_step(engine: Engine) -> None:
    steps, _ = run(engine)
    for name in ("find the image", "write the container", "fork its monitor", "make its cgroups", "enter its cgroups",
                 "plan its network", "connect its network", "set up its network interface",
                 "create its process in its namespaces", "mount its root (overlay", "mount /proc", "hide /proc/acpi",
                 "enter its root", "limit what it may gain", "drop its capabilities", "filter its system calls",
                 "run echo"):  # fmt: skip
        assert name in names(steps)


def test_what_is_switched_off_has_no_step(engine: Engine) -> None:
    steps, _ = run(engine, "--network", "none", "--security", "off")
    for name in ("network", "filter its system calls", "limit what it may gain", "hide /proc", "protect /proc"):
        assert name not in names(steps)
    assert "become root of its user namespace" not in names(steps)
    steps, _ = run(engine, "--network", "none", "--userns", "private")
    assert "become root of its user namespace" in names(steps)


def test_the_table_comes_with_detach_and_with_start_and_only_if_asked_for(engine: Engine) -> None:
    detached = engine("run", "-d", "--timing", "--network", "none", "--name", "it", "busy", "sleep", "100")
    assert "run sleep" in names(steps_of(detached.stderr)[0])
    engine.done("stop", "-t", "0", "it")
    started = engine("start", "--timing", "it")
    steps, _ = steps_of(started.stderr)
    assert (started.stdout, steps[0].name) == ("it\n", "find the container")
    assert "find the image" not in names(steps)
    assert engine.run("busy", "true").stderr == ""


def test_a_start_that_fails_has_an_error_and_no_table(engine: Engine) -> None:
    ended = engine.run("--timing", "busy", "no-such-program")
    assert (ended.returncode, "its command runs" in ended.stderr) == (127, False)
