"""What a group has used, read from cgroup version 1 or 2. Light."""

from __future__ import annotations

from bench.errors import HostError
from runtimes.container.hierarchy import read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Set
    from typing import Final

NANOSECONDS: Final = 1_000_000_000
MICROSECONDS: Final = 1_000_000
NO_LIMIT_BYTES: Final = 1 << 62
"""Version 1 writes "no limit" as the largest multiple of a page."""


class Stats:
    """Readings of one moment; ``None`` where no controller here keeps the figure.

    Attributes:
        cpu_seconds: CPU time used, user and system.
        cpu_user_seconds: Of it in user mode; sampled on version 1.
        cpu_system_seconds: Of it in the kernel.
        periods: Periods of the quota so far.
        throttled_periods: Of them those in which it was used up.
        throttled_seconds: How long processes waited for the next one, all CPUs together.
        memory_bytes: Charged now: anonymous memory, page cache, kernel memory.
        memory_inactive_file_bytes: Of it page cache that the kernel would give up first; Docker's figure leaves it out.
        memory_peak_bytes: The most so far.
        memory_limit_bytes: ``None``: none.
        pids: Processes and threads.
        pids_limit: ``None``: none.
        read_bytes: From block devices.
        written_bytes: To them.
        oom_kills: Processes killed for exceeding the limit on memory.
    """

    __slots__ = (
        "cpu_seconds", "cpu_system_seconds", "cpu_user_seconds", "memory_bytes", "memory_inactive_file_bytes",
        "memory_limit_bytes", "memory_peak_bytes", "oom_kills", "periods", "pids", "pids_limit", "read_bytes",
        "throttled_periods", "throttled_seconds", "written_bytes",
    )  # fmt: skip

    def __init__(self) -> None:
        self.cpu_seconds: float | None = None
        self.cpu_user_seconds: float | None = None
        self.cpu_system_seconds: float | None = None
        self.periods: int | None = None
        self.throttled_periods: int | None = None
        self.throttled_seconds: float | None = None
        self.memory_bytes: int | None = None
        self.memory_inactive_file_bytes: int | None = None
        self.memory_peak_bytes: int | None = None
        self.memory_limit_bytes: int | None = None
        self.pids: int | None = None
        self.pids_limit: int | None = None
        self.read_bytes: int | None = None
        self.written_bytes: int | None = None
        self.oom_kills: int | None = None

    def as_dict(self) -> dict[str, float | None]:
        """Name -> figure, for JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


def collect(paths: Mapping[str, str], v2: Set[str], unified: str | None) -> Stats:
    """Read all figures.

    Args:
        paths: Controller -> directory.
        v2: Which of them are version 2.
        unified: The directory on version 2, if there is one.

    Raises:
        HostError: the group is gone.
    """
    found = Stats()
    found.cpu_seconds = cpu_seconds(paths, unified)
    _cpu(found, paths, v2, unified)
    if "memory" in paths:
        _memory(found, paths["memory"], version_2="memory" in v2)
    _pids(found, paths, unified)
    _blocks(found, paths)
    return found


def cpu_seconds(paths: Mapping[str, str], unified: str | None) -> float | None:
    """CPU time used; version 2 counts it in every group, version 1 in cpuacct's."""
    if "cpuacct" in paths:
        return int(_must(f"{paths['cpuacct']}/cpuacct.usage")) / NANOSECONDS
    if unified is None:
        return None
    used = field(_text(f"{unified}/cpu.stat"), "usage_usec")
    return None if used is None else used / MICROSECONDS


def memory_bytes(directory: str, *, version_2: bool) -> int:
    """What is charged now.

    Raises:
        HostError: the group is gone.
    """
    return int(_must(f"{directory}/{'memory.current' if version_2 else 'memory.usage_in_bytes'}"))


def oom_kills(directory: str, *, version_2: bool) -> int | None:
    """Processes killed for exceeding the limit; ``None`` where the kernel, before 4.13, does not count.

    Raises:
        HostError: the group is gone.
    """
    return field(_must(f"{directory}/{'memory.events' if version_2 else 'memory.oom_control'}"), "oom_kill")


