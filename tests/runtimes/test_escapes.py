"""Real containers at the default level, and what hostile images and programs try to get out of them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_tree import Rig, digest_of, needs_root, open_rig

from bench.errors import HostError, InstanceError
from runtimes.container.driver import ContainerDriver
from runtimes.instance import ProcessInstance
from runtimes.security import capabilities, levels

pytestmark = [needs_root, pytest.mark.skipif(os.uname().machine != "x86_64", reason="the calls' numbers are x86_64's")]
SOURCES = Path(__file__).resolve().parents[2]
PYTHON = Path(sys.executable).resolve()


@pytest.fixture(scope="session")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The attacker's static program."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    path = tmp_path_factory.mktemp("tools") / "tools"
    for name, flags in (("tools", ["-static"]), ("loader", ["-static-pie", "-nostdlib", "-fno-stack-protector"])):
        source = Path(__file__).parent / f"escape_{name}.c"
        subprocess.run(["gcc", "-O1", *flags, "-o", path.with_name(name), source], check=True, capture_output=True)
    return path


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory, tools: Path) -> Iterator[Rig]:
    with open_rig(ContainerDriver, tmp_path_factory.mktemp("default")) as opened:
        shutil.copy(tools, opened.tree / "tools")
        yield opened


@pytest.fixture(autouse=True)
def _the_host_is_unharmed(tmp_path: Path) -> Iterator[None]:
    """A sentinel tree and the host's own interpreter have the same content after every attack."""
    sentinel = tmp_path / "sentinel"
    sentinel.mkdir()
    (sentinel / "file").write_text("untouched")
    before = digest_of(sentinel), hashlib.sha256(PYTHON.read_bytes()).digest(), PYTHON.stat().st_mtime_ns
    yield
    assert (digest_of(sentinel), hashlib.sha256(PYTHON.read_bytes()).digest(), PYTHON.stat().st_mtime_ns) == before


@pytest.fixture
def sentinel(tmp_path: Path) -> Path:
    return tmp_path / "sentinel"


def calls(rig: Rig, **wanted: str) -> dict[str, str]:
    """Name -> the error of a system call made inside."""
    words = " ".join(f"{name}:{text}" for name, text in wanted.items())
    return dict(line.split() for line in rig.output(f"/tools calls {words}"))


