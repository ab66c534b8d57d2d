"""``isomark-oci``: the command line of an OCI runtime, as runc takes it.

    isomark-oci [--root DIR] [--log FILE] [--log-format json|text] [--debug] COMMAND [OPTION…] [ID] …

Exit status: 0, 1 for an error, of ``run`` and ``exec`` that of the container's process, and 255 where ``exec`` could
not start it. Each command imports what it needs: engines call this program many times for one container.
"""

from __future__ import annotations

import os
import sys

from bench.errors import IsomarkError, UsageError
from runtimes.ociruntime.arguments import FLAG, MANY, VALUE, Option, Options, read
from runtimes.ociruntime.report import PROGRAM, Log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Final

DEFAULT_ROOT: Final = "/run/isomark-oci"
SPEC_VERSION: Final = "1.2.0"

GLOBAL: Final = (
    Option("root", VALUE, "directory for the state of containers", "DIR"),
    Option("log", VALUE, "file to write messages to", "FILE"),
    Option("log-format", VALUE, "text or json", "FORMAT"),
    Option("debug", FLAG, "say what is done"),
    Option("systemd-cgroup", FLAG, "refused where a cgroup is made"),
    Option("rootless", VALUE, "true, false or auto: as whoever runs it", "auto"),
    Option("criu", VALUE, "ignored"),
    Option("help h", FLAG, "show this"),
    Option("version v", FLAG, "show the version"),
)
_HELP: Final = Option("help h", FLAG, "show this")
_BUNDLE: Final = (
    Option("bundle b", VALUE, "directory of config.json, the current one by default", "DIR"),
    Option("console-socket", VALUE, "socket that gets the terminal's master", "PATH"),
    Option("pid-file", VALUE, "file to write the process id to", "FILE"),
    Option("no-pivot", FLAG, "refused: the root is always pivoted to"),
    Option("no-new-keyring", FLAG, "ignored: there is always a new session keyring"),
    Option("preserve-fds", VALUE, "pass that many more descriptors", "N"),
)
_UPDATE: Final = {
    "blkio-weight": ("blockIO", "weight"),
    "cpu-period": ("cpu", "period"),
    "cpu-quota": ("cpu", "quota"),
    "cpu-share": ("cpu", "shares"),
    "cpuset-cpus": ("cpu", "cpus"),
    "cpuset-mems": ("cpu", "mems"),
    "memory": ("memory", "limit"),
    "memory-reservation": ("memory", "reservation"),
    "memory-swap": ("memory", "swap"),
    "pids-limit": ("pids", "limit"),
}
"""Option of ``update`` -> its place in linux.resources."""
_TEXTS: Final = ("cpuset-cpus", "cpuset-mems")


class Call:
    """One call of the program: where the state is, where to report, the command's options and operands."""

    __slots__ = ("log", "operands", "options", "root", "systemd")

    def __init__(self, root: str, log: Log, *, systemd: bool) -> None:
        self.root = root
        self.log = log
        self.systemd = systemd
        self.options = Options()
        self.operands: list[str] = []

    def id(self) -> str:
        """The container that is named."""
        return self.operands[0]


class Command:
    """A command: what it takes, and what it does."""

    __slots__ = ("least", "mixed", "most", "options", "run", "shape", "text")

    def __init__(
        self, run: Callable[[Call], int], shape: str, text: str, options: Sequence[Option], least: int, most: int,
        *, mixed: bool = True,
    ) -> None:  # fmt: skip
        self.run = run
        self.shape = shape
        self.text = text
        self.options = options
        self.least = least
        self.most = most
        self.mixed = mixed


