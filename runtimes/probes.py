"""Tries one feature of the kernel after the other, each in a process of its own; a program, run by ``features``.

Prints one JSON object a line, ``{"name": …, "error": null or a reason, "detail": …}``. It has one thread and forks, so
that a probe may take off its own namespaces and privileges; whatever a probe makes it unmakes, or dies with it.
"""

from __future__ import annotations

import _signal
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from typing import Final

from bench.errors import IsomarkError
from runtimes import idmap, libc
from runtimes.container import cgroup
from runtimes.container.cgroup import Group
from runtimes.container.hierarchy import Layout, detect
from runtimes.container.resources import Resources
from runtimes.security import capabilities, device_rules, levels, seccomp
from runtimes.steps import StepFailed

PROBE_SECONDS: Final = 20
MEMORY_BYTES: Final = 64 << 20
_LAYERS: Final = "lowerdir=lower,upperdir=upper,workdir=work"
_NR_IO_URING_SETUP: Final = 425
_RING_BYTES: Final = 120
"""struct io_uring_params."""


class Absent(Exception):
    """The feature is not there, for the reason that it carries."""


def main(state: str, owner: str) -> None:
    """Run every probe; ``state`` is an empty directory and ``owner`` a cgroup, below isomark's, that they may use."""
    _Groups.owner = owner
    for name, probe in PROBES.items():
        own = f"{state}/{name}"
        os.mkdir(own)
        detail, error = _isolated(probe, own)
        os.write(1, json.dumps({"name": name, "error": error, "detail": detail}).encode() + b"\n")


class _Groups:
    """Where the probes' cgroups go."""

    owner = ""


def _isolated(probe: Callable[[str], str], state: str) -> tuple[str, str | None]:
    """Run ``probe`` in a copy of this process, which does not outlive it."""
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_fd)
        os._exit(_answer(probe, state, write_fd))
    os.close(write_fd)
    try:
        if not select.select([read_fd], [], [], PROBE_SECONDS)[0]:
            os.kill(pid, _signal.SIGKILL)
            return "", f"gave no answer in {PROBE_SECONDS} s"
        with os.fdopen(os.dup(read_fd), "rb") as file:
            text = file.read()
    finally:
        os.close(read_fd)
        _, status = os.waitpid(pid, 0)
    if not text:
        return "", f"ended with {os.waitstatus_to_exitcode(status)} and no answer"
    detail, error = json.loads(text)
    return detail, error


def _answer(probe: Callable[[str], str], state: str, write_fd: int) -> int:
    libc.prctl(libc.PR_SET_PDEATHSIG, _signal.SIGKILL)
    try:
        answer: tuple[str, str | None] = (probe(state), None)
    except OSError as error:
        answer = ("", error.strerror or str(error))
    except (Absent, IsomarkError, subprocess.SubprocessError) as error:
        answer = ("", str(error).strip().partition("\n")[0])
    except Exception as error:  # noqa: BLE001 - a fault of the probe's own is told like the rest
        answer = ("", f"{type(error).__name__}: {error}")
    os.write(write_fd, json.dumps(answer).encode())
    return 0


def _namespace(flag: int) -> Callable[[str], str]:
    def probe(_state: str) -> str:
        _in_namespaces(flag, lambda: None)
        return ""

    return probe


def _in_namespaces(flags: int, work: Callable[[], object]) -> None:
    """Do ``work`` in a process born in new namespaces; with a user namespace, as root of it."""
    ready_read, ready_write = os.pipe()
    failed_read, failed_write = os.pipe()
    pid, pidfd = libc.clone3(flags, _signal.SIGCHLD)
    if pid == 0:
        libc.prctl(libc.PR_SET_PDEATHSIG, _signal.SIGKILL)
        os.close(ready_write)
        if not os.read(ready_read, 1):
            os._exit(1)
        code = _answer(lambda _: str(work() or ""), "", failed_write)
        os._exit(code)
    os.close(pidfd)
    os.close(failed_write)
    try:
        if flags & libc.CLONE_NEWUSER:
            _map_to_root(pid)
        os.write(ready_write, b"+")
        with os.fdopen(failed_read, "rb") as file:
            text = file.read()
    finally:
        os.close(ready_read)
        os.close(ready_write)
        os.waitpid(pid, 0)
    if not text:
        raise Absent("the process in it died")
    _, error = json.loads(text)
    if error is not None:
        raise Absent(error)


