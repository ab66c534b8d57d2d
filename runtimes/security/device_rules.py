"""Which devices a container may open and make: rules, and how cgroup version 1 and 2 are told them.

Version 1 is told line by line (kernel, Documentation/admin-guide/cgroup-v1/devices.rst); version 2 asks a BPF program
for each access (linux/bpf.h, BPF_PROG_TYPE_CGROUP_DEVICE), which is assembled here by hand. Light.
"""

from __future__ import annotations

import os
import stat
import sys

from bench.errors import HostError, UsageError
from runtimes import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

    Instruction = tuple[int, int, int, int, int]

NUMBER_LIMIT: Final = 1 << 31
_ACCESS_BITS: Final = (("m", 1), ("r", 2), ("w", 4))
"""BPF_DEVCG_ACC_*."""
_KIND_NUMBERS: Final = {"b": 1, "c": 2}
"""BPF_DEVCG_DEV_*."""
_FORM: Final = 'write "c 10:229 rwm": type a, b or c, MAJOR:MINOR or *, and what of read, write, mknod'


class Rule:
    """Allow or deny some ways of access to some devices.

    Attributes:
        allow: Or deny.
        kind: ``c`` character, ``b`` block, ``a`` both and every number.
        major: ``None`` for every one.
        minor: ``None`` for every one.
        access: Of ``r`` read, ``w`` write, ``m`` mknod.
    """

    __slots__ = ("access", "allow", "kind", "major", "minor")

    def __init__(self, allow: bool, kind: str, major: int | None, minor: int | None, access: str) -> None:
        self.allow = allow
        self.kind = kind
        self.major = major
        self.minor = minor
        self.access = access

    def __str__(self) -> str:
        """As version 1 reads it."""
        major, minor = ("*" if number is None else str(number) for number in (self.major, self.minor))
        return f"{self.kind} {major}:{minor} {self.access}"

    def __repr__(self) -> str:
        return f"<{'allow' if self.allow else 'deny'} {self}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rule) and self.allow == other.allow and str(self) == str(other)

    def __hash__(self) -> int:
        return hash((self.allow, str(self)))

    @property
    def device(self) -> tuple[str, int | None, int | None]:
        """What it is about."""
        return self.kind, self.major, self.minor


def parse(text: str, *, allow: bool = True) -> Rule:
    """The rule in ``text``, as ``--device-cgroup-rule`` and version 1 write it.

    Raises:
        UsageError: it is malformed.
    """
    words = text.split()
    numbers = words[1].split(":") if len(words) == 3 else []
    if len(numbers) != 2 or words[0] not in ("a", "b", "c") or not _is_access(words[2]):
        raise UsageError(f"{text!r} is no device rule", hint=_FORM)
    major, minor = (_number(number, text) for number in numbers)
    return Rule(allow, words[0], major, minor, words[2])


def for_node(path: str, access: str = "rwm") -> Rule:
    """The rule that allows ``access`` to the device node ``path`` of the host, for ``--device``.

    Raises:
        UsageError: it is no device, or ``access`` is malformed.
    """
    if not _is_access(access):
        raise UsageError(f"{access!r} is no access to a device", hint="some of r, w and m")
    try:
        status = os.stat(path)
    except OSError as error:
        raise UsageError(f"cannot give the device {path}: {error.strerror}") from error
    if not stat.S_ISCHR(status.st_mode) and not stat.S_ISBLK(status.st_mode):
        raise UsageError(f"{path} is no device", hint="--volume gives files and directories")
    kind = "c" if stat.S_ISCHR(status.st_mode) else "b"
    return Rule(True, kind, os.major(status.st_rdev), os.minor(status.st_rdev), access)


def _is_access(text: str) -> bool:
    return 0 < len(text) == len(set(text)) and set(text) <= {"r", "w", "m"}


def _number(text: str, rule: str) -> int | None:
    if text == "*":
        return None
    if not (text.isascii() and text.isdigit() and int(text) < NUMBER_LIMIT):
        raise UsageError(f"{text!r} in the device rule {rule!r} is no number", hint=_FORM)
    return int(text)


