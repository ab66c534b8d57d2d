"""Creating a container: everything up to the execution of its command.

What a kill at any moment leaves is either nothing or named in the state file: the group before it is made, the first
process before it goes past its first step. Killed earlier, that process ends by itself, for its set-up socket hangs up.
"""

from __future__ import annotations

import _socket
import errno
import os
import time

from bench.errors import HostError, InstanceError, IsomarkError, UsageError
from runtimes import libc, mounts
from runtimes.birth import Newborn, bear
from runtimes.container.hierarchy import detect
from runtimes.ociruntime import attributes, config, documents, groups, hooks, operations, process, resources, state
from runtimes.ociruntime import terminal as console
from runtimes.ociruntime.lifecycle import destroy, oci_state

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from runtimes.birth import Ready
    from runtimes.container.cgroup import Group, NoGroup
    from runtimes.container.hierarchy import Layout
    from runtimes.ociruntime.config import Plan
    from runtimes.ociruntime.report import Log
    from runtimes.ociruntime.state import Container
    from runtimes.steps import StepFailed


class Request:
    """How to create: what the command line says beside the bundle.

    Attributes:
        hold: Whether the first process waits for ``start``.
        detached: Whether this process leaves the container to itself.
    """

    __slots__ = (
        "bundle", "console_socket", "detached", "hold", "id", "pid_file", "pivot", "preserve", "root",
        "systemd",
    )  # fmt: skip

    def __init__(self, root: str, name: str, bundle: str) -> None:
        self.root = root
        self.id = name
        self.bundle = bundle
        self.console_socket: str | None = None
        self.pid_file: str | None = None
        self.preserve = 0
        self.pivot = True
        self.hold = True
        self.detached = True
        self.systemd = False


class Created:
    """A container whose first process is there: ``newborn`` is this process's child."""

    __slots__ = ("container", "newborn", "plan", "ready")

    def __init__(self, container: Container, plan: Plan, newborn: Newborn, ready: Ready) -> None:
        self.container = container
        self.plan = plan
        self.newborn = newborn
        self.ready = ready


def create(request: Request, log: Log) -> Created:
    """Create a container; with ``hold`` it waits for ``start``, else its command runs.

    Raises:
        IsomarkError: nothing is left of it.
    """
    path = os.path.join(request.bundle, config.FILE)
    plan = config.parse(documents.read(path), request.bundle)
    connection = _check(plan, request)
    name = None if not _wants_group(plan) else groups.name_of(plan.cgroups_path, request.id)
    wanted = resources.parse(plan.resources, plan.warnings)
    for warning in plan.warnings:
        log.warning(warning)
    container = state.create(request.root, request.id)
    try:
        layout = detect()
        if name is not None:
            groups.require_empty(layout, name)
        _record(container, plan, request, layout, name)
        documents.replace(container.file(state.CONFIG), _read(path), 0o600)
        group = None if name is None else groups.make(layout, name, wanted)
        _complete(plan, container, request, layout, name)
        log.debug(f"{request.id}: cgroup {name}, {len(plan.spec['mounts'])} operations")
        newborn, ready = _bear(plan, container, group, connection is not None or not request.detached)
    except BaseException:
        destroy(container, log)
        raise
    try:
        if connection is not None and ready.terminal is not None:
            console.hand_over(connection, ready.terminal)
            ready.terminal = None
        container.state["phase"] = "created"
        container.save()
        if request.pid_file is not None:
            documents.replace(request.pid_file, str(newborn.pid).encode(), 0o644)
    except BaseException:
        newborn.abandon()
        destroy(container, log)
        raise
    return Created(container, plan, newborn, ready)


def _check(plan: Plan, request: Request) -> _socket.socket | None:
    """Refuse what cannot be done before anything is made; the connection to the console socket."""
    if request.systemd:
        raise UsageError(
            "--systemd-cgroup is not supported: cgroups are made by their paths",
            hint="podman: --cgroup-manager=cgroupfs; containerd: SystemdCgroup = false",
        )
    process.require_labels(plan.process, config.FILE, apparmor=attributes.has_apparmor())
    if plan.process.apparmor == "unconfined":
        plan.spec["apparmor"] = None
    if not os.path.isdir(plan.rootfs):
        raise UsageError(f"{config.FILE}: root.path {plan.rootfs} is no directory")
    if request.pivot is False:
        raise UsageError("--no-pivot is not supported", hint="let the root file system lie on a disk or a tmpfs")
    if plan.process.terminal and request.detached and request.console_socket is None:
        raise UsageError("process.terminal needs --console-socket: nobody would have the terminal's other end")
    if request.console_socket is None:
        return None
    if not plan.process.terminal:
        raise UsageError("--console-socket needs process.terminal to be true")
    return console.connect(request.console_socket)


def _wants_group(plan: Plan) -> bool:
    """Without root a group is made only where the caller names one: there may be none that is ours."""
    return os.geteuid() == 0 or plan.cgroups_path is not None


def _record(container: Container, plan: Plan, request: Request, layout: Layout, name: str | None) -> None:
    """Write down what will be made."""
    now = time.time_ns()
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now // 10**9))
    container.state = {
        "form": state.FORM,
        "id": container.id,
        "ociVersion": plan.version,
        "bundle": request.bundle,
        "rootfs": plan.rootfs,
        "annotations": plan.annotations,
        "created": f"{moment}.{now % 10**9:09d}Z",
        "owner": os.geteuid(),
        "cgroup": name,
        "made_above": [] if name is None else groups.missing_above(layout, name),
        "pid": None,
        "ticks": None,
        "phase": "creating",
        "hooks": {point: rows for point, rows in plan.hooks.items() if point in ("poststart", "poststop")},
    }
    container.save()