def _map_to_root(pid: int) -> None:
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"0 {os.geteuid()} 1"),
        ("gid_map", f"0 {os.getegid()} 1"),
    ):
        with open(f"/proc/{pid}/{name}", "wb", buffering=0) as file:
            file.write(text.encode())


def _time_namespace(_state: str) -> str:
    libc.unshare(libc.CLONE_NEWTIME)
    with open("/proc/self/timens_offsets", "wb", buffering=0) as file:
        file.write(b"monotonic 1000 0\nboottime 1000 0\n")
    before = time.monotonic()
    read_fd, write_fd = os.pipe()
    if os.fork() == 0:
        os.write(write_fd, str(time.monotonic()).encode())
        os._exit(0)
    if float(os.read(read_fd, 64)) - before < 999:
        raise Absent("its offset has no effect")
    return ""


def _make_overlay_directories(state: str) -> None:
    """The parts of an overlay, in the directory that becomes the current one: its path needs no escaping then."""
    os.chdir(state)
    for path in ("lower", "upper", "work", "root"):
        os.mkdir(path)
    with open("lower/file", "w") as file:
        file.write("below")


def _overlay(state: str, *, options: str = "") -> str:
    """Mount one in this mount namespace, and copy a file up and delete it."""
    _make_overlay_directories(state)
    libc.mount(None, "/", None, libc.MS_REC | libc.MS_PRIVATE)
    libc.mount("overlay", "root", "overlay", 0, f"{_LAYERS}{options}")
    with open("root/file", "a") as file:
        file.write(" and above")
    os.unlink("root/file")
    return ""


def _overlay_as_root(state: str) -> str:
    libc.unshare(libc.CLONE_NEWNS)
    return _overlay(state)


def _overlay_in_user_namespace(state: str) -> str:
    _in_namespaces(libc.CLONE_NEWUSER | libc.CLONE_NEWNS, lambda: _overlay(state, options=",userxattr"))
    return ""


def _fuse_overlayfs(state: str) -> str:
    if shutil.which("fuse-overlayfs") is None:
        raise Absent("fuse-overlayfs is not installed")
    _make_overlay_directories(state)

    def mount() -> None:
        libc.mount(None, "/", None, libc.MS_REC | libc.MS_PRIVATE)
        command = ["fuse-overlayfs", "-o", _LAYERS, "root"]
        subprocess.run(command, check=True, capture_output=True, timeout=PROBE_SECONDS)
        if not os.path.exists("root/file"):
            raise Absent("what it mounts is empty")
        libc.umount2("root", 0)

    _in_namespaces(libc.CLONE_NEWNS | (libc.CLONE_NEWUSER if os.geteuid() else 0), mount)
    return ""


def _idmapped_mount(state: str) -> str:
    """An overlay of such mounts: what a container with users of its own takes."""
    for name in ("lower", "own", "own/upper", "own/work", "own/root"):
        os.mkdir(f"{state}/{name}")
    rows = [[0, 10000, 1000]]
    try:
        users = idmap.open_users(rows, rows)
    except StepFailed as failed:
        raise Absent(failed.reason) from failed
    mounted = idmap.make_overlay(f"{state}/lower", f"{state}/own", users, (10000, 10000))
    if os.fstat(mounted).st_uid != 10000:
        raise Absent("it has no effect")
    return ""


def _new_mount_api(state: str) -> str:
    libc.unshare(libc.CLONE_NEWNS)
    libc.mount(None, "/", None, libc.MS_REC | libc.MS_PRIVATE)
    fs = libc.fsopen("tmpfs")
    libc.fsconfig(fs, libc.FSCONFIG_CMD_CREATE)
    mounted = libc.fsmount(fs, 0)
    target = os.open(state, os.O_PATH | os.O_DIRECTORY)
    libc.move_mount(mounted, target)
    return ""


def _openat2(state: str) -> str:
    root = os.open(state, os.O_PATH | os.O_DIRECTORY)
    os.close(libc.openat2(root, "../../..", os.O_PATH, libc.RESOLVE_IN_ROOT))
    return ""


def _clone3(_state: str) -> str:
    pid, pidfd = libc.clone3(0, _signal.SIGCHLD)
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    return ""


def _pidfd(_state: str) -> str:
    pid = os.fork()
    if pid == 0:
        _signal.pause()
    _signal.pidfd_send_signal(os.pidfd_open(pid), _signal.SIGKILL)
    os.waitpid(pid, 0)
    return ""


def _close_range(_state: str) -> str:
    libc.close_range(1000, 1001, libc.CLOSE_RANGE_CLOEXEC)
    return ""


