"""Capabilities as bit masks: names, Docker's set and its options, and giving them up (capabilities(7)).

On the way of a container's start, so light. ``runtimes.inside`` calls, in this order: ``limit_bounding`` while it
still has CAP_SETPCAP, ``keep``, then setgroups(2), setresgid(2) and setresuid(2), and at last ``apply``.
"""

from __future__ import annotations

from bench.errors import UsageError
from runtimes import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Final

    from runtimes.spec import Capabilities

NAMES: Final = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
    "CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL", "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
)  # fmt: skip
"""Number -> name (linux/capability.h)."""

ALL: Final = "ALL"
DEFAULT: Final = sum(
    1 << NAMES.index(f"CAP_{name}")
    for name in (
        "CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP",
        "SETPCAP", "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE",
    )
)  # fmt: skip
"""The fourteen that Docker leaves to a container (moby, daemon/pkg/oci/caps/defaults.go)."""

_LIMIT: Final = 64
_PR_CAPBSET_DROP: Final = 24
_PR_SET_KEEPCAPS: Final = 8
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_RAISE: Final = 2
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4


def every() -> int:
    """The mask of all that both this kernel and we know."""
    try:
        with open("/proc/sys/kernel/cap_last_cap", "rb", buffering=0) as file:
            last = int(file.read())
    except FileNotFoundError:  # before Linux 3.2
        last = len(NAMES) - 1
    return (1 << min(last + 1, len(NAMES))) - 1


def held() -> int:
    """The mask of what this process is permitted: it cannot give more to others."""
    return libc.capget()[1]


def number(name: str) -> int:
    """The number of ``name``, in any case, with or without ``CAP_``.

    Raises:
        UsageError: there is none of that name.
    """
    wanted = name.upper()
    if not wanted.startswith("CAP_"):
        wanted = f"CAP_{wanted}"
    try:
        return NAMES.index(wanted)
    except ValueError:
        raise UsageError(f"{name!r} is no capability", hint=_nearest(wanted)) from None


def mask(names: Iterable[str]) -> int:
    """The mask of ``names``.

    Raises:
        UsageError: one of them is unknown.
    """
    found = 0
    for name in names:
        found |= 1 << number(name)
    return found


def names(mask: int) -> list[str]:
    """The names in ``mask``, in the order of their numbers; one that we do not know is called by its number."""
    return [
        NAMES[bit] if bit < len(NAMES) else f"CAP_{bit}" for bit in range(mask.bit_length()) if mask & (1 << bit)
    ]  # fmt: skip


def adjust(base: int, add: Sequence[str], drop: Sequence[str]) -> int:
    """What is left of ``base`` after ``--cap-add`` and ``--cap-drop``, as Docker means them.

    With ``ALL`` added, everything but what is dropped by name; else with ``ALL`` dropped, only what is added.

    Raises:
        UsageError: an unknown name.
    """
    added = mask(name for name in add if name.upper() != ALL)
    dropped = mask(name for name in drop if name.upper() != ALL)
    if any(name.upper() == ALL for name in add):
        return every() & ~dropped
    if any(name.upper() == ALL for name in drop):
        return added
    return base & ~dropped | added


def sets(mask: int, *, ambient: int = 0) -> Capabilities:
    """The five sets of a process that shall have ``mask``.

    ``ambient`` is what survives the execution of an ordinary program by an ordinary user; it must be inheritable,
    and nothing else is (CVE-2022-24769).
    """
    ambient &= mask
    return {"bounding": mask, "effective": mask, "permitted": mask, "inheritable": ambient, "ambient": ambient}


def limit_bounding(bounding: int) -> None:
    """Let nothing that is executed from now on gain more than ``bounding``; needs CAP_SETPCAP.

    Raises:
        OSError: EPERM without it.
    """
    for bit in range(_LIMIT):
        if bounding & (1 << bit):
            continue
        try:
            libc.prctl(_PR_CAPBSET_DROP, bit)
        except OSError as error:
            if error.errno == libc.EINVAL and bit > 0:  # beyond the last that the kernel knows
                return
            raise


def keep() -> None:
    """Keep the permitted set over a change of the user id from 0 to another."""
    libc.prctl(_PR_SET_KEEPCAPS, 1)


def apply(capabilities: Capabilities) -> None:
    """Set the other four sets, last of all; what this process itself lacks is left out, as runc does.

    Raises:
        OSError: the kernel refuses, for instance an ambient capability that is not inheritable.
    """
    permitted = capabilities["permitted"] & held()
    inheritable = capabilities["inheritable"] & permitted
    libc.capset(capabilities["effective"] & permitted, permitted, inheritable)
    libc.prctl(_PR_SET_KEEPCAPS, 0)
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    for bit in range(capabilities["ambient"].bit_length()):
        if capabilities["ambient"] & inheritable & (1 << bit):
            libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, bit)


def _nearest(name: str) -> str:
    from difflib import get_close_matches  # slow to import, and only an error needs it

    near = get_close_matches(name, NAMES, n=1)
    known = "man 7 capabilities lists them; ALL stands for every one"
    return f"did you mean {near[0]}? {known}" if near else known
