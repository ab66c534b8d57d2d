"""What both built-in drivers do to the process they start, on the small tree."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_tree import MIB, Rig, digest_of, needs_root, open_rig, wait_for

from bench.errors import HostError, InstanceError
from bench.journal import read_journals
from bench.model import Limits
from runtimes.container.driver import ContainerDriver
from runtimes.driver import SandboxDriver, choose_cpus
from runtimes.native import NativeDriver

pytestmark = needs_root


@pytest.fixture(scope="module", params=[NativeDriver, ContainerDriver], ids=lambda driver: driver.name)
def rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    driver_class: type[SandboxDriver] = request.param
    with open_rig(driver_class, tmp_path_factory.mktemp(driver_class.name)) as opened:
        yield opened


def test_the_environment_is_exactly_what_was_asked_for(rig: Rig) -> None:
    with rig.start("/bin/env", ODD="a b'c\"d$e\\f*") as instance:
        lines = [line.text for line in instance.lines(30)]
    assert sorted(lines) == sorted(["PATH=/bin", "ODD=a b'c\"d$e\\f*", f"ISOMARK_OWNER={rig.lab.journal.owner.id}"])


def test_only_the_console_is_open_in_the_payload(rig: Rig) -> None:
    leak = os.open("/", os.O_RDONLY)
    os.set_inheritable(leak, True)
    try:
        lines = rig.output("ls /proc/self/fd")
    finally:
        os.close(leak)
    assert lines[:4] == ["0", "1", "2", "3"]  # 3 is the directory that ls itself reads
    assert len(lines) == 4


def test_signals_are_as_a_fresh_login_has_them(rig: Rig) -> None:
    lines = rig.output("exec grep -E 'Sig(Blk|Ign)' /proc/self/status")
    assert [line.split()[1] for line in lines] == ["0" * 16, "0" * 16]


def test_the_payload_leads_a_session_with_no_terminal_in_the_root_directory(rig: Rig) -> None:
    with rig.shell("pwd; id -u; umask; read wait") as instance:
        assert [next(iter(instance.lines(30))).text for _ in range(3)] == ["/", "0", "0022"]
        pid = instance._child.pid
        assert os.getsid(pid) == pid


def test_devices_are_the_usual_few_and_they_work(rig: Rig) -> None:
    lines = rig.output(
        "ls /dev; head -c 4 /dev/zero | wc -c; echo x > /dev/null && echo written; stat -c %t,%T /dev/urandom;"
        "ls -d /dev/pts/ptmx; echo > /dev/shm/x && echo shared; ls -l /dev/fd | grep -c /proc/self/fd"
    )
    assert set(lines) - {"mqueue"} == {
        "fd", "full", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty", "urandom", "zero",
        "4", "written", "1,9", "/dev/pts/ptmx", "shared", "1",
    }  # fmt: skip


def test_sysfs_cannot_be_written(rig: Rig) -> None:
    (line,) = rig.output("touch /sys/kernel/mm/x 2>&1 || true; mkdir /sys/kernel/x 2>/dev/null || echo refused")[-1:]
    assert line == "refused"


def test_the_image_is_never_altered(rig: Rig) -> None:
    before = digest_of(rig.tree)
    rig.output("rm -rf /etc /bin/cat; touch /new; chmod 777 /bin/busybox; echo x >> /bin/busybox; mkdir /bin/sub")
    assert digest_of(rig.tree) == before


def test_what_is_written_to_scratch_lies_on_the_hosts_disk_and_goes(rig: Rig) -> None:
    with rig.shell("echo kept > /isomark/scratch/file; echo done; read wait") as instance:
        wait_for(instance, "done")
        (found,) = rig.lab.scratch.rglob("file")
        assert found.read_text() == "kept\n"
    assert not found.exists()


def test_a_tree_deeper_than_pythons_stack_is_removed(rig: Rig) -> None:
    script = (
        "cd /isomark/scratch; i=0; while [ $i -lt 1500 ]; do mkdir d && cd d || exit 1; i=$((i+1)); done; echo deep"
    )
    assert rig.output(script) == ["deep"]
    assert not any(rig.lab.scratch.iterdir())


def test_standard_error_arrives_on_the_console(rig: Rig) -> None:
    assert rig.output("echo one; echo two >&2; echo three > /dev/stderr") == ["one", "two", "three"]


def test_lines_sent_to_it_are_its_standard_input(rig: Rig) -> None:
    with rig.shell("echo up; while read line; do echo got $line; done; echo end") as instance:
        wait_for(instance, "up")
        instance.send("hello")
        wait_for(instance, "got hello")


def test_the_tail_tells_the_exit_status(rig: Rig) -> None:
    with rig.shell("echo bye; exit 3") as instance:
        list(instance.lines(30))
        assert list(instance.tail) == ["bye", "[exited with status 3]"]
        assert [event.name for event in instance.events] == ["spawned", "exited"]
    assert list(instance.tail) == ["bye", "[exited with status 3]"], "told once"


def test_the_tail_tells_the_signal(rig: Rig) -> None:
    with rig.shell("echo up; read wait") as instance:
        wait_for(instance, "up")
        instance.kill()
        assert instance.tail[-1] == "[killed by signal 9 (SIGKILL)]"


def test_a_payload_that_closes_its_console_and_lives_is_told_apart(rig: Rig) -> None:
    with rig.shell("exec >/dev/null 2>&1; sleep 60") as instance:
        assert list(instance.lines(30)) == []
        assert instance.tail[-1] == "[closed its console and still runs]"


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("/bin/absent", "cannot run /bin/absent: No such file or directory"),
        ("absent", "cannot run absent: No such file or directory"),
        ("/etc/passwd", "cannot run /etc/passwd: Permission denied"),
        ("/etc", "cannot run /etc: Permission denied"),
        ("nul\0byte", "cannot run nul\\0byte: embedded null byte"),
    ],
)
def test_a_command_that_cannot_be_run_is_named(rig: Rig, command: str, reason: str) -> None:
    owned = _owned(rig)
    with pytest.raises(InstanceError) as caught:
        rig.start(command)
    assert caught.value.message == reason
    assert "must be an executable in the image" in caught.value.hint
    assert _owned(rig) == owned
    assert not any(rig.lab.scratch.iterdir())


def test_a_command_without_a_slash_is_looked_up_inside(rig: Rig) -> None:
    with rig.start("echo", "found") as instance:
        assert [line.text for line in instance.lines(30)] == ["found"]


def test_an_environment_beyond_the_kernels_limit_is_refused(rig: Rig) -> None:
    with pytest.raises(InstanceError, match=r"Argument list too long"):
        rig.start("/bin/true", BIG="x" * 150_000)
    with pytest.raises(InstanceError, match=r"too long"):
        rig.start("/bin/true", BIG="x" * 250_000)
    assert rig.output("echo fine") == ["fine"]


def test_a_missing_image_is_an_error(rig: Rig) -> None:
    image = rig.image
    object.__setattr__(image, "location", Path("/nonexistent"))
    with pytest.raises(InstanceError, match=r"cannot mount its root .*/nonexistent.*: No such file"):
        rig.driver.start(image, rig.launch("/bin/true"))


def test_stop_ends_what_heeds_it_and_reports_what_does_not(rig: Rig) -> None:
    with rig.shell("trap 'exit 0' TERM; echo up; while :; do sleep 0.01; done") as instance:
        wait_for(instance, "up")
        assert instance.stop(20)
        assert instance.events[-1].name == "exited"
    with rig.shell("trap '' TERM; echo up; read wait") as instance:
        wait_for(instance, "up")
        assert not instance.stop(0.1)


def test_what_it_left_behind_dies_with_the_first_process(rig: Rig) -> None:
    with rig.shell("setsid sh -c 'sleep 1000 & sleep 1000' & echo up; sleep 0.1; exit 0") as instance:
        assert [line.text for line in instance.lines(30)] == ["up"]
        assert instance.tail[-1] == "[exited with status 0]"
    assert _marked(rig) == [rig.driver._spawner.pid]


def test_killing_takes_daemons_too(rig: Rig) -> None:
    with rig.shell("setsid sh -c 'setsid sleep 1000 & ' & echo up; read wait") as instance:
        wait_for(instance, "up")
        instance.kill()
        assert _marked(rig) == [rig.driver._spawner.pid]
        with pytest.raises(InstanceError, match="gone"):
            instance.memory()


def test_memory_counts_every_process_of_the_instance_and_no_other(rig: Rig) -> None:
    with rig.shell("setsid sleep 1000 & echo up; read wait") as instance, rig.shell("echo up; read wait") as other:
        wait_for(instance, "up")
        wait_for(other, "up")
        time.sleep(0.1)
        reading, alone = instance.memory(), other.memory()
    assert (reading.processes, alone.processes) == (2, 1)
    assert 4096 < reading.pss_bytes < 20 * MIB
    assert (reading.cgroup_bytes is None) == (rig.driver.kind == "process")


def test_two_hundred_starts_leave_nothing(rig: Rig) -> None:
    rig.output("true")
    before = _footprint(rig)
    for _ in range(200):
        with rig.shell("echo up; sleep 1000 & read wait") as instance:
            wait_for(instance, "up")
    assert _footprint(rig) == before


def test_when_the_sandbox_is_killed_its_instances_end_and_the_next_start_works(rig: Rig) -> None:
    helper = rig.driver._spawner.pid
    with rig.shell("setsid sleep 1000 & echo up; read wait") as instance:
        wait_for(instance, "up")
        os.kill(helper, signal.SIGKILL)
        assert instance._child.wait(10) is not None
        instance.kill()
        assert "unseen" in instance.tail[-1]
    assert rig.output("echo again") == ["again"]
    assert rig.driver._spawner.pid != helper
    assert _marked(rig) == [rig.driver._spawner.pid]


def test_descriptors_used_up_are_an_error_that_says_so(rig: Rig) -> None:
    rig.output("true")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    image, launch = rig.image, rig.launch("/bin/true")
    used = len(os.listdir("/proc/self/fd"))
    reasons = []
    for spare in range(2, 14):
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + spare, hard))
        try:
            rig.driver.start(image, launch).__exit__(None, None, None)
        except (HostError, InstanceError) as error:
            reasons.append(error.message)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert 3 < len(reasons) < 12, reasons
    assert all("Too many open files" in reason for reason in reasons), reasons
    assert rig.output("echo fine") == ["fine"]


def test_the_preview_shows_the_command_and_starts_nothing(rig: Rig) -> None:
    owned = _owned(rig)
    text = rig.driver.preview(rig.launch("/bin/true", limits=Limits(memory_bytes=64 * MIB)))
    assert 'command: ["/bin/true"]' in text
    assert f"size={32 * MIB}" in text
    assert _owned(rig) == owned


def test_closing_twice_is_fine(tmp_path: Path) -> None:
    with open_rig(NativeDriver, tmp_path) as rig:
        rig.output("true")
        rig.driver.close()
        rig.driver.close()
        assert _owned(rig) == [f"netns {{'name': '{rig.lab.network.name}'}}"]


def test_cpus_are_chosen_from_those_allowed() -> None:
    allowed = os.sched_getaffinity(0)
    assert list(choose_cpus(1)) == [max(allowed)]
    assert set(choose_cpus(10_000)) == allowed


def _owned(rig: Rig) -> list[str]:
    (mine,) = read_journals(rig.lab.state / "owned")
    return sorted(f"{entry.kind} {dict(entry.what)}" for entry in mine.entries)


def _marked(rig: Rig) -> list[int]:
    """Processes that carry the owner's mark, without this one."""
    mark = f"ISOMARK_OWNER={rig.lab.journal.owner.id}".encode()
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            environment = Path(f"/proc/{name}/environ").read_bytes()
        except OSError:
            continue
        if mark in environment.split(b"\0"):
            found.append(int(name))
    return found


def _footprint(rig: Rig) -> dict[str, object]:
    helper, owner = rig.driver._spawner.pid, rig.lab.journal.owner.id
    return {
        "own descriptors": len(os.listdir("/proc/self/fd")),
        "helper's descriptors": len(os.listdir(f"/proc/{helper}/fd")),
        "mounts": [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(rig.lab.state) in line],
        "helper's mounts": [line for line in Path(f"/proc/{helper}/mounts").read_text().splitlines() if "/t-" in line],
        "cgroups": [str(path) for path in Path("/sys/fs/cgroup").glob(f"*/isomark/{owner}/*") if path.is_dir()],
        "scratch": list(rig.lab.scratch.iterdir()),
        "owned": _owned(rig),
        "marked": _marked(rig),
        "children": subprocess.run(
            ["ps", "--no-headers", "--ppid", str(helper)], capture_output=True, text=True, check=False
        ).stdout,
    }