def main() -> int:
    """The console script ``isomark-oci``; returns the exit status."""
    log = Log(None, "text", debug=False)
    code = 1
    try:
        options, rest = read(sys.argv[1:], GLOBAL, command=PROGRAM, mixed=False)
        log = Log(options.values.get("log"), options.values.get("log-format", "text"), debug="debug" in options.flags)
        if "version" in options.flags:
            return _say(_version())
        if "help" in options.flags or not rest or rest[0] in ("help", "h"):
            return _say(_help(rest[1:]))
        code = 255 if rest[0] == "exec" else 1
        return _call(rest, options, log)
    except IsomarkError as error:
        log.error(error.message + (f" ({error.hint})" if error.hint else ""))
    except OSError as error:  # a kernel that refuses what nobody expected it to
        log.error(f"{error.strerror or error}: {error.filename or 'the host refused a system call'}")
    except KeyboardInterrupt:
        code = 130
    return code


def _call(words: Sequence[str], options: Options, log: Log) -> int:
    name, *rest = words
    command = COMMANDS.get(name)
    if command is None:
        raise UsageError(f"{PROGRAM} has no command {name!a}", hint=f"there are {', '.join(COMMANDS)}")
    if options.values.get("rootless", "auto") not in ("auto", "true", "false"):
        raise UsageError("--rootless is true, false or auto")
    root = os.path.abspath(options.values.get("root") or default_root())
    call = Call(root, log, systemd="systemd-cgroup" in options.flags)
    call.options, call.operands = read(
        rest, (*command.options, _HELP), command=f"{PROGRAM} {name}", mixed=command.mixed
    )
    if "help" in call.options.flags:
        return _say(_help([name]))
    if not command.least <= len(call.operands) <= command.most:
        raise UsageError(f"{PROGRAM} {name} takes {command.shape}", hint=f"{PROGRAM} {name} --help")
    return command.run(call)


def default_root() -> str:
    """Where state is kept unless told: for others than root below XDG_RUNTIME_DIR."""
    own = os.environ.get("XDG_RUNTIME_DIR")
    return DEFAULT_ROOT if os.geteuid() == 0 or not own else f"{own}/isomark-oci"


def _say(text: str) -> int:
    """Print ``text``."""
    if text:
        rest = memoryview(text.encode(errors="surrogateescape") + b"\n")
        while rest:
            rest = rest[os.write(1, rest) :]
    return 0


def _version() -> str:
    from runtimes.ociruntime.version import own_version

    return f"{PROGRAM} version {own_version()}\nspec: {SPEC_VERSION}"


def _help(words: Sequence[str]) -> str:
    command = COMMANDS.get(words[0]) if words else None
    if command is None:
        head = [f"usage: {PROGRAM} [OPTION…] COMMAND …", "", "An OCI runtime: isomark's built-in engine.", ""]
        rows = [[f"  {name}", each.text] for name, each in COMMANDS.items()]
        return "\n".join([*head, *_columns(rows), "", *_describe(GLOBAL)])
    head = [f"usage: {PROGRAM} {words[0]} [OPTION…] {command.shape}", "", f"{command.text}.", ""]
    return "\n".join([*head, *_describe(command.options)])


def _describe(options: Sequence[Option]) -> list[str]:
    rows = []
    for each in options:
        names = ", ".join(f"-{name}" if len(name) == 1 else f"--{name}" for name in reversed(each.names))
        rows.append([f"  {names}" + ("" if each.kind == FLAG else f" {each.value}"), each.text])
    return _columns(rows)


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    width = max((len(row[0]) for row in rows), default=0)
    return [f"{left.ljust(width)}  {right}" for left, right in rows]


def _request(call: Call, *, detached: bool) -> Request:
    from runtimes.ociruntime.create import Request

    bundle = os.path.realpath(call.options.values.get("bundle", "."))
    request = Request(call.root, call.id(), bundle)
    request.console_socket = call.options.values.get("console-socket")
    request.pid_file = call.options.values.get("pid-file")
    request.preserve = _preserved(call)
    request.pivot = "no-pivot" not in call.options.flags
    request.systemd = call.systemd
    request.detached = detached
    return request


