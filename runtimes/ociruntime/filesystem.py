"""Root, mounts, devices and covered paths of a configuration as operations for the child (``operations``).

runtime-spec 1.2, config.md, "Root" and "Mounts", and config-linux.md, "Devices", "Masked Paths", "Readonly Paths".
"""

from __future__ import annotations

import os

from runtimes import libc
from runtimes.ociruntime import mount_options
from runtimes.ociruntime.node import MAX_UINT32, Node

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Final

    from runtimes.ociruntime.isolation import Isolation
    from runtimes.ociruntime.mount_options import MountOptions

DEFAULT_PROPAGATION: Final = mount_options.MS_SLAVE | libc.MS_REC
"""What runc takes when linux.rootfsPropagation is absent."""

DEFAULT_DEVICES: Final[Mapping[str, tuple[int, int]]] = {
    "/dev/null": (1, 3),
    "/dev/random": (1, 8),
    "/dev/full": (1, 7),
    "/dev/tty": (5, 0),
    "/dev/zero": (1, 5),
    "/dev/urandom": (1, 9),
}
"""config-linux.md, "Default Devices"."""

LINKS: Final[Mapping[str, str]] = {
    "/dev/fd": "/proc/self/fd",
    "/dev/stdin": "/proc/self/fd/0",
    "/dev/stdout": "/proc/self/fd/1",
    "/dev/stderr": "/proc/self/fd/2",
}
"""runtime-linux.md, "Dev symbolic links"."""

SHOWN_IN_PROC: Final = frozenset(
    f"/proc/{name}"
    for name in [
        "cpuinfo",
        "diskstats",
        "meminfo",
        "stat",
        "swaps",
        "uptime",
        "loadavg",
        "slabinfo",
        "net/dev",
        "sys/kernel/ns_last_pid",
    ]
)
"""What may be bound over inside /proc, by which lxcfs shows a container its limits; runc's list."""


class FileSystem:
    """What the child mounts.

    Attributes:
        root: The root file system's directory.
        propagation: Flags for "/" in the new mount namespace.
        operations: In order; ``cgroup`` and ``bind`` ones still have to be completed with what the host has.
    """

    __slots__ = ("operations", "propagation", "root", "root_readonly")

    def __init__(self, root: str) -> None:
        self.root = root
        self.root_readonly = False
        self.propagation = DEFAULT_PROPAGATION
        self.operations: list[list[Any]] = []


def parse(document: Node, linux: Node, isolation: Isolation, bundle: str) -> FileSystem:
    """Read the file system.

    Raises:
        UsageError: with the path of what is wrong.
    """
    root = document.need("root")
    path = root.need("path").text()
    if not path:
        raise root.need("path").fault("must not be empty")
    files = FileSystem(os.path.normpath(os.path.join(bundle, path)))
    files.root_readonly = root.flag_of("readonly")
    wanted = _root_propagation(linux)
    files.propagation = DEFAULT_PROPAGATION if wanted is None else wanted
    _refuse_label(linux)
    mounts = document.elements("mounts")
    for each in mounts:
        files.operations.append(_mount(each, bundle))
    bound_dev = any(operation[0] == "oci-bind" and operation[1] == "/dev" for operation in files.operations)
    if not bound_dev:
        files.operations += _devices(linux, bind=isolation.separate(libc.CLONE_NEWUSER))
    files.operations += [["oci-mask", path, where] for path, where in _paths(linux, "maskedPaths")]
    files.operations += [["oci-readonly", path, where] for path, where in _paths(linux, "readonlyPaths")]
    files.operations.append(["oci-finish", "its mounts", wanted or 0])
    return files


def _root_propagation(linux: Node) -> int | None:
    node = linux.get("rootfsPropagation")
    if node is None or not node.text():
        return None
    name = node.choice(mount_options.PROPAGATIONS, f"one of {', '.join(mount_options.PROPAGATIONS)}")
    return mount_options.PROPAGATIONS[name]


def _refuse_label(linux: Node) -> None:
    if linux.text_of("mountLabel"):
        raise linux.need("mountLabel").fault("cannot be set: SELinux is not supported")


