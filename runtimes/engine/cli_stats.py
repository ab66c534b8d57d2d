"""``isomark container stats`` and ``top``: what containers use."""

from __future__ import annotations

import os
import sys
import time

from bench.errors import HostError, InstanceError
from runtimes.container.nogroup import NoGroup
from runtimes.engine import inspect as inspecting
from runtimes.engine.cli_show import look, table
from runtimes.engine.command import Command
from runtimes.engine.container import LIVE, SHORT
from runtimes.engine.containers import every, find
from runtimes.engine.joining import group_of
from runtimes.engine.place import Place
from runtimes.engine.quantities import format_size
from runtimes.members import Namespace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runtimes.container.stats import Stats
    from runtimes.engine.container import Container
    from runtimes.engine.options import Options, Table

STATS: Table = (
    ("all", "a", "", "Those too that do not run"),
    ("format", "", "json|TEMPLATE", "json, or a template like '{{.Name}} {{.CPUPerc}}'"),
    ("interval", "", "SECONDS", "Between two looks; 1 by default"),
    ("no-stream", "", "", "Look once and end"),
    ("no-trunc", "", "", "Whole ids"),
)
_COLUMNS = (("CONTAINER ID", "ID"), ("NAME", "Name"), ("CPU %", "CPUPerc"), ("MEM USAGE / LIMIT", "MemUsage"),
            ("MEM %", "MemPerc"), ("NET I/O", "NetIO"), ("BLOCK I/O", "BlockIO"), ("PIDS", "PIDs"))  # fmt: skip
UNKNOWN = "--"
"""What is not counted here; never 0."""


class Reading:
    """What one container uses at one instant; ``stats`` and ``network`` are ``None`` if it does not run."""

    __slots__ = ("at_seconds", "network", "stats")

    def __init__(self, container: Container, state: dict[str, Any]) -> None:
        self.stats: Stats | None = None
        self.network: tuple[int, int] | None = None
        self.at_seconds = time.monotonic()
        if state["status"] in LIVE and (process := container.process(state)) is not None:
            try:
                self.stats = group_of(container, state).stats()
            except HostError:  # it ended meanwhile
                return
            self.network = network_bytes(process.pid) if container.config["network"] != "host" else None


def network_bytes(pid: int) -> tuple[int, int] | None:
    """Bytes received and sent by process ``pid`` but on loopback (proc(5), net/dev); ``None`` if it is gone."""
    try:
        with open(f"/proc/{pid}/net/dev", encoding="ascii") as file:
            lines = file.read().splitlines()[2:]
    except OSError:
        return None
    rows = [(name.strip(), rest.split()) for name, _, rest in (line.partition(":") for line in lines)]
    counted = [fields for name, fields in rows if name != "lo"]
    return sum(int(fields[0]) for fields in counted), sum(int(fields[8]) for fields in counted)


def show(container: Container, before: Reading, now: Reading, *, whole: bool) -> dict[str, str]:
    """One line, with Docker's names."""
    found = now.stats
    name = {"ID": container.id if whole else container.id[:SHORT], "Name": container.name}
    if found is None:
        return {**name, **{key: UNKNOWN for _, key in _COLUMNS[2:]}}
    used = found.memory_bytes
    if used is not None and found.memory_inactive_file_bytes is not None:
        used = max(0, used - found.memory_inactive_file_bytes)  # page cache that is given up first, as Docker counts
    limit = found.memory_limit_bytes or host_memory_bytes()
    return {
        **name,
        "CPUPerc": _cpu(before, now),
        "MemUsage": UNKNOWN if used is None else f"{format_size(used)} / {format_size(limit)}",
        "MemPerc": UNKNOWN if used is None else f"{100 * used / limit:.2f}%",
        "NetIO": _pair(now.network),
        "BlockIO": _pair(None if found.read_bytes is None or found.written_bytes is None
                         else (found.read_bytes, found.written_bytes)),
        "PIDs": UNKNOWN if found.pids is None else str(found.pids),
    }  # fmt: skip


def _cpu(before: Reading, now: Reading) -> str:
    if before.stats is None or now.stats is None or before.stats.cpu_seconds is None or now.stats.cpu_seconds is None:
        return UNKNOWN
    elapsed = now.at_seconds - before.at_seconds
    return f"{100 * (now.stats.cpu_seconds - before.stats.cpu_seconds) / elapsed:.2f}%" if elapsed > 0 else UNKNOWN


def _pair(values: tuple[int, int] | None) -> str:
    return UNKNOWN if values is None else f"{format_size(values[0])} / {format_size(values[1])}"


def host_memory_bytes() -> int:
    """All memory of this host."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def stats(options: Options) -> int:
    """Show what containers use, again and again."""
    interval = float(options.text("interval") or 1.0)
    place = Place()
    named = [find(place, name) for name in options.rest]
    before = _read(named, place, options)
    while True:
        time.sleep(interval)
        now = _read(named, place, options)
        rows = [
            show(container, before.get(ident, (container, reading))[1], reading, whole=options.flag("no-trunc"))
            for ident, (container, reading) in now.items()
        ]
        _print(options, rows, clear=not options.flag("no-stream") and sys.stdout.isatty())
        if options.flag("no-stream"):
            return 0
        before = now


def _read(named: list[Container], place: Place, options: Options) -> dict[str, tuple[Container, Reading]]:
    found: dict[str, tuple[Container, Reading]] = {}
    for container in named or every(place):
        one = look(container)
        if one is not None and (named or options.flag("all") or one.state["status"] in LIVE):
            found[container.id] = (container, Reading(container, one.state))
    return found


def _print(options: Options, rows: list[dict[str, str]], *, clear: bool) -> None:
    form = options.text("format")
    if form is not None and form != "table":
        sys.stdout.write("".join(inspecting.formatted(form, one) + "\n" for one in rows))
    else:
        lines = [[title for title, _ in _COLUMNS], *([one[key] for _, key in _COLUMNS] for one in rows)]
        sys.stdout.write(("\x1b[H\x1b[2J" if clear else "") + table(lines))
    sys.stdout.flush()


def top(options: Options) -> int:
    """List a container's processes, as the host sees them."""
    container = find(Place(), options.rest[0]) if len(options.rest) == 1 else None
    if container is None:
        raise InstanceError("top takes one container", hint="isomark container top NAME")
    one = look(container)
    if one is None or one.state["status"] not in LIVE:
        raise InstanceError(
            f"container {container.name} does not run", hint=f"isomark container start {container.name}"
        )
    rows = [["PID", "USER", "COMMAND"]]
    for pid in _members(container, one.state):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                command = file.read().replace(b"\0", b" ").decode(errors="replace").strip()
            rows.append([str(pid), str(os.stat(f"/proc/{pid}").st_uid), command])
        except OSError:  # it ended meanwhile
            continue
    sys.stdout.write(table(rows))
    return 0


def _members(container: Container, state: dict[str, Any]) -> list[int]:
    group = group_of(container, state)
    process = container.process(state)
    if not isinstance(group, NoGroup) or process is None:
        return group.members()
    namespace = Namespace(process.pid, "pid" if container.config["namespaces"]["pid"] == "private" else "mnt")
    try:
        return sorted(namespace.members())
    finally:
        namespace.close()


COMMANDS = {
    "stats": Command(stats, STATS, "[OPTIONS] [CONTAINER…]", "Show what containers use."),
    "top": Command(top, (), "CONTAINER", "List a container's processes."),
}