def _preserved(call: Call) -> int:
    """How many descriptors are passed on; looked at before this process opens any that would be taken for them."""
    number = call.options.number("preserve-fds") or 0
    for fd in range(3, 3 + number):
        try:
            os.fstat(fd)
        except OSError:
            raise UsageError(f"--preserve-fds {number}: descriptor {fd} is not open") from None
    return number


def _create(call: Call) -> int:
    from runtimes.ociruntime.create import create

    create(_request(call, detached=True), call.log)
    return 0


def _run(call: Call) -> int:
    from runtimes.ociruntime.started import run

    request = _request(call, detached="detach" in call.options.flags)
    return run(request, call.log, keep="keep" in call.options.flags)


def _start(call: Call) -> int:
    from runtimes.ociruntime.started import start

    start(call.root, call.id(), call.log)
    return 0


def _state(call: Call) -> int:
    from runtimes.ociruntime.queries import show

    return _say(show(call.root, call.id()))


def _list(call: Call) -> int:
    from runtimes.ociruntime.queries import listing

    return _say(listing(call.root, call.options.values.get("format", "table"), quiet="quiet" in call.options.flags))


def _ps(call: Call) -> int:
    from runtimes.ociruntime.queries import processes

    return _say(processes(call.root, call.id(), call.options.values.get("format", "table"), call.operands[1:]))


def _events(call: Call) -> int:
    from runtimes.ociruntime.queries import figures

    if "stats" not in call.options.flags:
        raise UsageError("events needs --stats: a stream of events is not supported")
    return _say(figures(call.root, call.id()))


def _kill(call: Call) -> int:
    from runtimes.ociruntime.changes import kill

    text = call.operands[1] if len(call.operands) > 1 else "TERM"
    kill(call.root, call.id(), text, everyone="all" in call.options.flags)
    return 0


def _delete(call: Call) -> int:
    from runtimes.ociruntime.changes import delete

    delete(call.root, call.id(), call.log, force="force" in call.options.flags)
    return 0


def _pause(call: Call) -> int:
    from runtimes.ociruntime.changes import pause

    pause(call.root, call.id())
    return 0


def _resume(call: Call) -> int:
    from runtimes.ociruntime.changes import resume

    resume(call.root, call.id())
    return 0


def _update(call: Call) -> int:
    from runtimes.ociruntime.changes import update

    given: dict[str, dict[str, object]] = {}
    for name, (group, field) in _UPDATE.items():
        if name in call.options.values:
            value: object = call.options.values[name] if name in _TEXTS else call.options.number(name)
            given.setdefault(group, {})[field] = value
    source = call.options.values.get("resources")
    if source is None and not given:
        raise UsageError("update needs something to change", hint=f"{PROGRAM} update --help")
    update(call.root, call.id(), source, given, call.log)
    return 0


def _exec(call: Call) -> int:
    from runtimes.ociruntime.execute import Extra, execute

    given = call.options
    extra = Extra()
    extra.command = call.operands[1:]
    extra.file = given.values.get("process")
    if not extra.command and extra.file is None:
        raise UsageError("exec needs a command, or --process")
    extra.cwd = given.values.get("cwd")
    extra.environment = given.many("env")
    extra.user = given.values.get("user")
    extra.groups = given.many("additional-gids")
    extra.capabilities = given.many("cap")
    extra.apparmor = given.values.get("apparmor")
    extra.no_new_privileges = True if "no-new-privs" in given.flags else None
    extra.terminal = "tty" in given.flags
    extra.console_socket = given.values.get("console-socket")
    extra.pid_file = given.values.get("pid-file")
    extra.preserve = _preserved(call)
    extra.detached = "detach" in given.flags
    extra.ignore_paused = "ignore-paused" in given.flags
    if given.values.get("process-label"):
        raise UsageError("--process-label cannot be set: SELinux is not supported")
    return execute(call.root, call.id(), extra, call.log)


def _features(_call: Call) -> int:
    from runtimes.ociruntime import documents, features

    return _say(documents.pretty(features.document()))