def test_the_process_has_what_dockers_has_and_no_more(rig: Rig) -> None:
    status = dict(line.split(":", 1) for line in rig.output("cat /proc/self/status") if ":" in line)
    found = {name: int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
    allowed = capabilities.DEFAULT & capabilities.held()
    assert found == {"CapInh": 0, "CapPrm": allowed, "CapEff": allowed, "CapBnd": allowed, "CapAmb": 0}
    assert found["CapBnd"] & ~0xA80425FB == 0, "more than in a container of Docker's"
    assert {name: int(status[name]) for name in ("NoNewPrivs", "Seccomp", "Seccomp_filters")} == {
        "NoNewPrivs": 1, "Seccomp": 2, "Seccomp_filters": 1,
    }  # fmt: skip


def test_calls_that_lead_out_are_refused(rig: Rig) -> None:
    wanted = {
        "mount": "165:/a,/b,/c,0,0",
        "umount2": "166:/proc,2",
        "pivot_root": "155:/,/",
        "fsopen": "430:/a,0",
        "open_tree": "428:-100,/,1",
        "move_mount": "429:-1,/,-1,/,0",
        "mount_setattr": "442:-100,/,0,/,32",
        "unshare_user": "272:0x10000000",
        "unshare_mount": "272:0x20000",
        "setns": "308:0,0",
        "clone_user": "56:0x10000011",
        "clone_net": "56:0x40000011",
        "keyctl": "250:0,-3",
        "add_key": "248:/a,/b,0,0,-1",
        "request_key": "249:/a,/b,0,0",
        "bpf": "321:0,0,0",
        "perf_event_open": "298:0,0,0,-1,0",
        "open_by_handle_at": "304:-100,/,0",
        "kexec_load": "246:0,0,0,0",
        "kexec_file_load": "320:-1,-1,0,0,0",
        "init_module": "175:0,0,0",
        "finit_module": "313:-1,0,0",
        "delete_module": "176:/a,0",
        "reboot": "169:0,0,0,0",
        "swapon": "167:/a,0",
        "swapoff": "168:/a",
        "acct": "163:0",
        "settimeofday": "164:0,0",
        "clock_settime": "227:0,/a",
        "iopl": "172:3",
        "ioperm": "173:0,1,1",
        "io_uring_setup": "425:1,0",
        "userfaultfd": "323:0",
        "quotactl": "179:0,0,0,0",
        "sethostname": "170:/a,1",
        "syslog": "103:3,0,0",
        "vhangup": "153",
        "lookup_dcookie": "212:0,0,0",
        "kcmp": "312:1,1,0,0,0",
        "pidfd_getfd": "438:0,0,0",
        "process_madvise": "440:0,0,0,0,0",
        "mbind": "237:0,0,0,0,0,0",
        "fanotify_init": "300:0,0",
        "nfsservctl": "180:0,0,0",
        "uselib": "134:/a",
        "ustat": "136:0,0",
        "sysfs": "139:1,0",
        "_sysctl": "156:0",
        "socket_alg": "41:38,5,0",
        "socket_vsock": "41:40,1,0",
        "socket_caif": "41:37,1,0",
        "personality": "135:8388608",
    }
    found = calls(rig, **wanted)
    assert {name: error for name, error in found.items() if error != "EPERM"} == {}
    assert found.keys() == wanted.keys()
    later = calls(rig, clone3="435:0,0", unknown="600", open_tree_attr="467:-100,/,0,0,0")
    assert set(later.values()) == {"ENOSYS"}, "C libraries fall back"


def test_ordinary_calls_are_not(rig: Rig) -> None:
    wanted = {"getpid": "39", "socket": "41:2,1,0", "netlink": "41:16,3,0", "fchmodat2": "452:-100,/tools,0755,0",
              "chroot": "161:/", "chown": "92:/tools,1,1", "setuid": "105:1"}  # fmt: skip
    assert set(calls(rig, **wanted).values()) <= {"0", "ENOSYS"}


def test_nobody_of_the_host_can_be_seen_or_traced(rig: Rig) -> None:
    host = os.getpid()
    assert rig.output("cd /proc; echo [0-9]*") == ["1"]
    found = calls(
        rig, kill=f"62:{host},0", ptrace=f"101:16,{host},0,0", pidfd_open=f"434:{host},0", prlimit=f"302:{host},7,0,0"
    )
    assert set(found.values()) == {"ESRCH"}


def test_a_disk_of_the_host_can_be_named_and_not_opened(rig: Rig) -> None:
    disk = os.stat("/").st_dev
    script = (
        f"mknod /tmp/disk b {os.major(disk)} {os.minor(disk)}; mknod /dev/disk b {os.major(disk)} {os.minor(disk)};"
        "mknod /mem c 1 1; mknod /port c 1 4; mknod /kmsg c 1 11; mknod /fuse c 10 229;"
        "mknod /tun c 10 200; mknod /loop b 7 0;"
        "mknod /console c 5 1;"
        "for f in /tmp/disk /dev/disk /mem /port /kmsg /fuse /tun /loop; do head -c1 $f 2>&1; echo >$f; done"
    )
    lines = rig.output(f"mkdir -p /tmp; {script} 2>&1")
    assert len(lines) == 16, lines
    assert all("Operation not permitted" in line or "Permission denied" in line for line in lines), lines


def test_the_devices_are_those_that_docker_gives(rig: Rig) -> None:
    listed = rig.output("cd /dev; stat -c '%n %F %t:%T %a' *")
    kinds = {line.split()[0]: line.split(maxsplit=1)[1] for line in listed}
    node = "character special file"
    assert kinds.pop("pts") == "directory 0:0 755"
    assert kinds.pop("shm") == "directory 0:0 1777"
    assert kinds.pop("mqueue") == "directory 0:0 1777"
    assert {name: kinds.pop(name).split()[0] for name in ("fd", "stdin", "stdout", "stderr", "ptmx")} == dict.fromkeys(
        ("fd", "stdin", "stdout", "stderr", "ptmx"), "symbolic"
    )
    assert kinds == {
        "null": f"{node} 1:3 666", "zero": f"{node} 1:5 666", "full": f"{node} 1:7 666", "random": f"{node} 1:8 666",
        "urandom": f"{node} 1:9 666", "tty": f"{node} 5:0 666",
    }  # fmt: skip


def test_masked_paths_show_nothing(rig: Rig) -> None:
    script = (
        "for path in acpi asound interrupts kcore keys latency_stats sched_debug scsi timer_list timer_stats; do"
        "  path=/proc/$path; test -e $path || continue;"
        "  test -d $path && echo $path $(ls -A $path | wc -l) || echo $path $(head -c 4096 $path | wc -c);"
        "done; echo /sys/firmware $(ls -A /sys/firmware | wc -l)"
    )
    lines = rig.output(script)
    there = {path for path in levels.MASKED if path.startswith("/proc") and os.path.exists(path)}
    assert {line.split()[0] for line in lines} == there | {"/sys/firmware"}
    assert {line.split()[1] for line in lines} == {"0"}, lines


def test_the_kernels_settings_cannot_be_changed(rig: Rig) -> None:
    paths = (
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/hostname",
        "/proc/sysrq-trigger",
        "/proc/sys/vm/drop_caches",
        "/sys/kernel/mm/transparent_hugepage/enabled",
        "/proc/irq/default_smp_affinity",
    )
    wanted = [path for path in paths if os.path.exists(path)]
    lines = rig.output(f"for path in {' '.join(wanted)}; do echo x >$path; done 2>&1; mkdir /sys/kernel/x 2>&1")
    assert len(lines) == len(wanted) + 1, lines
    assert all("Read-only file system" in line or "Permission denied" in line for line in lines), lines


def test_no_descriptor_leaks_in(rig: Rig) -> None:
    lines = rig.start("/tools", "descriptors")
    with lines as instance:
        found = [line.text.split()[0] for line in instance.lines(30)]
    assert found == ["0", "1", "2"]


def test_the_hosts_names_of_the_root_are_not_a_way_back(rig: Rig) -> None:
    lines = rig.output("ls /proc/1/root/; ls /proc/self/cwd/../../../..; cat /proc/self/cgroup")
    assert "tools" in lines
    assert "home" not in lines
    assert [line for line in lines if line.startswith(("0::", "1:")) and not line.endswith(":/")] == []


def test_a_session_keyring_of_its_own(rig: Rig) -> None:
    assert rig.output("cat /proc/keys | wc -c; cat /proc/key-users | wc -l")[0] == "0"


def attack(tmp_path: Path, tools: Path) -> Iterator[Rig]:
    with open_rig(ContainerDriver, tmp_path) as opened:
        shutil.copy(tools, opened.tree / "tools")
        yield opened


@pytest.fixture
def hostile(tmp_path: Path, tools: Path) -> Iterator[Rig]:
    yield from attack(tmp_path / "rig", tools)


def started(rig: Rig, script: str) -> str:
    """What it prints, or why it did not start."""
    try:
        return "\n".join(rig.output(script))
    except (InstanceError, HostError) as error:
        return f"refused: {error.message}"


@pytest.mark.parametrize("name", ["dev", "proc", "sys", "dev/pts", "dev/shm", "dev/mqueue", "dev/null", "tmp"])
@pytest.mark.parametrize("target", ["/sentinel", "/../../../../../../../..{}", "."])
def test_a_link_where_something_is_mounted_leads_nowhere_on_the_host(
    hostile: Rig, sentinel: Path, name: str, target: str
) -> None:
    place = hostile.tree / name
    if place.is_dir():
        shutil.rmtree(place)
    place.parent.mkdir(exist_ok=True)
    place.symlink_to(target.format(sentinel))
    answer = started(hostile, "echo inside; ls -la /dev/null; echo x >/dev/null")
    assert "inside" in answer or answer.startswith("refused: "), answer
    assert str(sentinel) not in Path("/proc/self/mountinfo").read_text()
    assert sorted(os.listdir(sentinel)) == ["file"]


@pytest.mark.parametrize("kind", ["file", "directory", "pipe"])
def test_another_thing_in_the_place_of_the_null_device_masks_nothing_less(hostile: Rig, kind: str) -> None:
    place = hostile.tree / "dev/null"
    place.parent.mkdir(exist_ok=True)
    if kind == "file":
        place.write_text("x")
    elif kind == "directory":
        place.mkdir()
    else:
        os.mkfifo(place)
    assert started(hostile, "head -c 10 /proc/keys | wc -c; stat -c %t:%T /dev/null") == "0\n1:3"


def script_image(rig: Rig, tools: Path, entrypoint: str, text: str) -> None:
    """An entrypoint whose interpreter would be the one who starts it, and a loader that would then run as it."""
    path = rig.tree / entrypoint
    path.write_text(text)
    path.chmod(0o755)
    for loader in ("lib64/ld-linux-x86-64.so.2", "lib/ld-musl-x86_64.so.1"):
        (rig.tree / loader).parent.mkdir(exist_ok=True)
        shutil.copy(tools.with_name("loader"), rig.tree / loader)


def test_the_attack_succeeds_where_nobody_looks(hostile: Rig, tools: Path, tmp_path: Path) -> None:
    """A copy of chroot(1) hands itself out: or the tests below would hold whatever we did."""
    script_image(hostile, tools, "attack", "#!/proc/self/exe\n")
    victim = tmp_path / "chroot"
    shutil.copy(shutil.which("chroot") or pytest.skip("needs chroot"), victim)
    script = f"mount -t proc proc {hostile.tree}/proc && exec {victim} {hostile.tree} /attack"
    ended = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, check=False, timeout=60
    )
    assert f"STOLEN {victim}" in ended.stdout, ended
    assert f"WRITTEN {victim}" in ended.stdout, ended


