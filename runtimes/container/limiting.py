"""Limiting a cgroup that is there: writes its control files, in the order in which the kernel takes them. Light."""

from __future__ import annotations

import os

from bench.errors import HostError
from runtimes.container import resources as settings
from runtimes.container.hierarchy import read, write
from runtimes.security import device_rules

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence, Set

    from runtimes.container.resources import Resources


def limit(paths: Mapping[str, str], v2: Set[str], unified: str | None, wanted: Resources) -> None:
    """Write what ``wanted`` asks for.

    Args:
        paths: Controller -> directory.
        v2: Which of them are version 2.
        unified: The directory on version 2, if there is one.
        wanted: All but its device rules.

    Raises:
        HostError: the kernel refuses.
    """
    for controller, file, text in settings.version_1(wanted, frozenset(paths.keys() - v2)):
        put(f"{paths[controller]}/{file}", text)
    for controller, file, text in settings.version_2(wanted, frozenset(v2)):
        put(f"{paths[controller]}/{file}", text)
    if "memory" in paths:
        limit_swap(paths["memory"], wanted, version_2="memory" in v2)
    for file, text in settings.unified(wanted):
        if unified is None:
            raise HostError(f"{file} cannot be set: cgroup version 2 is not mounted")
        put(f"{unified}/{file}", text)


def limit_swap(directory: str, wanted: Resources, *, version_2: bool) -> None:
    """Without a swap controller swapping cannot be limited; that there be none can at least be approached.

    Raises:
        HostError: something in between is asked for without one, or the kernel refuses.
    """
    if wanted.memory_swap is None:
        return
    if version_2:
        file, text = f"{directory}/memory.swap.max", settings.swap_2(wanted) or "max"
    else:
        file, text = f"{directory}/memory.memsw.limit_in_bytes", str(wanted.memory_swap)
    if os.path.exists(file):
        put(file, text)
    elif wanted.memory_swap == wanted.memory and os.path.exists(f"{directory}/memory.swappiness"):
        put(f"{directory}/memory.swappiness", "0")
    elif wanted.memory_swap not in (wanted.memory, settings.UNLIMITED):
        raise HostError("this kernel does not count swap", hint="start it with swapaccount=1, or do without")


def raises_memory(directory: str, wanted: Resources) -> bool:
    """Whether version 1 would refuse the new limit on memory as above the old one on memory and swap."""
    if wanted.memory is None or wanted.memory_swap is None:
        return False
    file = f"{directory}/memory.memsw.limit_in_bytes"
    return os.path.exists(file) and (wanted.memory < 0 or wanted.memory > int(get(file)))


def fill_cpuset(top: str, path: str) -> None:
    """Version 1 gives a new group no CPU and no memory node: take over those above, from the top down.

    Raises:
        HostError: the kernel refuses.
    """
    directory = top
    for part in path[len(top) + 1 :].split("/"):
        above, directory = directory, f"{directory}/{part}"
        for file in ("cpuset.cpus", "cpuset.mems"):
            if not get(f"{directory}/{file}").strip():
                put(f"{directory}/{file}", get(f"{above}/{file}").strip())


def give_devices(version_1: str | None, unified: str | None, rules: Sequence[device_rules.Rule]) -> None:
    """Tell the group in one of its directories what devices its processes may use.

    Raises:
        HostError: neither version is there, or the kernel refuses.
    """
    try:
        if version_1 is not None:
            _tell(version_1, rules)
        elif unified is not None:
            _attach(unified, rules)
        else:
            raise HostError("nothing here controls devices", hint="mount cgroup version 2")
    except OSError as error:
        raise HostError(
            f"the kernel does not take the device rules: {error.strerror}",
            hint="they need CAP_BPF and CAP_NET_ADMIN on version 2, root on version 1",
        ) from error


def _tell(directory: str, rules: Sequence[device_rules.Rule]) -> None:
    files: dict[str, int] = {}
    try:
        for name, text in device_rules.version_1(rules):
            if name not in files:
                files[name] = os.open(f"{directory}/{name}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
            os.write(files[name], text)
    finally:
        for fd in files.values():
            os.close(fd)


def _attach(directory: str, rules: Sequence[device_rules.Rule]) -> None:
    program = device_rules.load(rules)
    try:
        group = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            device_rules.attach(program, group)
        finally:
            os.close(group)
    finally:
        os.close(program)


def get(path: str) -> str:
    """The text in a control file.

    Raises:
        HostError: it cannot be read.
    """
    try:
        return read(path).decode()
    except OSError as error:
        raise HostError(f"cannot read {path}: {error.strerror}") from error


def put(path: str, text: str) -> None:
    """Write ``text`` to a control file.

    Raises:
        HostError: the kernel refuses.
    """
    try:
        write(path, text.encode())
    except OSError as error:
        raise HostError(f"cannot write {text!r} to {path}: {error.strerror}") from error
