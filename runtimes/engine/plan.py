"""From what was asked for to what is started: config in, ``Spec`` out. Pure, but for looking at devices of the host."""

from __future__ import annotations

import os
import stat

from bench.errors import HostError, UsageError
from runtimes import libc, usernamespace
from runtimes.birth import plain
from runtimes.devices import device_tree
from runtimes.engine.clock import zero_offsets
from runtimes.engine.containers import find
from runtimes.engine.volumes import data
from runtimes.mounts import NOTHING_EXECUTABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runtimes.engine.container import Container
    from runtimes.security.levels import Security
    from runtimes.spec import Spec

SPACES = {
    "pid": libc.CLONE_NEWPID,
    "ipc": libc.CLONE_NEWIPC,
    "uts": libc.CLONE_NEWUTS,
    "cgroupns": libc.CLONE_NEWCGROUP,
}
"""Namespaces that an option can leave out, by its name."""
FILES = ("hosts", "hostname", "resolv.conf")
_PROPAGATION = {
    "private": libc.MS_PRIVATE,
    "slave": libc.MS_SLAVE,
    "shared": libc.MS_SHARED,
}
_INIT_TARGET = "/sbin/docker-init"
"""Where Docker puts it as well."""


def spec_of(container: Container, security: Security, *, init: str | None = None, own_users: bool = False) -> Spec:
    """The ``Spec`` of a container without what only its start knows: network, namespaces to join.

    ``init`` is a static program on the host that is to reap inside; ``own_users``: it gets a user namespace, whose
    root mounts and makes less.

    Raises:
        UsageError: a device is none.
        HostError: the kernel lacks what is asked for.
    """
    config = container.config
    spec = plain()
    spec["command"] = [*([_INIT_TARGET, "--"] if init else []), *config["entrypoint"], *config["arguments"]]
    spec["environment"] = dict(config["environment"])
    spec["cwd"] = config["cwd"]
    spec["user"]["name"] = config["user"] or "0"
    spec["user"]["groups"] = [int(group) for group in config["groups"]]
    spec["namespaces"] = libc.CLONE_NEWNS
    for kind, flag in SPACES.items():
        if config["namespaces"][kind] == "private":
            spec["namespaces"] |= flag
    if config["network"] in ("bridge", "none"):
        spec["namespaces"] |= libc.CLONE_NEWNET
    if config["namespaces"].get("timens") == "private":
        spec["time_offsets"] = _offsets()
    path = container.path
    spec["root"] = ["overlay", [config["tree"]], f"{path}/upper", f"{path}/work", f"{path}/root"]
    spec["root_readonly"] = config["read_only"] or security.read_only_root
    spec["propagation"] = libc.MS_REC | _root_propagation(config)
    spec["mounts"] = [*_system(config, own_users=own_users), *_users(container), *_hidden(security)]
    if init is not None:
        spec["mounts"].append(["user_bind", _INIT_TARGET, init, libc.MOUNT_ATTR_RDONLY, 0, False, False, 0])
    if config["namespaces"]["uts"] == "private" and config["hostname"] is not None:
        spec["hostname"] = config["hostname"]
        spec["environment"].setdefault("HOSTNAME", config["hostname"])
    spec["domainname"] = config["domainname"]
    spec["sysctls"] = dict(config["sysctls"])
    spec["rlimits"] = [list(limit) for limit in config["ulimits"]]
    spec["oom_score_adj"] = config["oom_score_adj"]
    spec["terminal"] = config["tty"]
    spec["tie"] = True
    secure(spec, security)
    return spec


def _offsets() -> dict[str, int]:
    try:
        return zero_offsets()
    except FileNotFoundError as error:
        raise HostError(
            "option --timens: this kernel has no time namespaces", hint="Linux 5.6, CONFIG_TIME_NS"
        ) from error


def secure(spec: Spec, security: Security) -> None:
    """Let ``security`` hold for what ``spec`` starts."""
    spec["capabilities"] = security.capabilities
    spec["seccomp"] = security.seccomp
    spec["apparmor"] = security.apparmor
    spec["no_new_privileges"] = security.no_new_privileges


def _root_propagation(config: dict[str, Any]) -> int:
    """How the host's mounts reach in: as far as one of the binds asks for it."""
    asked = {mount["propagation"].removeprefix("r") for mount in config["mounts"] if mount["type"] == "bind"}
    return _PROPAGATION["shared" if "shared" in asked else "slave" if "slave" in asked else "private"]


def _system(config: dict[str, Any], *, own_users: bool) -> list[list[Any]]:
    """/proc, /sys and /dev.

    A file system that shows a namespace is only for who is root of that namespace: the host's is bound.
    """
    own_net = config["network"] in ("bridge", "none") or (own_users and config["network"] != "host")
    own_pid = config["namespaces"]["pid"] != "host" or not own_users
    own_ipc = config["namespaces"]["ipc"] != "host" or not own_users
    own_tty_group = not own_users or usernamespace.owns_files()
    sys_flags = NOTHING_EXECUTABLE | (0 if config["security"]["privileged"] else libc.MS_RDONLY)
    operations: list[list[Any]] = [
        *(["directory", path, mode] for path, mode in (("/proc", 0o555), ("/sys", 0o555), ("/dev", 0o755))),
        ["mount", "/proc", "proc", NOTHING_EXECUTABLE, None] if own_pid else ["bind", "/proc", "/proc", 0, True],
        ["mount", "/sys", "sysfs", sys_flags, None]
        if own_net
        else ["bind", "/sys", "/sys", 0 if config["security"]["privileged"] else libc.MOUNT_ATTR_RDONLY, True],
        *device_tree(config["shm_bytes"] * 2, bind=own_users, rootless=not own_tty_group, queues=own_ipc),
    ]
    if config["namespaces"]["ipc"] == "host":
        operations.append(["bind", "/dev/shm", "/dev/shm", 0, False])
    return [*operations, *(_bound_devices(config) if own_users else _devices(config))]


