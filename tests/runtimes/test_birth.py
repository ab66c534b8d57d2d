"""Every field of a ``Spec``, on real processes."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from births import NAMESPACES, Born, House, output
from small_tree import needs_root

from bench.errors import InstanceError
from runtimes import libc
from runtimes.birth import bear, plain
from runtimes.spec import Spec

pytestmark = needs_root
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def refused(spec: Spec) -> InstanceError:
    with pytest.raises(InstanceError) as caught, Born(spec) as born:
        born.go()
    return caught.value


def test_with_nothing_asked_for_it_is_an_ordinary_child(tmp_path: Path) -> None:
    spec = plain() | {"command": ["/bin/sh", "-c", "readlink /proc/self/ns/mnt; pwd"], "environment": {}}
    assert output(spec) == [os.readlink("/proc/self/ns/mnt"), "/"]


def test_without_a_command_it_proves_the_set_up(house: House) -> None:
    with Born(house.spec()) as born:
        born.go()
        assert born.status() == 0


def test_its_exit_status_is_its_parents_to_collect(house: House) -> None:
    with Born(house.shell("exit 7")) as born:
        born.go()
        assert born.status() == 7


def test_steps_are_told_in_order_when_asked_for(house: House) -> None:
    with Born(house.spec("/bin/true", trace=True)) as born:
        ready = born.go().ready
    assert ready is not None
    steps = ready.steps
    assert [at for _, at in steps] == sorted(at for _, at in steps)
    assert steps[-1][0] == "run /bin/true"
    assert len(steps) > 20


def test_only_three_descriptors_are_open(house: House) -> None:
    leak = os.open("/", os.O_RDONLY)
    os.set_inheritable(leak, True)
    try:
        assert output(house.shell("ls /proc/self/fd")) == ["0", "1", "2", "3"]  # 3 is what ls reads
    finally:
        os.close(leak)


def test_descriptors_to_preserve_stay_open_and_no_other_takes_their_place(house: House, tmp_path: Path) -> None:
    script = f"""
import os, sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests/runtimes")!r}, {str(ROOT / "tests")!r}]
os.dup2(os.open("/etc/hostname", os.O_RDONLY), 10)
os.closerange(3, 10)
os.dup2(10, 3)
from births import House, output
from pathlib import Path
house = House(Path({str(tmp_path / "more")!r}))
print(output(house.shell("ls /proc/self/fd; cat <&3 >/dev/null && echo readable", preserve=1)))
try:
    output(house.shell("true", preserve=2000))
except OSError as error:
    print(error.strerror)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.stdout.splitlines() == ["['0', '1', '2', '3', '4', 'readable']", "Bad file descriptor"], ended.stderr


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("web", "uid=33(web) gid=34(web) groups=34(web),50(extra) /var/www"),
        ("33", "uid=33(web) gid=34(web) groups=34(web),50(extra) /var/www"),
        ("web:extra", "uid=33(web) gid=50(extra) groups=50(extra) /var/www"),
        ("web:7", "uid=33(web) gid=7 groups=7 /var/www"),
        ("1234", "uid=1234 gid=0(root) groups=0(root) /"),
        ("1234:5678", "uid=1234 gid=5678 groups=5678 /"),
        ("", "uid=0(root) gid=0(root) groups=0(root) /root"),
    ],
)
def test_a_user_is_looked_up_in_the_image(house: House, name: str, expected: str) -> None:
    _people(house)
    spec = house.shell("echo $(id 2>/dev/null) $HOME")  # some versions complain of the bad lines
    spec["user"]["name"] = name
    assert output(spec) == [expected]


def test_further_groups_are_added_to_those_of_the_image(house: House) -> None:
    _people(house)
    spec = house.shell("id -G")
    spec["user"] |= {"name": "web", "groups": [99]}
    assert set(output(spec)[0].split()) == {"34", "50", "99"}


@pytest.mark.parametrize(("name", "reason"), [("nobody-here", "no such user"), ("web:nogroup", "no group nogroup"),
                                              ("99999999999", "no user or group number")])  # fmt: skip
