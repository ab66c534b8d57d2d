"""Containers from the command line: run, exec, stop, logs and all that, for real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from engine_rig import Engine, cgroups_of, needs_root, open_engine, until

pytestmark = needs_root


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with open_engine(tmp_path_factory.mktemp("engine")) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _clear(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    request.getfixturevalue("engine").clear()


# run


def test_a_container_prints_to_our_streams_and_leaves_nothing(engine: Engine) -> None:
    ended = engine.run("busy", "sh", "-c", "echo out; echo err >&2")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "out\n", "err\n")
    assert engine.leftovers() == []


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (("sh", "-c", "exit 7"), 7),
        (("sh", "-c", "kill -9 $$; sleep 5"), 0),  # process 1 is deaf to its own SIGKILL (pid_namespaces(7))
        (("no-such-program",), 127),
        (("/no/such/program",), 127),
        (("/bin/plain",), 126),
        (("/bin",), 126),
    ],
)
def test_the_exit_status_is_the_commands_or_dockers(engine: Engine, command: tuple[str, ...], status: int) -> None:
    if status == 0:
        command = ("sh", "-c", "kill -9 $$; true")
    assert engine.run("busy", *command).returncode == status
    assert engine.leftovers() == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("run",), "image's name is missing"),
        (("run", "--memroy", "64m", "busy"), "did you mean --memory?"),
        (("run", "--pull", "never", "no-such-image"), "no image no-such-image"),
        (("run", "--memory", "much", "busy"), "'much' is not a size"),
        (("run", "--network", "nowhere", "busy"), "there is no network 'nowhere'"),
        (("run", "--name", "-x", "busy"), "cannot be a name"),
        (("run", "--rm", "--restart", "always", "busy"), "contradict"),
        (("run", "--cap-add", "FLY", "--network", "none", "--rm", "busy", "true"), "FLY"),
        (("run", "--network", "none", "--rm", "-v", "/no/such:/x:ro,shiny", "busy"), "unknown option 'shiny'"),
        (("run", "--network", "none", "--rm", "-u", "nobody-here", "busy", "true"), "no such user"),
        (("start", "no-such-container"), "there is no container"),
        (("exec", "no-such-container", "true"), "there is no container"),
    ],
)
def test_what_is_the_engines_fault_exits_125_with_a_reason(
    engine: Engine, arguments: tuple[str, ...], told: str
) -> None:
    ended = engine(*arguments)
    assert ended.returncode == 125, ended.stderr
    assert told in ended.stderr
    assert "Traceback" not in ended.stderr
    assert engine.leftovers() == []


def test_other_commands_exit_1_or_2(engine: Engine) -> None:
    assert engine("stop", "no-such-container").returncode == 1
    assert engine("ps", "--nonsense").returncode == 2
    assert engine("frobnicate").returncode == 2
    assert engine("rm").returncode == 2


def test_every_command_explains_itself(engine: Engine) -> None:
    overview = engine.done("--help")
    for line in overview.partition("Commands:\n")[2].splitlines():
        assert "Usage: isomark container" in engine.done(line.split()[0], "--help")


def test_the_images_wishes_hold(engine: Engine) -> None:
    assert engine.out("wishes").split() == ["blue", "/home/user", "1000"]


def test_options_override_the_images_wishes(engine: Engine) -> None:
    assert engine.out("-e", "COLOUR=red", "-w", "/tmp", "-u", "0", "wishes").split() == ["red", "/tmp", "0"]
    assert engine.out("wishes", "echo $SIZE") == "small"
    assert engine.out("--entrypoint", "echo", "wishes", "a", "b") == "a b"
    assert engine.run("--entrypoint", "id", "wishes").stdout.startswith("uid=1000")


def test_the_environment_comes_from_options_files_and_ourselves(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "env").write_text("# comment\nA=file\nB=file\n\nINHERITED\n")
    environment = {**engine.environment, "INHERITED": "ours"}
    printed = engine.out(
        "--env-file", f"{tmp_path}/env", "-e", "B=option", "-e", "UNSET", "-h", "inside", "busy", "env", env=environment
    )
    found = dict(line.partition("=")[::2] for line in printed.splitlines())
    assert found == {
        "A": "file",
        "B": "option",
        "INHERITED": "ours",
        "PATH": "/bin",
        "HOME": "/root",
        "HOSTNAME": "inside",
    }


def test_input_reaches_the_container_only_if_asked(engine: Engine) -> None:
    text = "x" * 300_000 + "\n"
    assert engine.run("-i", "busy", "cat", input=text).stdout == text
    assert engine.run("busy", "cat", input=text).stdout == ""


def test_much_output_arrives_whole(engine: Engine) -> None:
    ended = engine.run("busy", "sh", "-c", "seq 200000; echo end >&2", timeout=120)
    assert ended.stdout.split() == [str(number) for number in range(1, 200001)]
    assert ended.stderr == "end\n"


def test_a_slow_reader_gets_the_last_byte_too(engine: Engine) -> None:
    """Of sizes around what queue and pipes hold, so that some containers end with their last words unread."""
    readers = [engine.popen("run", "--rm", "--network", "none", "busy", "sh", "-c", f"yes | head -c {size}; echo end")
               for size in range(450_000, 750_000, 30_000)]  # fmt: skip
    time.sleep(8)
    for size, reader in zip(range(450_000, 750_000, 30_000), readers, strict=True):
        output, complaint = reader.communicate(timeout=60)
        assert (len(output), output[-4:], complaint) == (size + 4, "end\n", "")


def test_limits_reach_the_cgroup(engine: Engine) -> None:
    ident = engine.start("--memory", "64m", "--cpus", "0.5", "--pids-limit", "50", "busy", "sleep", "100")
    found = {
        path.name: path.read_text().strip()
        for directory in cgroups_of(ident)
        for path in directory.iterdir()
        if path.name in ("memory.max", "memory.limit_in_bytes", "pids.max", "cpu.max", "cpu.cfs_quota_us")
    }
    assert str(64 << 20) in (found.get("memory.max"), found.get("memory.limit_in_bytes"))
    assert found["pids.max"] == "50"
    assert found.get("cpu.max") == "50000 100000" or found.get("cpu.cfs_quota_us") == "50000"


def test_running_out_of_memory_is_reported_as_such(engine: Engine) -> None:
    ended = engine("run", "--name", "eater", "--network", "none", "--memory", "16m", "busy", "tail", "-c", "99999999",
                   "/dev/zero")  # fmt: skip
    assert ended.returncode == 137
    assert "out of memory: the limit is 16MiB" in ended.stderr
    state = engine.inspect("eater")["State"]
    assert (state["OOMKilled"], state["ExitCode"], state["Status"]) == (True, 137, "exited")
    assert "out of memory" in engine.done("ps", "-a")


def test_hardening_options_take_effect(engine: Engine) -> None:
    status = engine.out("--cap-drop", "ALL", "--security", "default", "busy", "grep", "-E", "Cap|NoNew|Seccomp:",
                        "/proc/self/status")  # fmt: skip
    found = dict(line.split(":\t") for line in status.splitlines())
    assert (found["CapEff"], found["NoNewPrivs"], found["Seccomp"]) == ("0000000000000000", "1", "2")
    off = engine.out("--security", "off", "busy", "grep", "-E", "Seccomp:|NoNew", "/proc/self/status")
    assert dict(line.split(":\t") for line in off.splitlines()) == {"NoNewPrivs": "0", "Seccomp": "0"}
    assert engine.run("--read-only", "busy", "touch", "/x").returncode == 1
    assert engine.out("--read-only", "--tmpfs", "/x", "busy", "sh", "-c", "touch /x/y && ls /x") == "y"


def test_further_options_take_effect(engine: Engine) -> None:
    script = (
        "hostname; cat /proc/self/oom_score_adj /proc/sys/net/ipv4/ip_default_ttl; ulimit -n; stat -f -c %b /dev/shm"
    )
    printed = engine.out(
        "-h",
        "box",
        "--oom-score-adj",
        "123",
        "--sysctl",
        "net.ipv4.ip_default_ttl=55",
        "--ulimit",
        "nofile=77:88",
        "--shm-size",
        "1m",
        "busy",
        "sh",
        "-c",
        script,
    )
    assert printed.split() == ["box", "123", "55", "77", "256"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--sysctl", "kernel.panic=1"), "would change the host"),
        (("--sysctl", "kernel/core_pattern=|/x"), "would change the host"),
        (("--sysctl", "net/../kernel/panic=1"), "is no sysctl"),
        (("--sysctl", "net.ipv4.ip_forward=1", "--network", "host"), "whose network namespace"),
        (("--sysctl", "kernel.shmmni=77", "--ipc", "host"), "whose ipc namespace"),
        (("--cpus", str((os.cpu_count() or 1) + 1)), "this host has"),
    ],
)
def test_what_would_change_the_host_or_it_does_not_have_is_refused(
    engine: Engine, options: tuple[str, ...], reason: str
) -> None:
    ended = engine.run(*options, "busy", "true")
    assert ended.returncode == 125
    assert reason in ended.stderr


def test_namespaces_can_be_the_hosts_or_anothers(engine: Engine) -> None:
    def inside(*options: str) -> dict[str, str]:
        script = "for n in pid net ipc uts; do readlink /proc/self/ns/$n; done"
        ended = engine("run", "--rm", *options, "busy", "sh", "-c", script)
        assert ended.returncode == 0, ended.stderr
        return dict(line.split(":") for line in ended.stdout.split())

    host = {
        name: str(Path(f"/proc/self/ns/{name}").readlink()).partition(":")[2] for name in ("pid", "net", "ipc", "uts")
    }
    private = inside("--network", "none")
    assert not set(private.values()) & set(host.values())
    shared = inside("--network", "host", "--pid", "host", "--ipc", "host", "--uts", "host")
    assert shared == host
    ident = engine.start("busy", "sleep", "100")
    pid = engine.inspect(ident)["State"]["Pid"]
    joined = inside("--network", f"container:{ident[:8]}", "--pid", f"container:{ident}")
    for name in ("net", "pid"):
        assert joined[name] == str(Path(f"/proc/{pid}/ns/{name}").readlink()).partition(":")[2]


def test_without_a_pid_namespace_everything_it_started_dies_with_it(engine: Engine) -> None:
    started = time.monotonic()
    engine.out("--pid", "host", "busy", "sh", "-c", "sleep 54321 & echo")
    assert time.monotonic() - started < 30
    running = subprocess.run(["pgrep", "-f", "^sleep 54321$"], capture_output=True, check=False)
    assert running.stdout == b""


# life


def test_stopping_is_not_removing(engine: Engine) -> None:
    ident = engine.start(
        "--name", "web", "busy", "sh", "-c", "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.05; done"
    )
    until(lambda: engine.done("logs", "web") == "up", "it is up")
    assert engine.done("stop", "web") == "web"
    assert engine.inspect("web")["State"]["ExitCode"] == 3
    assert engine.done("logs", "web") == "up\nbye"
    assert engine.done("ps", "-q") == ""
    assert engine.done("ps", "-aq", "--no-trunc") == ident
    assert cgroups_of(ident) == []
    assert engine.done("start", "web") == "web"
    until(lambda: engine.done("logs", "web") == "up\nbye\nup", "it is up again, and its log goes on")
    assert engine("rm", "web").returncode == 1
    assert engine.done("rm", "-f", "web") == "web"
    assert engine("rm", "web").returncode == 1
    assert "there is no container" in engine("rm", "-f", "web", "web2").stderr
    assert engine("rm", "-f", "web").returncode == 0  # what is not there need not be removed
    assert engine.ids() == []


def test_who_does_not_listen_is_killed_after_the_timeout(engine: Engine) -> None:
    ident = engine.start("busy", "sleep", "1000")  # process 1 without a handler ignores SIGTERM
    engine.done("stop", "-t", "0.2", ident)
    assert engine.inspect(ident)["State"]["ExitCode"] == 137


def test_a_monitor_that_is_told_to_end_ends_its_container_in_the_same_way(engine: Engine) -> None:
    ident = engine.start("--stop-timeout", "1", "busy", "sleep", "1000")
    os.kill(engine.monitor(ident), signal.SIGTERM)
    until(lambda: not engine.inspect(ident)["State"]["Running"], "it has ended, though it does not listen")
    assert engine.inspect(ident)["State"]["ExitCode"] == 137


def test_the_images_stop_signal_is_used(engine: Engine) -> None:
    ident = engine.start("wishes", "trap 'exit 9' USR1; echo up; while :; do sleep 0.05; done")
    until(lambda: engine.done("logs", ident) == "up", "it is up")
    engine.done("stop", ident)
    assert engine.inspect(ident)["State"]["ExitCode"] == 9


def test_signals_can_be_sent(engine: Engine) -> None:
    ident = engine.start("busy", "sh", "-c", "trap 'echo got' HUP; echo up; while :; do sleep 0.05; done")
    until(lambda: engine.done("logs", ident) == "up", "it is up")
    engine.done("kill", "-s", "HUP", ident)
    until(lambda: engine.done("logs", ident) == "up\ngot", "the signal arrived")
    engine.done("kill", ident)
    until(lambda: engine.status(ident) == "exited", "it is dead")
    assert engine.inspect(ident)["State"]["ExitCode"] == 137
    assert engine("kill", ident).returncode == 1


def test_wait_tells_every_exit_status(engine: Engine) -> None:
    one = engine.start("busy", "sh", "-c", "sleep 0.5; exit 4")
    two = engine.start("--rm", "busy", "sh", "-c", "sleep 1; exit 5")
    assert engine.done("wait", one, two) == "4\n5"
    assert engine.done("wait", one) == "4"


def test_pausing_stops_the_clock(engine: Engine) -> None:
    ident = engine.start("busy", "sh", "-c", "while :; do echo tick; sleep 0.05; done")
    until(lambda: "tick" in engine.done("logs", ident), "it ticks")
    engine.done("pause", ident)
    assert engine.status(ident) == "paused"
    before = engine.done("logs", ident)
    time.sleep(0.5)
    assert engine.done("logs", ident) == before
    assert engine("exec", ident, "true").returncode == 125
    assert engine("pause", ident).returncode == 1
    engine.done("unpause", ident)
    until(lambda: len(engine.done("logs", ident)) > len(before), "it ticks again")
    engine.done("pause", ident)
    engine.done("stop", "-t", "0", ident)
    assert engine.status(ident) == "exited"


def test_restart_policies(engine: Engine) -> None:
    failing = engine.start("--restart", "on-failure:2", "busy", "sh", "-c", "echo life; exit 1")
    succeeding = engine.start("--restart", "on-failure", "busy", "sh", "-c", "echo life")
    always = engine.start("--restart", "always", "busy", "sh", "-c", "echo life")
    until(lambda: engine.status(failing) == "exited", "it gave up")
    assert engine.done("logs", failing) == "life\nlife\nlife"
    assert engine.inspect(failing)["RestartCount"] == 2
    until(lambda: engine.status(succeeding) == "exited", "it is done")
    assert engine.done("logs", succeeding) == "life"
    until(lambda: engine.done("logs", always).count("life") >= 3, "it lives again and again")
    engine.done("stop", always)
    assert engine.status(always) == "exited"
    lives = engine.done("logs", always)
    time.sleep(0.5)
    assert engine.done("logs", always) == lives


def test_a_container_that_cannot_start_again_is_not_tried_for_ever_by_start(engine: Engine) -> None:
    ended = engine("run", "-d", "--name", "broken", "--restart", "always", "--network", "none", "busy", "nothing")
    assert ended.returncode == 127
    assert engine.status("broken") == "exited"
    assert "cannot run nothing" in engine.inspect("broken")["State"]["Error"]
    assert engine("start", "broken").returncode == 127


def test_create_then_start_attached(engine: Engine) -> None:
    ident = engine.done("create", "--name", "later", "--network", "none", "busy", "sh", "-c", "echo hello; exit 6")
    assert engine.status("later") == "created"
    ended = engine("start", "-a", "later")
    assert (ended.returncode, ended.stdout) == (6, "hello\n")
    assert engine("start", "later", "later").returncode in (0, 1)
    assert engine.ids() == [ident]


def test_a_name_belongs_to_one(engine: Engine) -> None:
    first = engine.start("--name", "same", "busy", "sleep", "100")
    ended = engine("run", "--rm", "--name", "same", "--network", "none", "busy", "true")
    assert ended.returncode == 125
    assert f"taken by container {first[:12]}" in ended.stderr
    assert len(engine.ids()) == 1
    engine.done("rm", "-f", "same")
    assert engine.run("--name", "same", "busy", "true").returncode == 0


def test_of_many_who_want_one_name_one_gets_it(engine: Engine) -> None:
    with ThreadPoolExecutor(8) as pool:
        ended = list(pool.map(lambda _: engine("create", "--name", "one", "busy"), range(8)))
    assert sorted(one.returncode for one in ended) == [0] + [125] * 7
    assert len(engine.ids()) == 1


def test_many_runs_at_once(engine: Engine) -> None:
    with ThreadPoolExecutor(8) as pool:
        ended = list(pool.map(lambda number: engine.run("busy", "echo", str(number)), range(24)))
    assert [one.stdout for one in ended] == [f"{number}\n" for number in range(24)], [one.stderr for one in ended]
    assert engine.leftovers() == []


def test_of_many_starts_of_one_container_one_works(engine: Engine) -> None:
    engine.done("create", "--name", "once", "--network", "none", "busy", "sleep", "100")
    with ThreadPoolExecutor(6) as pool:
        ended = list(pool.map(lambda _: engine("start", "once"), range(6)))
    assert sorted(one.returncode for one in ended) == [0] + [125] * 5


def test_short_ids_do_as_long_as_they_are_clear(engine: Engine) -> None:
    ident = engine.done("create", "busy")
    assert engine.inspect(ident[:10])["Id"] == ident
    assert engine("inspect", "zz").returncode == 1
    assert engine("inspect", "").returncode == 1
    assert engine("inspect", "../x").returncode == 1


def test_interrupting_a_run_interrupts_the_container(engine: Engine) -> None:
    running = engine.popen("run", "--rm", "--network", "none", "busy", "sh", "-c",
                           "trap 'echo caught; exit 8' INT; echo up; while :; do sleep 0.05; done")  # fmt: skip
    assert running.stdout is not None
    assert running.stdout.readline() == "up\n"
    running.send_signal(signal.SIGINT)
    assert running.communicate(timeout=30)[0] == "caught\n"
    assert running.returncode == 8


def test_a_reader_that_goes_away_ends_a_run(engine: Engine) -> None:
    command = ("run", "--rm", "--stop-timeout", "0", "--network", "none", "busy", "yes")
    with engine.popen(*command, stderr=subprocess.DEVNULL) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "y\n"
        running.stdout.close()
        assert running.wait(30) == 141
    until(lambda: engine.ids() == [], "the container is gone")


# logs


def test_logs_keep_streams_bytes_and_order(engine: Engine) -> None:
    script = r"printf 'a\xff\xfeb\n'; printf '\303\n\251\n'; echo err >&2; printf unfinished"
    ident = engine.start("busy", "sh", "-c", script)
    engine.done("wait", ident)
    shown: Any = engine("logs", ident, text=False)
    assert shown.stdout == b"a\xff\xfeb\n\xc3\n\xa9\nunfinished"
    assert shown.stderr == b"err\n"
    tail: Any = engine("logs", "--tail", "1", ident, text=False)
    assert tail.stdout == b"unfinished"
    stamped = engine.done("logs", "-t", "--tail", "all", ident, errors="replace").splitlines()
    assert all(line[10] == "T" and line[29] == "Z" for line in stamped)


def test_logs_follow_until_the_end(engine: Engine) -> None:
    ident = engine.start("busy", "sh", "-c", "for i in 1 2 3 4 5; do echo $i; sleep 0.1; done")
    assert engine.done("logs", "-f", ident) == "1\n2\n3\n4\n5"
    assert engine.done("logs", "--since", "10m", "--tail", "2", ident) == "4\n5"
    assert engine.done("logs", "--until", "10m", ident) == ""


def test_a_flood_is_logged_within_bounds(engine: Engine) -> None:
    ident = engine.start(
        "--log-opt",
        "max-size=100k",
        "--log-opt",
        "max-file=3",
        "busy",
        "sh",
        "-c",
        "seq 100000; head -c 100000 /dev/zero | tr '\\0' x; echo",
    )
    followed = engine.done("logs", "-f", "--tail", "0", ident)
    assert engine.done("wait", ident) == "0"
    files = sorted((engine.state / "containers" / ident).glob("log*"))
    assert len(files) == 3
    assert all(path.stat().st_size < 250_000 for path in files)
    for path in files:
        for line in path.read_text().splitlines():
            assert set(json.loads(line)) == {"log", "stream", "time"}
            assert len(line) < 20_000
    assert engine.done("logs", "--tail", "1", ident) == "x" * 100_000
    assert followed.endswith("x")


def test_without_a_log_there_is_none(engine: Engine) -> None:
    ident = engine.start("--log-driver", "none", "busy", "echo", "x")
    engine.done("wait", ident)
    assert engine("logs", ident).returncode == 1
    assert not (engine.state / "containers" / ident / "log").exists()


# exec


def test_exec_runs_inside(engine: Engine) -> None:
    ident = engine.start("-e", "A=1", "-w", "/tmp", "-h", "box", "--memory", "64m", "busy", "sleep", "1000")
    ended = engine("exec", "-e", "B=2", ident, "sh", "-c", "echo $A$B $(pwd) $(hostname) $$; exit 3")
    assert ended.returncode == 3, ended.stderr
    *same, pid = ended.stdout.split()
    assert same == ["12", "/tmp", "box"]
    assert int(pid) > 1
    inner = engine.done("exec", ident, "grep", "-E", "Cap|NoNew|Seccomp:", "/proc/self/status")
    outer = engine.done("exec", ident, "grep", "-E", "Cap|NoNew|Seccomp:", "/proc/1/status")
    assert inner == outer
    assert engine.done("exec", "-u", "user", "-w", "/", ident, "sh", "-c", "id -u; id -G; pwd").split() == [
        "1000",
        "1000",
        "2000",
        "/",
    ]
    assert engine("exec", "-i", ident, "cat", input="typed").stdout == "typed"
    assert engine("exec", ident, "nothing").returncode == 127
    assert engine("exec", ident, "/bin/plain").returncode == 126
    assert engine("exec", ident, "sh", "-c", "kill -9 $$").returncode == 137


def test_exec_is_in_the_containers_cgroup_and_can_be_privileged(engine: Engine) -> None:
    ident = engine.start("busy", "sleep", "1000")
    engine.done("exec", "-d", ident, "sleep", "777")
    members = {int(pid) for directory in cgroups_of(ident) for pid in (directory / "cgroup.procs").read_text().split()}
    commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in members]
    assert b"sleep\x00777\x00" in commands
    plain = engine.done("exec", ident, "grep", "CapEff", "/proc/self/status")
    privileged = engine.done("exec", "--privileged", ident, "grep", "CapEff", "/proc/self/status")
    assert int(privileged.split()[1], 16) > int(plain.split()[1], 16)
    assert engine("exec", "-d", ident, "nothing").returncode == 127


def test_exec_makes_no_working_directory(engine: Engine) -> None:
    ident = engine.start("busy", "sleep", "100")
    ended = engine("exec", "-w", "/new", ident, "pwd")
    assert ended.returncode == 125
    assert "cannot enter the working directory /new: No such file or directory" in ended.stderr
    assert engine("exec", ident, "test", "-e", "/new").returncode == 1


def test_exec_into_what_does_not_run_is_refused(engine: Engine) -> None:
    ident = engine.done("create", "busy")
    ended = engine("exec", ident, "true")
    assert ended.returncode == 125
    assert "does not run" in ended.stderr


def test_what_exec_started_in_the_background_is_reaped(engine: Engine) -> None:
    ident = engine.start("busy", "sleep", "1000")
    engine.done("exec", "-d", ident, "true")
    until(lambda: "defunct" not in subprocess.run(["ps", "--ppid", str(engine.monitor(ident)), "-o", "comm"], text=True,
                                                  capture_output=True, check=True).stdout, "it is reaped")  # fmt: skip


# looking


def test_ps_shows_and_filters(engine: Engine) -> None:
    running = engine.start("--name", "runs", "--label", "kind=a", "busy", "sleep", "1000")
    ended = engine.start("--name", "ended", "--label", "kind=b", "busy", "sh", "-c", "exit 2")
    engine.done("wait", ended)
    assert engine.done("ps", "-q", "--no-trunc") == running
    for filters, names in (
        (("status=exited",), "ended"),
        (("exited=2",), "ended"),
        (("label=kind",), "ended\nruns"),
        (("label=kind=a",), "runs"),
        (("name=un",), "runs"),
        (("name=runs", "name=ended"), "ended\nruns"),
        (("name=runs", "status=exited"), ""),
        ((f"id={ended[:20]}",), "ended"),
        (("ancestor=busy",), "ended\nruns"),
    ):
        options = [part for text in filters for part in ("--filter", text)]
        assert engine.done("ps", "-a", *options, "--format", "{{.Names}}") == names
    rows = [json.loads(line) for line in engine.done("ps", "-a", "--format", "json").splitlines()]
    assert [(row["Names"], row["State"]) for row in rows] == [("ended", "exited"), ("runs", "running")]
    assert rows[0]["Status"].startswith("Exited (2) ")
    assert engine("ps", "--filter", "colour=red").returncode == 2


def test_inspect_speaks_dockers_language(engine: Engine) -> None:
    engine.start("--name", "seen", "--memory", "64m", "--cpus", "1.5", "-v", "/tmp:/t:ro", "wishes", "sleep 1000")
    found = engine.inspect("seen")
    assert found["Name"] == "/seen"
    assert (found["Path"], found["Args"]) == ("/bin/sh", ["-c", "sleep 1000"])
    assert found["State"]["Running"] is True
    assert Path(f"/proc/{found['State']['Pid']}").exists()
    assert found["HostConfig"]["Memory"] == 64 << 20
    assert found["HostConfig"]["NanoCpus"] == 1_500_000_000
    assert found["Config"]["Labels"] == {"maker": "tests"}
    assert found["Config"]["StopSignal"] == "SIGUSR1"
    assert found["Config"]["Healthcheck"] == {"Test": ["CMD", "true"]}
    assert found["Config"]["ExposedPorts"] == {"80/tcp": {}}
    mounts = {mount["Destination"]: mount for mount in found["Mounts"]}
    assert (mounts["/t"]["Type"], mounts["/t"]["RW"]) == ("bind", False)
    assert mounts["/data"]["Type"] == "volume"
    assert (
        engine.done("inspect", "-f", "{{.State.Status}}-{{json .Config.Labels}}", "seen")
        == 'running-{"maker": "tests"}'
    )
    assert engine("inspect", "-f", "{{.Nothing}}", "seen").returncode == 2


def test_stats_and_top_read_the_cgroup(engine: Engine) -> None:
    ident = engine.start("--memory", "64m", "busy", "sh", "-c", "while :; do :; done")
    found = json.loads(engine.done("stats", "--no-stream", "--format", "json", "--interval", "0.5", ident))
    assert float(found["CPUPerc"].rstrip("%")) > 20
    assert found["MemUsage"].endswith("/ 64MiB")
    assert found["PIDs"] == "1"
    assert "while :" in engine.done("top", ident)
    created = engine.done("create", "busy")
    shown = json.loads(engine.done("stats", "-a", "--no-stream", "--format", "json", "--interval", "0.01", created))
    assert shown["CPUPerc"] == "--"


def test_prune_removes_what_has_ended(engine: Engine) -> None:
    running = engine.start("busy", "sleep", "1000")
    engine.done("create", "busy")
    assert engine("prune").returncode == 2
    engine.done("prune", "-f")
    assert engine.ids() == [running]


def test_a_cidfile_is_written_once(engine: Engine, tmp_path: Path) -> None:
    ident = engine.done("create", "--cidfile", f"{tmp_path}/id", "busy")
    assert (tmp_path / "id").read_text() == ident
    assert engine("create", "--cidfile", f"{tmp_path}/id", "busy").returncode == 125
    assert engine.ids() == [ident]


def test_restart_gives_a_new_process(engine: Engine) -> None:
    ident = engine.start("busy", "sleep", "1000")
    before = engine.inspect(ident)["State"]["Pid"]
    engine.done("restart", "-t", "0", ident)
    assert engine.inspect(ident)["State"]["Pid"] != before
