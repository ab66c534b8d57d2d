"""``isomark container ps``, ``inspect`` and ``port``."""

from __future__ import annotations

import os
import sys

from bench.errors import HostError, InstanceError, IsomarkError, UsageError
from runtimes.engine import inspect as inspecting
from runtimes.engine.clock import NANOSECONDS, ago, parse_instant, rough
from runtimes.engine.command import Command
from runtimes.engine.container import LIVE, SHORT
from runtimes.engine.containers import every, find
from runtimes.engine.place import Place
from runtimes.engine.removal import settle

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runtimes.engine.container import Container
    from runtimes.engine.options import Options, Table

PS: Table = (
    ("all", "a", "", "Those too that do not run"),
    ("filter", "f", "NAME=VALUE…", "Only those: id, name, status, label, ancestor, volume, network, exited"),
    ("format", "", "json|TEMPLATE", "json, or a template like '{{.ID}} {{.Names}}'"),
    ("last", "n", "N", "The N created last, whatever their state"),
    ("latest", "l", "", "The one created last"),
    ("no-trunc", "", "", "Whole ids and commands"),
    ("quiet", "q", "", "Only ids"),
)
INSPECT: Table = (("format", "f", "TEMPLATE", "A value, like {{.State.Status}}"),)

_COLUMNS = (("CONTAINER ID", "ID"), ("IMAGE", "Image"), ("COMMAND", "Command"), ("CREATED", "RunningFor"),
            ("STATUS", "Status"), ("PORTS", "Ports"), ("NAMES", "Names"))  # fmt: skip
_STATUSES = ("created", "running", "paused", "restarting", "exited")
_COMMAND_WIDTH = 20


class Shown:
    """A container as it was looked at."""

    __slots__ = ("config", "container", "created", "state")

    def __init__(self, container: Container, state: dict[str, Any]) -> None:
        self.container = container
        self.config = container.config
        self.state = state
        self.created = str(self.config["created"])


def look(container: Container) -> Shown | None:
    """The container with its true state; ``None`` if it went away meanwhile."""
    try:
        state = container.state()
        if (state["status"] in LIVE or state["journal"] is not None) and not container.is_monitored():
            lock = container.lock()
            try:
                settled = settle(container, lock)
            finally:
                os.close(lock)
            if settled is None:
                return None
            state = settled
        return Shown(container, state)
    except InstanceError:
        return None


def _look_or_tell(container: Container) -> Shown | None:
    """The same; of one that is damaged it is told, and the others are listed."""
    try:
        return look(container)
    except HostError as error:
        sys.stderr.write(f"isomark: {error.message}\n" + (f"  hint: {error.hint}\n" if error.hint else ""))
        return None


def ps(options: Options) -> int:
    """List containers."""
    wanted = [_filter(text) for text in options.list("filter")]
    shown = sorted(filter(None, map(_look_or_tell, every(Place()))), key=lambda one: one.created, reverse=True)
    count = 1 if options.flag("latest") else int(options.text("last") or 0)
    if count:
        shown = shown[:count]
    elif not options.flag("all") and not any(key in ("status", "exited") for key, _ in wanted):
        shown = [one for one in shown if one.state["status"] in LIVE]
    shown = [one for one in shown if _passes(one, wanted)]
    whole = options.flag("no-trunc")
    if options.flag("quiet"):
        sys.stdout.write("".join(f"{one.container.id if whole else one.container.id[:SHORT]}\n" for one in shown))
        return 0
    rows = [row(one, whole=whole) for one in shown]
    form = options.text("format")
    if form is None or form == "table":
        sys.stdout.write(
            table([[title for title, _ in _COLUMNS], *([one[key] for _, key in _COLUMNS] for one in rows)])
        )
    else:
        sys.stdout.write("".join(inspecting.formatted(form, one) + "\n" for one in rows))
    return 0


def row(one: Shown, *, whole: bool) -> dict[str, str]:
    """One line of ``ps``, with Docker's names."""
    config, state = one.config, one.state
    command = " ".join([*config["entrypoint"], *config["arguments"]])
    if not whole and len(command) > _COMMAND_WIDTH:
        command = command[: _COMMAND_WIDTH - 1] + "…"
    return {
        "ID": one.container.id if whole else one.container.id[:SHORT],
        "Image": config["image"],
        "Command": '"' + command.replace("\n", " ") + '"',
        "CreatedAt": config["created"],
        "RunningFor": ago(config["created"]),
        "Status": told_status(state),
        "State": state["status"],
        "Ports": ", ".join(told_ports(state)),
        "Names": config["name"],
        "Labels": ",".join(f"{key}={value}" for key, value in config["labels"].items()),
        "Mounts": ",".join(mount["name"] or mount["source"] for mount in config["mounts"]),
        "Networks": config["network"],
    }


