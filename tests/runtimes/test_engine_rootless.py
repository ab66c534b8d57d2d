"""An ordinary user's containers, with subordinate ids and without: started, used, and gone without a trace."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_rig import needs_root, until
from rootless_rig import COUNT, GROUP, SUBORDINATE, UID, User, open_user, processes

pytestmark = needs_root

STORAGES = ("overlay", "fuse-overlayfs")
SLEEP = "trap 'exit 3' TERM; echo started; while :; do sleep 0.1; done"


@pytest.fixture(scope="module", params=["mapped", "single"])
def user(request: pytest.FixtureRequest) -> Iterator[User]:
    with open_user(subordinate=request.param == "mapped") as opened:
        opened.mapped = request.param == "mapped"  # type: ignore[attr-defined]
        yield opened


@pytest.fixture(scope="module")
def delegated() -> Iterator[User]:
    with open_user(subordinate=True, delegated=True) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _clear(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    for name in {"user", "delegated"} & set(request.fixturenames):
        opened: User = request.getfixturevalue(name)
        opened.extra = {}
        opened.clear()


def is_mapped(user: User) -> bool:
    return bool(user.mapped)  # type: ignore[attr-defined]


# run


def test_its_output_and_status_arrive_and_nothing_is_left(user: User) -> None:
    ended = user.run("busy", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (ended.returncode, ended.stdout, ended.stderr) == (7, "out\n", "err\n")
    assert user.run("busy", "no-such-program").returncode == 127
    assert user.leftovers() == []


def test_the_images_users_are_subordinate_ids_or_all_root(user: User) -> None:
    inside = user.out("busy", "sh", "-c", "id -u; stat -c %u /data/from-image; cat /proc/self/uid_map").split()
    tree = next((user.state / "trees").glob("[0-9a-f]*[0-9a-f]/data/from-image"))
    if is_mapped(user):
        assert inside == ["0", "1000", "0", "0", "1", "1", "1", str(COUNT)]
        assert tree.stat().st_uid == SUBORDINATE + 999
    else:
        assert inside == ["0", "0", "0", "0", "1"]
        assert tree.stat().st_uid == UID


def test_it_has_users_of_its_own_and_says_so(user: User) -> None:
    ident = user.done("run", "-d", "--network", "none", "busy", "sleep", "100")
    assert user.inspect(ident)["HostConfig"]["UsernsMode"] == "private"
    user.done("rm", "-f", ident)
    ended = user.run("--userns", "host", "busy", "true")
    assert ended.returncode == 125
    assert "always has users of its own" in ended.stderr


def test_another_user_runs_it_only_if_there_is_one(user: User) -> None:
    ended = user.run("wishes", "id -u; touch /tmp/new; stat -c %u /tmp/new")
    if is_mapped(user):
        assert (ended.returncode, ended.stdout) == (0, "1000\n1000\n"), ended.stderr
    else:
        assert ended.returncode == 125
        assert "cannot change to its user" in ended.stderr
        assert "newuidmap" in ended.stderr


def test_it_has_no_power_over_the_host(user: User) -> None:
    assert user.run("busy", "sh", "-c", "hostname x").returncode != 0
    held = user.out("busy", "grep", "CapEff", "/proc/self/status").split()[1]
    assert int(held, 16) == 0xA80425FB
    secret = user.home.parent / "secret"
    secret.write_text("secret")
    secret.chmod(0o600)
    ended = user.run("--privileged", "-v", f"{secret}:/secret", "busy", "cat", "/secret")
    assert (ended.returncode != 0, ended.stdout) == (True, "")


def test_its_users_are_private_in_any_case_and_its_clocks_if_asked(user: User) -> None:
    shown = user.out("--userns", "private", "--timens", "private", "busy", "sh", "-c",
                     "cat /proc/uptime; cat /proc/self/uid_map").split()  # fmt: skip
    assert float(shown[0]) < 30 < float(Path("/proc/uptime").read_text().split()[0])
    assert shown[2:] == user.out("busy", "cat", "/proc/self/uid_map").split()
    ident = user.start("--timens", "private", "busy", "sleep", "100")
    assert float(user.done("exec", ident, "cat", "/proc/uptime").split()[0]) < 30
    timed = user.run("--timing", "busy", "true")
    assert "mount its root" in timed.stderr


def test_a_terminal_is_its_console(user: User) -> None:
    master, slave = pty.openpty()
    process = subprocess.Popen(
        user.command("run", "--rm", "-it", "--network", "none", "busy", "sh", "-c", "tty; read x; echo got $x"),
        stdin=slave, stdout=slave, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    os.write(master, b"word\n")
    said = b""
    while select.select([master], [], [], 30)[0]:
        try:
            piece = os.read(master, 4096)
        except OSError:
            break
        said += piece
        if b"got word" in said:
            break
    os.close(master)
    process.communicate(timeout=30)
    assert b"/dev/" in said
    assert b"got word" in said


def test_a_device_is_lent_whole_or_not_at_all(user: User) -> None:
    assert user.out("--device", "/dev/zero:/dev/nothing", "busy", "sh", "-c", "head -c 3 /dev/nothing | wc -c") == "3"
    ended = user.run("--device", "/dev/zero:/dev/nothing:r", "busy", "true")
    assert (ended.returncode, "cannot limit the access" in ended.stderr) == (125, True)


# life


@pytest.mark.parametrize("storage", STORAGES)
def test_what_it_wrote_and_deleted_stays_so_from_start_to_start(user: User, storage: str) -> None:
    user.extra = {"ISOMARK_STORAGE": storage}
    ident = user.start("busy", "sh", "-c", f"echo new > /data/new; rm -f /data/from-image; {SLEEP}")
    until(lambda: user.done("logs", ident) == "started", "it says so")
    user.extra = {}
    assert user.inspect(ident)["Driver"] == storage
    assert user.done("exec", ident, "ls", "/data") == "new"
    user.done("stop", ident)
    assert user.inspect(ident)["State"]["ExitCode"] == 3
    user.done("start", ident)
    assert user.inspect(ident)["Driver"] == storage
    assert user.done("exec", ident, "cat", "/data/new") == "new"
    assert user.status(ident) == "running"
    user.done("kill", ident)
    until(lambda: user.status(ident) == "exited", "it is dead")
    user.done("rm", ident)
    assert user.leftovers() == []
    until(lambda: not processes(), "nobody serves it any more")


def test_a_storage_that_does_not_work_is_explained(user: User) -> None:
    user.extra = {"ISOMARK_STORAGE": "fuse-overlayfs"}
    directory = user.home.parent / "few"
    directory.mkdir(exist_ok=True)
    for name in ("newuidmap", "newgidmap"):
        (directory / name).exists() or (directory / name).symlink_to(f"/usr/bin/{name}")
    path, user.path = user.path, str(directory)
    try:
        ended = user.run("busy", "true")
    finally:
        user.path = path
    assert ended.returncode == 125
    assert "fuse-overlayfs" in ended.stderr
    assert "apt-get install fuse-overlayfs" in ended.stderr


def test_it_is_started_again_as_its_policy_says(user: User) -> None:
    ident = user.start("--restart", "on-failure:2", "busy", "sh", "-c", "echo once; exit 1")
    until(lambda: user.status(ident) == "exited", "it gives up")
    assert user.done("logs", ident).split() == ["once"] * 3


def test_exec_enters_it(user: User) -> None:
    ident = user.start("busy", "sh", "-c", SLEEP)
    assert user.done("exec", "-i", ident, "sh", "-c", "id -u; cat; hostname", input="given\n").split() == [
        "0", "given", ident[:12],
    ]  # fmt: skip
    assert user("exec", ident, "sh", "-c", "exit 9").returncode == 9
    user.done("exec", "-d", ident, "touch", "/tmp/detached")
    until(lambda: user("exec", ident, "test", "-e", "/tmp/detached").returncode == 0, "it did")
    assert "sleep" in user.done("top", ident)
    assert ident[:12] in user.done("stats", "--no-stream", ident)
    if is_mapped(user):
        assert (
            user.done("exec", "-u", "user", ident, "id")
            == "uid=1000(user) gid=1000(user) groups=1000(user),2000(extra)"
        )


@pytest.mark.parametrize("storage", STORAGES)
def test_cp_reaches_it_while_it_runs_and_when_it_has_stopped(user: User, storage: str) -> None:
    user.extra = {"ISOMARK_STORAGE": storage}
    given = user.home / "given"
    given.write_text("content\n")
    os.chown(given, UID, UID)
    ident = user.start("busy", "sh", "-c", SLEEP)
    for stage in ("running", "stopped"):
        user.done("cp", str(given), f"{ident}:/tmp/{stage}")
        user.done("cp", f"{ident}:/tmp/{stage}", str(user.home / stage))
        assert (user.home / stage).read_text() == "content\n"
        assert (user.home / stage).stat().st_uid == UID
        user.done("stop", ident)
    user.done("start", ident)
    assert user.done("exec", ident, "cat", "/tmp/stopped") == "content"


def test_volumes_and_binds_have_the_same_users(user: User) -> None:
    bound = user.home / "bound"
    bound.mkdir(exist_ok=True)
    os.chown(bound, UID, UID)
    arguments = ("-v", "kept:/data", "-v", f"{bound}:/bound", "busy", "sh", "-c")
    assert user.out(*arguments, "cat /data/from-image; echo x > /bound/by-root; echo y > /data/more") == "seed"
    assert user.out(*arguments, "cat /data/more") == "y"
    assert (bound / "by-root").stat().st_uid == UID
    if is_mapped(user):
        user.out(*arguments, "mkdir -m 700 /data/closed; chown 1000 /data/closed")
        assert (user.state / "volumes/kept/data/closed").stat().st_uid == SUBORDINATE + 999
    user.done("rm", "kept", group="volume")
    assert list((user.state / "volumes").iterdir()) == []


def test_rm_deletes_what_its_user_alone_could_not(user: User) -> None:
    owner = "1000" if is_mapped(user) else "0"
    ident = user.start(
        "busy", "sh", "-c", f"mkdir -p /deep/er; touch /deep/er/x; chown -R {owner} /deep; chmod -R 0 /deep"
    )
    user.done("wait", ident)
    user.done("rm", ident)
    assert user.leftovers() == []


@pytest.mark.parametrize("storage", STORAGES)
def test_after_a_killed_monitor_clean_leaves_nothing(user: User, storage: str) -> None:
    user.extra = {"ISOMARK_STORAGE": storage}
    ident = user.done("run", "-d", "--rm", "busy", "sh", "-c", SLEEP)
    os.kill(user.monitor(ident), signal.SIGKILL)
    until(lambda: not processes(), "its processes die with it")
    ended = subprocess.run(user.command(group="clean"), capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert user.leftovers() == []


def test_clean_removes_a_half_unpacked_image(user: User) -> None:
    path = user.state / "trees/.making-cut"
    script = f"""
