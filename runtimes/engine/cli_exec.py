"""``isomark container exec``: another process in a container that runs."""

from __future__ import annotations

import _signal
import os
import sys

from bench.errors import InstanceError, UsageError
from runtimes import birth
from runtimes.engine import plan, wire
from runtimes.engine.attach import DETACHED, PASSED_ON
from runtimes.engine.command import Command
from runtimes.engine.config import given_environment
from runtimes.engine.console import Console
from runtimes.engine.containers import find
from runtimes.engine.failure import StartFailed
from runtimes.engine.joining import bear_within, spaces_of
from runtimes.engine.place import Place
from runtimes.engine.security import security_of
from runtimes.engine.terminal import DETACH_KEYS, parse_keys, size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

    from runtimes.engine.container import Container
    from runtimes.engine.options import Options, Table
    from runtimes.spec import Spec

EXEC: Table = (
    ("detach", "d", "", "Return when it runs; its output goes nowhere"),
    ("detach-keys", "", "KEYS", f"Keys that leave it running; {DETACH_KEYS} by default"),
    ("env", "e", "NAME[=VALUE]…", "An environment variable"),
    ("env-file", "", "FILE…", "A file of such lines"),
    ("interactive", "i", "", "Keep standard input open"),
    ("privileged", "", "", "All capabilities, no filter"),
    ("tty", "t", "", "Give it a terminal"),
    ("user", "u", "USER[:GROUP]", "Who runs it; the container's user by default"),
    ("workdir", "w", "PATH", "Where it starts; the container's directory by default"),
)


def execute(options: Options) -> int:
    """Run a command in a container that runs."""
    if len(options.rest) < 2:
        raise UsageError("exec takes a container and a command", hint="isomark container exec NAME COMMAND")
    keys = parse_keys(DETACH_KEYS if (text := options.text("detach-keys")) is None else text)
    tty, detached = options.flag("tty"), options.flag("detach")
    if tty and options.flag("interactive") and not detached and not os.isatty(0):
        raise UsageError("--tty and --interactive: our own input is no terminal", hint="leave out -t")
    container = find(Place(), options.rest[0])
    spec = _prepare(container, options)
    if detached:
        return _in_background(container, spec)
    newborn, master = _bear(container, spec, gives_input=options.flag("interactive"))
    for name in PASSED_ON:
        _signal.signal(getattr(_signal, name), _passing_on(newborn.pidfd))
    if master is not None:
        console = Console(master, keys=keys, gives_input=options.flag("interactive"))
        if console.run() == DETACHED:
            sys.stderr.write("\r\n")
            return 0
    code = os.waitstatus_to_exitcode(os.waitpid(newborn.pid, 0)[1])
    return code if code >= 0 else 128 - code


def _prepare(container: Container, options: Options) -> Spec:
    state, config = container.state(), container.config
    process = container.process(state)
    if process is None or state["status"] not in ("running", "paused"):
        raise InstanceError(
            f"container {container.name} does not run", hint=f"isomark container start {container.name}"
        )
    if state["status"] == "paused":
        raise InstanceError(f"container {container.name} is paused", hint=f"isomark container unpause {container.name}")
    spec = birth.plain()
    spec["command"] = options.rest[1:]
    inherited = dict(config["environment"])
    if config["hostname"] is not None:
        inherited.setdefault("HOSTNAME", config["hostname"])
    if options.flag("tty"):
        inherited.setdefault("TERM", "xterm")
    spec["environment"] = {**inherited, **given_environment(options, os.environ)}
    spec["cwd"] = options.text("workdir") or config["cwd"]
    spec["user"]["name"] = options.text("user") or config["user"] or "0"
    spec["user"]["groups"] = [int(number) for number in config["groups"]]
    spec["join"] = spaces_of(process.pid)
    spec["rlimits"] = [list(limit) for limit in config["ulimits"]]
    spec["oom_score_adj"] = config["oom_score_adj"]
    spec["terminal"] = options.flag("tty")
    spec["terminal_size"] = size(0) if options.flag("tty") else None
    plan.secure(spec, security_of(config, container.place.state, privileged=options.flag("privileged")))
    return spec


def _bear(container: Container, spec: Spec, *, gives_input: bool) -> tuple[birth.Newborn, int | None]:
    """Start it with our own standard streams; its terminal's master if it has one."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    if remap := container.state().get("remap"):
        from runtimes.engine.remap import lend_streams

        lend_streams((0, 1, 2) if gives_input else (1, 2), (remap["uid_map"][0][1], remap["gid_map"][0][1]))
    try:
        return bear_within(container, spec, (0 if gives_input else null, 1, 2))
    except InstanceError as error:
        if not isinstance(error, StartFailed) and container.process(container.state()) is None:
            raise InstanceError(f"container {container.name} ended meanwhile") from error
        raise
    finally:
        os.close(null)


def _in_background(container: Container, spec: Spec) -> int:
    """Have the monitor start it, whose child it is then: it reaps."""
    spec["terminal"], spec["terminal_size"] = False, None
    if wire.ask(container, {"do": "exec", "spec": spec}) is None:
        raise InstanceError(f"container {container.name} ended meanwhile")
    return 0


def _passing_on(pidfd: int) -> object:
    def pass_on(number: int, _frame: FrameType | None) -> None:
        try:
            _signal.pidfd_send_signal(pidfd, number)
        except ProcessLookupError:
            return

    return pass_on


COMMANDS = {
    "exec": Command(
        execute, EXEC, "[OPTIONS] CONTAINER COMMAND [ARGUMENT…]", "Run a command in a container that runs.", runs=True
    )
}