def field(text: str | None, name: str) -> int | None:
    """The number after ``name`` in a flat keyed file."""
    for line in (text or "").split("\n"):
        key, _, value = line.partition(" ")
        if key == name and value.isdigit():
            return int(value)
    return None


def _cpu(found: Stats, paths: Mapping[str, str], v2: Set[str], unified: str | None) -> None:
    throttling = _text(f"{paths['cpu']}/cpu.stat") if "cpu" in paths else None
    found.periods = field(throttling, "nr_periods")
    found.throttled_periods = field(throttling, "nr_throttled")
    if "cpu" in v2:
        found.throttled_seconds = _scaled(field(throttling, "throttled_usec"), MICROSECONDS)
    else:
        found.throttled_seconds = _scaled(field(throttling, "throttled_time"), NANOSECONDS)
    if unified is not None:
        used = _text(f"{unified}/cpu.stat")
        found.cpu_user_seconds = _scaled(field(used, "user_usec"), MICROSECONDS)
        found.cpu_system_seconds = _scaled(field(used, "system_usec"), MICROSECONDS)
    elif "cpuacct" in paths:
        directory = paths["cpuacct"]
        found.cpu_user_seconds = _scaled(_number(f"{directory}/cpuacct.usage_user"), NANOSECONDS)
        found.cpu_system_seconds = _scaled(_number(f"{directory}/cpuacct.usage_sys"), NANOSECONDS)


def _memory(found: Stats, directory: str, *, version_2: bool) -> None:
    names = (
        ("memory.peak", "memory.max", "inactive_file")
        if version_2
        else ("memory.max_usage_in_bytes", "memory.limit_in_bytes", "total_inactive_file")
    )
    found.memory_bytes = memory_bytes(directory, version_2=version_2)
    found.memory_peak_bytes = _number(f"{directory}/{names[0]}")
    limit = _number(f"{directory}/{names[1]}")
    found.memory_limit_bytes = limit if limit is not None and limit < NO_LIMIT_BYTES else None
    found.memory_inactive_file_bytes = field(_text(f"{directory}/memory.stat"), names[2])
    found.oom_kills = oom_kills(directory, version_2=version_2)


def _pids(found: Stats, paths: Mapping[str, str], unified: str | None) -> None:
    if "pids" in paths:
        found.pids = _number(f"{paths['pids']}/pids.current")
        found.pids_limit = _number(f"{paths['pids']}/pids.max")
        return
    file = f"{unified}/cgroup.threads" if unified is not None else f"{next(iter(paths.values()), '')}/tasks"
    tasks = _text(file)
    found.pids = None if tasks is None else len(tasks.split())


def _blocks(found: Stats, paths: Mapping[str, str]) -> None:
    if "io" in paths:
        words = (_text(f"{paths['io']}/io.stat") or "").split()
        found.read_bytes = sum(int(word[7:]) for word in words if word.startswith("rbytes="))
        found.written_bytes = sum(int(word[7:]) for word in words if word.startswith("wbytes="))
    elif "blkio" in paths:
        rows = [line.split() for line in (_text(f"{paths['blkio']}/blkio.throttle.io_service_bytes") or "").split("\n")]
        found.read_bytes = sum(int(row[2]) for row in rows if len(row) == 3 and row[1] == "Read")
        found.written_bytes = sum(int(row[2]) for row in rows if len(row) == 3 and row[1] == "Write")


def _scaled(value: int | None, per_second: int) -> float | None:
    return None if value is None else value / per_second


def _number(path: str) -> int | None:
    """The number in a file; ``None`` for ``max`` and for a file that this kernel does not have."""
    text = (_text(path) or "").strip()
    return int(text) if text.isdigit() else None


def _text(path: str) -> str | None:
    try:
        return read(path).decode()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HostError(f"cannot read {path}: {error.strerror}") from error


def _must(path: str) -> str:
    try:
        return read(path).decode()
    except OSError as error:
        raise HostError(f"cannot read {path}: {error.strerror}") from error