def told_status(state: dict[str, Any]) -> str:
    """``Up 3 minutes``, ``Exited (0) 2 hours ago``."""
    status = state["status"]
    if status in ("running", "paused"):
        up = (parse_instant_now() - parse_instant(state["started"])) / NANOSECONDS
        return f"Up {rough(up)}{' (Paused)' if status == 'paused' else ''}"
    if status == "restarting":
        return f"Restarting ({state['exit_code']}) {ago(state['finished'])}"
    if status == "exited":
        why = ", out of memory" if state["oom_killed"] else ""
        return f"Exited ({state['exit_code']}{why}) {ago(state['finished'])}"
    return str(status).capitalize()


def parse_instant_now() -> int:
    """Nanoseconds since 1970."""
    import time

    return time.time_ns()


def told_ports(state: dict[str, Any]) -> list[str]:
    """``0.0.0.0:8080->80/tcp``."""
    ports = (state["network"] or {}).get("ports", [])
    return [f"{port['host_ip']}:{port['host_port']}->{port['port']}/{port['protocol']}" for port in ports]


def _filter(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    known = ("id", "name", "status", "label", "ancestor", "volume", "network", "exited")
    if not sign or key not in known:
        raise UsageError(f"option --filter: {text!r}", hint=f"write it like name=web; there are {', '.join(known)}")
    if key == "status" and value not in _STATUSES:
        raise UsageError(f"option --filter: there is no status {value!r}", hint=", ".join(_STATUSES))
    return key, value


def _passes(one: Shown, wanted: list[tuple[str, str]]) -> bool:
    """Filters of one kind are alternatives, those of different kinds must all hold; each label must, as in Docker."""
    for key in {key for key, _ in wanted}:
        values = [value for other, value in wanted if other == key]
        verdicts = [_matches(one, key, value) for value in values]
        if not (all(verdicts) if key == "label" else any(verdicts)):
            return False
    return True


def _matches(one: Shown, key: str, value: str) -> bool:
    config, state = one.config, one.state
    if key == "label":
        name, sign, text = value.partition("=")
        return name in config["labels"] and (not sign or config["labels"][name] == text)
    if key == "volume":
        return any(value in (mount["name"], mount["target"], mount["source"]) for mount in config["mounts"])
    verdicts: dict[str, bool] = {
        "id": one.container.id.startswith(value),
        "name": value in config["name"],
        "status": state["status"] == value,
        "ancestor": value in (config["image"], config["image"].partition(":")[0]),
        "network": config["network"] == value,
        "exited": state["status"] == "exited" and str(state["exit_code"]) == value,
    }
    return verdicts[key]


def table(rows: list[list[str]]) -> str:
    """Rows in columns as wide as they must be."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("   ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in rows)
    return "".join(f"{line}\n" for line in lines)


def inspect(options: Options) -> int:
    """Print all that is known about containers, as JSON."""
    if not options.rest:
        raise UsageError("the container's name is missing", hint="isomark container inspect NAME")
    place = Place()
    found: list[dict[str, Any]] = []
    status = 0
    for name in options.rest:
        try:
            one = look(find(place, name))
            if one is None:
                raise InstanceError(f"there is no container {name!r}")
            found.append(inspecting.document(one.container, one.state))
        except (InstanceError, HostError) as error:
            sys.stderr.write(f"isomark: {error.message}\n")
            status = 1
    form = options.text("format")
    if form is None:
        sys.stdout.write(inspecting.pretty(found) + "\n")
    else:
        sys.stdout.write("".join(inspecting.formatted(form, one) + "\n" for one in found))
    return status


def port(options: Options) -> int:
    """Print where a container's published ports are on the host."""
    if not 1 <= len(options.rest) <= 2:
        raise UsageError("port takes a container and perhaps a port", hint="isomark container port NAME 80/tcp")
    one = look(find(Place(), options.rest[0]))
    if one is None:
        raise InstanceError(f"there is no container {options.rest[0]!r}")
    ports = (one.state["network"] or {}).get("ports", [])
    lines = []
    for each in ports:
        inside = f"{each['port']}/{each['protocol']}"
        outside = f"{each['host_ip']}:{each['host_port']}"
        if len(options.rest) == 1:
            lines.append(f"{inside} -> {outside}")
        elif options.rest[1] in (inside, str(each["port"]) if each["protocol"] == "tcp" else ""):
            lines.append(outside)
    if len(options.rest) == 2 and not lines:
        raise IsomarkError(f"port {options.rest[1]} of container {one.config['name']} is not published")
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 0


COMMANDS = {
    "ps": Command(ps, PS, "[OPTIONS]", "List containers; without -a those that run."),
    "ls": Command(ps, PS, "[OPTIONS]", "The same as ps."),
    "inspect": Command(inspect, INSPECT, "[OPTIONS] CONTAINER…", "Print all that is known about containers."),
    "port": Command(port, (), "CONTAINER [PORT[/udp]]", "Print where published ports are on the host."),
}