def _spec(call: Call) -> int:
    from runtimes.ociruntime.template import write

    write(call.options.values.get("bundle", "."), rootless="rootless" in call.options.flags)
    return 0


_FORMAT: Final = Option("format f", VALUE, "table or json", "FORMAT")
_MANY: Final = 1 << 20
COMMANDS: Final[dict[str, Command]] = {
    "create": Command(_create, "ID", "Create a container from a bundle; its command waits for start", _BUNDLE, 1, 1),
    "start": Command(_start, "ID", "Let the command of a created container run", (), 1, 1),
    "run": Command(_run, "ID", "Create and start a container, wait for it and delete it", (
        *_BUNDLE,
        Option("detach d", FLAG, "do not wait for it"),
        Option("keep", FLAG, "do not delete it when it has ended"),
        Option("no-subreaper", FLAG, "ignored"),
    ), 1, 1),
    "exec": Command(_exec, "ID COMMAND [ARG…]", "Execute a process in a running container", (
        Option("process p", VALUE, "file with the process as JSON", "FILE"),
        Option("console-socket", VALUE, "socket that gets the terminal's master", "PATH"),
        Option("cwd", VALUE, "working directory", "DIR"),
        Option("env e", MANY, "NAME=VALUE", "VARIABLE"),
        Option("tty t", FLAG, "give it a terminal"),
        Option("user u", VALUE, "UID[:GID]", "USER"),
        Option("additional-gids g", MANY, "further group", "GID"),
        Option("detach d", FLAG, "do not wait for it"),
        Option("pid-file", VALUE, "file to write the process id to", "FILE"),
        Option("process-label", VALUE, "refused: there is no SELinux support", "LABEL"),
        Option("apparmor", VALUE, "AppArmor profile", "PROFILE"),
        Option("no-new-privs", FLAG, "let it gain no privilege"),
        Option("cap c", MANY, "further capability", "NAME"),
        Option("preserve-fds", VALUE, "pass that many more descriptors", "N"),
        Option("ignore-paused", FLAG, "even if the container is paused"),
    ), 1, _MANY, mixed=False),
    "state": Command(_state, "ID", "Show the state of a container as JSON", (), 1, 1),
    "list": Command(_list, "", "List containers", (_FORMAT, Option("quiet q", FLAG, "ids only")), 0, 0),
    "kill": Command(_kill, "ID [SIGNAL]", "Send a signal, TERM by default", (
        Option("all a", FLAG, "to all of its processes"),
    ), 1, 2),
    "delete": Command(_delete, "ID", "Remove a container that has ended", (
        Option("force f", FLAG, "end it first; no error if there is none"),
    ), 1, 1),
    "pause": Command(_pause, "ID", "Stop the processes of a container where they are", (), 1, 1),
    "resume": Command(_resume, "ID", "Let the processes of a paused container go on", (), 1, 1),
    "ps": Command(_ps, "ID [PS OPTION…]", "Show the processes of a container", (_FORMAT,), 1, _MANY, mixed=False),
    "update": Command(_update, "ID", "Change the limits of a container", (
        Option("resources r", VALUE, "JSON file as linux.resources, - for standard input", "FILE"),
        *(Option(name, VALUE, f"{group}.{field}") for name, (group, field) in _UPDATE.items()),
    ), 1, 1),
    "events": Command(_events, "ID", "Show what a container uses", (
        Option("stats", FLAG, "once, as JSON"),
        Option("interval", VALUE, "ignored"),
    ), 1, 1),
    "spec": Command(_spec, "", "Write a config.json to begin with", (
        Option("bundle b", VALUE, "directory, the current one by default", "DIR"),
        Option("rootless", FLAG, "for a user namespace of one's own"),
    ), 0, 0),
    "features": Command(_features, "", "Show what this runtime understands as JSON", (), 0, 0),
}  # fmt: skip

if TYPE_CHECKING:
    from runtimes.ociruntime.create import Request

if __name__ == "__main__":
    os._exit(main())