def _devices(config: dict[str, Any]) -> list[list[Any]]:
    """Nodes like those that --device names; with --privileged, like all that the host has."""
    wanted = {device["target"]: device["source"] for device in config["devices"]}
    if config["security"]["privileged"]:
        wanted = {**{path: path for path in host_devices()}, **wanted}
    operations: list[list[Any]] = []
    for target, source in sorted(wanted.items()):
        found = _look_at_device(source)
        directory, _, name = target.rpartition("/")
        node = [os.major(found.st_rdev), os.minor(found.st_rdev), found.st_mode, found.st_uid, found.st_gid]
        if directory != "/dev":
            operations.append(["directory", directory or "/", 0o755])
        operations.append(["nodes", directory or "/", {name: node}])
    return operations


def _bound_devices(config: dict[str, Any]) -> list[list[Any]]:
    """The host's nodes that --device names: who may not make them gets what the host lets its users open."""
    for device in config["devices"]:
        _look_at_device(device["source"])
        if device["access"] != "rwm" and not usernamespace.privileged():
            raise HostError(
                f"option --device: an ordinary user cannot limit the access to {device['source']}",
                hint="leave out the part behind the last colon",
            )
    return [
        ["user_bind", device["target"], device["source"], 0, 0, False, False, libc.MS_PRIVATE]
        for device in config["devices"]
    ]


def _look_at_device(source: str) -> os.stat_result:
    try:
        found = os.stat(source)
    except OSError as error:
        raise UsageError(f"option --device: {source}: {error.strerror}") from error
    if not stat.S_ISCHR(found.st_mode) and not stat.S_ISBLK(found.st_mode):
        raise UsageError(f"option --device: {source} is no device", hint="--volume gives files and directories")
    return found


def host_devices() -> list[str]:
    """The device nodes of the host's /dev, without those that every container has of its own."""
    own = ("/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom",
           "/dev/tty", "/dev/console", "/dev/ptmx")  # fmt: skip
    found = []
    pending = ["/dev"]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.path in own:
                    continue
                mode = entry.stat(follow_symlinks=False).st_mode
                if stat.S_ISDIR(mode):
                    pending.append(entry.path)
                elif stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
                    found.append(entry.path)
    return found


def _users(container: Container) -> list[list[Any]]:
    """What the user asked for, and the three files of whose network it is; a user's mount may cover these."""
    mounts = container.config["mounts"]
    targets = {mount["target"] for mount in mounts}
    kind, _, other = container.config["network"].partition(":")
    path = find(container.place, other).path if kind == "container" else container.path
    files = [
        ["user_bind", f"/etc/{name}", f"{path}/{name}", 0, 0, False, False, libc.MS_PRIVATE]
        for name in FILES
        if f"/etc/{name}" not in targets
    ]
    return [*files, *(_one(container, mount) for mount in mounts)]


def volumes_of(container: Container) -> list[list[Any]]:
    """The mounts that have content without the container running: what ``cp`` sees of a stopped one."""
    kept = [mount for mount in container.config["mounts"] if mount["type"] != "tmpfs"]
    return [_one(container, mount) for mount in kept if os.path.exists(_source(container, mount))]


def _source(container: Container, mount: dict[str, Any]) -> str:
    return str(mount["source"]) if mount["type"] == "bind" else data(container.place, mount["name"])


def _one(container: Container, mount: dict[str, Any]) -> list[Any]:
    if mount["type"] == "tmpfs":
        flags = 0
        for word, flag in (("exec", libc.MS_NOEXEC), ("suid", libc.MS_NOSUID), ("dev", libc.MS_NODEV)):
            flags |= 0 if word in mount["flags"] else flag
        flags |= libc.MS_RDONLY if mount["readonly"] else 0
        return ["user_mount", mount["target"], "tmpfs", "tmpfs", flags, mount["options"] or None, libc.MS_PRIVATE]
    source = _source(container, mount)
    recursive = mount["type"] == "volume" or mount["propagation"].startswith("r")
    attributes = libc.MOUNT_ATTR_RDONLY if mount["readonly"] else 0
    kind = _PROPAGATION[mount["propagation"].removeprefix("r")]
    propagation = kind | (libc.MS_REC if mount["propagation"].startswith("r") else 0)
    return ["user_bind", mount["target"], source, attributes, 0, recursive, recursive, propagation]


def _hidden(security: Security) -> list[list[Any]]:
    """After everything else is mounted: a mount of the user's must not uncover them."""
    return [
        *([["hide", *security.masked]] if security.masked else []),
        *([["protect", *security.readonly]] if security.readonly else []),
    ]
