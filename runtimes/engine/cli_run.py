"""``isomark container run``, ``create``, ``start`` and ``attach``."""

from __future__ import annotations

import os
import sys

from bench.errors import InstanceError, IsomarkError, UsageError
from runtimes import usernamespace
from runtimes.engine import life, wire
from runtimes.engine.attach import DETACHED, ENDED, LOST, UNREAD, Attachment, mask_signals
from runtimes.engine.command import Command
from runtimes.engine.containers import find
from runtimes.engine.journal import Journal
from runtimes.engine.place import Place
from runtimes.engine.terminal import DETACH_KEYS, parse_keys, size
from runtimes.steps import Steps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtimes.engine.container import Container
    from runtimes.engine.options import Options, Table

BROKEN_PIPE = 141
"""What a shell reports of a program that SIGPIPE killed."""

_KEYS = ("detach-keys", "", "KEYS", f"Keys that leave the container running; {DETACH_KEYS} by default")
_TIMING = ("timing", "", "", "Tell on standard error what each step of the start took")
_PROXY = ("sig-proxy", "", "true|false", "Pass signals on to the container; true by default")

CREATE: Table = (
    ("add-host", "", "NAME:ADDRESS…", "A line for /etc/hosts"),
    ("cap-add", "", "NAME…", "Give a capability, or ALL"),
    ("cap-drop", "", "NAME…", "Take a capability away, or ALL"),
    ("cgroupns", "", "host|private", "Cgroup namespace; private by default"),
    ("cidfile", "", "FILE", "Write the container's id to a new file"),
    ("cpu-shares", "c", "N", "Weight among containers that want the CPU; 1024 by default"),
    ("cpus", "", "N", "CPU time per time, like 0.5 or 2"),
    ("cpuset-cpus", "", "LIST", "CPUs to run on, like 0-2,4"),
    ("cpuset-mems", "", "LIST", "Memory nodes to use"),
    ("device", "", "DEVICE[:PATH][:rwm]…", "Give a device of the host"),
    ("dns", "", "ADDRESS…", "A name server instead of the host's"),
    ("dns-option", "", "OPTION…", "An option for resolv.conf"),
    ("dns-search", "", "DOMAIN…", "A search domain"),
    ("domainname", "", "NAME", "NIS domain name"),
    ("entrypoint", "", "COMMAND", "Run this instead of the image's entrypoint"),
    ("env", "e", "NAME[=VALUE]…", "An environment variable; without a value, ours"),
    ("env-file", "", "FILE…", "A file of such lines"),
    ("expose", "", "PORT…", "A port for --publish-all"),
    ("group-add", "", "GID…", "A further group of the user"),
    ("hostname", "h", "NAME", "Host name inside; the id's beginning by default"),
    ("init", "", "", "Let a small init be process 1, which reaps"),
    ("interactive", "i", "", "Keep standard input open"),
    ("ipc", "", "private|host|container:NAME", "IPC namespace"),
    ("label", "l", "NAME=VALUE…", "A note on the container"),
    ("log-driver", "", "json-file|none", "Whether to keep what it prints"),
    ("log-opt", "", "NAME=VALUE…", "max-size=16m and max-file=3, the defaults"),
    ("memory", "m", "SIZE", "Limit of memory, like 512m"),
    ("memory-reservation", "", "SIZE", "Memory that is left to it when memory is short"),
    ("memory-swap", "", "SIZE", "Limit of memory and swap together; -1: none on swap"),
    ("mount", "", "type=…,source=…,target=……", "Mount a bind, volume or tmpfs"),
    ("name", "", "NAME", "A name; the id's beginning by default"),
    ("network", "", "bridge|none|host|container:NAME", "Network namespace; bridge by default"),
    ("oom-score-adj", "", "N", "-1000 to 1000: who is killed first when memory is short"),
    ("pid", "", "private|host|container:NAME", "PID namespace"),
    ("pids-limit", "", "N", "Processes and threads at most"),
    ("privileged", "", "", "All capabilities and devices, nothing hidden, no filter"),
    ("publish", "p", "[IP:][HOST:]PORT[/udp]…", "Let a port of the host lead to the container's"),
    ("publish-all", "P", "", "Publish every exposed port"),
    ("pull", "", "missing|always|never", "When to pull the image"),
    ("read-only", "", "", "Mount the root read-only"),
    ("restart", "", "POLICY", "no, on-failure[:N], always or unless-stopped"),
    ("rm", "", "", "Remove the container when it has ended, with its anonymous volumes"),
    ("security", "", "off|default|strict", "How much to forbid; default is Docker's"),
    ("security-opt", "", "OPTION…", "no-new-privileges, seccomp=FILE|unconfined, apparmor=…, systempaths=unconfined"),
    ("shm-size", "", "SIZE", "Size of /dev/shm; 64m by default"),
    ("stop-signal", "", "SIGNAL", "What asks it to end; the image's, or SIGTERM"),
    ("stop-timeout", "", "SECONDS", "How long it may take to end; 10 by default"),
    ("sysctl", "", "NAME=VALUE…", "A kernel setting of its namespaces"),
    ("timens", "", "host|private", "Time namespace, whose clocks since boot begin at 0; host by default"),
    ("tmpfs", "", "PATH[:OPTIONS]…", "Mount an empty tmpfs"),
    ("tty", "t", "", "Give it a terminal"),
    ("ulimit", "", "NAME=SOFT[:HARD]…", "A limit of its processes, like nofile=1024"),
    ("user", "u", "USER[:GROUP]", "Who runs the command, by name or number"),
    ("userns", "", "host|private", "User namespace: root inside is nobody on the host; host by default under root"),
    ("uts", "", "private|host", "UTS namespace, which has the host name"),
    ("volume", "v", "[SOURCE:]PATH[:OPTIONS]…", "Mount a directory of the host or a volume"),
    ("workdir", "w", "PATH", "Where the command starts"),
)
RUN: Table = (
    *CREATE,
    ("attach", "a", "STREAM…", "Accepted for compatibility; all streams are attached unless --detach is given"),
    ("detach", "d", "", "Return when it runs, and print its id"),
    ("quiet", "q", "", "Accepted for compatibility"),
    _KEYS,
    _PROXY,
    _TIMING,
)
START: Table = (
    ("attach", "a", "", "Attach to its output and pass signals on"),
    ("interactive", "i", "", "Attach to its input as well"),
    _KEYS,
    _PROXY,
    _TIMING,
)
ATTACH: Table = (("no-stdin", "", "", "Give no input"), _KEYS, _PROXY)