def _with_group(work: Callable[[Group], str], wanted: Resources, layout: Layout | None = None) -> str:
    """Do ``work`` with a group of our own, which is removed whatever happens."""
    layout = layout or detect()
    name = f"{_Groups.owner}/probe-{os.getpid()}"
    try:
        return work(Group(layout, name, wanted))
    finally:
        cgroup.remove_group(layout, name)


def _controller(name: str, wanted: Resources) -> Callable[[str], str]:
    def probe(_state: str) -> str:
        held = detect().holding(name)
        if held is None and not (name == "io" and detect().holding("blkio")):
            raise Absent("not mounted, not delegated, or not in this kernel")
        _with_group(lambda _: "", wanted)
        return f"version {held.version}" if held is not None else "version 1 (blkio)"

    return probe


def _sleeper(group: Group) -> int:
    """A process in ``group`` that does nothing."""
    pid = os.fork()
    if pid == 0:
        while True:
            _signal.pause()
    group.enter(pid)
    return pid


def _freezer(_state: str) -> str:
    def freeze(group: Group) -> str:
        _sleeper(group)
        group.freeze()
        group.thaw()
        return "version 2" if detect().uses_v2 else "version 1"

    return _with_group(freeze, Resources())


def _devices(version: int) -> Callable[[str], str]:
    def probe(_state: str) -> str:
        layout = detect()
        kept = [each for each in layout.hierarchies if each.version == version]
        if version == 1:
            kept = [each for each in kept if {"devices", "memory"} & each.controllers]
        if not kept or (version == 1 and layout.holding("devices") is None):
            raise Absent(f"cgroup version {version} is not mounted" if not kept else "no devices controller")
        return _with_group(_refused_kmsg, Resources(devices=device_rules.DEFAULT), Layout(tuple(kept)))

    return probe


def _refused_kmsg(group: Group) -> str:
    """In a process of its own: to remove the group kills who is in it."""
    pid = os.fork()
    if pid == 0:
        try:
            group.enter(os.getpid())
            os.close(os.open("/dev/null", os.O_RDWR))
            os.close(os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK))
        except PermissionError:
            os._exit(0)
        finally:
            os._exit(1)
    if os.waitpid(pid, 0)[1] != 0:
        raise Absent("a device that no rule allows can be opened")
    return ""


def _into_cgroup(_state: str) -> str:
    def bear(group: Group) -> str:
        born, tasks = group.entrances()
        for fd in tasks:
            os.close(fd)
        if born is None:
            raise Absent("cgroup version 2 is not mounted, or not writable")
        pid, _ = libc.clone3(0, _signal.SIGCHLD, born)
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        return ""

    return _with_group(bear, Resources())


def _delegation(_state: str) -> str:
    layout = detect(privileged=False)
    if layout.unified is None:
        raise Absent("no version 2 group of this process is its own to divide")
    if not layout.unified.controllers:
        raise Absent("version 2 has no controllers in this process's group")
    return ", ".join(sorted(layout.unified.controllers))


def _seccomp(state: str) -> str:
    libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
    found = levels.level("default", state=state, user_namespace=True)
    assert found.seccomp is not None
    seccomp.install(seccomp.read(found.seccomp))
    try:
        libc.unshare(libc.CLONE_NEWUSER)
    except PermissionError:
        return ""
    raise Absent("the filter is installed and filters nothing")


def _capabilities(_state: str) -> str:
    held = capabilities.held()
    if os.geteuid() == 0:
        capabilities.limit_bounding(capabilities.DEFAULT)
        capabilities.apply(capabilities.sets(capabilities.DEFAULT))
        if capabilities.held() & ~capabilities.DEFAULT:
            raise Absent("they cannot be dropped")
    lacking = capabilities.names(capabilities.every() & ~held)
    return f"without {', '.join(lacking)}" if lacking and os.geteuid() == 0 else ""


def _no_new_privileges(_state: str) -> str:
    libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
    return ""


def _nftables(_state: str) -> str:
    if shutil.which("nft") is None:
        raise Absent("nft is not installed")
    _enter_own_network()
    rules = "add table ip t; add chain ip t c { type nat hook postrouting priority 100; }; add rule ip t c masquerade"
    subprocess.run(["nft", rules], check=True, capture_output=True, timeout=PROBE_SECONDS)
    return ""