def test_a_user_that_is_not_there_is_an_error(house: House, name: str, reason: str) -> None:
    _people(house)
    spec = house.shell("id")
    spec["user"]["name"] = name
    error = refused(spec)
    assert f"cannot find the user {name}: " in error.message
    assert reason in error.message


@pytest.mark.parametrize("kind", ["fifo", "device", "directory", "huge", "link"])
def test_a_hostile_list_of_users_neither_hangs_nor_leads_out(house: House, kind: str) -> None:
    passwd = house.tree / "etc/passwd"
    passwd.unlink()
    if kind == "fifo":
        os.mkfifo(passwd)
    elif kind == "device":
        os.mknod(passwd, 0o20666, os.makedev(1, 5))
    elif kind == "directory":
        passwd.mkdir()
    elif kind == "huge":
        with passwd.open("wb") as file:
            file.truncate(1 << 40)
    else:
        passwd.symlink_to("/proc/self/fd/0")
    spec = house.shell("id")
    spec["user"]["name"] = "daemon"
    begun = time.monotonic()
    assert "cannot find the user daemon" in refused(spec).message
    assert time.monotonic() - begun < 5


def test_numbers_are_taken_as_they_are(house: House) -> None:
    spec = house.shell("id -u; id -g; id -G; umask")
    spec["user"] |= {"uid": 5, "gid": 6, "groups": [7, 8], "umask": 0o077}
    assert output(spec) == ["5", "6", "6 7 8", "0077"]


def test_a_pipe_belongs_to_the_user_and_a_file_stays_its_owners(house: House, tmp_path: Path) -> None:
    spec = house.shell("echo one > /dev/stdout")
    spec["user"] |= {"uid": 5, "gid": 6}
    assert output(spec) == ["one"]
    file = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    newborn = bear(spec | {"root": house.overlay()}, (file, file, file))
    newborn.provide()
    newborn.await_ready()
    os.waitpid(newborn.pid, 0)
    newborn.close()
    assert os.fstat(file).st_uid == 0
    os.close(file)


def test_the_working_directory_is_made_and_entered(house: House) -> None:
    assert output(house.shell("pwd", cwd="/a/b c")) == ["/a/b c"]


@pytest.mark.parametrize("cwd", ["/proc/self/fd/3", "/proc/self/cwd/../..", "/link/x", "/etc/passwd"])
def test_a_working_directory_outside_the_root_is_refused(house: House, cwd: str) -> None:
    (house.tree / "link").symlink_to("/proc/self/root")
    outside = os.open("/", os.O_RDONLY)
    os.set_inheritable(outside, True)
    try:
        assert "cannot enter the working directory" in refused(house.shell("pwd", cwd=cwd)).message
    finally:
        os.close(outside)


def test_names_and_settings_of_its_namespaces(house: House) -> None:
    script = "hostname; cat /proc/sys/kernel/domainname /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shmmni"
    sysctls = {"net.ipv4.ip_forward": "1", "kernel/shmmni": "77"}
    before = Path("/proc/sys/kernel/shmmni").read_text()
    found = output(house.shell(script, hostname="one", domainname="two.example", sysctls=sysctls))
    assert found == ["one", "two.example", "1", "77"]
    assert Path("/proc/sys/kernel/shmmni").read_text() == before


@pytest.mark.parametrize("name", ["kernel/../../self/oom_score_adj", "kernel.absent", "../self/comm"])
def test_a_sysctl_leads_nowhere_else(house: House, name: str) -> None:
    assert f"cannot set the sysctl {name}" in refused(house.shell("true", sysctls={name: "1"})).message


def test_a_proc_of_the_images_is_never_written_to(house: House) -> None:
    (house.tree / "proc/sys/net/ipv4").mkdir(parents=True)
    (house.tree / "proc/sys/net/ipv4/ip_forward").write_text("untouched")
    spec = house.shell("cat /proc/sys/net/ipv4/ip_forward", sysctls={"net.ipv4.ip_forward": "1"}, mounts=[])
    assert output(spec) == ["untouched"]


