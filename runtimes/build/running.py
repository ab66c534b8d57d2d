"""How a RUN step is started: the container, what is mounted in it, and what the step is told."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.errors import UsageError
from bench.units import MIB
from runtimes import libc, usernamespace
from runtimes.birth import plain
from runtimes.build.cache import Cache, Workplace
from runtimes.build.image import Image
from runtimes.build.instructions import Command, Mount
from runtimes.build.lines import here_word
from runtimes.build.variables import DEFAULT_PATH, PREDEFINED
from runtimes.devices import device_tree
from runtimes.mounts import NOTHING_EXECUTABLE
from runtimes.network.names import FILES

NETWORKS: Final = ("bridge", "host", "none")
DOCUMENTS: Final = "/dev/pipes"
"""Where a here-document with an interpreter line is, as with BuildKit; /dev is not in the image."""
_NAMESPACES: Final = libc.CLONE_NEWNS | libc.CLONE_NEWPID | libc.CLONE_NEWIPC | libc.CLONE_NEWUTS | libc.CLONE_NEWCGROUP
_HOSTNAME: Final = "build"
_SHARED_MEMORY_BYTES: Final = 128 * MIB
"""Twice Docker's /dev/shm, of which half is given."""
_SHARINGS: Final = ("shared", "private", "locked")


@dataclass(frozen=True)
class Line:
    """A step's command: ``words`` are executed, ``script`` is a file it finds at ``DOCUMENTS``, name and text."""

    words: tuple[str, ...]
    script: tuple[str, str] | None = None
    shown: str = ""


@dataclass
class Extras:
    """What a step sees beside the image: ``mounts`` as operations, ``targets`` that must exist, ``environment``."""

    mounts: list[list[Any]] = field(default_factory=list)
    targets: list[tuple[str, bool]] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)


def line_of(command: Command, shell: Sequence[str]) -> Line:
    """What ``command`` executes: its here-documents become the script, or go to the shell with the line."""
    if not command.in_shell:
        return Line(command.words, shown=" ".join(command.words))
    text = command.words[0]
    if not command.documents:
        return Line((*shell, text), shown=text)
    first = command.documents[0]
    if here_word(text) is None:
        whole = text + "".join(f"\n{document.raw}{document.name}" for document in command.documents)
        return Line((*shell, whole), shown=text)
    summary = f"{text} ({next(iter(first.text.splitlines()), '')[:60]})"
    if first.text.startswith("#!"):
        return Line((f"{DOCUMENTS}/{first.name}",), (first.name, first.text), summary)
    return Line((*shell, first.text), shown=summary)


def step_environment(image: Image) -> dict[str, str]:
    """What a step's environment and the cache's key have. Proxies count only where an ARG declares them."""
    return {"PATH": DEFAULT_PATH, **image.variables}


def proxies(image: Image, given: Mapping[str, str]) -> dict[str, str]:
    """The proxies given to the build, which every step sees and no key has."""
    return {name: value for name, value in given.items() if name in PREDEFINED and name not in image.variables}


def checked_network(text: str) -> str:
    """Return ``text`` if steps can have such a network.

    Raises:
        UsageError: they cannot.
    """
    if text not in NETWORKS:
        raise UsageError(f"there is no network {text[:40]!r} for steps", hint=f"it is {' or '.join(NETWORKS)}")
    return text


def spec_of(
    line: Line, image: Image, environment: Mapping[str, str], network: str, extras: Extras, place: Workplace
) -> dict[str, Any]:
    """The container of a step, on the tree that the worker has mounted; the worker adds what secures it."""
    spec = plain()
    spec["command"] = list(line.words)
    spec["environment"] = {**environment, **extras.environment}
    spec["cwd"] = image.working_directory
    spec["user"]["name"] = str(image.config.get("User") or "0")
    spec["namespaces"] = _NAMESPACES | (0 if network == "host" else libc.CLONE_NEWNET)
    spec["root"] = ["directory", str(place.merged)]
    if not usernamespace.privileged():
        spec["namespaces"] |= libc.CLONE_NEWUSER
        spec["uid_map"], spec["gid_map"] = usernamespace.nested_maps()
    spec["mounts"] = [*_file_systems(network), *_name_service(place), *_script(line, place), *extras.mounts]
    spec["hostname"] = _HOSTNAME
    spec["tie"] = True
    return dict(spec)


