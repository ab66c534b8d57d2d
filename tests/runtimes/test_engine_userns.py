"""Containers of root's with users of their own (--userns private): mapped, used, and gone without a trace."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_rig import Engine, needs_root, open_engine, until

from runtimes.engine.remap import COUNT, FIRST_UNUSED

pytestmark = needs_root

SLEEP = "trap 'exit 3' TERM; while :; do sleep 0.1; done"
LOOP = Path("/dev/loop0")
"""A disk that the host lets itself open."""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with open_engine(tmp_path_factory.mktemp("users")) as opened:
        yield opened
        opened.clear()
        until(lambda: not opened.leftovers(), "the bridge that nobody uses is gone")


@pytest.fixture(autouse=True)
def _clear(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    request.getfixturevalue("engine").clear()


def private(engine: Engine, *arguments: str) -> str:
    """What a container with users of its own prints, which must succeed."""
    return engine.out("--userns", "private", *arguments)


def digest(tree: Path) -> str:
    """Of everything that the image's tree is: names, owners, modes, times, contents."""
    found = hashlib.sha256()
    for path in sorted(tree.rglob("*")):
        status = path.lstat()
        found.update(repr((str(path), status.st_uid, status.st_gid, status.st_mode, status.st_mtime_ns)).encode())
        if path.is_file() and not path.is_symlink():
            found.update(path.read_bytes())
    return found.hexdigest()


def first_process(engine: Engine, name: str) -> int:
    return int(engine.inspect(name)["State"]["Pid"])


def test_root_inside_is_nobody_of_the_host(engine: Engine) -> None:
    assert private(engine, "busy", "cat", "/proc/self/uid_map", "/proc/self/gid_map").split() == [
        "0", str(FIRST_UNUSED), str(COUNT),
    ] * 2  # fmt: skip
    ident = engine.start("--userns", "private", "busy", "sleep", "100")
    assert os.stat(f"/proc/{first_process(engine, ident)}").st_uid == FIRST_UNUSED
    engine.done("exec", "-d", "-u", "user", ident, "sleep", "99")
    shown = ["ps", "-eo", "uid="]
    until(lambda: str(FIRST_UNUSED + 1000) in subprocess.check_output(shown, text=True).split(),
          "the user of the exec is a mapped one")  # fmt: skip
    assert engine.inspect(ident)["Remap"]["uid_map"] == [[0, FIRST_UNUSED, COUNT]]
    assert engine.inspect(ident)["HostConfig"]["UsernsMode"] == "private"


def test_without_the_option_it_has_the_hosts_users(engine: Engine) -> None:
    assert engine.out("busy", "readlink", "/proc/self/ns/user") == os.readlink("/proc/self/ns/user")
    assert engine.out("--userns", "host", "busy", "readlink", "/proc/self/ns/user") == os.readlink("/proc/self/ns/user")


def test_the_images_tree_is_shared_and_not_changed(engine: Engine) -> None:
    ident = engine.start("--userns", "private", "busy", "sleep", "100")
    tree = Path(engine.inspect(ident)["GraphDriver"]["Data"]["LowerDir"])
    before = digest(tree)
    script = "stat -c %u:%g /bin/busybox /data/from-image; chown 7:8 /bin/busybox; echo more >> /data/from-image"
    assert engine.done("exec", ident, "sh", "-c", script).split() == ["0:0", "1000:0"]
    assert digest(tree) == before
    assert engine.out("busy", "stat", "-c", "%u:%g", "/bin/busybox") == "0:0"


def test_its_files_have_on_disk_the_owners_that_it_sees(engine: Engine) -> None:
    ident = engine.start("--userns", "private", "busy", "sh", "-c", f"touch /root-made; {SLEEP}")
    engine.done("exec", "-u", "user", ident, "touch", "/tmp/user-made")
    upper = Path(engine.inspect(ident)["GraphDriver"]["Data"]["UpperDir"])
    assert [(upper / name).stat().st_uid for name in ("root-made", "tmp/user-made")] == [0, 1000]
    seen = Path(f"/proc/{first_process(engine, ident)}/root")
    assert [(seen / name).stat().st_uid for name in ("root-made", "tmp/user-made")] == [
        FIRST_UNUSED, FIRST_UNUSED + 1000,
    ]  # fmt: skip