def _complete(plan: Plan, container: Container, request: Request, layout: Layout, name: str | None) -> None:
    """Add to the plan what depends on the host and the request."""
    spec = plan.spec
    own = bool(spec["namespaces"] & libc.CLONE_NEWCGROUP)
    rows = []
    for operation in spec["mounts"]:
        if operation[0] == "oci-cgroup":
            if name is None:
                raise HostError(f"cannot mount cgroups at {operation[1]}: the container has no group")
            only_2 = operation.pop()
            rows.append(groups.shown(layout, name, operation, own=own, version_2_only=only_2))
        else:
            rows.append(operation)
    if not spec["environment"].get("HOME"):
        spec["environment"].pop("HOME", None)
        rows.append(["oci-home", "HOME", spec["environment"], spec["user"]["uid"]])
    spec["mounts"] = rows
    if plan.seccomp is not None:
        spec["seccomp"] = attributes.compiled_filter(plan.seccomp, request.root)
    spec["preserve"] = request.preserve
    if spec["terminal"] and request.console_socket is None:
        spec["terminal_size"] = console.own_size() or spec["terminal_size"]
    if request.hold:
        gate = container.file(state.GATE)
        os.mkfifo(gate, 0o600)
        spec["hold"] = gate


def _bear(
    plan: Plan, container: Container, group: Group | NoGroup | None, terminal: bool
) -> tuple[Newborn, Ready]:  # fmt: skip
    """Have the first process born, recorded, and set up."""
    spec = plan.spec
    spec["terminal"] = spec["terminal"] and terminal
    shown = oci_state(container, "creating")
    channel = _add_hooks(plan, shown)
    attributes.take_on(plan.process, plan.personality)
    birthplace, tasks = (None, []) if group is None else group.entrances()
    spec["born_in_cgroup"] = birthplace is not None
    try:
        newborn = bear(spec, (0, 1, 2), birthplace=birthplace, at_last=_at_last(plan, shown))
        try:
            container.state["pid"] = newborn.pid
            container.state["ticks"] = state.start_ticks(newborn.pid)
            container.save()
            newborn.provide(tasks)
            if channel is not None:
                channel[1].close()
                _attend_hooks(channel[0], plan, {**shown, "pid": newborn.pid})
            ready = newborn.await_ready()
        except InstanceError as error:
            newborn.abandon()
            raise _named(newborn, plan, error) from error
        except BaseException:
            newborn.abandon()
            raise
    finally:
        for fd in (*tasks, *(() if birthplace is None else (birthplace,))):
            os.close(fd)
    return newborn, ready


def _add_hooks(plan: Plan, shown: dict[str, Any]) -> tuple[_socket.socket, _socket.socket] | None:
    """Have the child stop where hooks are due before its root is entered; the channel that it says so on."""
    found = plan.hooks
    if not any(found.get(point) for point in ("prestart", "createRuntime", "createContainer")):
        return None
    channel = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    # before paths are covered and made read-only: hooks add to the root file system
    rows = plan.spec["mounts"]
    at = next(index for index, each in enumerate(rows) if each[0] in operations.CLOSING)
    rows.insert(at, ["oci-hooks", "hooks", *channel, found.get("createContainer", []), shown])
    return channel


def _at_last(plan: Plan, shown: dict[str, Any]) -> Callable[[], None] | None:
    """What the child does between ``start`` and its command."""
    own = plan.hooks.get("startContainer")
    if not own:
        return None

    def run_hooks() -> None:
        told = hooks.failure("startContainer", own, {**shown, "status": "created", "pid": os.getpid()})
        if told is not None:
            raise OSError(errno.ECANCELED, told)

    return run_hooks


def _attend_hooks(channel: _socket.socket, plan: Plan, shown: dict[str, Any]) -> None:
    """When the child has mounted everything, run what runs outside of it; if it fails before, say nothing."""
    try:
        if not channel.recv(64):
            return
        for point in ("prestart", "createRuntime"):
            hooks.run_all(point, plan.hooks.get(point, []), shown)
        channel.send(operations.GO)
    except (BrokenPipeError, ConnectionResetError):  # it has failed; await_ready says why
        return
    finally:
        channel.close()


def _named(newborn: Newborn, plan: Plan, error: InstanceError) -> IsomarkError:
    """The error in the configuration's words, or where its command is at fault in those that engines look for."""
    failed = newborn.failed
    if failed is None:
        return error
    if failed.errno == errno.ECANCELED:  # by a hook (``_at_last``), which the reason names
        return InstanceError(failed.reason)
    if failed.step.startswith("run "):
        return exec_error(plan.spec["command"][0], failed, error)
    for operation in plan.spec["mounts"]:
        if failed.step == mounts.describe(operation) and operation[0] in operations.VERBS:
            return InstanceError(f"cannot {operations.VERBS[operation[0]]} {operation[2]}: {failed.reason}")
    return InstanceError(failed.reason) if failed.step == "oci-hooks hooks" else error


def exec_error(command: str, failed: StepFailed, error: InstanceError) -> InstanceError:
    """What podman and Docker take for "not found" and "not executable", 127 and 126."""
    reason = failed.reason[:1].lower() + failed.reason[1:]
    if "/" not in command and failed.errno == errno.ENOENT:
        reason = "executable file not found in $PATH"
    return InstanceError(f"exec: {command!a}: {reason}", hint=error.hint)


def _read(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(documents.MAX_BYTES) or b""
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