def _veth_and_bridge(_state: str) -> str:
    _enter_own_network()
    from pyroute2 import IPRoute

    with IPRoute() as netlink:
        netlink.link("add", ifname="probe0", kind="veth", peer={"ifname": "probe1"})
        netlink.link("add", ifname="bridge0", kind="bridge")
        port, bridge = (netlink.link_lookup(ifname=name)[0] for name in ("probe0", "bridge0"))
        netlink.link("set", index=port, master=bridge)
    return ""


def _enter_own_network() -> None:
    if os.geteuid() == 0:
        libc.unshare(libc.CLONE_NEWNET)
        return
    libc.unshare(libc.CLONE_NEWUSER | libc.CLONE_NEWNET)


def _program(*names: str) -> Callable[[str], str]:
    def probe(_state: str) -> str:
        for name in names:
            if shutil.which(name) is not None:
                ran = subprocess.run(
                    [name, "--version"], check=True, capture_output=True, text=True, timeout=PROBE_SECONDS
                )
                return (ran.stdout or ran.stderr).partition("\n")[0]
        raise Absent(f"{' and '.join(names)} are not installed" if len(names) > 1 else f"{names[0]} is not installed")

    return probe


def _subordinate_ids(_state: str) -> str:
    if os.geteuid() == 0:
        return "root maps whom it likes"
    if shutil.which("newuidmap") is None or shutil.which("newgidmap") is None:
        raise Absent("newuidmap and newgidmap are not installed")
    import pwd

    user = pwd.getpwuid(os.getuid()).pw_name
    found = []
    for path in ("/etc/subuid", "/etc/subgid"):
        with open(path) as file:
            rows = [line.strip().split(":") for line in file if line.count(":") == 2]
        counts = [int(count) for owner, _, count in rows if owner in (user, str(os.getuid()))]
        if not counts:
            raise Absent(f"{path} grants {user} nothing")
        found.append(f"{sum(counts)} in {path}")
    return ", ".join(found)


def _io_uring(_state: str) -> str:
    import ctypes  # which only a probe may use: nothing else here sets up such a ring

    library = ctypes.CDLL(None, use_errno=True)
    fd = library.syscall(ctypes.c_long(_NR_IO_URING_SETUP), 1, ctypes.byref(ctypes.create_string_buffer(_RING_BYTES)))
    if fd == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    os.close(fd)
    return "on the host; the security levels default and strict refuse it"


PROBES: Final[Mapping[str, Callable[[str], str]]] = {
    "mount namespace": _namespace(libc.CLONE_NEWNS),
    "pid namespace": _namespace(libc.CLONE_NEWPID),
    "network namespace": _namespace(libc.CLONE_NEWNET),
    "ipc namespace": _namespace(libc.CLONE_NEWIPC),
    "uts namespace": _namespace(libc.CLONE_NEWUTS),
    "cgroup namespace": _namespace(libc.CLONE_NEWCGROUP),
    "user namespace": _namespace(libc.CLONE_NEWUSER),
    "time namespace": _time_namespace,
    "overlayfs": _overlay_as_root,
    "overlayfs in a user namespace": _overlay_in_user_namespace,
    "fuse-overlayfs": _fuse_overlayfs,
    "idmapped mounts": _idmapped_mount,
    "new mount API": _new_mount_api,
    "openat2": _openat2,
    "clone3": _clone3,
    "pidfd": _pidfd,
    "close_range": _close_range,
    "cgroup controller cpu": _controller("cpu", Resources(cpus=1)),
    "cgroup controller memory": _controller("memory", Resources(memory=MEMORY_BYTES)),
    "cgroup controller pids": _controller("pids", Resources(pids=10)),
    "cgroup controller cpuset": _controller("cpuset", Resources(cpuset_cpus="0")),
    "cgroup controller io": _controller("io", Resources()),
    "cgroup controller hugetlb": _controller("hugetlb", Resources()),
    "limit on swap": _controller("memory", Resources(memory=MEMORY_BYTES, memory_swap=2 * MEMORY_BYTES)),
    "freezer": _freezer,
    "device rules, version 1": _devices(1),
    "device rules, version 2": _devices(2),
    "birth in a cgroup": _into_cgroup,
    "cgroup delegation": _delegation,
    "seccomp": _seccomp,
    "capabilities": _capabilities,
    "no_new_privs": _no_new_privileges,
    "nftables": _nftables,
    "veth and bridge": _veth_and_bridge,
    "rootless network": _program("pasta", "slirp4netns"),
    "subordinate ids": _subordinate_ids,
    "io_uring": _io_uring,
}
"""Name -> what tries it and returns a detail, or raises."""
