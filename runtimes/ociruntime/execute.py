"""Executing a further process in a running container."""

from __future__ import annotations

import os

from bench.errors import HostError, InstanceError, UsageError
from runtimes.birth import bear, plain
from runtimes.ociruntime import attributes, config, documents, groups, process, state
from runtimes.ociruntime import terminal as console
from runtimes.ociruntime.create import exec_error
from runtimes.ociruntime.home import home_of
from runtimes.ociruntime.isolation import NAMESPACES, PROC_NAMES
from runtimes.ociruntime.lifecycle import status
from runtimes.ociruntime.node import MAX_UINT32, Node
from runtimes.ociruntime.started import attend
from runtimes.ociruntime.terminal import Signals
from runtimes.security.capabilities import NAMES

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from typing import Any, Final

    from runtimes.birth import Newborn, Ready
    from runtimes.ociruntime.process import Process
    from runtimes.ociruntime.report import Log
    from runtimes.ociruntime.state import Container
    from runtimes.spec import Spec

FAILED: Final = 255
"""Exit status where the process did not start, as of ``runc exec``."""


class Extra:
    """What the command line says about the process; ``file`` replaces all else.

    Attributes:
        file: Of ``--process``.
        capabilities: Names to be added.
    """

    __slots__ = (
        "apparmor", "capabilities", "command", "console_socket", "cwd", "detached", "environment", "file", "groups",
        "ignore_paused", "no_new_privileges", "pid_file", "preserve", "terminal", "user",
    )  # fmt: skip

    def __init__(self) -> None:
        self.command: list[str] = []
        self.file: str | None = None
        self.cwd: str | None = None
        self.environment: list[str] = []
        self.user: str | None = None
        self.groups: list[str] = []
        self.capabilities: list[str] = []
        self.apparmor: str | None = None
        self.no_new_privileges: bool | None = None
        self.terminal: bool | None = None
        self.console_socket: str | None = None
        self.pid_file: str | None = None
        self.preserve = 0
        self.detached = False
        self.ignore_paused = False


def execute(root: str, name: str, extra: Extra, log: Log) -> int:
    """Execute a process; detached: 0 as soon as its program runs, else its status, as a shell has it.

    Raises:
        IsomarkError: it did not start.
    """
    container = state.load(root, name)
    said = status(container)
    if said not in ("running", "created") and not (said == "paused" and extra.ignore_paused):
        raise UsageError(f"cannot exec in container {name}: it is {said}", hint="resume it" if said == "paused" else "")
    document = documents.read(container.file(state.CONFIG))
    own = _process(document, extra)
    for warning in own.warnings:
        log.warning(warning)
    connection = _connect(own, extra)
    signals = None if extra.detached else Signals()
    held: list[int] = []
    try:
        spec = _spec(container, document, own, root, held)
        spec["preserve"] = extra.preserve
        if own.terminal and connection is None:
            spec["terminal_size"] = console.own_size() or spec["terminal_size"]
        attributes.take_on(own, None)
        newborn, ready = _bear(container, spec, held)
    finally:
        for fd in held:
            os.close(fd)
    try:
        if connection is not None and ready.terminal is not None:
            console.hand_over(connection, ready.terminal)
            ready.terminal = None
        if extra.pid_file is not None:
            documents.replace(extra.pid_file, str(newborn.pid).encode(), 0o644)
    except BaseException:
        newborn.abandon()
        raise
    return 0 if signals is None else attend(newborn, ready.terminal, signals)


def _connect(own: Process, extra: Extra) -> _socket.socket | None:
    """The connection to the console socket, which a terminal for a detached process needs."""
    if own.terminal and extra.detached and extra.console_socket is None:
        raise UsageError("a terminal for a detached process needs --console-socket")
    if extra.console_socket is None:
        return None
    if not own.terminal:
        raise UsageError("--console-socket needs a terminal: --tty, or terminal in the file of --process")
    return console.connect(extra.console_socket)


