"""Containers with clocks of their own (--timens private), which begin at 0."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_rig import Engine, needs_root, open_engine

pytestmark = [
    needs_root,
    pytest.mark.skipif(not Path("/proc/self/ns/time").exists(), reason="needs a kernel with CONFIG_TIME_NS"),
]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with open_engine(tmp_path_factory.mktemp("clocks")) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _clear(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    request.getfixturevalue("engine").clear()


def uptime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def seconds(text: str) -> float:
    """The first number of /proc/uptime."""
    return float(text.split(maxsplit=1)[0])


@pytest.mark.parametrize("users", ["host", "private"])
def test_its_uptime_begins_at_0(engine: Engine, users: str) -> None:
    before = uptime()
    inside = seconds(engine.out("--timens", "private", "--userns", users, "busy", "cat", "/proc/uptime"))
    assert 0 <= inside <= uptime() - before + 1


def test_by_default_it_is_the_hosts(engine: Engine) -> None:
    before = uptime()
    assert before - 1 <= seconds(engine.out("busy", "cat", "/proc/uptime")) <= uptime()
    assert engine.out("busy", "readlink", "/proc/self/ns/time") == os.readlink("/proc/self/ns/time")


def test_exec_sees_the_same_clock(engine: Engine) -> None:
    before = uptime()
    ident = engine.start("--timens", "private", "--userns", "private", "busy", "sleep", "100")
    first, second = (seconds(engine.done("exec", ident, "cat", "/proc/uptime")) for _ in range(2))
    assert 0 <= first <= second <= uptime() - before + 1
    pid = engine.inspect(ident)["State"]["Pid"]
    assert engine.done("exec", ident, "readlink", "/proc/self/ns/time") == os.readlink(f"/proc/{pid}/ns/time")
    assert os.readlink(f"/proc/{pid}/ns/time") != os.readlink("/proc/self/ns/time")


def test_each_start_begins_anew(engine: Engine) -> None:
    ident = engine.start("--timens", "private", "busy", "sleep", "100")
    time.sleep(1.5)
    before = uptime()
    engine.done("restart", "-t", "0", ident)
    assert seconds(engine.done("exec", ident, "cat", "/proc/uptime")) <= uptime() - before + 1


def test_inspect_tells(engine: Engine) -> None:
    assert engine.inspect(engine.start("--timens", "private", "busy", "true"))["HostConfig"]["TimensMode"] == "private"
    assert engine.inspect(engine.start("busy", "true"))["HostConfig"]["TimensMode"] == "host"


def test_a_wrong_word_is_refused(engine: Engine) -> None:
    ended = engine.run("--timens", "mine", "busy", "true")
    assert (ended.returncode, "neither host nor private" in ended.stderr) == (125, True)


def test_a_container_of_before_there_was_the_option_starts(engine: Engine) -> None:
    ident = engine.start("busy", "true")
    path = engine.state / "containers" / ident / "config.json"
    config = json.loads(path.read_text())
    del config["namespaces"]["timens"]
    path.write_text(json.dumps(config))
    engine.done("start", ident)
