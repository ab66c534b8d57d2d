"""The object ``process`` of a configuration, or of ``exec --process``, as fields of a ``Spec``.

runtime-spec 1.2, config.md, "Process".
"""

from __future__ import annotations

from bench.errors import UsageError
from runtimes.ociruntime.node import MAX_UINT32, MAX_UINT64, Node
from runtimes.security.capabilities import NAMES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Final

    from runtimes.spec import Capabilities, Spec, User

DEFAULT_UMASK: Final = 0o022

RLIMITS: Final[Mapping[str, int]] = {
    name: number
    for number, name in enumerate(
        [
            "CPU",
            "FSIZE",
            "DATA",
            "STACK",
            "CORE",
            "RSS",
            "NPROC",
            "NOFILE",
            "MEMLOCK",
            "AS",
            "LOCKS",
            "SIGPENDING",
            "MSGQUEUE",
            "NICE",
            "RTPRIO",
            "RTTIME",
        ]
    )
}
"""Name without RLIMIT_ -> number (asm-generic/resource.h)."""

IO_CLASSES: Final[Mapping[str, int]] = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}
"""linux/ioprio.h."""
POLICIES: Final[Mapping[str, int]] = {
    "SCHED_OTHER": 0, "SCHED_FIFO": 1, "SCHED_RR": 2, "SCHED_BATCH": 3, "SCHED_ISO": 4, "SCHED_IDLE": 5,
    "SCHED_DEADLINE": 6,
}  # fmt: skip
SCHEDULER_FLAGS: Final[Mapping[str, int]] = {
    "SCHED_FLAG_RESET_ON_FORK": 1,
    "SCHED_FLAG_RECLAIM": 2,
    "SCHED_FLAG_DL_OVERRUN": 4,
    "SCHED_FLAG_KEEP_POLICY": 8,
    "SCHED_FLAG_KEEP_PARAMS": 16,
    "SCHED_FLAG_UTIL_CLAMP_MIN": 32,
    "SCHED_FLAG_UTIL_CLAMP_MAX": 64,
}
"""linux/sched.h."""

_CAPABILITY_SETS: Final = ("bounding", "effective", "permitted", "inheritable", "ambient")
_NOTHING: Final[Mapping[str, int]] = dict.fromkeys(_CAPABILITY_SETS, 0)


class Process:
    """What to execute and as whom.

    Attributes:
        terminal_size: ``[rows, columns]``.
        io_priority: Class and level as ioprio_set(2) takes them, in one number.
        scheduler: Fields of ``struct sched_attr`` (sched_setattr(2)): policy, flags, nice, priority, runtime, deadline,
            period.
        selinux: A label; there is no SELinux support, so a caller must refuse one.
        warnings: What was asked for and passed over, as the specification demands.
    """

    __slots__ = (
        "apparmor", "capabilities", "command", "cwd", "environment", "io_priority", "no_new_privileges",
        "oom_score_adj", "rlimits", "scheduler", "selinux", "terminal", "terminal_size", "user", "warnings",
    )  # fmt: skip

    def __init__(self) -> None:
        self.command: list[str] = []
        self.environment: dict[str, str] = {}
        self.cwd = "/"
        self.user: User = {"name": None, "uid": 0, "gid": 0, "groups": [], "umask": DEFAULT_UMASK}
        self.capabilities: Capabilities = {**_NOTHING}  # type: ignore[typeddict-item]
        self.rlimits: list[list[int]] = []
        self.no_new_privileges = False
        self.oom_score_adj: int | None = None
        self.apparmor: str | None = None
        self.selinux: str | None = None
        self.terminal = False
        self.terminal_size: list[int] | None = None
        self.io_priority: int | None = None
        self.scheduler: list[int] | None = None
        self.warnings: list[str] = []


def parse(node: Node) -> Process:
    """Read a process.

    Raises:
        UsageError: with the path of what is wrong.
    """
    process = Process()
    process.command = [each.text() for each in node.need("args").items()]
    if not process.command:
        raise node.need("args").fault("must name a command")
    if not process.command[0]:
        raise node.need("args").items()[0].fault("must name a command")
    process.cwd = node.need("cwd").absolute()
    for each in node.elements("env"):
        name, value = variable(each)
        process.environment[name] = value
    _read_identity(node, process)
    for each in node.elements("rlimits"):
        _add_rlimit(each, process)
    process.oom_score_adj = node.integer_of("oomScoreAdj", -1000, 1000)
    process.apparmor = node.text_of("apparmorProfile") or None
    process.selinux = node.text_of("selinuxLabel") or None
    process.terminal = node.flag_of("terminal")
    if (size := node.get("consoleSize")) is not None and process.terminal:
        process.terminal_size = [size.need(name).integer(0, 65535) for name in ("height", "width")]
    process.io_priority = _io_priority(node.get("ioPriority"))
    process.scheduler = _scheduler(node.get("scheduler"))
    return process


