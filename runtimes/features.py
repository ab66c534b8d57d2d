"""What ``isomark doctor --engine`` tells: each feature that isolation is made of, tried on this host."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from bench.driver import Finding, Severity
from bench.errors import HostError
from bench.journal import Journal
from bench.state import journal_directory
from runtimes.container import cgroup
from runtimes.container.hierarchy import detect
from runtimes.instance import remove_tree
from runtimes.probes import PROBE_SECONDS, PROBES
from runtimes.security import capabilities, seccomp
from runtimes.security.levels import LEVELS, describe

_SOURCES: Final = str(Path(__file__).parent.parent)
_PROGRAM: Final = "import sys; sys.path.insert(0, sys.argv[1]); from runtimes.probes import main; main(*sys.argv[2:])"


class Lack(NamedTuple):
    """What follows from a feature's absence: how bad it is, what is lost, what would bring it."""

    severity: Severity
    lost: str
    remedy: str


_ROOT: Final = "run as root; inside a container, that one must be privileged"
_KERNEL: Final = "a newer kernel"
_CGROUPS: Final = "mount -t cgroup2 none /sys/fs/cgroup; without root: systemd-run --user --scope -p Delegate=yes"
LACKS: Final[Mapping[str, Lack]] = {
    "mount namespace": Lack("problem", "no container starts", _ROOT),
    "pid namespace": Lack("problem", "no container starts", _ROOT),
    "network namespace": Lack("warning", "only --network host", _ROOT),
    "ipc namespace": Lack("warning", "only --ipc host", _ROOT),
    "uts namespace": Lack("warning", "only --uts host", _ROOT),
    "cgroup namespace": Lack("warning", "containers see the host's cgroups", _ROOT),
    "user namespace": Lack("note", "nothing runs without root", "sysctl kernel.unprivileged_userns_clone=1"),
    "time namespace": Lack("note", "--timens private is refused", f"{_KERNEL} (5.6, CONFIG_TIME_NS)"),
    "overlayfs": Lack(
        "problem", "no container starts as root", "modprobe overlay; ISOMARK_STATE on ext4, xfs or btrfs"
    ),
    "overlayfs in a user namespace": Lack("note", "rootless containers need fuse-overlayfs", f"{_KERNEL} (5.11)"),
    "fuse-overlayfs": Lack("note", "rootless containers need overlayfs", "apt-get install fuse-overlayfs"),
    "idmapped mounts": Lack("note", "--userns private is refused", f"{_KERNEL} (5.19)"),
    "new mount API": Lack("problem", "no container starts", f"{_KERNEL} (5.2)"),
    "openat2": Lack("problem", "no path can be resolved within an image", f"{_KERNEL} (5.6)"),
    "clone3": Lack("problem", "no container starts", f"{_KERNEL} (5.3)"),
    "pidfd": Lack("problem", "no container starts", f"{_KERNEL} (5.3)"),
    "close_range": Lack("problem", "no container starts", f"{_KERNEL} (5.11)"),
    "cgroup controller cpu": Lack("problem", "--cpus is refused", _CGROUPS),
    "cgroup controller memory": Lack("problem", "--memory is refused", f"cgroup_enable=memory, or {_CGROUPS}"),
    "cgroup controller pids": Lack("problem", "--pids-limit is refused", _CGROUPS),
    "cgroup controller cpuset": Lack("note", "--cpuset-cpus is refused", _CGROUPS),
    "cgroup controller io": Lack("note", "disk traffic is not counted, and isomark-oci cannot weigh it", _CGROUPS),
    "cgroup controller hugetlb": Lack("note", "huge pages are not limited", "a kernel with CONFIG_CGROUP_HUGETLB"),
    "limit on swap": Lack("note", "--memory-swap is refused", "start the kernel with swapaccount=1"),
    "freezer": Lack("warning", "containers cannot be paused", _CGROUPS),
    "device rules, version 1": Lack("note", "version 2 has to control devices", _CGROUPS),
    "device rules, version 2": Lack("note", "version 1 has to control devices", "a kernel with CONFIG_CGROUP_BPF"),
    "birth in a cgroup": Lack("note", "starts are slower", "mount cgroup version 2; Linux 5.7"),
    "cgroup delegation": Lack("note", "without root nothing is limited", _CGROUPS),
    "seccomp": Lack(
        "problem", "only --security off starts", "apt-get install libseccomp2; a kernel with CONFIG_SECCOMP"
    ),
    "capabilities": Lack("problem", "containers would keep all", _ROOT),
    "no_new_privs": Lack("problem", "only --security off starts", f"{_KERNEL} (3.5)"),
    "nftables": Lack("warning", "no published ports, no network beyond the bridge", "apt-get install nftables"),
    "veth and bridge": Lack("warning", "only --network host and none", "modprobe -a veth bridge"),
    "rootless network": Lack("note", "rootless containers have no network", "apt-get install slirp4netns, or passt"),
    "subordinate ids": Lack(
        "note", "rootless containers have one user", "apt-get install uidmap; usermod --add-subuids"
    ),
    "io_uring": Lack("note", "programs fall back to other calls", "sysctl kernel.io_uring_disabled=0"),
}


