"""The life of real containers under isomark-oci: every command as an engine calls it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bundles import PARENT, Bundle, Runtime, groups_left
from small_tree import needs_root

pytestmark = needs_root


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    """The program; what a test leaves is removed, and it must leave nothing that ``delete --force`` does not remove."""
    made = Runtime(tmp_path)
    yield made
    for name in made.left():
        made("delete", "--force", name, code=None)
    assert made.left() == []
    assert groups_left(PARENT) == []


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return Bundle(tmp_path / "bundle").write()


def test_create_start_and_delete_go_through_the_states(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    bundle.config["annotations"] = {"org.example": "yes"}
    bundle.shell("echo ran; sleep 100")
    runtime.create(bundle, "one", "--pid-file", str(tmp_path / "pid"))
    state = runtime.state("one")
    assert state["status"] == "created"
    assert state["id"] == "one"
    assert state["bundle"] == str(bundle.path)
    assert state["annotations"] == {"org.example": "yes"}
    assert state["ociVersion"] == "1.2.0"
    assert state["pid"] == int((tmp_path / "pid").read_text())
    assert Path(f"/proc/{state['pid']}/comm").exists()
    assert runtime.output(bundle) == ""
    runtime("start", "one")
    assert runtime.status("one") == "running"
    assert "not created" in runtime("start", "one", code=1).stderr
    assert "not stopped: running" in runtime("delete", "one", code=1).stderr
    deadline = time.monotonic() + 30
    while runtime.output(bundle) != "ran\n":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    runtime("kill", "one", "SIGKILL")
    runtime.wait("one", "stopped")
    assert runtime.state("one")["pid"] == 0
    assert "container not running" in runtime("kill", "one", code=1).stderr
    runtime("delete", "one")
    assert "does not exist" in runtime("state", "one", code=1).stderr
    assert runtime.left() == []


def test_a_created_container_can_be_deleted_unstarted(runtime: Runtime, bundle: Bundle) -> None:
    runtime.create(bundle.shell("sleep 100"), "one")
    pid = runtime.state("one")["pid"]
    runtime("delete", "one")
    assert not Path(f"/proc/{pid}").exists() or Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    assert groups_left(PARENT) == []


def test_what_changes_in_the_bundle_after_create_does_not_matter(runtime: Runtime, bundle: Bundle) -> None:
    runtime.create(bundle.shell("echo first; sleep 100"), "one")
    bundle.shell("echo second")
    (bundle.path / "config.json").unlink()
    runtime("start", "one")
    assert runtime("exec", "one", "/bin/echo", "still there").stdout == "still there\n"
    assert runtime.output(bundle) == "first\n"


def test_an_id_is_taken_once(runtime: Runtime, bundle: Bundle) -> None:
    runtime.create(bundle.shell("sleep 100"), "one")
    other = bundle.copy(bundle.path.with_name("other"))
    assert "already exists" in runtime("create", "-b", str(other.write().path), "one", code=1).stderr
    assert runtime.status("one") == "created"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", "a b", "a\n", "é", "x" * 256, "seccomp"])
def test_a_name_that_leads_elsewhere_is_refused(name: str, runtime: Runtime, bundle: Bundle) -> None:
    for command in ("state", "start", "delete", "kill"):
        assert "cannot be a container's id" in runtime(command, name, code=1).stderr
    assert "cannot be a container's id" in runtime("create", "-b", str(bundle.path), name, code=1).stderr
    assert runtime.left() == []


def test_a_group_with_somebody_in_it_is_not_taken(runtime: Runtime, bundle: Bundle) -> None:
    runtime.create(bundle.shell("sleep 100"), "one")
    other = bundle.copy(bundle.path.with_name("other"))
    other.linux["cgroupsPath"] = bundle.linux["cgroupsPath"]
    other.write()
    assert "is in use by the processes" in runtime("create", "-b", str(other.path), "two", code=1).stderr
    assert runtime.status("one") == "created"


def test_run_returns_the_status_and_leaves_nothing(runtime: Runtime, bundle: Bundle) -> None:
    assert runtime.run(bundle, "echo out; echo err >&2; exit 7", code=7) == "out\n"
    assert runtime.run(bundle, "kill -9 $$; sleep 9 & kill -TERM $!; wait $!; exit $(($?))", code=143) == ""
    assert runtime.left() == []
    assert groups_left(PARENT) == []


def test_run_hands_on_signals(runtime: Runtime, bundle: Bundle) -> None:
    bundle.shell("trap 'echo got it; exit 3' TERM; echo ready; while :; do sleep 0.05; done")
    with subprocess.Popen(
        runtime.command("run", "-b", str(bundle.path), "one"), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "got it\n"
        assert process.wait(60) == 3
    assert runtime.left() == []


def test_run_detached_and_keep(runtime: Runtime, bundle: Bundle) -> None:
    bundle.shell("sleep 100")
    with (bundle.path / "output").open("w") as output:
        assert (
            subprocess.run(
                runtime.command("run", "-d", "-b", str(bundle.path), "one"), stdout=output, stderr=output, check=False
            ).returncode
            == 0
        )
    assert runtime.status("one") == "running"
    runtime("delete", "--force", "one")
    assert runtime("run", "--keep", "-b", str(bundle.shell("exit 2").path), "two", code=2)
    assert runtime.status("two") == "stopped"
    runtime("delete", "two")


def test_exec_joins_the_container(runtime: Runtime, bundle: Bundle) -> None:
    bundle.config["hostname"] = "inside"
    bundle.process["env"] = ["PATH=/bin", "FROM=config"]
    runtime.create(bundle.shell("sleep 100"), "one")
    runtime("start", "one")
    shown = runtime("exec", "-e", "MORE=1", "--cwd", "/bin", "-u", "12:34", "-g", "56", "one", "sh", "-c",
                    "hostname; pwd; id; echo $FROM $MORE; cat /proc/self/cgroup; exit 5", code=5).stdout  # fmt: skip
    lines = shown.splitlines()
    assert lines[:4] == ["inside", "/bin", "uid=12 gid=34 groups=56", "config 1"]
    for line in lines[4:]:
        if not line.split(":")[1].startswith("name="):
            assert line.endswith(":/"), line  # its own cgroup namespace's root
    names = ("cgroup", "ipc", "mnt", "net", "pid", "uts")
    script = "for n in cgroup ipc mnt net pid uts; do readlink /proc/self/ns/$n; done"
    pid = runtime.state("one")["pid"]
    assert runtime("exec", "one", "sh", "-c", script).stdout.split() == [
        os.readlink(f"/proc/{pid}/ns/{name}") for name in names
    ]


def test_exec_takes_a_process_file(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    runtime.create(bundle.shell("sleep 100"), "one")
    runtime("start", "one")
    value = {
        "args": ["/bin/sh", "-c", "id; echo $A; grep -E 'Cap(Bnd|Eff)|NoNew' /proc/self/status; ulimit -c; umask"],
        "cwd": "/", "user": {"uid": 7, "gid": 8, "umask": 0o27}, "env": ["PATH=/bin", "A=b"], "noNewPrivileges": True,
        "capabilities": {"bounding": ["CAP_KILL"]}, "rlimits": [{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}],
    }  # fmt: skip
    (tmp_path / "process.json").write_text(json.dumps(value))
    lines = runtime("exec", "--process", str(tmp_path / "process.json"), "one").stdout.splitlines()
    assert lines[:2] == ["uid=7 gid=8", "b"]
    assert [line.split() for line in lines[2:5]] == [
        ["CapEff:", "0" * 16],
        ["CapBnd:", f"{1 << 5:016x}"],
        ["NoNewPrivs:", "1"],
    ]
    assert lines[5:] == ["0", "0027"]


def test_exec_detached_writes_the_pid_before_it_returns(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    runtime.create(bundle.shell("sleep 100"), "one")
    runtime("start", "one")
    with (tmp_path / "out").open("w") as out:
        subprocess.run(
            runtime.command("exec", "-d", "--pid-file", str(tmp_path / "pid"), "one", "sleep", "99"),
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, check=True,
        )  # fmt: skip
    pid = int((tmp_path / "pid").read_text())
    assert Path(f"/proc/{pid}/cmdline").read_bytes() == b"sleep\x0099\0"
    assert sorted(json.loads(runtime("ps", "-f", "json", "one").stdout)) == sorted([runtime.state("one")["pid"], pid])
    table = runtime("ps", "one").stdout.splitlines()
    assert len(table) == 3
    assert "sleep 99" in table[1] + table[2]


def test_exec_says_why_a_command_does_not_start(runtime: Runtime, bundle: Bundle) -> None:
    runtime.create(bundle.shell("sleep 100"), "one")
    runtime("start", "one")
    assert "executable file not found in $PATH" in runtime("exec", "one", "nothing", code=255).stderr
    assert "no such file or directory" in runtime("exec", "one", "/bin/nothing", code=255).stderr
    assert "permission denied" in runtime("exec", "one", "/etc/passwd", code=255).stderr
    assert "permission denied" in runtime("exec", "one", "/bin", code=255).stderr
    assert "exec needs a command" in runtime("exec", "one", code=255).stderr
    assert runtime.messages()[-1]["level"] == "error"


def test_exec_in_what_does_not_run_is_refused(runtime: Runtime, bundle: Bundle) -> None:
    assert "does not exist" in runtime("exec", "one", "true", code=255).stderr
    runtime("run", "--keep", "-b", str(bundle.shell("true").path), "one")
    assert "it is stopped" in runtime("exec", "one", "true", code=255).stderr


def test_a_paused_container_stands_still_and_can_be_killed(runtime: Runtime, bundle: Bundle) -> None:
    runtime.create(bundle.shell("while :; do echo tick; sleep 0.02; done"), "one")
    runtime("start", "one")
    runtime("pause", "one")
    assert runtime.status("one") == "paused"
    assert "it is paused" in runtime("exec", "one", "true", code=255).stderr
    assert "it is paused" in runtime("pause", "one", code=1).stderr
    before = runtime.output(bundle)
    time.sleep(0.2)
    assert runtime.output(bundle) == before
    runtime("resume", "one")
    assert "not paused" in runtime("resume", "one", code=1).stderr
    deadline = time.monotonic() + 30
    while runtime.output(bundle) == before:
        assert time.monotonic() < deadline
    runtime("pause", "one")
    runtime("kill", "one", "KILL")
    runtime.wait("one", "stopped")


def test_kill_all_reaches_everyone(runtime: Runtime, bundle: Bundle) -> None:
    bundle.linux["namespaces"] = [each for each in bundle.linux["namespaces"] if each["type"] != "pid"]
    runtime.create(bundle.shell("sleep 98 & sleep 97 & sleep 96; true"), "one")
    runtime("start", "one")
    deadline = time.monotonic() + 30
    while len(json.loads(runtime("ps", "-f", "json", "one").stdout)) < 4:
        assert time.monotonic() < deadline
    runtime("kill", "--all", "one", "9")
    runtime.wait("one", "stopped")
    assert json.loads(runtime("ps", "-f", "json", "one").stdout) == []


def test_delete_kills_what_outlives_the_first_process(runtime: Runtime, bundle: Bundle) -> None:
    bundle.linux["namespaces"] = [each for each in bundle.linux["namespaces"] if each["type"] != "pid"]
    runtime.create(bundle.shell("setsid sleep 95 & exit 0"), "one")
    runtime("start", "one")
    runtime.wait("one", "stopped")
    (survivor,) = json.loads(runtime("ps", "-f", "json", "one").stdout)
    runtime("delete", "one")
    assert not Path(f"/proc/{survivor}").exists() or Path(f"/proc/{survivor}/stat").read_text().split()[2] == "Z"


def test_update_changes_limits(runtime: Runtime, bundle: Bundle) -> None:
    bundle.linux["resources"]["memory"] = {"limit": 64 << 20}
    bundle.linux["resources"]["pids"] = {"limit": 50}
    runtime.create(bundle.shell("sleep 100"), "one")
    memory = bundle.group("memory")
    name = "memory.limit_in_bytes" if (memory / "memory.limit_in_bytes").exists() else "memory.max"
    assert (memory / name).read_text() == f"{64 << 20}\n"
    runtime("update", "--memory", str(32 << 20), "--pids-limit", "20", "one")
    assert (memory / name).read_text() == f"{32 << 20}\n"
    runtime(
        "update", "-r", "-", "one", stdin=None, input=json.dumps({"memory": {"limit": 48 << 20}, "cpu": {"shares": 0}})
    )
    assert (memory / name).read_text() == f"{48 << 20}\n"
    assert (bundle.group("pids") / "pids.max").read_text() == "20\n"
    shown = json.loads(runtime("events", "--stats", "one").stdout)["data"]
    assert shown["pids"]["limit"] == 20
    assert shown["memory"]["usage"]["limit"] == 48 << 20
    assert "update needs" in runtime("update", "one", code=1).stderr
    assert (
        "memory.limit must be"
        in runtime("update", "-r", "-", "one", stdin=None, input='{"memory": {"limit": "x"}}', code=1).stderr
    )


def test_limits_hold(runtime: Runtime, bundle: Bundle) -> None:
    bundle.linux["resources"] |= {
        "pids": {"limit": 5},
        "memory": {"limit": 16 << 20, "swap": 16 << 20},
        "cpu": {"cpus": "0"},
    }
    assert (
        "can't fork"
        in runtime(
            "run", "-b", str(bundle.shell("for i in 1 2 3 4 5 6; do sleep 1 & done").path), "a", code=None
        ).stderr
    )
    assert runtime.run(bundle, "tail /dev/zero; echo $?") == "137\n"
    assert "Cpus_allowed_list:\t0\n" in runtime.run(bundle, "cat /proc/self/status")


def test_devices_are_those_that_rules_allow(runtime: Runtime, bundle: Bundle) -> None:
    script = "mknod /tmp/d c 10 200 2>&1; (: < /tmp/d) 2>&1; mknod /tmp/n c 1 3; : > /tmp/n && echo null"
    bundle.mount("/tmp", "tmpfs", "tmpfs")
    bundle.process["capabilities"] = {name: ["CAP_MKNOD"] for name in ("bounding", "effective", "permitted")}
    shown = runtime.run(bundle, script)
    assert "Operation not permitted" in shown
    assert shown.endswith("null\n")
    bundle.linux["resources"]["devices"].append(
        {"allow": True, "type": "c", "major": 10, "minor": 200, "access": "rwm"}
    )
    assert "Operation not permitted" not in runtime.run(bundle, script)


def test_list_shows_all_containers(runtime: Runtime, bundle: Bundle) -> None:
    assert runtime("list").stdout.split() == ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]
    assert json.loads(runtime("list", "--format=json").stdout) == []
    bundle.shell("sleep 100")
    for name in ("b", "a"):
        other = bundle.copy(bundle.path.with_name(f"bundle-{name}"))
        runtime.create(other.write(), name)
    assert runtime("list", "-q").stdout == "a\nb\n"
    rows = json.loads(runtime("list", "-f", "json").stdout)
    assert [(row["id"], row["status"], row["owner"]) for row in rows] == [
        ("a", "created", "root"),
        ("b", "created", "root"),
    ]
    assert runtime("list").stdout.splitlines()[1].split()[:3] == ["a", str(rows[0]["pid"]), "created"]


def test_descriptors_are_passed_only_when_asked(runtime: Runtime, bundle: Bundle) -> None:
    script = "ls /proc/self/fd; cat <&3"
    bundle.shell(script)
    reading, writing = os.pipe()
    os.write(writing, b"through 3\n")
    os.close(writing)
    pytests = os.dup(3)
    os.dup2(reading, 3)
    try:
        done = runtime("run", "--preserve-fds", "1", "-b", str(bundle.path), "one", pass_fds=[3])
        assert done.stdout.split()[:4] == ["0", "1", "2", "3"]
        assert done.stdout.endswith("through 3\n")
        done = runtime("run", "-b", str(bundle.shell("ls /proc/self/fd").path), "two", pass_fds=[3])
        assert done.stdout.split() in (["0", "1", "2", "3"], ["0", "1", "2"])  # ls itself has the directory open
        assert (
            "descriptor 4 is not open"
            in runtime("run", "--preserve-fds", "3", "-b", str(bundle.path), "x", pass_fds=[3], code=1).stderr
        )
    finally:
        os.dup2(pytests, 3)
        os.close(pytests)
        os.close(reading)


def _receive_terminal(listener: socket.socket) -> int:
    connection, _ = listener.accept()
    with connection:
        _, fds, _, _ = socket.recv_fds(connection, 4096, 1)
    return fds[0]


def _read_until(master: int, text: bytes) -> bytes:
    said = b""
    while text not in said:
        said += os.read(master, 4096)
    return said


def test_the_terminal_goes_over_the_console_socket(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    bundle.process["terminal"] = True
    bundle.process["consoleSize"] = {"height": 31, "width": 97}
    bundle.shell("tty; stty size; test -c /dev/console && echo console; read line; echo said $line; sleep 100")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "console"))
        listener.listen()
        runtime.create(bundle, "one", "--console-socket", str(tmp_path / "console"))
        master = _receive_terminal(listener)
        runtime("start", "one")
        assert _read_until(master, b"console\r\n").split() == [b"/dev/pts/0", b"31", b"97", b"console"]
        os.write(master, b"hello\n")
        assert b"said hello\r\n" in _read_until(master, b"said hello\r\n")
        subprocess.run(
            runtime.command("exec", "-t", "-d", "--console-socket", str(tmp_path / "console"), "one", "tty"), check=True
        )
        other = _receive_terminal(listener)
        assert _read_until(other, b"\n") == b"/dev/pts/1\r\n"
    for fd in (master, other):
        os.close(fd)
    runtime("delete", "--force", "one")


def test_a_terminal_and_its_socket_belong_together(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    assert (
        "--console-socket needs process.terminal"
        in runtime("create", "-b", str(bundle.path), "--console-socket", "/x", "a", code=1).stderr
    )
    bundle.process["terminal"] = True
    bundle.write()
    assert "process.terminal needs --console-socket" in runtime("create", "-b", str(bundle.path), "a", code=1).stderr
    assert (
        "cannot connect"
        in runtime("create", "-b", str(bundle.path), "--console-socket", str(tmp_path / "x"), "a", code=1).stderr
    )
    assert runtime.left() == []


def test_run_shows_the_terminal_on_its_own(runtime: Runtime, bundle: Bundle) -> None:
    bundle.process["terminal"] = True
    bundle.shell("tty; stty size; read line; echo said $line; exit 9")
    master, slave = os.openpty()
    import fcntl
    import struct
    import termios

    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 111, 0, 0))
    with subprocess.Popen(
        runtime.command("run", "-b", str(bundle.path), "one"), stdin=slave, stdout=slave, stderr=slave
    ) as process:
        assert _read_until(master, b"111\r\n") == b"/dev/pts/0\r\n40 111\r\n"
        os.write(master, b"hello\r")
        assert b"said hello\r\n" in _read_until(master, b"said hello\r\n")
        assert process.wait(60) == 9
    assert termios.tcgetattr(slave)[3] & termios.ECHO
    for fd in (master, slave):
        os.close(fd)


def test_home_is_what_the_image_says(runtime: Runtime, bundle: Bundle) -> None:
    (bundle.root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nsomebody:x:1000:1000::/home/some:/bin/sh\n")
    assert runtime.run(bundle, "echo $HOME") == "/root\n"
    bundle.process["user"] = {"uid": 1000, "gid": 1000}
    assert runtime.run(bundle, "echo $HOME") == "/home/some\n"
    bundle.process["user"] = {"uid": 4, "gid": 4}
    assert runtime.run(bundle, "echo $HOME") == "/\n"
    bundle.process["env"] = ["PATH=/bin", "HOME=/own"]
    assert runtime.run(bundle, "echo $HOME") == "/own\n"
    (bundle.root / "etc/passwd").unlink()
    os.mkfifo(bundle.root / "etc/passwd")
    bundle.process["env"] = ["PATH=/bin"]
    assert runtime.run(bundle, "echo $HOME") == "/\n"


def test_errors_are_one_line_for_people_and_one_for_engines(runtime: Runtime, bundle: Bundle) -> None:
    bundle.config["root"]["path"] = "nowhere"
    done = runtime("create", "-b", str(bundle.write().path), "one", code=1)
    assert done.stdout == ""
    assert done.stderr == f"isomark-oci: config.json: root.path {bundle.path}/nowhere is no directory\n"
    (message,) = runtime.messages()
    assert message["level"] == "error"
    assert message["msg"] == f"config.json: root.path {bundle.path}/nowhere is no directory"
    assert time.strptime(message["time"], "%Y-%m-%dT%H:%M:%SZ")
    done = subprocess.run(
        [runtime.script, "--log", runtime.log, "state", "x"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "level=error msg=\"container 'x' does not exist\"" in runtime.log.read_text().splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "has no command 'nothing'"),
        (["--nothing"], "has no option --nothing"),
        (["state"], "takes ID"),
        (["state", "a", "b"], "takes ID"),
        (["kill", "a", "NOSUCH"], "unknown signal"),
        (["create", "--bundle"], "needs a value"),
        (["--log-format", "xml", "list"], "text or json"),
        (["--rootless", "maybe", "list"], "--rootless is"),
        (["events", "a"], "--stats"),
        (["list", "--format", "yaml"], "table or json"),
        (["run", "--preserve-fds", "many", "a"], "whole number"),
    ],
)
def test_a_wrong_call_is_explained(arguments: list[str], message: str, runtime: Runtime) -> None:
    done = subprocess.run(
        [runtime.script, "--root", runtime.root, *arguments], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_help_names_every_command_and_option(runtime: Runtime) -> None:
    from runtimes.ociruntime.cli import COMMANDS

    overview = runtime("--help").stdout
    for name, command in COMMANDS.items():
        assert f"  {name} " in overview
        shown = runtime(name, "--help").stdout
        assert all(f"--{option.names[0]}" in shown for option in command.options)
    assert runtime("--version").stdout.startswith("isomark-oci version ")
    assert "1.2.0" in runtime("--version").stdout


def test_systemd_cgroups_are_refused_where_one_is_made(runtime: Runtime, bundle: Bundle) -> None:
    script, root = str(runtime.script), str(runtime.root)
    refused = subprocess.run(
        [script, "--root", root, "--systemd-cgroup", "run", "-b", bundle.path, "a"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert refused.returncode == 1
    assert "--systemd-cgroup is not supported" in refused.stderr
    assert subprocess.run([script, "--root", root, "--systemd-cgroup", "list"], check=False).returncode == 0


def test_spec_writes_what_run_runs(runtime: Runtime, bundle: Bundle) -> None:
    (bundle.path / "config.json").unlink()
    runtime("spec", "-b", str(bundle.path))
    assert "exists" in runtime("spec", "-b", str(bundle.path), code=1).stderr
    value = json.loads((bundle.path / "config.json").read_text())
    value["process"] |= {"terminal": False, "args": ["/bin/busybox", "echo", "it runs"]}
    (bundle.path / "config.json").write_text(json.dumps(value))
    assert runtime("run", "one", cwd=bundle.path).stdout == "it runs\n"