EVERYTHING: Final = (Rule(True, "a", None, None, "rwm"),)
NOTHING: Final = Rule(False, "a", None, None, "rwm")
STRICT: Final = (
    NOTHING,
    *(Rule(True, "c", 1, minor, "rwm") for minor in (3, 5, 7, 8, 9)),  # null, zero, full, random, urandom
    Rule(True, "c", 5, 0, "rwm"),  # tty
    Rule(True, "c", 5, 2, "rwm"),  # ptmx
    Rule(True, "c", 136, None, "rw"),  # pts
)
"""What every program may expect, and no other node can be made."""
DEFAULT: Final = (
    NOTHING,
    Rule(True, "c", None, None, "m"),
    Rule(True, "b", None, None, "m"),
    *(Rule(True, "c", 1, minor, "rwm") for minor in (3, 5, 7, 8, 9)),
    *(Rule(True, "c", 5, minor, "rwm") for minor in (0, 1, 2)),  # tty, console, ptmx
    Rule(True, "c", 136, None, "rwm"),
)
"""Docker's and runc's: every node may be made, and of what is made only these can be opened (moby,
daemon/pkg/oci/defaults.go; runc, libcontainer/specconv, AllowedDevices)."""


def version_1(rules: Sequence[Rule]) -> list[tuple[str, bytes]]:
    """What to write, as (``devices.allow`` or ``devices.deny``, text), in order, to a group that allows everything.

    Raises:
        HostError: a denial is a hole in something allowed, which version 1 has no word for.
    """
    allowed: dict[tuple[str, int | None, int | None], Rule] = {}
    wanted: list[tuple[str, bytes]] = []
    default_allows = True
    for rule in _by_kind(rules):
        if rule.kind == "a":
            default_allows = rule.allow
            allowed.clear()
            wanted.append(("devices.allow" if rule.allow else "devices.deny", b"a"))
            continue
        if not rule.allow and not default_allows:
            _require_no_hole(rule, allowed)
        allowed[rule.device] = rule
        wanted.append(("devices.allow" if rule.allow else "devices.deny", str(rule).encode()))
    return wanted


def _is_about_all(rule: Rule) -> bool:
    return rule.device == ("a", None, None) and len(rule.access) == len(_ACCESS_BITS)


def _by_kind(rules: Sequence[Rule]) -> list[Rule]:
    """To version 1 ``a`` means everything whatever follows it: say anything less in two lines."""
    return [
        each
        for rule in rules
        for each in (
            [rule]
            if rule.kind != "a" or _is_about_all(rule)
            else [Rule(rule.allow, kind, rule.major, rule.minor, rule.access) for kind in "cb"]
        )
    ]


def _require_no_hole(rule: Rule, allowed: dict[tuple[str, int | None, int | None], Rule]) -> None:
    for other in allowed.values():
        if (
            other.allow
            and other.device != rule.device
            and _overlap(rule, other)
            and set(rule.access) & set(other.access)
        ):
            raise HostError(
                f'cgroup version 1 cannot deny "{rule}" within "{other}"',
                hint="deny first and allow afterwards, or use version 2",
            )


def _overlap(one: Rule, other: Rule) -> bool:
    return one.kind == other.kind and all(
        first is None or second is None or first == second
        for first, second in ((one.major, other.major), (one.minor, other.minor))
    )


# BPF: (opcode, destination register, source register, offset, constant); linux/bpf.h, linux/bpf_common.h
_LOAD_WORD: Final = 0x61
_MOVE: Final = 0xBF
_MOVE_K: Final = 0xB7
_AND_K: Final = 0x57
_SHIFT_RIGHT_K: Final = 0x77
_JUMP: Final = 0x05
_JUMP_EQUAL_K: Final = 0x15
_JUMP_NOT_EQUAL_K: Final = 0x55
_JUMP_ANY_BIT_K: Final = 0x45
_EXIT: Final = 0x95
_KIND, _MAJOR, _MINOR, _LEFT = 2, 4, 5, 3
"""Registers: the device, and the ways of access not yet decided."""