@pytest.mark.parametrize(
    "text",
    [
        "#!/proc/self/exe\n", "#! /proc/self/exe\n", "#!/proc/1/exe\n", "#!/proc/thread-self/exe\n",
        "#!/link\n", "#!/proc/self/root/proc/self/exe\n", "#!/dev/fd/../exe\n", "#!/script2\n",
        "#!/bin/sh\r\n", "#!/bin/sh\v\n", "#!/bin/sh\f x\n", "#!/bin/sh\r",
    ],
)  # fmt: skip
def test_a_script_whose_interpreter_is_our_own_executable_gets_nothing(hostile: Rig, tools: Path, text: str) -> None:
    script_image(hostile, tools, "attack", text)
    script_image(hostile, tools, "script2", "#!/proc/self/exe\n")
    (hostile.tree / "link").symlink_to("/proc/self/exe")
    for blank in "\r\v\f":  # white space to many, and not to the kernel
        (hostile.tree / f"bin/sh{blank}").symlink_to("/proc/self/exe")
    lines: list[str] = []
    refusal = ""
    try:
        with hostile.start("/attack") as instance:
            lines = [line.text for line in instance.lines(30)]
    except InstanceError as error:
        refusal = error.message
    assert not refusal or "cannot run /attack" in refusal
    assert not [line for line in lines if "STOLEN" in line or "WRITTEN" in line], lines