def findings(state: Path) -> list[Finding]:
    """Try every feature; ``state`` is isomark's state directory. Takes a second, leaves nothing."""
    return [*_kernel(), _cgroups(), *_tried(state), _filter_cache(state), *_security_modules(), *_levels()]


def _kernel() -> Iterator[Finding]:
    host = os.uname()
    yield Finding("kernel", "ok", f"{host.sysname} {host.release} on {host.machine}")


def _cgroups() -> Finding:
    try:
        layout = detect()
    except HostError as error:
        return Finding("cgroup version", "problem", error.message, error.hint)
    if layout.version == "none":
        return Finding("cgroup version", "problem", "no cgroups are mounted", _CGROUPS)
    where = {
        name: f"version {each.version}" for each in layout.hierarchies for name in sorted(each.controllers)
    }  # fmt: skip
    return Finding("cgroup version", "ok", {"v1": "1", "v2": "2"}.get(layout.version, "1 and 2 (hybrid)"), facts=where)


def _tried(state: Path) -> Iterator[Finding]:
    try:
        answers = dict(_probe(state))
    except HostError as error:
        yield Finding("features", "problem", error.message, error.hint)
        return
    for name in PROBES:
        yield _finding(name, *answers.get(name, ("", "was not tried: the program that tries died")))


def _finding(name: str, detail: str, error: str | None) -> Finding:
    if error is None:
        return Finding(name, "ok", f"works{': ' + detail if detail else ''}")
    lack = LACKS[name]
    return Finding(name, lack.severity, f"{error}: {lack.lost}", lack.remedy)


def _probe(state: Path) -> Iterator[tuple[str, tuple[str, str | None]]]:
    """Run the probes in a small process: this one may have threads, which forbid what they do."""
    directory = state / f"probe-{secrets.token_hex(4)}"
    with Journal(journal_directory(state)) as journal, journal.owning("directory", path=str(directory)):
        group = journal.own("cgroup", name=journal.owner.id)
        try:
            directory.mkdir(parents=True)
            ran = subprocess.run(
                [sys.executable, "-I", "-c", _PROGRAM, _SOURCES, str(directory), journal.owner.id],
                capture_output=True, text=True, check=False, timeout=PROBE_SECONDS * len(PROBES),
            )  # fmt: skip
        except OSError as error:
            raise HostError(f"cannot try: {error.strerror}", hint="set ISOMARK_STATE") from error
        finally:
            remove_tree(directory)
            cgroup.remove(group.what)
        journal.gone(group)
    for line in ran.stdout.splitlines():
        answer = json.loads(line)
        yield answer["name"], (answer["detail"], answer["error"])


def _filter_cache(state: Path) -> Finding:
    if seccomp.is_compiled(str(state), "default", capabilities.DEFAULT & capabilities.held()):
        return Finding("seccomp filter", "ok", "the default one is compiled for this kernel")
    return Finding("seccomp filter", "ok", "not compiled yet for this kernel: the first start does it")


def _security_modules() -> Iterator[Finding]:
    apparmor = _text("/sys/module/apparmor/parameters/enabled") == "Y"
    loaded = "docker-default (" in (_text("/sys/kernel/security/apparmor/profiles") or "")
    if apparmor and not loaded:
        yield Finding(
            "AppArmor", "note", "enabled, without Docker's profile: containers are unconfined by it",
            "load docker-default with apparmor_parser",
        )  # fmt: skip
    else:
        yield Finding("AppArmor", "ok", "confines containers with docker-default" if apparmor else "not in this kernel")
    enforcing = _text("/sys/fs/selinux/enforce")
    if enforcing is None:
        yield Finding("SELinux", "ok", "not in this kernel")
    else:
        word = "enforcing" if enforcing == "1" else "permissive"
        yield Finding("SELinux", "note", f"{word}; containers get no label of their own", "Podman labels containers")


def _levels() -> Iterator[Finding]:
    for name in LEVELS:
        yield Finding(f"--security {name}", "ok", describe(name).partition(": ")[2])


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None
