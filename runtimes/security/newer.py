"""What an older libseccomp does not know of a newer kernel: system calls by number, in front of its program.

Two things (both cost nothing to a program that uses neither: the kernel runs a filter once for a call that it allows
whatever the arguments, Linux 5.11). A rule on a call that libseccomp cannot name is added by its number, which since
Linux 5.1 is the same on every architecture. And a call beyond all that a profile names gets ENOSYS, not what the
profile gives to calls it refuses: C libraries then fall back to an older call, as with runc (its
libcontainer/seccomp/patchbpf).
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final

UNKNOWN: Final = -1
"""__NR_SCMP_ERROR."""
COMMON: Final[Mapping[str, int]] = {
    "futex_waitv": 449,
    "set_mempolicy_home_node": 450,
    "cachestat": 451,
    "fchmodat2": 452,
    "map_shadow_stack": 453,
    "futex_wake": 454,
    "futex_wait": 455,
    "futex_requeue": 456,
    "statmount": 457,
    "listmount": 458,
    "lsm_get_self_attr": 459,
    "lsm_set_self_attr": 460,
    "lsm_list_modules": 461,
    "mseal": 462,
    "setxattrat": 463,
    "getxattrat": 464,
    "listxattrat": 465,
    "removexattrat": 466,
    "open_tree_attr": 467,
    "file_getattr": 468,
    "file_setattr": 469,
}
"""Linux 5.16 to 6.17 (asm-generic/unistd.h)."""
_OWN: Final[Mapping[str, Mapping[str, int]]] = {"X86_64": {"uretprobe": 335}}
_X32_BIT: Final = 0x4000_0000
_BASES: Final[Mapping[str, int]] = {
    "X32": _X32_BIT, "MIPS": 4000, "MIPSEL": 4000, "MIPS64": 5000, "MIPSEL64": 5000, "MIPS64N32": 6000,
    "MIPSEL64N32": 6000,
}  # fmt: skip
"""Where an architecture's numbers begin."""
_MULTIPLEXED: Final = ("S390", "S390X")
"""There an unknown call arrives as number 0."""

_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_JUMP: Final = 0x05
_EQUAL: Final = 0x15
_GREATER: Final = 0x25
_AT_LEAST: Final = 0x35
_ANY_BIT: Final = 0x45
_RETURN: Final = 0x06
_NUMBER_AT: Final = 0
_ARCHITECTURE_AT: Final = 4
_ENOSYS: Final = 0x0005_0000 | errno.ENOSYS
_PERMISSIVE: Final = (0x7FFF_0000, 0x7FFC_0000, 0x7FF0_0000)
"""ALLOW, LOG, TRACE: whoever has that for the rest wants the unknown too."""

Instruction = tuple[int, int, int, int]


def token(library: Any, name: str) -> int | None:  # noqa: ANN401 - untyped
    """The library's number of the architecture ``name`` (without ``SCMP_ARCH_``), ``None`` for one it does not know."""
    found = getattr(library.Arch, name, None)
    return int(found) if found is not None else None


def front(
    library: Any,  # noqa: ANN401 - untyped
    architectures: Sequence[str],
    default: int,
    simple: Mapping[str, int],
    names: Sequence[str],
) -> bytes:
    """The instructions to be put in front of libseccomp's.

    Args:
        library: pyseccomp.
        architectures: Their names without ``SCMP_ARCH_``; none of them stands for the host's own.
        default: The action for what no rule names.
        simple: Name -> action of the rules without conditions on arguments.
        names: Of all rules.
    """
    if not architectures:
        known = {getattr(library.Arch, name): name for name in dir(library.Arch) if name.isupper()}
        architectures = [known[library.system_arch()]]
    sections = {name: _section(library, name, default, simple, names) for name in architectures}
    x32 = sections.pop("X32", [])
    program: list[Instruction] = [(_LOAD, 0, 0, _ARCHITECTURE_AT)]
    for name, section in sections.items():
        checked = [*_x32(section, x32)] if name == "X86_64" else section
        if checked:
            whole = [(_LOAD, 0, 0, _NUMBER_AT), *checked]
            # not this architecture: jump over its section, whose length may be more than eight bits hold
            program += [(_EQUAL, 1, 0, _audit(library, name)), (_JUMP, 0, 0, len(whole)), *whole]
    if len(program) == 1:
        return b""
    packed = [_resolve(row, at, len(program)) for at, row in enumerate(program)]
    return b"".join(struct.pack("=HBBI", *row) for row in packed)


_TO_BODY: Final = (_JUMP, 0, 0, -1)
"""Replaced by the distance once that is known."""


def _resolve(row: Instruction, at: int, end: int) -> Instruction:
    return (_JUMP, 0, 0, end - at - 1) if row == _TO_BODY else row


def _section(
    library: Any, name: str, default: int, simple: Mapping[str, int], names: Sequence[str]  # noqa: ANN401
) -> list[Instruction]:  # fmt: skip
    """What one architecture needs once the call's number is loaded; ends by going to libseccomp's program."""
    base, known = _BASES.get(name, 0), {}
    numbers = {base + number: each for each, number in {**COMMON, **_OWN.get(name, {})}.items()}
    rows: list[Instruction] = []
    architecture = token(library, name)
    for each in names:
        number = library.resolve_syscall(architecture, each)
        known[each] = number if number >= 0 else None
    unnamed = {number: each for number, each in numbers.items() if each in known and known[each] is None}
    added = {number: simple[each] for number, each in sorted(unnamed.items()) if simple.get(each, default) != default}
    if added:
        rows.append((_AT_LEAST, 1, 0, min(added)))
        rows.append(_TO_BODY)
        for number, action in added.items():
            rows += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, action)]
    last = max([*(number for number in known.values() if number is not None), *unnamed], default=-1)
    if last >= 0 and default & 0xFFFF_0000 not in _PERMISSIVE:
        if name in _MULTIPLEXED:
            rows += [(_EQUAL, 0, 1, 0), (_RETURN, 0, 0, _ENOSYS)]
        rows += [(_GREATER, 0, 1, last), (_RETURN, 0, 0, _ENOSYS)]
    return [*rows, _TO_BODY] if rows else []


def _x32(section: Sequence[Instruction], x32: Sequence[Instruction]) -> list[Instruction]:
    """x32 has the architecture of x86_64 and a bit in the number."""
    if not section and not x32:
        return []
    own = list(section) or [_TO_BODY]
    return [(_ANY_BIT, 0, 1, _X32_BIT), (_JUMP, 0, 0, len(own)), *own, *(x32 or [_TO_BODY])]


def _audit(library: Any, name: str) -> int:  # noqa: ANN401 - untyped
    """AUDIT_ARCH_*, which is libseccomp's number for all but x32."""
    found = token(library, name)
    assert found is not None
    return found