def test_volumes_have_the_owners_of_the_disk_unless_told_otherwise(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret\n")
    (tmp_path / "secret").chmod(0o600)
    script = "cat /mapped/secret; touch /mapped/new; stat -c %u /etc/hosts /data/from-image; cat /plain/secret 2>&1"
    ended = engine.run("--userns", "private", "-v", f"{tmp_path}:/mapped", "-v", f"{tmp_path}:/plain:noidmap",
                       "-v", "kept:/data", "busy", "sh", "-c", script)  # fmt: skip
    *first, last = ended.stdout.splitlines()
    assert first == ["secret", "0", "1000"]
    assert "Permission denied" in last
    assert (tmp_path / "new").stat().st_uid == 0
    assert engine.out("-v", "kept:/data", "busy", "stat", "-c", "%u", "/data/from-image") == "1000"


def test_what_cannot_be_mapped_keeps_the_hosts_owners_and_inspect_says_so(engine: Engine) -> None:
    ident = engine.start("--userns", "private", "-v", "/proc/version:/version", "busy", "sleep", "100")
    assert engine.done("exec", ident, "stat", "-c", "%u", "/version") == "65534"
    assert engine.inspect(ident)["Remap"]["unmapped"] == ["/version"]


@pytest.mark.parametrize("level", ["off", "default", "strict"])
def test_every_level_holds_and_none_gives_power_over_the_host(engine: Engine, level: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret\n")
    (tmp_path / "secret").chmod(0o600)
    script = "grep CapEff /proc/self/status; cat /s 2>&1; mknod /tmp/n c 1 3 2>&1; echo x > /dev/null && echo null"
    ended = engine.run("--userns", "private", "--security", level, "-v", f"{tmp_path}/secret:/s:noidmap", "busy",
                       "sh", "-c", script)  # fmt: skip
    held, secret, node, null = ended.stdout.splitlines()
    wanted = {"default": 0xA80425FB, "strict": 0}.get(level)
    assert int(held.split()[1], 16) == wanted or (wanted is None and int(held.split()[1], 16) > 0xA80425FB)
    assert "Permission denied" in secret
    assert "not permitted" in node or "Read-only" in node
    assert null == "null"


@pytest.mark.skipif(not LOOP.is_block_device(), reason=f"needs {LOOP}: modprobe loop")
def test_a_device_node_of_its_root_opens_nothing(engine: Engine) -> None:
    ident = engine.start("--userns", "private", "--security", "off", "busy", "sleep", "100")
    upper = Path(engine.inspect(ident)["GraphDriver"]["Data"]["UpperDir"])
    engine.done("stop", "-t", "0", ident)
    os.mknod(upper / "disk", stat.S_IFBLK | 0o666, LOOP.stat().st_rdev)
    engine.done("start", ident)
    ended = engine("exec", ident, "head", "-c", "1", "/disk")
    assert (ended.returncode != 0, "denied" in ended.stderr or "not permitted" in ended.stderr) == (True, True)


def test_its_outputs_can_be_opened_again_and_it_has_a_terminal(engine: Engine) -> None:
    assert private(engine, "busy", "sh", "-c", "echo out > /dev/stdout") == "out"
    assert private(engine, "-u", "user", "busy", "sh", "-c", "echo out > /dev/stdout") == "out"
    assert private(engine, "-t", "busy", "sh", "-c", "echo $(tty) > /dev/console").strip() == "/dev/pts/0"
    ident = engine.start("--userns", "private", "busy", "sleep", "100")
    assert engine.done("exec", ident, "sh", "-c", "echo out > /dev/stdout") == "out"


@pytest.mark.parametrize("running", [True, False])
def test_cp_translates_owners(engine: Engine, tmp_path: Path, running: bool) -> None:
    ident = engine.start("--userns", "private", "-v", "kept:/data", "busy", "sleep", "100")
    if not running:
        engine.done("stop", "-t", "0", ident)
    source = tmp_path / "file"
    source.write_text("text\n")
    os.chown(source, 5, 6)
    engine.done("cp", str(source), f"{ident}:/tmp/plain")
    engine.done("cp", "-a", str(source), f"{ident}:/tmp/archived")
    engine.done("cp", "-a", str(source), f"{ident}:/data/archived")
    engine.done("cp", "-a", f"{ident}:/tmp/archived", str(tmp_path / "back"))
    assert ((tmp_path / "back").stat().st_uid, (tmp_path / "back").stat().st_gid) == (5, 6)
    if not running:
        engine.done("start", ident)
    shown = engine.done("exec", ident, "stat", "-c", "%u:%g", "/tmp/plain", "/tmp/archived", "/data/archived")
    assert shown.split() == ["0:0", "5:6", "5:6"]


def talk(engine: Engine, ident: str) -> bytes:
    binding = engine.inspect(ident)["NetworkSettings"]["Ports"]["80/tcp"][0]
    try:
        with socket.create_connection(("127.0.0.1", int(binding["HostPort"])), 5) as client:
            return client.recv(100)
    except OSError:
        return b""


def test_it_is_reached_through_the_bridge_and_starts_again(engine: Engine) -> None:
    serve = "while :; do echo hello | nc -l -p 80; done"
    ident = engine.done("run", "-d", "--userns", "private", "-p", "127.0.0.1::80", "busy", "sh", "-c", serve)
    for _ in range(2):
        until(lambda: talk(engine, ident) == b"hello\n", "it answers")
        engine.done("restart", "-t", "0", ident)
    engine.done("stop", "-t", "0", ident)
    assert engine.status(ident) == "exited"


def test_containers_share_namespaces_only_with_their_users(engine: Engine) -> None:
    one = engine.start("--userns", "private", "busy", "sleep", "100")
    shared = [f"--{kind}=container:{one}" for kind in ("network", "pid", "ipc")]
    ended = engine("run", "--rm", "--userns", "private", *shared, "busy", "sh", "-c", "readlink /proc/self/ns/user; ps")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[0] == os.readlink(f"/proc/{first_process(engine, one)}/ns/user")
    assert "sleep 100" in ended.stdout
    other = engine.start("busy", "sleep", "100")
    ended = engine("run", "--rm", "--userns", "private", "--network", f"container:{other}", "busy", "true")
    assert (ended.returncode, "shares namespaces only" in ended.stderr) == (125, True)


def test_a_killed_monitors_container_is_cleaned_away(engine: Engine) -> None:
    ident = engine.done("run", "-d", "--rm", "--network", "none", "--userns", "private", "busy", "sleep", "100")
    pid = first_process(engine, ident)
    os.kill(engine.monitor(ident), signal.SIGKILL)
    until(lambda: not Path(f"/proc/{pid}").exists(), "the container ends with its monitor")
    engine.done(group="clean")
    assert engine.leftovers() == []


def elsewhere(engine: Engine, directory: Path, prepare: str) -> subprocess.CompletedProcess[str]:
    """Run a container in a mount namespace where ``prepare`` was done, with layers in ``directory``."""
    for name in ("upper", "work"):
        (directory / name).mkdir()
    layers = f"upperdir={directory}/upper,workdir={directory}/work"
    asked = ("run", "--rm", "--network", "none", "--userns", "private", "busy")
    words = engine.command(*asked, "cat", "/proc/self/uid_map", "/proc/self/gid_map")
    script = f'set -e; LAYERS={layers}; {prepare}; exec "$@"'
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", *words],
        env=engine.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_the_hosts_subordinate_ids_are_used_where_there_are_enough(engine: Engine, tmp_path: Path) -> None:
    prepare = (
        "mount -t overlay -o lowerdir=/etc,$LAYERS overlay /etc; "
        "printf 'root:1:9\\nisomark:2000000:70000\\n' > /etc/subuid; echo isomark:3000000:65536 > /etc/subgid"
    )
    ended = elsewhere(engine, tmp_path, prepare)
    assert ended.stdout.split() == ["0", "2000000", str(COUNT), "0", "3000000", str(COUNT)], ended.stderr


def test_where_nothing_can_be_mapped_it_says_what_to_do(engine: Engine, tmp_path: Path) -> None:
    ended = elsewhere(engine, tmp_path, f"mount -t overlay -o lowerdir={engine.state},$LAYERS overlay {engine.state}")
    assert ended.returncode == 125
    assert "cannot give the container users of its own" in ended.stderr
    assert "--userns host" in ended.stderr