def run(options: Options) -> int:
    """Create a container and start it."""
    doing = Steps(trace=options.flag("timing"))
    doing.begin("open the journal")
    detached = options.flag("detach")
    if detached and options.has("attach"):
        raise UsageError("--detach and --attach contradict each other", hint="leave one of them out")
    keys = _keys(options)
    _require_terminal(options, detached=detached)
    place = Place()
    with Journal(place.journals) as journal:
        container = life.create(place, options, journal, doing)
        _tell_what_lacks(container)
        try:
            attachment = life.start(
                container,
                attached=not detached,
                gives_input=options.flag("interactive"),
                keys=keys,
                pass_signals=_passes_signals(options),
                doing=doing,
            )
        except BaseException:
            life.discard_unstarted(container, journal)
            raise
        journal.leave()
    _tell_times(doing, attachment)
    if detached:
        sys.stdout.write(f"{container.id}\n")
        return 0
    return _leave(container, attachment, ours=True)


def _tell_what_lacks(container: Container) -> None:
    """Say so if an ordinary user's container gets less than it asks for by default."""
    if usernamespace.privileged() or container.config["network"] != "bridge":
        return
    from runtimes.network import usermode

    if usermode.available() is None:
        sys.stderr.write(
            "isomark: the container has no network: without root that takes slirp4netns or pasta\n"
            "  hint: apt-get install slirp4netns; or --network none, which says so\n"
        )


def _tell_times(doing: Steps, attachment: Attachment) -> None:
    if doing.trace and attachment.times:
        from runtimes.engine import timing  # only if somebody asks

        sys.stderr.write(timing.table({"command": doing.times, **attachment.times}))


def _require_terminal(options: Options, *, detached: bool) -> None:
    if options.flag("tty") and options.flag("interactive") and not detached and not os.isatty(0):
        raise UsageError("--tty and --interactive: our own input is no terminal", hint="leave out -t")