import os
from bench.journal import Journal
from pathlib import Path
from runtimes import usernamespace
Journal(Path({str(user.state / "owned")!r})).own("tree", path={str(path)!r})
os.mkdir({str(path)!r}, 0o700)
def work():
    os.mkdir({str(path / "closed")!r}, 0o700)
    open({str(path / "closed/file")!r}, "w").close()
    if usernamespace.owns_files():
        os.chown({str(path / "closed")!r}, 33, 33)
usernamespace.within(work)
os._exit(9)
"""
    assert subprocess.run(user.as_user(sys.executable, "-c", script), check=False).returncode == 9
    assert path.exists()
    assert subprocess.run(user.command(group="clean"), capture_output=True, check=False).returncode == 0
    assert not path.exists()
    assert user.leftovers() == []


# network


def addresses(text: str) -> list[str]:
    return [line.split()[1] for line in text.splitlines() if line.strip().startswith("inet ")]


def test_its_network_is_slirp4netns_unless_it_shall_have_none(user: User) -> None:
    arguments = ("busy", "sh", "-c", "ip address; cat /etc/resolv.conf")
    found = user("run", "--rm", *arguments)
    assert found.stderr == ""
    assert addresses(found.stdout) == ["127.0.0.1/8", "10.0.2.100/24"]
    assert "nameserver 10.0.2.3" in found.stdout
    assert addresses(user.out(*arguments)) == ["127.0.0.1/8"]
    host = {line for line in os.listdir("/sys/class/net") if line != "lo"}
    assert host <= set(user.done("run", "--rm", "--network", "host", "busy", "ls", "/sys/class/net").split())


def test_a_published_port_leads_inside(user: User) -> None:
    ident = user.done(
        "run", "-d", "-p", "127.0.0.1:0:80", "busy", "sh", "-c", "while :; do echo hello | nc -l -p 80; done"
    )
    [binding] = user.inspect(ident)["NetworkSettings"]["Ports"]["80/tcp"]

    def greeting() -> str:
        with socket.create_connection(("127.0.0.1", int(binding["HostPort"])), 5) as client:
            return client.recv(100).decode()

    until(lambda: greeting() == "hello\n", "it answers")
    user.done("rm", "-f", ident)
    with pytest.raises(ConnectionRefusedError):
        greeting()


def test_without_a_program_for_it_there_is_no_network_and_it_says_so(user: User, tmp_path: Path) -> None:
    directory = user.home.parent / "tools"
    directory.mkdir(exist_ok=True)
    for name in ("newuidmap", "newgidmap", "env", "cp"):
        (directory / name).exists() or (directory / name).symlink_to(f"/usr/bin/{name}")
    path, user.path = user.path, str(directory)
    try:
        ended = user("run", "--rm", "busy", "ip", "address")
        assert ended.returncode == 0, ended.stderr
        assert addresses(ended.stdout) == ["127.0.0.1/8"]
        assert "apt-get install slirp4netns" in ended.stderr
        published = user("run", "--rm", "-p", "80", "busy", "true")
        assert published.returncode == 125
        assert "no port can be published" in published.stderr
    finally:
        user.path = path


def test_it_can_share_another_containers_namespaces(user: User) -> None:
    ident = user.done("run", "-d", "busy", "sh", "-c", SLEEP)
    shared = ("--network", f"container:{ident}", "--pid", f"container:{ident}")
    found = user.done("run", "--rm", *shared, "busy", "sh", "-c", "ip address; ps; cat /etc/hosts")
    assert "10.0.2.100/24" in addresses(found)
    assert "echo started" in found
    assert ident[:12] in found


def test_the_hosts_namespaces_are_shared_too(user: User) -> None:
    found = user.out(
        "--pid", "host", "--ipc", "host", "--uts", "host", "busy", "sh", "-c", "ls /proc; hostname; sleep 54 &"
    )
    assert str(os.getpid()) in found.split()
    assert os.uname().nodename in found.split()
    until(lambda: not processes(), "what it left in the host's PID namespace dies with it")


# limits


def test_a_limit_is_refused_where_there_is_no_group_for_it(user: User) -> None:
    for option in (("--memory", "64m"), ("--pids-limit", "10"), ("--cpus", "1")):
        ended = user.run(*option, "busy", "true")
        assert ended.returncode == 125
        assert "no limit can be set" in ended.stderr
        assert "hint: " in ended.stderr
    ident = user.start("busy", "sh", "-c", SLEEP)
    assert user.inspect(ident)["Rootless"]["limits"].startswith("none: ")
    assert "cgroup" in user("pause", ident).stderr


def groups() -> list[Path]:
    mounted = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if " cgroup2 " in line]
    return [path for path in Path(mounted[0]).glob(f"{GROUP.name}/**/isomark/*") if path.is_dir()]


def test_a_delegated_group_is_used(delegated: User) -> None:
    if not any(" cgroup2 " in line for line in Path("/proc/mounts").read_text().splitlines()):
        pytest.skip("no version 2 cgroups")
    ident = delegated.start("busy", "sh", "-c", SLEEP)
    assert [path.name for path in groups()] == [ident]
    assert delegated.inspect(ident)["Rootless"]["limits"] is None
    delegated.done("pause", ident)
    assert "frozen 1" in (groups()[0] / "cgroup.events").read_text()
    delegated.done("unpause", ident)
    assert delegated.done("exec", ident, "cat", "/proc/self/cgroup").splitlines()[-1] == "0::/"
    figures = json.loads(delegated.done("stats", "--no-stream", "--format", "json", ident))
    assert figures["CPUPerc"].endswith("%")
    delegated.done("rm", "-f", ident)
    assert groups() == []


def test_clean_removes_a_delegated_group(delegated: User) -> None:
    ident = delegated.start("--rm", "busy", "sh", "-c", SLEEP)
    os.kill(delegated.monitor(ident), signal.SIGKILL)
    delegated._group = None  # from outside it
    try:
        assert subprocess.run(delegated.command(group="clean"), capture_output=True, check=False).returncode == 0
    finally:
        delegated._group = GROUP
    assert groups() == []
    assert delegated.leftovers() == []


# images


def test_an_image_is_built(user: User) -> None:
    context = user.home.parent / "context"
    context.mkdir(exist_ok=True)
    (context / "hello").write_text("hello\n")
    owner = "1000:1000" if is_mapped(user) else "0:0"
    lines = [
        "FROM busy", "COPY hello /etc/hello", "ENV COLOUR=red",
        f"RUN rm -r /data && mkdir /data && cat /etc/hello > /data/made && chown {owner} /data/made",
        'CMD ["sh", "-c", "echo $COLOUR; ls /data; stat -c %u:%g /data/made"]',
    ]  # fmt: skip
    (context / "Containerfile").write_text("\n".join(lines))
    user.done("build", "-q", "-t", "mine", str(context), group="image")
    assert user.out("mine").split() == ["red", "made", owner]
    user.done("rm", "mine", group="image")