def test_limits_of_its_own(house: House) -> None:
    script = "ulimit -n; ulimit -Hn; nproc; cat /proc/self/oom_score_adj"
    cpus = [min(os.sched_getaffinity(0))]
    spec = house.shell(script, rlimits=[[7, 100, 200], [4, -1, -1]], cpus=cpus, oom_score_adj=123)
    assert output(spec) == ["100", "200", "1", "123"]


def test_its_clocks_are_set_back_and_forth(house: House) -> None:
    if not Path("/proc/self/timens_offsets").exists():
        pytest.skip("this kernel has no time namespaces")
    (uptime,) = output(house.shell("cat /proc/uptime", time_offsets={"boottime": 10_000_000, "monotonic": -1}))
    assert float(uptime.split()[0]) > 10_000_000


def test_a_terminal_of_its_own(house: House) -> None:
    script = "trap 'exit 42' INT; tty; stty size; echo x > /dev/tty; ls -l /dev/console; while :; do read x; done"
    for applet in ("tty", "stty"):
        (house.tree / "bin" / applet).symlink_to("busybox")
    with Born(house.shell(script, terminal=True, terminal_size=[33, 77])) as born:
        ready = born.go().ready
        assert ready is not None
        master = ready.terminal
        assert master is not None
        seen = b""
        while seen.count(b"\n") < 4:
            seen += os.read(master, 4096)
        assert [line.strip() for line in seen.decode().splitlines()[:3]] == ["/dev/pts/0", "33 77", "x"]
        os.write(master, b"\x03")  # interrupts: it is the controlling terminal
        assert born.status() == 42
        os.close(master)


def test_a_terminal_without_devpts_is_refused(house: House) -> None:
    (house.tree / "dev/pts").mkdir()
    os.mknod(house.tree / "dev/pts/ptmx", 0o20666, os.makedev(1, 5))
    error = refused(house.shell("true", terminal=True, mounts=[]))
    assert error.message == "cannot make its terminal: /dev/pts is no devpts"


def test_a_user_namespace_with_ranges(house: House) -> None:
    for directory in (house.directory, *list(house.directory.parents)[:3]):
        directory.chmod(0o755)
    spec = house.shell(
        "id -u; cat /proc/self/uid_map; touch /x; stat -c %u /x", namespaces=NAMESPACES | libc.CLONE_NEWUSER
    )
    spec["uid_map"] = spec["gid_map"] = [[0, 100_000, 65536]]
    for directory in spec["root"][2:4]:
        os.chown(directory, 100_000, 100_000)
    spec["mounts"] = [["mount", "/proc", "proc", 14, None]]
    zero, ranges, owner = output(spec)
    assert (zero, ranges.split(), owner) == ("0", ["0", "100000", "65536"], "0")
    assert os.stat(f"{spec['root'][2]}/x").st_uid == 100_000


def test_a_map_that_the_kernel_refuses_leaves_no_process(house: House) -> None:
    spec = house.shell("true", namespaces=libc.CLONE_NEWUSER, uid_map=[[0, 0, 5], [3, 100, 5]], gid_map=[[0, 0, 1]])
    assert "cannot map its users" in refused(spec).message
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_it_joins_the_namespaces_of_another(house: House) -> None:
    with Born(house.shell("echo up; exec sleep 1000", hostname="there")) as first:
        assert first.go().line() == "up"
        join = _namespaces(first.newborn.pid)
        spec = house.shell(
            "hostname; cat /proc/1/comm; touch /made; echo $$", root=["joined"], mounts=[], namespaces=0, join=join
        )
        host, comm, pid = output(spec)
        assert (host, comm) == ("there", "sleep")
        assert 1 < int(pid) < 10
        ended = Born(spec | {"command": ["/bin/sh", "-c", "exit 9"]})
        ended.go()
        assert ended.status() == 9, "its parent is this process, whatever was in between"
        ended.__exit__()


def test_joining_what_is_gone_is_an_error(house: House) -> None:
    spec = house.shell("true", root=["joined"], mounts=[], namespaces=0, join=[[libc.CLONE_NEWNET, "/proc/0/ns/net"]])
    assert refused(spec).message == "cannot join /proc/0/ns/net: No such file or directory"


