"""The built-in container: isolation, limits, network, hostile images."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_tree import MIB, Rig, needs_root, open_rig, open_small_lab, wait_for

from bench.driver import Lab
from bench.drivers import driver_entry_points
from bench.errors import DriverUnavailable, InstanceError, IsomarkError
from bench.model import Limits
from runtimes.container.driver import ContainerDriver
from runtimes.driver import SandboxDriver
from runtimes.security.capabilities import DEFAULT, held
from runtimes.security.levels import MASKED, READ_ONLY

pytestmark = needs_root


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with open_rig(ContainerDriver, tmp_path_factory.mktemp("container")) as opened:
        yield opened


@pytest.fixture
def own_rig(tmp_path: Path) -> Iterator[Rig]:
    """For tests that spoil the image."""
    with open_rig(ContainerDriver, tmp_path) as opened:
        yield opened


def test_it_shares_no_namespace_but_the_users(rig: Rig) -> None:
    kinds = ("mnt", "pid", "net", "ipc", "uts", "cgroup", "user")
    inside = rig.output("; ".join(f"stat -L -c %i /proc/self/ns/{kind}" for kind in kinds))
    host = [str(os.stat(f"/proc/self/ns/{kind}").st_ino) for kind in kinds]
    assert [kind for kind, one, other in zip(kinds, inside, host, strict=True) if one == other] == ["user"]


def test_it_is_process_one_among_its_own(rig: Rig) -> None:
    assert rig.output("echo $$") == ["1"]
    assert len(rig.output("ps | tail -n +2; true")) <= 3


def test_its_host_name_is_the_instances_name(rig: Rig) -> None:
    with rig.shell("hostname") as instance:
        (line,) = instance.lines(30)
        assert line.text == instance._group.name.rpartition("/")[2]


def test_its_cgroups_look_like_roots_from_inside(rig: Rig) -> None:
    lines = rig.output("cat /proc/self/cgroup")
    for controller in ("cpu", "memory", "pids"):
        assert [line.rpartition(":")[2] for line in lines if controller in line.split(":")[1].split(",")] == ["/"]


def test_it_cannot_gain_privileges(rig: Rig) -> None:
    assert rig.output("grep NoNewPrivs /proc/self/status") == ["NoNewPrivs:\t1"]


def test_its_root_can_be_written(rig: Rig) -> None:
    assert rig.output("echo x > /etc/new && rm /bin/true && cat /etc/new") == ["x"]


def test_masked_paths_are_empty_and_protected_ones_read_only(rig: Rig) -> None:
    masked = rig.output(f"for f in {' '.join(MASKED)}; do [ -d $f ] && ls -A $f; [ -f $f ] && cat $f; done; true")
    assert masked == []
    script = "for f in {}; do [ -e $f ] && [ -w $f ] && echo $f; done; echo 1 > /proc/sys/kernel/panic || echo refused"
    written = rig.output(script.format(" ".join(READ_ONLY)))
    assert written[-1] == "refused"
    mounts = {line.split()[1]: line.split()[3] for line in rig.output("cat /proc/mounts")}
    assert all(mounts[path].startswith("ro") for path in READ_ONLY if Path(path).exists())


def test_nothing_of_the_hosts_file_system_is_mounted(rig: Rig) -> None:
    types = {line.split()[2] for line in rig.output("cat /proc/mounts")}
    assert types == {"overlay", "proc", "sysfs", "tmpfs", "devpts", "mqueue"}


def test_running_out_of_memory_is_told_as_such(rig: Rig) -> None:
    with rig.shell("exec tail -c 200000000 /dev/zero", limits=Limits(memory_bytes=32 * MIB)) as instance:
        list(instance.lines(60))
        assert instance.tail[-1] == "[killed: out of memory, limit 32.0 MiB]"


def test_a_child_that_runs_out_of_memory_is_told_beside_the_status(rig: Rig) -> None:
    script = "tail -c 200000000 /dev/zero; exit 4"
    with rig.shell(script, limits=Limits(memory_bytes=32 * MIB)) as instance:
        list(instance.lines(60))
        assert instance.tail[-1] == "[exited with status 4; out of memory inside, limit 32.0 MiB]"


def test_a_limit_too_low_to_start_is_an_error(rig: Rig) -> None:
    with pytest.raises(InstanceError, match=r"killed by signal 9 .* during its set-up") as caught:
        rig.shell("echo up", limits=Limits(memory_bytes=64 * 1024))
    assert "memory limit" in caught.value.hint


def test_processes_are_limited(rig: Rig) -> None:
    script = "i=0; while [ $i -lt 40 ]; do sleep 5 & i=$((i+1)); done; echo all"
    lines = rig.output(script, limits=Limits(pids=10))
    assert "all" not in lines
    assert any("fork" in line for line in lines)


@pytest.mark.slow
def test_cpu_time_is_limited_to_the_quota(rig: Rig) -> None:
    burn = "while :; do :; done"
    with rig.shell(f"({burn}) & ({burn}) & echo up; read wait", limits=Limits(cpus=1)) as instance:
        wait_for(instance, "up")
        begun, used = time.monotonic(), instance.cpu_seconds()
        time.sleep(2)
        used = instance.cpu_seconds() - used
        elapsed = time.monotonic() - begun
    assert 0 < used < 1.15 * elapsed


def test_memory_comes_with_the_cgroups_figure(rig: Rig) -> None:
    with rig.shell("head -c 20000000 /dev/zero > /dev/shm/big; echo up; read wait") as instance:
        wait_for(instance, "up")
        reading = instance.memory()
    assert 20_000_000 < reading.cgroup_bytes < 40_000_000
    assert reading.pss_bytes < 10 * MIB
    assert reading.processes == 1


def test_without_a_lease_it_has_a_loopback_interface_only(rig: Rig) -> None:
    with rig.shell(
        "ip -o addr; echo; ip route; httpd -p 127.0.0.1:80 -h /etc; wget -qO- http://127.0.0.1/passwd"
    ) as one:
        lines = [line.text for line in one.lines(30)]
        assert one.address() is None
    assert {line.split()[1] for line in lines[: lines.index("")]} <= {"1:", "lo"}
    assert lines[lines.index("") + 1 :] == ["root:x:0:0:root:/root:/bin/sh"]


def test_the_host_and_another_container_reach_it(rig: Rig) -> None:
    network = rig.lab.network
    if network is None:
        pytest.skip("no lab network here")
    with rig.shell("httpd -p 80 -h /etc; echo up; read wait", network=True) as server:
        wait_for(server, "up")
        url = f"http://{server.address()}/passwd"
        assert rig.output(f"wget -qO- {url}", network=True) == ["root:x:0:0:root:/root:/bin/sh"]
        from_host = subprocess.run(
            network.inside(["busybox", "wget", "-qO-", url]), capture_output=True, text=True, check=False
        )
        assert from_host.stdout == "root:x:0:0:root:/root:/bin/sh\n", from_host.stderr


def test_its_address_mac_and_route_are_the_leases(rig: Rig) -> None:
    launch = rig.launch(
        "/bin/sh", "-c", "ip -o -4 addr show eth0; cat /sys/class/net/eth0/address; ip route", network=True
    )
    lease = launch.lease
    if lease is None:
        pytest.skip("no lab network here")
    with rig.driver.start(rig.image, launch) as instance:
        address, mac, default, *_ = [line.text for line in instance.lines(30)]
        assert instance.address() == lease.address
    assert f" {lease.address}/{lease.prefix_length} " in address
    assert mac == lease.mac
    assert default.strip() == f"default via {lease.gateway} dev eth0"


def test_a_network_that_fails_is_an_error_and_leaves_nothing(rig: Rig) -> None:
    if rig.lab.network is None:
        pytest.skip("no lab network here")
    launch = rig.launch("/bin/sh", "-c", "read wait", network=True)
    with rig.driver.start(rig.image, launch):
        twice = rig.launch("/bin/true")
        object.__setattr__(twice, "lease", launch.lease)
        with pytest.raises(InstanceError, match=f"cannot connect {launch.lease.address} to the lab network"):
            rig.driver.start(rig.image, twice)
    assert not any(rig.lab.scratch.iterdir())
    assert not list(Path("/sys/fs/cgroup").glob(f"*/isomark/{rig.lab.journal.owner.id}/t-*"))


def test_odd_characters_in_paths_do_no_harm(tmp_path: Path) -> None:
    with open_rig(ContainerDriver, tmp_path / "a,b:c\\d e") as rig:
        assert rig.output("echo fine") == ["fine"]


@pytest.mark.parametrize("point", ["proc", "dev", "sys", "isomark"])
def test_a_mount_point_that_is_a_symbolic_link_is_refused(own_rig: Rig, point: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "scratch").mkdir(parents=True)
    subprocess.run(["rm", "-r", str(own_rig.tree / point)], check=True)
    (own_rig.tree / point).symlink_to(outside)
    with pytest.raises(InstanceError, match=r"symbolic links|Not a directory"):
        own_rig.start("/bin/true")
    assert [path.name for path in outside.rglob("*")] == ["scratch"]


def test_missing_mount_points_are_made_in_the_upper_layer(own_rig: Rig) -> None:
    subprocess.run(
        ["rm", "-r", *(str(own_rig.tree / point) for point in ("proc", "dev", "sys", "isomark"))], check=True
    )
    assert own_rig.output("echo x > /isomark/scratch/x && cat /isomark/scratch/x /proc/sys/kernel/ostype") == [
        "x",
        "Linux",
    ]
    assert not (own_rig.tree / "proc").exists()


def test_a_state_directory_that_cannot_hold_an_overlay_makes_it_unavailable(tmp_path: Path) -> None:
    with open_rig(ContainerDriver, tmp_path) as rig:
        on_overlay = rig.lab.scratch / "merged"
        layers = [tmp_path / name for name in ("l", "u", "w")]
        for directory in (*layers, on_overlay):
            directory.mkdir()
        options = "lowerdir={},upperdir={},workdir={}".format(*layers)
        subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", str(on_overlay)], check=True)
        try:
            lab = rig.lab.__class__(tmp_path, on_overlay, rig.lab.journal, None)
            driver: SandboxDriver = ContainerDriver(lab)
            with pytest.raises(DriverUnavailable, match=r"cannot mount its root \(overlay") as caught:
                driver.check()
            driver.close()
        finally:
            subprocess.run(["umount", str(on_overlay)], check=True)
        on_overlay.rmdir()
        assert "ext4" in caught.value.hint


CAPABILITIES = {"off": f"{held():016x}", "default": f"{DEFAULT & held():016x}", "strict": "0" * 16}


@pytest.mark.parametrize("level", list(CAPABILITIES))
def test_its_security_level_is_what_it_says(tmp_path: Path, level: str) -> None:
    def driver(lab: Lab) -> ContainerDriver:
        return ContainerDriver(lab, security=level)

    driver.name = "container"
    with open_rig(driver, tmp_path) as rig:
        status = dict(line.split(":\t") for line in rig.output("grep -E 'Cap|Seccomp:|NoNewPrivs' /proc/self/status"))
        assert rig.driver.describe()["security"].startswith(f"{level}: ")
        assert ("security level" in rig.driver.describe()["parity"]) == (level != "default")
        writable = rig.output(
            "for d in /etc /isomark/scratch /tmp /run; do touch $d/x 2>/dev/null && echo $d; done; true"
        )
    assert {status[f"Cap{name}"] for name in ("Eff", "Prm", "Bnd")} == {CAPABILITIES[level]}
    assert {status["CapInh"], status["CapAmb"]} == {"0" * 16}
    assert status["Seccomp"] == ("0" if level == "off" else "2")
    assert status["NoNewPrivs"] == ("0" if level == "off" else "1")
    assert writable == ["/isomark/scratch", "/tmp", "/run"] if level == "strict" else "/etc" in writable


def test_each_level_but_dockers_is_a_driver_of_its_own() -> None:
    points = driver_entry_points()
    assert {f"container-{level}" for level in CAPABILITIES if level != "default"} <= points.keys()


def test_an_unknown_security_level_is_refused(tmp_path: Path) -> None:
    with open_small_lab(tmp_path) as lab, pytest.raises(IsomarkError, match="no security level"):
        ContainerDriver(lab, security="paranoid").check()


def test_devices_beyond_the_usual_cannot_be_opened(rig: Rig) -> None:
    script = "mknod /dev/kmsg2 c 1 11 && cat /dev/kmsg2; mknod /dev/null2 c 1 3 && cat /dev/null2 && echo fine"
    lines = rig.output(script)
    assert any("Operation not permitted" in line for line in lines)
    assert lines[-1] == "fine"


def test_system_calls_that_docker_forbids_are_refused(rig: Rig) -> None:
    assert "refused" in rig.output("mount -t tmpfs none /tmp || echo refused")
    assert "refused" in rig.output("unshare -U true || echo refused")
