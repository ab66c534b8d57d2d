"""``--security off|default|strict`` and the options that refine it, as what a start needs. Light.

``default`` is Docker's: its fourteen capabilities, its seccomp profile, its masked and read-only paths, its device
rules. In one point it is stricter: no_new_privs is set, which Docker has as an option only. A program with set-user-ID
or file capabilities then gains nothing for an ordinary user of the container; who needs that says
``--security-opt no-new-privileges=false``. It costs nothing, and it lets the seccomp filter be installed as the very
last thing before the command.
"""

from __future__ import annotations

import os

from bench.errors import HostError, UsageError
from runtimes.security import capabilities, device_rules, seccomp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Final

    from runtimes.security.device_rules import Rule
    from runtimes.spec import Capabilities

LEVELS: Final = ("off", "default", "strict")
MASKED: Final = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
READ_ONLY: Final = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
"""Docker's lists (moby, daemon/pkg/oci/defaults.go); each CPU's thermal_throttle is added where there is one."""
STRICT_MASKED: Final = (
    "/proc/kallsyms",
    "/proc/kmsg",
    "/proc/mdstat",
    "/proc/modules",
    "/proc/pagetypeinfo",
    "/proc/slabinfo",
    "/proc/vmallocinfo",
    "/sys/block",
    "/sys/bus",
    "/sys/class",
    "/sys/dev",
    "/sys/fs",
    "/sys/kernel",
    "/sys/module",
)
"""What tells about the host and no ordinary program reads."""

_THROTTLE: Final = "/sys/devices/system/cpu/cpu{}/thermal_throttle"
_APPARMOR: Final = "/sys/kernel/security/apparmor/profiles"
_APPARMOR_PROFILE: Final = "docker-default"
_TRUE: Final = ("true", "1", "t")
_FALSE: Final = ("false", "0", "f")
_OPTIONS: Final = "seccomp, no-new-privileges, apparmor, label, systempaths, mask, unmask"


class Security:
    """What a container may do.

    Attributes:
        capabilities: ``None``: as they are.
        seccomp: Path of a compiled filter, ``None``: none.
        no_new_privileges: prctl(2), PR_SET_NO_NEW_PRIVS.
        masked: Paths to cover.
        readonly: Paths to make read-only.
        devices: Rules for its group, ``None``: none.
        apparmor: Profile, ``None``: none.
        read_only_root: Whether the root should be read-only unless somebody says otherwise.
        description: One line for fingerprints and reports.
    """

    __slots__ = (
        "apparmor", "capabilities", "description", "devices", "masked", "no_new_privileges", "read_only_root",
        "readonly", "seccomp",
    )  # fmt: skip

    capabilities: Capabilities | None
    seccomp: str | None
    no_new_privileges: bool
    masked: tuple[str, ...]
    readonly: tuple[str, ...]
    devices: tuple[Rule, ...] | None
    apparmor: str | None
    read_only_root: bool
    description: str


def level(
    name: str,
    *,
    state: str,
    cap_add: Sequence[str] = (),
    cap_drop: Sequence[str] = (),
    security_opt: Sequence[str] = (),
    devices: Sequence[Rule] = (),
    user_namespace: bool = False,
) -> Security:
    """What ``name`` and the options come to on this host.

    Args:
        name: ``off``, ``default`` or ``strict``.
        state: isomark's state directory, where compiled filters are.
        cap_add: ``--cap-add``.
        cap_drop: ``--cap-drop``.
        security_opt: ``--security-opt``, each ``NAME=VALUE``.
        devices: Rules of ``--device`` and ``--device-cgroup-rule``.
        user_namespace: The container has one of its own: capabilities do not depend on ours, and the kernel opens no
            device for it that its rules would have to forbid.

    Raises:
        UsageError: an unknown level, capability or option.
        HostError: a capability to add is not ours to give, or the filter cannot be compiled.
    """
    if name not in LEVELS:
        raise UsageError(f"{name!r} is no security level", hint=f"there are {', '.join(LEVELS)}")
    options = _parse(security_opt)
    found = Security()
    held = _capabilities(name, cap_add, cap_drop, user_namespace=user_namespace)
    found.capabilities = None if held is None else capabilities.sets(held)
    wanted = options.get("seccomp", "unconfined" if name == "off" else "builtin")
    profile = ("default" if name == "off" else name) if wanted == "builtin" else wanted
    if profile == "unconfined":
        found.seccomp = None
    else:
        found.seccomp = seccomp.compiled(state, profile, capabilities.every() if held is None else held)
    found.no_new_privileges = _flag(options.get("no-new-privileges"), default=name != "off")
    found.masked, found.readonly = _paths(name, options)
    rules = {"off": None, "default": device_rules.DEFAULT, "strict": device_rules.STRICT}[name]
    found.devices = None if rules is None or user_namespace else (*rules, *devices)
    found.apparmor = _apparmor(name, options.get("apparmor"))
    found.read_only_root = name == "strict"
    found.description = _describe(name, found, held, profile)
    return found