def version_2(rules: Sequence[Rule]) -> bytes:
    """The program that decides like ``rules``: for each way of access, the last rule that is about it.

    The context (struct bpf_cgroup_dev_ctx) is access << 16 | kind, major, minor.
    """
    program: list[Instruction] = [
        (_LOAD_WORD, _KIND, 1, 0, 0),
        (_MOVE, _LEFT, _KIND, 0, 0),
        (_AND_K, _KIND, 0, 0, 0xFFFF),
        (_SHIFT_RIGHT_K, _LEFT, 0, 0, 16),
        (_LOAD_WORD, _MAJOR, 1, 4, 0),
        (_LOAD_WORD, _MINOR, 1, 8, 0),
    ]
    last = True  # as version 1: what nobody denies is allowed
    for rule in reversed(rules):
        if _is_about_all(rule):  # nothing before it counts
            last = rule.allow
            break
        program += _decide(rule)
    return b"".join(map(_pack, [*program, *_return(last)]))


def _decide(rule: Rule) -> list[Instruction]:
    """Return if the rule is about this device and decides; else go on to the next."""
    bits = sum(bit for letter, bit in _ACCESS_BITS if letter in rule.access)
    if rule.allow:  # what it allows is decided; if that is all, allow
        then = [(_AND_K, _LEFT, 0, 0, 7 & ~bits), (_JUMP_NOT_EQUAL_K, _LEFT, 0, 2, 0), *_return(1)]
    else:
        then = [(_JUMP_ANY_BIT_K, _LEFT, 0, 1, bits), (_JUMP, 0, 0, 2, 0), *_return(0)]
    tests = [
        (register, wanted)
        for register, wanted in ((_KIND, _KIND_NUMBERS.get(rule.kind)), (_MAJOR, rule.major), (_MINOR, rule.minor))
        if wanted is not None
    ]
    rows: list[Instruction] = []
    for at, (register, wanted) in enumerate(tests):
        rows.append((_JUMP_NOT_EQUAL_K, register, 0, len(tests) - at - 1 + len(then), wanted))
    return rows + then


def _return(value: int) -> list[Instruction]:
    return [(_MOVE_K, 0, 0, 0, value), (_EXIT, 0, 0, 0, 0)]


def _pack(row: Instruction) -> bytes:
    """One instruction (struct bpf_insn)."""
    code, destination, source, offset, constant = row
    registers = destination | source << 4 if sys.byteorder == "little" else destination << 4 | source
    return (
        bytes((code, registers))
        + offset.to_bytes(2, sys.byteorder, signed=True)
        + (constant & 0xFFFF_FFFF).to_bytes(4, sys.byteorder)
    )


_BPF_PROG_LOAD: Final = 5
_BPF_PROG_ATTACH: Final = 8
_BPF_PROG_TYPE_CGROUP_DEVICE: Final = 15
_BPF_CGROUP_DEVICE: Final = 6
_BPF_F_ALLOW_MULTI: Final = 2
_LICENSE: Final = bytearray(b"GPL\0")


def load(rules: Sequence[Rule]) -> int:
    """Give the program for ``rules`` to the kernel (man 2 bpf); return its descriptor. Takes CAP_BPF and CAP_NET_ADMIN.

    Raises:
        OSError: the kernel does not take it.
    """
    code = bytearray(version_2(rules))
    # prog_type, insn_cnt, insns, license, log_level, log_size, log_buf, kern_version, prog_flags
    attributes = b"".join(
        (
            _BPF_PROG_TYPE_CGROUP_DEVICE.to_bytes(4, sys.byteorder),
            (len(code) // 8).to_bytes(4, sys.byteorder),
            libc.address_of(code).to_bytes(8, sys.byteorder),
            libc.address_of(_LICENSE).to_bytes(8, sys.byteorder),
            bytes(24),
        )
    )
    return libc.bpf(_BPF_PROG_LOAD, bytearray(attributes))


def attach(program: int, group: int) -> None:
    """Let ``program`` decide in the version 2 group that the directory descriptor ``group`` is of; it stays as long.

    Raises:
        OSError: the kernel does not take it.
    """
    # target_fd, attach_bpf_fd, attach_type, attach_flags
    numbers = (group, program, _BPF_CGROUP_DEVICE, _BPF_F_ALLOW_MULTI)
    libc.bpf(_BPF_PROG_ATTACH, bytearray(b"".join(number.to_bytes(4, sys.byteorder) for number in numbers)))