@pytest.mark.parametrize(
    "command", ["/proc/self/exe", "/proc/1/exe", "/link", "/proc/self/fd/3", "/proc/thread-self/exe"]
)
def test_a_command_that_is_our_own_executable_gets_nothing(hostile: Rig, tools: Path, command: str) -> None:
    script_image(hostile, tools, "unused", "")
    (hostile.tree / "link").symlink_to("/proc/self/exe")
    with pytest.raises(InstanceError, match="cannot run"), hostile.start(command) as instance:
        list(instance.lines(30))


def test_a_program_whose_loader_is_our_own_executable_gets_nothing(hostile: Rig, tools: Path) -> None:
    source = hostile.tree / "attack.c"
    source.write_text("int main(void) { return 0; }\n")
    loader = "-Wl,--dynamic-linker=/proc/self/exe"
    subprocess.run(["gcc", loader, "-o", hostile.tree / "attack", source], check=True, capture_output=True)
    script_image(hostile, tools, "unused", "")
    try:
        with hostile.start("/attack") as instance:
            lines = [line.text for line in instance.lines(30)]
    except InstanceError:
        return
    assert not [line for line in lines if "STOLEN" in line or "WRITTEN" in line], lines


EXEC = """
import sys
sys.path.insert(0, sys.argv[1])
from bench.errors import InstanceError
from runtimes import birth, libc
from runtimes.security import levels
import os
pid, state, cwd, command = int(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5:]
security = levels.level("default", state=state)
names = {"mnt": libc.CLONE_NEWNS, "pid": libc.CLONE_NEWPID, "net": libc.CLONE_NEWNET, "ipc": libc.CLONE_NEWIPC,
         "uts": libc.CLONE_NEWUTS, "cgroup": libc.CLONE_NEWCGROUP}
spec = birth.plain()
spec["command"], spec["environment"], spec["cwd"] = command, {"PATH": "/bin"}, cwd
spec["join"] = [[flag, f"/proc/{pid}/ns/{name}"] for name, flag in names.items()]
spec["capabilities"], spec["seccomp"] = security.capabilities, security.seccomp
spec["no_new_privileges"] = security.no_new_privileges
try:
    newborn = birth.bear(spec, (0, 1, 2))
    newborn.provide()
    newborn.await_ready()
    os.waitpid(newborn.pid, 0)
except InstanceError as error:
    print("refused:", error.message, flush=True)
"""