def test_joining_a_container_whose_first_process_is_dead_is_an_error(house: House) -> None:
    with Born(house.shell("echo up; read x; exec sleep 1000")) as first:
        first.go()
        held = os.open(f"/proc/{first.newborn.pid}/ns/pid", os.O_RDONLY)
        first.newborn.abandon()
    path = f"/proc/self/fd/{held}"
    spec = house.shell("true", root=["joined"], mounts=[], namespaces=0, join=[[libc.CLONE_NEWPID, path]])
    error = refused(spec)
    os.close(held)
    assert "cannot create its process in its namespaces" in error.message


def test_nobody_inside_can_look_into_what_joins(house: House) -> None:
    """A container's processes, without CAP_SYS_PTRACE, see of it neither the program nor what it has open."""
    from runtimes.security.capabilities import DEFAULT, held, sets

    watch = "while :; do for f in /proc/[0-9]*/exe /proc/[0-9]*/fd/*; do readlink $f; done 2>/dev/null | sort -u; done"
    (house.tree / "bin/readlink").symlink_to("busybox")
    (house.tree / "bin/sort").symlink_to("busybox")
    with Born(house.shell(watch, capabilities=sets(DEFAULT & held()))) as first:
        first.go()
        join = _namespaces(first.newborn.pid)
        for _ in range(25):
            spec = house.spec("/bin/true", root=["joined"], mounts=[], namespaces=0, join=join)
            with Born(spec) as second:
                second.go()
                second.status()
        first.newborn.abandon()
        seen = set(first.rest())
    assert "/bin/busybox" in seen
    own = ("/bin/", "/dev/null", "/proc/", "pipe:")
    assert [line for line in seen if not line.startswith(own)] == []


def test_it_holds_until_its_fifo_is_opened(house: House, tmp_path: Path) -> None:
    fifo = tmp_path / "start"
    os.mkfifo(fifo)
    with Born(house.shell("echo started", hold=str(fifo))) as born:
        born.go()
        assert not select.select([born._read], [], [], 0.2)[0]
        with pytest.raises(ChildProcessError):
            os.waitpid(born.newborn.pid + 1, 0)
        os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
        assert born.line() == "started"
        assert born.status() == 0
    with pytest.raises(OSError, match="No such device") as caught:
        os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    assert caught.value.errno == errno.ENXIO, "nobody waits any more"


def test_a_command_that_is_not_there_is_told_before_it_is_held(house: House, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "start")
    assert "cannot run absent" in refused(house.spec("absent", hold=str(tmp_path / "start"))).message


def test_a_command_that_cannot_be_executed_after_all_is_told_on_its_console(house: House, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "start")
    (house.tree / "bin/broken").write_bytes(b"\x7fELF")
    (house.tree / "bin/broken").chmod(0o755)
    with Born(house.spec("broken", hold=str(tmp_path / "start"))) as born:
        born.go()
        os.close(os.open(tmp_path / "start", os.O_WRONLY | os.O_NONBLOCK))
        assert born.rest() == ["cannot run broken: Exec format error"]
        assert born.status() == 126


def test_the_last_thing_is_done_inside_after_the_hold(house: House, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "start")

    def at_last() -> None:
        os.write(1, f"{os.getpid()} {os.path.exists('/bin/busybox')}\n".encode())

    with Born(house.shell("echo then", hold=str(tmp_path / "start")), at_last) as born:
        born.go()
        assert not select.select([born._read], [], [], 0.1)[0]
        os.close(os.open(tmp_path / "start", os.O_WRONLY))
        assert born.rest() == ["1 True", "then"]


def test_a_read_only_root_keeps_what_is_mounted_below_writable(house: House) -> None:
    script = "touch /x 2>/dev/null || echo refused; touch /dev/shm/x && echo fine"
    assert output(house.shell(script, root_readonly=True)) == ["refused", "fine"]


def test_a_directory_is_used_as_it_is(house: House) -> None:
    assert output(house.shell("echo kept > /etc/new", root=["directory", str(house.tree)])) == []
    assert (house.tree / "etc/new").read_text() == "kept\n"


