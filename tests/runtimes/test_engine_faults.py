"""Things around the engine are wrong: damaged records, planted links, dead monitors, absurd wishes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from engine_rig import Engine, cgroups_of, needs_root, open_engine, until

from runtimes.engine.process import start_ticks

pytestmark = needs_root

DAMAGED = {
    "empty": b"",
    "cut off": b'{"name": "x", "st',
    "no object": b"[1, 2]",
    "no text": b"\xff\xfe\x00{}",
    "too deep": b"[" * 200_000,
    "without what it must have": b'{"name": "x"}',
    "of other types": b'{"status": 5, "process": "x", "monitor": [], "journal": 7, "name": []}',
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with open_engine(tmp_path_factory.mktemp("faults")) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _clear(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    request.getfixturevalue("engine").clear()


def reason(ended: subprocess.CompletedProcess[str]) -> str:
    """The one line that a failed command says, which a hint may follow."""
    assert ended.returncode != 0
    lines = ended.stderr.splitlines()
    assert lines, "it says nothing"
    assert lines[0].startswith("isomark: "), ended.stderr
    assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("  hint: ")), ended.stderr
    return lines[0]


def home(engine: Engine, ident: str) -> Path:
    return engine.state / "containers" / ident


def clean(engine: Engine) -> str:
    ended = engine(group="clean")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


# records


@pytest.mark.parametrize("record", ["config.json", "state.json"])
@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_record_is_told_and_can_be_removed(engine: Engine, record: str, damage: str) -> None:
    whole = engine.done("create", "--name", "whole", "busy", "true")
    ident = engine.done("create", "--name", "broken", "-v", "/data", "busy", "true")
    (home(engine, ident) / record).write_bytes(DAMAGED[damage])
    listed = engine("ps", "-aq", "--no-trunc")
    assert (listed.returncode, listed.stdout) == (0, f"{whole}\n")
    assert record in listed.stderr
    assert "Traceback" not in listed.stderr
    for arguments in (
        ("inspect", "broken"),
        ("start", "broken"),
        ("exec", "broken", "true"),
        ("cp", "broken:/etc/passwd", "-"),
        ("port", "broken"),
    ):
        assert record in reason(engine(*arguments))
    for command in ("logs", "stop", "wait", "top", "kill"):
        assert "Traceback" not in engine(command, "broken").stderr
    assert engine.done("rm", "-f", "broken") == "broken"
    assert engine.ids() == [whole]
    assert not home(engine, ident).exists()
    assert [path.name for path in (engine.state / "containers/names").iterdir()] == ["whole"]
    assert engine.done("ls", "-q", group="volume") == ""


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_running_container_whose_record_was_damaged_can_be_removed(engine: Engine, damage: str) -> None:
    ident = engine.start("--name", "broken", "busy", "sleep", "1000")
    monitor = engine.monitor(ident)
    for record in ("config.json", "state.json"):
        (home(engine, ident) / record).write_bytes(DAMAGED[damage])
    assert engine.done("rm", "-f", "broken") == "broken"
    until(lambda: start_ticks(monitor) is None, "its monitor is gone")
    assert cgroups_of(ident) == []


def test_damaged_journals_do_not_keep_clean_from_its_work(engine: Engine) -> None:
    ident = engine.start("busy", "sleep", "1000")
    os.kill(engine.monitor(ident), signal.SIGKILL)
    owned = engine.state / "owned"
    lines = [
        *DAMAGED.values(),
        b"5",
        b'{"own": [], "kind": {}}',
        b'{"own": 1, "kind": "directory", "what": 5}',
        b'{"gone": {}}',
        b'{"owner": {"id": 1, "pid": "../../etc/passwd", "start_ticks": [], "boot_id": null}}',
    ]
    for number, line in enumerate(lines):
        (owned / f"{number:08x}.jsonl").write_bytes(line + b"\n")
        (owned / f"0{number:07x}-all.jsonl").write_bytes(b"\n".join(lines[number:]) + b"\n")
    clean(engine)
    assert engine.status(ident) == "exited"
    engine.done("rm", ident)
    assert engine.leftovers() == []


def test_clean_removes_what_dead_writers_left_in_the_image_store(engine: Engine) -> None:
    store = engine.state / "images"
    dead = [store / "ingest" / "half", store / "leases" / "dead", engine.state / "trees" / ".publishing-x"]
    for path in dead:
        path.write_text("sha256:0\n")
    half = store / "partial" / "sha256-0"
    half.write_text("it is gone on with")
    clean(engine)
    assert [path for path in dead if path.exists()] == []
    assert half.exists()
    half.unlink()


# planted links


def test_links_planted_among_the_names_lead_nowhere(engine: Engine, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "config.json").write_text('{"name": "evil"}')
    names = engine.state / "containers/names"
    for name, target in (("up", "../../.."), ("abroad", str(victim)), ("empty", "."), ("long", "x" * 300)):
        (names / name).symlink_to(target)
    (names / "file").write_text("no link")
    (names / "folder").mkdir()
    for name in ("up", "abroad", "empty", "long", "file", "folder"):
        assert "there is no container" in engine("rm", "-f", name).stderr
        assert "there is no container" in reason(engine("inspect", name))
    for name in ("up", "abroad", "empty", "long"):
        assert engine.run("--name", name, "busy", "true").returncode == 0  # what leads nowhere holds no name
    assert "taken" in reason(engine("create", "--name", "file", "busy"))
    (names / "file").unlink()
    (names / "folder").rmdir()
    assert (victim / "config.json").exists()


@pytest.mark.parametrize("part", ["root", "log", "crash", "monitor", "state.json", "socket", "hosts"])
def test_a_link_in_a_containers_directory_is_not_followed(engine: Engine, tmp_path: Path, part: str) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "precious").write_text("untouched")
    ident = engine.done(
        "create", "--name", "linked", "--network", "none", "busy", "sh", "-c", "echo out; echo x >/precious"
    )
    target = home(engine, ident) / part
    is_directory = target.is_dir()
    if is_directory:
        subprocess.run(["rm", "-r", str(target)], check=True)
    target.unlink(missing_ok=True)
    target.symlink_to(victim if is_directory else victim / "precious")
    started = engine("start", "-a", "linked")
    assert "Traceback" not in started.stderr
    engine.done("rm", "-f", "linked")
    assert (victim / "precious").read_text() == "untouched"
    assert [path.name for path in victim.iterdir()] == ["precious"]


def test_a_container_that_is_a_link_is_none(engine: Engine, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    ident = engine.done("create", "--name", "real", "busy")
    for path in home(engine, ident).iterdir():
        path.rename(victim / path.name)
    home(engine, ident).rmdir()
    home(engine, ident).symlink_to(victim)
    engine("rm", "-f", "real")
    assert (victim / "config.json").exists()
    home(engine, ident).unlink(missing_ok=True)
    clean(engine)
    (engine.state / "containers/names/real").unlink(missing_ok=True)


# monitors


def test_without_its_socket_a_container_can_still_be_removed(engine: Engine) -> None:
    ident = engine.start("--name", "deaf", "busy", "sleep", "1000")
    (home(engine, ident) / "socket").unlink()
    assert "does not answer" in reason(engine("stop", "deaf"))
    assert "does not answer" in reason(engine("kill", "deaf"))
    assert engine.status("deaf") == "running"
    engine.done("rm", "-f", "deaf")
    until(lambda: not engine.processes(), "its monitor is gone")
    assert engine.leftovers() == []


def test_a_monitor_that_can_open_no_more_files_keeps_its_container(engine: Engine) -> None:
    ident = engine.start("--name", "busy", "busy", "sleep", "1000")
    monitor = engine.monitor(ident)
    opened = len(os.listdir(f"/proc/{monitor}/fd"))
    subprocess.run(["prlimit", f"--pid={monitor}", f"--nofile={opened + 24}"], check=True)
    directory = os.open(home(engine, ident), os.O_PATH)
    clients = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(40)]
    for client in clients:
        client.connect(f"/proc/self/fd/{directory}/socket")
    with pytest.raises(subprocess.TimeoutExpired):
        engine("exec", "-d", "busy", "true", timeout=1)
    assert engine.status("busy") == "running"
    for client in clients[:-23]:
        client.close()
    assert "too many open files" in reason(engine("exec", "-d", "busy", "true")).lower()
    for client in clients[-23:]:
        client.close()
    engine.done("exec", "-d", "busy", "true")
    engine.done("rm", "-f", "busy")
    os.close(directory)


@pytest.mark.parametrize("way", ["rm", "clean", "start"])
def test_a_frozen_container_whose_monitor_was_killed_is_removed(engine: Engine, way: str) -> None:
    ident = engine.start("--name", "frozen", "busy", "sh", "-c", "sleep 1000 & sleep 1000")
    pid = engine.inspect(ident)["State"]["Pid"]
    engine.done("pause", ident)
    os.kill(engine.monitor(ident), signal.SIGKILL)
    if way == "rm":
        engine.done("rm", "-f", "frozen")
    elif way == "clean":
        clean(engine)
        assert engine.status("frozen") == "exited"
        assert engine.inspect("frozen")["State"]["ExitCode"] == 137
    else:
        engine.done("start", "frozen")
        assert engine.inspect(ident)["State"]["Pid"] != pid
        engine.done("kill", "frozen")
    until(lambda: start_ticks(pid) is None, "its process is gone")
    engine("rm", "-f", "frozen")
    assert cgroups_of(ident) == []


def test_a_container_whose_directory_was_removed_by_hand_leaves_nothing(engine: Engine) -> None:
    ident = engine.start("--name", "lost", "busy", "sleep", "1000")
    monitor, pid = engine.monitor(ident), engine.inspect(ident)["State"]["Pid"]
    subprocess.run(["rm", "-rf", str(home(engine, ident))], check=True)
    assert "there is no container" in reason(engine("stop", "lost"))
    assert engine.done("ps", "-aq") == ""
    os.kill(pid, signal.SIGKILL)
    until(lambda: start_ticks(monitor) is None, "its monitor is gone")
    clean(engine)
    assert engine.leftovers() == []
    assert cgroups_of(ident) == []
    assert engine.run("--name", "lost", "busy", "true").returncode == 0


def test_several_cleans_at_once_do_the_work_once(engine: Engine) -> None:
    idents = [engine.start("--name", f"dead{number}", "busy", "sleep", "1000") for number in range(4)]
    idents += [engine.start("--rm", "busy", "sleep", "1000") for _ in range(2)]
    for ident in idents:
        os.kill(engine.monitor(ident), signal.SIGKILL)
    with ThreadPoolExecutor(4) as pool:
        told = list(pool.map(lambda _: clean(engine), range(4)))
    assert all(", 0 not" in text for text in told)
    assert sorted(engine.done("ps", "-a", "--format", "{{.Names}}").split()) == ["dead0", "dead1", "dead2", "dead3"]
    assert all(cgroups_of(ident) == [] for ident in idents)


def test_running_out_of_memory_is_told_and_leaves_nothing(engine: Engine) -> None:
    eats = ("--memory", "16m", "busy", "tail", "-c", "99999999", "/dev/zero")
    ended = engine.run(*eats)
    assert ended.returncode == 137
    assert reason(ended) == "isomark: out of memory: the limit is 16MiB"
    assert engine.leftovers() == []
    engine("run", "--name", "eater", "--network", "none", *eats)
    state = engine.inspect("eater")["State"]
    assert (state["OOMKilled"], state["ExitCode"], state["Status"]) == (True, 137, "exited")
    assert "(137, out of memory)" in engine.done("ps", "-a")


# absurd wishes


def test_a_limit_that_the_kernel_refuses_leaves_no_cgroup(engine: Engine) -> None:
    ident = engine.done("create", "--cpuset-cpus", "4096", "--network", "none", "busy", "true")
    assert "4096" in reason(engine("start", ident))
    assert cgroups_of(ident) == []


@pytest.mark.parametrize("name", ["../x", "..", ".", "a/b", "/etc", "a\nb", "-rf", "x" * 129, "f" * 64, "\udcff"])
def test_what_cannot_be_a_name_is_refused(engine: Engine, name: str) -> None:
    assert "name" in reason(engine("create", f"--name={name}", "busy"))
    assert name.startswith("-") or "name" in reason(engine("create", name, group="volume"))
    assert engine.ids() == []


def test_an_environment_and_arguments_of_any_size_work_or_are_refused(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "env").write_text("".join(f"V{number}={'x' * 1000}\n" for number in range(1000)))
    many = engine.run("--env-file", f"{tmp_path}/env", "busy", "sh", "-c", "env | wc -c")
    assert int(many.stdout) > 10**6
    (tmp_path / "env").write_text(f"HUGE={'x' * 200_000}\n")  # the kernel takes 128 KiB (execve(2), MAX_ARG_STRLEN)
    told = reason(engine.run("--env-file", f"{tmp_path}/env", "busy", "true"))
    assert "too long" in told.lower()
    assert engine.leftovers() == []
    ident = engine.start("busy", "sleep", "1000")
    big = [part for number in range(300) for part in ("-e", f"V{number}={'x' * 1000}")]
    assert engine.done("exec", *big, ident, "sh", "-c", "env | wc -l").strip().isdecimal()
    assert "too long" in reason(engine("exec", "-d", *big, ident, "true")).lower()


# logs


def test_garbage_in_a_log_is_passed_over(engine: Engine) -> None:
    ident = engine.start("--name", "noisy", "busy", "echo", "first")
    engine.done("wait", "noisy")
    good = json.dumps({"log": "last\n", "stream": "stdout", "time": "2024-01-31T12:00:00.000000000Z"}).encode()
    garbage = [
        *DAMAGED.values(),
        os.urandom(100_000).replace(b"\n", b""),
        b"x" * 5_000_000,
        b'{"log":5,"stream":[],"time":null}',
        b'{"log":"y","stream":"stdout","time":"whenever"}',
        b'{"log":"y","stream":"std","time":"2024-01-31"}',
        b'{"log":"\\ud800","stream":"stdout","time":"2024-01-31T12:00:00.000000000Z"}',
        b"",
        good,
    ]
    with (home(engine, ident) / "log").open("ab") as log:
        log.write(b"\n".join(garbage) + b'\n{"log":"torn')
    for options in ((), ("-t",), ("--since", "2020-01-01T00:00:00Z"), ("--tail", "2"), ("-f",), ("--until", "1m")):
        ended = engine("logs", *options, "noisy", errors="replace")
        assert (ended.returncode, ended.stderr) == (0, ""), options
        assert ended.stdout.endswith("last\n")


def test_a_clock_that_went_back_hides_no_record(engine: Engine) -> None:
    ident = engine.start("--name", "clock", "busy", "true")
    engine.done("wait", "clock")
    records = [
        {"log": f"{hour}\n", "stream": "stdout", "time": f"2024-01-31T{hour:02}:00:00.000000000Z"}
        for hour in (9, 12, 8, 10)
    ]
    (home(engine, ident) / "log").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert engine.done("logs", "clock").split() == ["9", "12", "8", "10"]
    assert engine.done("logs", "--since", "2024-01-31T10:00:00Z", "clock").split() == ["12", "10"]
    assert engine.done("logs", "--until", "2024-01-31T10:00:00Z", "clock").split() == ["9", "8", "10"]
    later = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time.time() + 3600)) + ".000000000Z"
    path = home(engine, ident) / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "finished": later}))
    assert "Exited (0)" in engine.done("ps", "-a")