def execute(rig: Rig, instance: ProcessInstance, *command: str, cwd: str = "/") -> str:
    """Execute a command in a running container, as ``exec`` does: by a small process that joins its namespaces."""
    ended = subprocess.run(
        [
            sys.executable,
            "-I",
            "-S",
            "-c",
            EXEC,
            str(SOURCES),
            str(first_process(instance)),
            str(rig.lab.state),
            cwd,
            *command,
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return ended.stdout + ended.stderr


def first_process(instance: ProcessInstance) -> int:
    return int(min(instance._group.members()))  # type: ignore[attr-defined]


def test_what_is_executed_in_a_running_container_is_as_confined(rig: Rig) -> None:
    with rig.start("/bin/sleep", "1000") as instance:
        status = dict(
            line.split(":", 1)
            for line in execute(rig, instance, "/bin/cat", "/proc/self/status").splitlines()
            if ":" in line
        )
        allowed = capabilities.DEFAULT & capabilities.held()
        assert [int(status[name], 16) for name in ("CapInh", "CapEff", "CapBnd")] == [0, allowed, allowed]
        assert int(status["Seccomp"]) == 2
        assert execute(rig, instance, "/tools", "descriptors").split()[::2] == ["0", "1", "2"]
        assert execute(rig, instance, "/tools", "calls", "mount:165:/a,/b,/c,0,0") == "mount EPERM\n"


@pytest.mark.parametrize("command", ["/attack", "/proc/self/exe", "/link", "/swapped"])
def test_an_execution_in_a_hostile_container_hands_out_nothing(hostile: Rig, tools: Path, command: str) -> None:
    script_image(hostile, tools, "attack", "#!/proc/self/exe\n")
    (hostile.tree / "link").symlink_to("/proc/self/exe")
    (hostile.tree / "swapped").symlink_to("/tools")
    with hostile.start("/tools", "watch", "2") as instance:
        lines = instance.lines(30)
        assert next(lines).text == "watching"
        for _ in range(6):
            answer = execute(hostile, instance, command, "calls", "getpid:39")
            assert "STOLEN" not in answer
            assert "WRITTEN" not in answer
        assert not [line.text for line in lines if "STOLEN" in line.text or "WRITTEN" in line.text]


def test_an_execution_races_a_container_that_replaces_its_own_binaries(hostile: Rig, tools: Path) -> None:
    """The name is now a program, now a script of our interpreter, now a link to it, thousands of times a second."""
    script_image(hostile, tools, "attack", "#!/proc/self/exe\n")
    (hostile.tree / "link").symlink_to("/proc/self/exe")
    swap = (
        "while true; do ln -f /tools /victim.new; mv -f /victim.new /victim;"
        "ln -f /attack /victim.new; mv -f /victim.new /victim;"
        "ln -sfn /proc/self/exe /victim.new; mv -f /victim.new /victim;"
        "done"
    )
    for applet in ("ln", "mv"):
        (hostile.tree / "bin" / applet).symlink_to("busybox")
    with hostile.shell(f"/tools watch 5 & echo ready; ( {swap} ) 2>/dev/null") as instance:
        answers = [execute(hostile, instance, "/victim", "calls", "getpid:39") for _ in range(16)]
        assert not [answer for answer in answers if "STOLEN" in answer or "WRITTEN" in answer], answers
        heard = []
        for line in instance.lines(30):
            heard.append(line.text)
            if line.text.startswith("looked"):
                break
        assert heard[-1].startswith("looked"), heard
        assert not [text for text in heard if "STOLEN" in text or "WRITTEN" in text], heard


def test_a_working_directory_that_is_an_open_directory_of_ours_is_none(rig: Rig) -> None:
    with rig.start("/bin/sleep", "1000") as instance:
        for number in range(3, 16):
            for path in (f"/proc/self/fd/{number}", f"/proc/self/fd/{number}/../../../.."):
                answer = execute(rig, instance, "/bin/ls", cwd=path)
                assert answer.startswith("refused: ") or "home" not in answer.split(), (path, answer)


def test_a_container_cannot_freeze_or_unlimit_itself(rig: Rig) -> None:
    script = "mkdir -p /c; for t in cgroup cgroup2; do mount -t $t none /c 2>&1; done; ls -A /c /sys/fs/cgroup"
    lines = rig.output(script)
    assert sum("Operation not permitted" in line or "ermission denied" in line for line in lines) == 2, lines


def test_setuid_programs_give_an_ordinary_user_nothing(hostile: Rig) -> None:
    (hostile.tree / "tools").chmod(0o4755)
    answer = json.loads(json.dumps(calls(hostile, setuid="105:1000", back="105:0")))
    assert answer == {"setuid": "0", "back": "EPERM"}


def test_the_levels_differ_as_they_say(tmp_path: Path, tools: Path) -> None:
    found = {}
    for level in ("off", "strict"):
        with open_rig(lambda lab, chosen=level: ContainerDriver(lab, security=chosen), tmp_path / level) as rig:  # type: ignore[arg-type]
            shutil.copy(tools, rig.tree / "tools")
            status = dict(line.split(":", 1) for line in rig.output("cat /proc/self/status") if ":" in line)
            found[level] = {
                "capabilities": int(status["CapEff"], 16),
                "seccomp": int(status["Seccomp"]),
                "nnp": int(status["NoNewPrivs"]),
                **calls(rig, unshare="272:0x20000", ptrace="101:0,0,0,0", ring="425:1,0"),
                "write": rig.output("echo x >/x && echo written; true"),
            }
    assert found["off"]["capabilities"] == capabilities.held()
    assert (found["off"]["seccomp"], found["off"]["nnp"], found["off"]["unshare"]) == (0, 0, "0")
    assert found["off"]["write"] == ["written"]
    assert (found["strict"]["capabilities"], found["strict"]["seccomp"], found["strict"]["nnp"]) == (0, 2, 1)
    assert {found["strict"][name] for name in ("unshare", "ptrace", "ring")} == {"EPERM"}
    assert found["strict"]["write"] != ["written"]