def targets_of(extras: Extras) -> list[tuple[str, bool]]:
    """Every path that must exist so that something can be mounted there, and whether it is a directory."""
    files = [(f"/etc/{name}", False) for name in FILES]
    return [("/proc", True), ("/sys", True), ("/dev", True), *files, *extras.targets]


@contextmanager
def mounted(mounts: Sequence[Mount], cache: Cache, image: Image) -> Iterator[Extras]:
    """What ``RUN --mount`` asks for; the directories of caches are held for the length of the block.

    Raises:
        UsageError: an option is malformed.
    """
    extras = Extras()
    with ExitStack() as held:
        for mount in mounts:
            target = image.resolved(mount.target).rstrip("/") or "/"
            if mount.kind == "tmpfs":
                size = mount.options.get("size", "")
                data = "mode=1777" + (f",size={_number(size, 'size')}" if size else "")
                extras.mounts.append(["user_mount", target, "tmpfs", "tmpfs", NOTHING_EXECUTABLE, data, 0])
            else:
                directory = held.enter_context(_cache_directory(mount, target, cache))
                extras.mounts.append(["user_bind", target, str(directory), 0, 0, False, False, 0])
            extras.targets.append((target, True))
        yield extras


@contextmanager
def _cache_directory(mount: Mount, target: str, cache: Cache) -> Iterator[Path]:
    sharing = mount.options.get("sharing", "shared")
    if sharing not in _SHARINGS:
        raise UsageError(f"RUN --mount sharing={sharing[:40]} is unknown", hint=f"it is {', '.join(_SHARINGS)}")
    mode = mount.options.get("mode", "755")
    if not set(mode) <= set("01234567") or not 1 <= len(mode) <= 5:
        raise UsageError(f"RUN --mount mode={mode[:40]} is not octal", hint="write it like mode=0755")
    owner = (_number(mount.options.get("uid", "0"), "uid"), _number(mount.options.get("gid", "0"), "gid"))
    with cache.mount(mount.options.get("id") or target, sharing, int(mode, 8), owner) as directory:
        yield directory


def _number(text: str, what: str) -> int:
    if not text.isdecimal() or len(text) > 18:
        raise UsageError(f"RUN --mount {what}={text[:40]} is no number", hint=f"write it like {what}=1000")
    return int(text)


def _name_service(place: Workplace) -> list[list[Any]]:
    """The step's own resolv.conf, hosts and hostname, which the worker writes."""
    return [
        ["user_bind", f"/etc/{name}", str(place.files / name), libc.MOUNT_ATTR_RDONLY, 0, False, False, 0]
        for name in FILES
    ]


def _script(line: Line, place: Workplace) -> list[list[Any]]:
    if line.script is None:
        return []
    name, text = line.script
    directory = place.files / "pipes"
    directory.mkdir(mode=0o755)
    script = directory / os.path.basename(name)
    script.write_text(text, errors="surrogateescape")
    script.chmod(0o755)
    return [["user_bind", DOCUMENTS, str(directory), libc.MOUNT_ATTR_RDONLY, 0, False, False, 0]]


def _file_systems(network: str) -> list[list[Any]]:
    """What every step has. An ordinary user makes no devices, and mounts the sysfs of a network of its own only."""
    privileged = usernamespace.privileged()
    system: list[Any] = ["mount", "/sys", "sysfs", NOTHING_EXECUTABLE | libc.MS_RDONLY, None]
    if network == "host" and not privileged:
        system = ["bind", "/sys", "/sys", libc.MOUNT_ATTR_RDONLY, True]
    return [
        ["mount", "/proc", "proc", NOTHING_EXECUTABLE, None],
        system,
        *device_tree(_SHARED_MEMORY_BYTES, bind=not privileged, rootless=not usernamespace.owns_files()),
        ["directory", "/dev/mqueue", 0o755],
        ["mount", "/dev/mqueue", "mqueue", NOTHING_EXECUTABLE, None],
    ]