def describe(name: str) -> str:
    """What level ``name`` is, for people and fingerprints, without a look at the host."""
    return {
        "off": "off: every capability, no seccomp filter, nothing masked, every device",
        "default": (
            f"default: Docker's {len(capabilities.names(capabilities.DEFAULT))} capabilities and seccomp profile, "
            f"no_new_privs, {len(MASKED)} masked and {len(READ_ONLY)} read-only paths, device rules"
        ),
        "strict": (
            "strict: no capability, seccomp profile for ordinary servers and tools, no_new_privs, "
            f"{len(MASKED) + len(STRICT_MASKED)} masked and {len(READ_ONLY)} read-only paths, device rules, "
            "read-only root"
        ),
    }[name]


def _describe(name: str, found: Security, held: int | None, profile: str) -> str:
    if held is None:
        what = "every capability"
    else:
        more, less = (capabilities.names(mask) for mask in (held & ~_base(name), _base(name) & ~held))
        changes = "".join([*(f" +{each[4:]}" for each in more), *(f" -{each[4:]}" for each in less)])
        what = f"{len(capabilities.names(held))} capabilities{' (' + changes.strip() + ')' if changes else ''}"
    parts = (
        what,
        "no seccomp filter" if found.seccomp is None else f"seccomp {profile}",
        "no_new_privs" if found.no_new_privileges else "",
        f"{len(found.masked)} masked and {len(found.readonly)} read-only paths",
        "" if found.devices is None else "device rules",
        f"AppArmor {found.apparmor}" if found.apparmor else "",
    )
    return f"{name}: {', '.join(filter(None, parts))}"


def _base(name: str) -> int:
    return capabilities.DEFAULT if name == "default" else 0


def _capabilities(
    name: str, add: Sequence[str], drop: Sequence[str], *, user_namespace: bool
) -> int | None:  # fmt: skip
    """The bounding set, ``None`` for all that there is."""
    if name == "off" and not drop:
        return None
    base = capabilities.every() if name == "off" else _base(name)
    found = capabilities.adjust(base, add, drop)
    if user_namespace:
        return found
    held = capabilities.held()
    named = capabilities.mask(each for each in add if each.upper() != capabilities.ALL)
    if lacking := capabilities.names(named & ~held):
        raise HostError(f"we have no {', '.join(lacking)} to give", hint="run as root of the host, not of a container")
    return found & held


def _parse(options: Sequence[str]) -> Mapping[str, str]:
    """Name -> value; of an option given twice the last counts, as with Docker, and all paths together."""
    found: dict[str, str] = {}
    for option in options:
        # Docker once wrote a colon, and still reads it
        at = min((at for at in (option.find("="), option.find(":")) if at >= 0), default=len(option))
        name, value = option[:at], option[at + 1 :]
        if name not in _OPTIONS.split(", "):
            raise UsageError(f"{option!r} is no security option", hint=f"there are {_OPTIONS}")
        if name in ("seccomp", "apparmor", "mask", "unmask") and not value:
            raise UsageError(f"--security-opt {name} needs a value", hint=f"--security-opt {name}=…")
        if name == "label" and value != "disable":
            raise UsageError("SELinux labels are not supported", hint="label=disable is; it changes nothing here")
        if name == "systempaths" and value != "unconfined":
            raise UsageError(f"{option!r} is no security option", hint="systempaths=unconfined is")
        found[name] = f"{found[name]}:{value}" if name in ("mask", "unmask") and name in found else value
    return found


def _flag(value: str | None, *, default: bool) -> bool:
    if value is None:
        return default
    if value == "" or value.lower() in _TRUE:
        return True
    if value.lower() in _FALSE:
        return False
    raise UsageError(f"no-new-privileges={value} is neither true nor false")


def _paths(name: str, options: Mapping[str, str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    masked, readonly = [*MASKED, *_throttles()], [*READ_ONLY]
    if name == "strict":
        masked += STRICT_MASKED
    if name == "off" or "systempaths" in options or options.get("unmask", "").upper() == "ALL":
        masked, readonly = [], []
    elif "unmask" in options:
        shown = options["unmask"].split(":")
        masked = [path for path in masked if path not in shown]
        readonly = [path for path in readonly if path not in shown]
    for path in filter(None, options.get("mask", "").split(":")):
        if not path.startswith("/"):
            raise UsageError(f"{path!r} cannot be masked: it is no absolute path")
        masked.append(path)
    return tuple(masked), tuple(readonly)


def _throttles() -> list[str]:
    """Counters by which one container sees how the host's CPUs heat up under another (GHSA-6fw5-f8r9-fgfm)."""
    if not os.path.exists(_THROTTLE.format(0)):
        return []
    return [_THROTTLE.format(number) for number in range(os.cpu_count() or 1)]


def _apparmor(name: str, wanted: str | None) -> str | None:
    """Docker's own profile where the kernel has it loaded; asking for another one takes that one to be there."""
    if wanted == "unconfined" or (wanted is None and name == "off"):
        return None
    try:
        fd = os.open(_APPARMOR, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        if wanted is not None:
            raise HostError(f"no AppArmor here for the profile {wanted}", hint="apparmor=unconfined") from None
        return None
    with os.fdopen(fd) as file:
        loaded = {line.rpartition(" (")[0] for line in file}
    if wanted is not None and wanted not in loaded:
        raise HostError(
            f"the AppArmor profile {wanted} is not loaded", hint=f"apparmor_parser -r /etc/apparmor.d/{wanted}"
        )
    return wanted or (_APPARMOR_PROFILE if _APPARMOR_PROFILE in loaded else None)