def _passes_signals(options: Options) -> bool:
    return (options.text("sig-proxy") or "true").lower() not in ("false", "0")


def _keys(options: Options) -> bytes:
    text = options.text("detach-keys")
    return parse_keys(DETACH_KEYS if text is None else text)


def create(options: Options) -> int:
    """Create a container and print its id."""
    place = Place()
    with Journal(place.journals) as journal:
        container = life.create(place, options, journal)
        journal.leave()
    sys.stdout.write(f"{container.id}\n")
    return 0


def start(options: Options) -> int:
    """Start containers that were created or have ended."""
    attached = options.flag("attach") or options.flag("interactive")
    keys = _keys(options)
    place = Place()
    if not options.rest:
        raise UsageError("the container's name is missing", hint="isomark container start NAME")
    if attached and len(options.rest) > 1:
        raise UsageError("only one container can be attached to", hint="start the others without -a and -i")
    status = 0
    for name in options.rest:
        doing = Steps(trace=options.flag("timing"))
        doing.begin("find the container")
        try:
            container = find(place, name)
            _tell_what_lacks(container)
            attachment = life.start(
                container,
                attached=attached,
                gives_input=options.flag("interactive") and bool(container.config["stdin_open"]),
                keys=keys,
                pass_signals=_passes_signals(options),
                doing=doing,
            )
        except IsomarkError as error:
            if len(options.rest) == 1:
                raise
            sys.stderr.write(f"isomark: {name}: {error.message}\n")
            status = 1
            continue
        _tell_times(doing, attachment)
        if attached:
            return _leave(container, attachment, ours=True)
        sys.stdout.write(f"{name}\n")
    return status


def attach(options: Options) -> int:
    """Attach to a container that runs."""
    keys = _keys(options)
    if len(options.rest) != 1:
        raise UsageError("attach takes one container", hint="isomark container attach NAME")
    container = find(Place(), options.rest[0])
    config = container.config
    connection = wire.connect(container)
    if connection is None:
        raise InstanceError(
            f"container {container.name} does not run", hint=f"isomark container start {container.name}"
        )
    gives_input = bool(config["stdin_open"]) and not options.flag("no-stdin")
    tty = bool(config["tty"])
    former = mask_signals()
    wire.send(
        connection,
        wire.REQUEST,
        {"do": "attach", "input": gives_input, "size": size(0) if tty else None},
    )
    attachment = Attachment(
        connection, gives_input=gives_input, tty=tty, keys=keys, pass_signals=_passes_signals(options)
    )
    attachment.watch_signals(former)
    attachment.run()
    return _leave(container, attachment, ours=False)


def _leave(container: Container, attachment: Attachment, *, ours: bool) -> int:
    """The exit status after an attachment; what has to be said is said."""
    if attachment.outcome == DETACHED:
        sys.stderr.write("\r\n" if attachment.tty else "\n")
        return 0
    if attachment.outcome == LOST:
        raise InstanceError(
            f"the monitor of container {container.id[:12]} died, and the container with it",
            hint="isomark clean removes what is left of it",
        )
    if attachment.outcome == UNREAD:
        if ours:
            wire.ask(container, {"do": "stop", "signal": None, "timeout": None})
        return BROKEN_PIPE
    assert attachment.outcome == ENDED
    if attachment.answer["oom_killed"] or (attachment.answer["error"] and ours):
        sys.stderr.write(f"isomark: {attachment.answer['error']}\n")
    return life.exit_status(attachment)


COMMANDS = {
    "run": Command(run, RUN, "[OPTIONS] IMAGE [COMMAND] [ARGUMENT…]", "Create a container and start it.", runs=True),
    "create": Command(
        create, CREATE, "[OPTIONS] IMAGE [COMMAND] [ARGUMENT…]", "Create a container and do not start it.", runs=True
    ),
    "start": Command(start, START, "[OPTIONS] CONTAINER…", "Start containers that are stopped.", runs=True),
    "attach": Command(attach, ATTACH, "[OPTIONS] CONTAINER", "Attach to a container that runs.", runs=True),
}