def _mount(node: Node, bundle: str) -> list[Any]:
    destination = _destination(node.need("destination"))
    for name in ("uidMappings", "gidMappings"):
        if (maps := node.get(name)) is not None and maps.items():
            raise maps.fault("asks for an id-mapped mount, which is not supported")
    options = _options(node)
    kind = node.text_of("type") or ""
    source = node.text_of("source") or ""
    where = f"{node.path} ({destination})"
    if options.flags & libc.MS_BIND or kind == "bind":
        return _bind(node, destination, source, options, bundle, where)
    if not kind and not options.flags & mount_options.MS_REMOUNT:
        raise node.fault("has no type")
    if options.copy_up and kind != "tmpfs":
        raise node.fault("has the option tmpcopyup, which is only for a tmpfs")
    if _inside_proc(destination) and kind != "proc":
        raise node.fault(f"is inside /proc: nothing but a proc file system may be mounted at {destination}")
    if kind in ("cgroup", "cgroup2"):
        return ["oci-cgroup", destination, where, options.flags, options.propagation, kind == "cgroup2"]
    return [
        "oci-mount", destination, where, source or kind, kind, options.flags, options.data, options.propagation,
        list(options.recursive), options.copy_up,
    ]  # fmt: skip


def _bind(
    node: Node, destination: str, source: str, options: MountOptions, bundle: str, where: str
) -> list[Any]:  # fmt: skip
    if not source:
        raise node.fault("has no source to bind")
    if options.copy_up:
        raise node.fault("has the option tmpcopyup, which is only for a tmpfs")
    if destination.startswith("/proc/") and destination not in SHOWN_IN_PROC:
        raise node.fault(f"is inside /proc: {destination} must not be covered")
    wanted, lifted = options.attributes()
    return [
        "oci-bind", destination, where, os.path.normpath(os.path.join(bundle, source)),
        bool(options.flags & libc.MS_REC), [wanted, lifted], options.propagation, list(options.recursive),
    ]  # fmt: skip


def _destination(node: Node) -> str:
    """An absolute path without ``..``; a relative one is taken from the root, as older versions allowed."""
    path = node.text()
    if not path:
        raise node.fault("must not be empty")
    path = os.path.normpath("/" + path)
    return "/" + path.lstrip("/")


def _options(node: Node) -> MountOptions:
    try:
        return mount_options.parse(node.texts_of("options"))
    except ValueError as error:
        raise node.fault(str(error)) from None


def _inside_proc(destination: str) -> bool:
    return destination == "/proc" or destination.startswith("/proc/")


def _devices(linux: Node, *, bind: bool) -> list[list[Any]]:
    """/dev's nodes and links; ``bind`` takes the nodes from the host: a user namespace may not create any."""
    asked = [_device(each) for each in linux.elements("devices")]
    paths = {device[1] for device in asked}
    defaults = [
        ["oci-device", path, f"the default device {path}", "c", major, minor, 0o666, 0, 0]
        for path, (major, minor) in DEFAULT_DEVICES.items()
        if path not in paths
    ]
    return [
        *([*device, bind] for device in (*defaults, *asked)),
        *(["oci-link", path, text] for path, text in LINKS.items()),
        ["oci-ptmx", "/dev/ptmx", "pts/ptmx"],
    ]


def _device(node: Node) -> list[Any]:
    kind = node.need("type").choice(("c", "b", "u", "p"), "c, b, u or p")
    path = _destination(node.need("path"))
    if path == "/":
        raise node.need("path").fault("must name a file")
    numbers = [0, 0] if kind == "p" else [node.need(name).integer(0, 2**32 - 1) for name in ("major", "minor")]
    mode = node.integer_of("fileMode", 0, MAX_UINT32)
    owner = [node.integer_of(name, 0, MAX_UINT32 - 1) or 0 for name in ("uid", "gid")]
    kind = "c" if kind == "u" else kind
    return [
        "oci-device",
        path,
        f"{node.path} ({path})",
        kind,
        *numbers,
        0o666 if mode is None else mode & 0o7777,
        *owner,
    ]


def _paths(linux: Node, name: str) -> list[tuple[str, str]]:
    found = []
    for each in linux.elements(name):
        path = _destination(each)
        if path == "/":
            raise each.fault("must not be the root itself")
        found.append((path, f"{each.path} ({path})"))
    return found