def test_many_layers_with_long_names_are_one_root(house: House, tmp_path: Path) -> None:
    layers = []
    for number in range(60):
        layer = tmp_path / ("layer" * 20 + str(number))
        layer.mkdir()
        (layer / "top").write_text(f"{number}\n")
        layers.append(str(layer))
    root = house.overlay()
    root[1] = [*layers, *root[1]]
    assert output(house.shell("cat /top", root=root)) == ["0"]


def test_mounts_on_the_host_spread_into_it_or_not(house: House, tmp_path: Path) -> None:
    """A shared root does not take the host's mounts away with itself."""
    shared = tmp_path / "shared"
    (shared / "below").mkdir(parents=True)
    subprocess.run(["mount", "--bind", str(shared), str(shared)], check=True)
    try:
        subprocess.run(["mount", "--make-shared", str(shared)], check=True)
        for kind, seen in ((libc.MS_SLAVE, "spread"), (libc.MS_PRIVATE, ""), (libc.MS_SHARED, "spread")):
            bind = ["user_bind", "/mnt", str(shared), 0, 0, True, False, kind | libc.MS_REC]
            spec = house.shell(
                "echo up; read x; cat /mnt/below/file 2>/dev/null; true",
                mounts=[*house.spec()["mounts"], bind], propagation=kind | libc.MS_REC,
            )  # fmt: skip
            with Born(spec, None):
                pass
            reader, writer = os.pipe()
            out, into = os.pipe()
            newborn = bear(spec | {"root": house.overlay()}, (reader, into, into))
            newborn.provide()
            newborn.await_ready()
            assert os.read(out, 10) == b"up\n"
            subprocess.run(["mount", "-t", "tmpfs", "none", str(shared / "below")], check=True)
            (shared / "below/file").write_text("spread")
            os.write(writer, b"\n")
            for fd in (writer, into, reader):
                os.close(fd)
            text = os.read(out, 100).decode()
            os.close(out)
            os.waitpid(newborn.pid, 0)
            newborn.close()
            assert text == seen, kind
            assert (shared / "below/file").exists(), "the host's mount is still there"
            subprocess.run(["umount", str(shared / "below")], check=True)
    finally:
        subprocess.run(["umount", "-R", str(shared)], check=False)


def test_it_dies_with_its_parent_only_if_tied(house: House, tmp_path: Path) -> None:
    script = f"""
import os, sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests/runtimes")!r}, {str(ROOT / "tests")!r}]
from births import House, Born
from pathlib import Path
house = House(Path({str(tmp_path / "more")!r}))
for tie, user in ((True, 0), (True, 5), (False, 0)):
    spec = house.shell("exec sleep 1000", tie=tie)
    spec["user"]["uid"] = user
    print(Born(spec).go().newborn.pid, flush=True)
held = Born(house.shell("exec sleep 1000"))
print(held.newborn.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    tied, tied_as_user, free, unprovided = map(int, ended.stdout.split())
    deadline = time.monotonic() + 10
    while any(_runs(pid) for pid in (tied, tied_as_user, unprovided)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert _runs(free)
    os.kill(free, signal.SIGKILL)


def _people(house: House) -> None:
    (house.tree / "etc/passwd").write_text(
        "root:x:0:0:root:/root:/bin/sh\nbad line\nweb:x:33:34:web:/var/www:/bin/sh\n"
    )
    (house.tree / "etc/group").write_text("root:x:0:\nweb:x:34:\n\nextra:x:50:other,web\n")


def _namespaces(pid: int) -> list[list[object]]:
    kinds = {"mnt": libc.CLONE_NEWNS, "pid": libc.CLONE_NEWPID, "net": libc.CLONE_NEWNET, "ipc": libc.CLONE_NEWIPC,
             "uts": libc.CLONE_NEWUTS, "cgroup": libc.CLONE_NEWCGROUP}  # fmt: skip
    return [[flag, f"/proc/{pid}/ns/{kind}"] for kind, flag in kinds.items()]


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