def variable(node: Node) -> tuple[str, str]:
    """Name and value of ``NAME=VALUE``."""
    name, equals, value = node.text().partition("=")
    if not name or not equals:
        raise node.fault(f"must be NAME=VALUE, not {node.value!a}")
    return name, value


def capability_bits(node: Node, warnings: list[str]) -> int:
    """The mask of an array of names; a name that cannot be granted is a warning (runtime-spec, config.md)."""
    mask = 0
    for each in node.items():
        name = each.text()
        if name in NAMES:
            mask |= 1 << NAMES.index(name)
        else:
            warnings.append(f"{each.path}: {name!a} is no capability and is not granted")
    return mask


def _read_identity(node: Node, process: Process) -> None:
    if (user := node.get("user")) is not None:
        process.user["uid"] = user.integer_of("uid", 0, MAX_UINT32 - 1) or 0
        process.user["gid"] = user.integer_of("gid", 0, MAX_UINT32 - 1) or 0
        process.user["groups"] = [each.integer(0, MAX_UINT32 - 1) for each in user.elements("additionalGids")]
        umask = user.integer_of("umask", 0, 0o777)
        process.user["umask"] = DEFAULT_UMASK if umask is None else umask
    if (capabilities := node.get("capabilities")) is not None:
        for name in _CAPABILITY_SETS:
            if (names := capabilities.get(name)) is not None:
                process.capabilities[name] = capability_bits(names, process.warnings)
    process.no_new_privileges = node.flag_of("noNewPrivileges")


def _add_rlimit(node: Node, process: Process) -> None:
    said = node.need("type")
    number = RLIMITS.get(said.text().removeprefix("RLIMIT_")) if said.text().startswith("RLIMIT_") else None
    if number is None:
        raise said.fault(f"must be the name of a limit (man 2 setrlimit), not {said.value!a}")
    if any(number == known for known, _, _ in process.rlimits):
        raise node.fault(f"limits {said.text()} a second time")
    soft, hard = (node.need(name).integer(0, MAX_UINT64) for name in ("soft", "hard"))
    if soft > hard:
        raise node.fault(f"has a soft limit of {soft} above its hard limit of {hard}")
    process.rlimits.append([number, *(-1 if each == MAX_UINT64 else each for each in (soft, hard))])


def _io_priority(node: Node | None) -> int | None:
    if node is None:
        return None
    kind = node.need("class").choice(IO_CLASSES, f"one of {', '.join(IO_CLASSES)}")
    return IO_CLASSES[kind] << 13 | (node.integer_of("priority", 0, 7) or 0)


def _scheduler(node: Node | None) -> list[int] | None:
    if node is None:
        return None
    policy = POLICIES[node.need("policy").choice(POLICIES, f"one of {', '.join(POLICIES)}")]
    flags = 0
    for each in node.elements("flags"):
        flags |= SCHEDULER_FLAGS[each.choice(SCHEDULER_FLAGS, f"one of {', '.join(SCHEDULER_FLAGS)}")]
    fields: tuple[tuple[str, int, int], ...] = (
        ("nice", -20, 19), ("priority", 0, 99), ("runtime", 0, MAX_UINT64), ("deadline", 0, MAX_UINT64),
        ("period", 0, MAX_UINT64),
    )  # fmt: skip
    return [policy, flags, *(node.integer_of(*field) or 0 for field in fields)]


def adopt(process: Process, spec: Spec) -> None:
    """Put ``process`` into ``spec``."""
    for name in (
        "command", "environment", "cwd", "user", "capabilities", "rlimits", "no_new_privileges", "oom_score_adj",
        "apparmor", "terminal", "terminal_size",
    ):  # fmt: skip
        spec[name] = getattr(process, name)


def require_labels(process: Process, document: str, *, apparmor: bool) -> None:
    """Refuse labels that this host or this runtime cannot set: run without, a container would be less confined.

    Raises:
        UsageError: naming the property.
    """
    if process.selinux is not None:
        raise UsageError(
            f"{document}: process.selinuxLabel cannot be set: SELinux is not supported",
            hint="leave it out; podman: --security-opt label=disable",
        )
    if process.apparmor is not None and not apparmor and process.apparmor != "unconfined":
        raise UsageError(
            f"{document}: process.apparmorProfile cannot be set: AppArmor is not enabled on this host",
            hint="leave it out; or start the kernel with apparmor=1 security=apparmor",
        )