def _process(document: Any, extra: Extra) -> Process:  # noqa: ANN401 - any JSON
    """The process of ``--process``, or the container's own with what the command line changes."""
    if extra.file is not None:
        return process.parse(Node(documents.read(extra.file), extra.file))
    value = dict(document["process"])
    value["args"] = extra.command
    value["terminal"] = bool(extra.terminal)
    if extra.cwd is not None:
        value["cwd"] = extra.cwd
    value["env"] = [*(value.get("env") or []), *extra.environment]
    if extra.user is not None:
        uid, colon, gid = extra.user.partition(":")
        value["user"] = {"uid": _number(uid), "gid": _number(gid) if colon else 0}
    if extra.groups:
        value["user"] = {**(value.get("user") or {}), "additionalGids": [_number(each) for each in extra.groups]}
    if extra.apparmor is not None:
        value["apparmorProfile"] = extra.apparmor
    if extra.no_new_privileges is not None:
        value["noNewPrivileges"] = extra.no_new_privileges
    own = process.parse(Node({"process": value}, "exec").need("process"))
    for text in extra.capabilities:
        _add_capability(own, text)
    return own


def _add_capability(own: Process, name: str) -> None:
    if name not in NAMES:
        raise UsageError(f"--cap {name!a} is no capability", hint="man 7 capabilities lists them")
    bit = 1 << NAMES.index(name)
    for kind in ("bounding", "effective", "permitted", "ambient", "inheritable"):
        own.capabilities[kind] |= bit


def _spec(container: Container, document: Any, own: Process, root: str, held: list[int]) -> Spec:  # noqa: ANN401
    """What joins the container's namespaces and is confined as its configuration says.

    The namespaces are held open, by descriptors added to ``held``, before it is sure whose they are.
    """
    plan = config.parse(document, container.state["bundle"], container.file(state.CONFIG))
    process.require_labels(own, "exec", apparmor=attributes.has_apparmor())
    spec = plain()
    process.adopt(own, spec)
    spec["apparmor"] = None if own.apparmor == "unconfined" else own.apparmor
    spec["root"] = ["joined"]
    separate = plan.spec["namespaces"] | sum(flag for flag, _ in plan.spec["join"])
    where = f"/proc/{container.state['pid']}"
    try:
        for name, flag in NAMESPACES.items():
            if separate & flag:
                held.append(os.open(f"{where}/ns/{PROC_NAMES[name]}", os.O_RDONLY | os.O_CLOEXEC))
                spec["join"].append([flag, f"/proc/self/fd/{held[-1]}"])
        held.append(os.open(f"{where}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    except OSError as error:
        raise HostError(f"cannot enter container {container.id}: {error.strerror}") from error
    if status(container) == "stopped":  # those may be a later process's
        raise UsageError(f"container {container.id} has ended")
    if not spec["environment"].get("HOME"):
        spec["environment"]["HOME"] = home_of(held[-1], spec["user"]["uid"])
    if plan.seccomp is not None:
        spec["seccomp"] = attributes.compiled_filter(plan.seccomp, root)
    return spec


def _bear(container: Container, spec: Spec, held: list[int]) -> tuple[Newborn, Ready]:
    """Have the process born in the container's group, and wait until its program runs."""
    birthplace, tasks = (None, []) if container.state["cgroup"] is None else groups.find(container.state).entrances()
    held += tasks if birthplace is None else [*tasks, birthplace]
    spec["born_in_cgroup"] = birthplace is not None
    newborn = bear(spec, (0, 1, 2), birthplace=birthplace)
    try:
        newborn.provide(tasks)
        return newborn, newborn.await_ready()
    except InstanceError as error:
        if newborn.failed is not None and newborn.failed.step.startswith("run "):
            raise exec_error(spec["command"][0], newborn.failed, error) from error
        raise
    except BaseException:
        newborn.abandon()
        raise


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text) >= MAX_UINT32:
        raise UsageError(f"{text!r} is no user or group number", hint="--user UID[:GID]")
    return int(text)
