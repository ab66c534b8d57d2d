"""Seccomp profiles as people write them: Docker's form, resolved to OCI's for one host and one set of capabilities.

Docker's form is OCI's ``linux.seccomp`` (runtime-spec, config-linux.md) with ``archMap`` and with ``includes`` and
``excludes`` on every rule (docs.docker.com, "Seccomp security profiles for Docker"). Both are read from files that
anybody may have written. Not on the way of a start: a compiled filter is cached.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

from bench.errors import UsageError
from runtimes.security import capabilities

MACHINES: Final[Mapping[str, tuple[str, str]]] = {
    "x86_64": ("amd64", "SCMP_ARCH_X86_64"),
    "i686": ("x86", "SCMP_ARCH_X86"),
    "aarch64": ("arm64", "SCMP_ARCH_AARCH64"),
    "armv7l": ("arm", "SCMP_ARCH_ARM"),
    "ppc64le": ("ppc64le", "SCMP_ARCH_PPC64LE"),
    "riscv64": ("riscv64", "SCMP_ARCH_RISCV64"),
    "s390x": ("s390x", "SCMP_ARCH_S390X"),
    "mips64": ("mipsel64", "SCMP_ARCH_MIPSEL64"),
    "loongarch64": ("loongarch64", "SCMP_ARCH_LOONGARCH64"),
}
"""uname -m -> the name in ``arches`` and the one in ``archMap``."""

_CONDITIONS: Final = frozenset({"arches", "caps", "minKernel"})
_FORMS: Final = "man 7 seccomp, or a copy of runtimes/security/default.json, shows the form"


def parse(text: bytes, name: str) -> dict[str, Any]:
    """The profile in ``text``; ``name`` is for messages.

    Raises:
        UsageError: it is no JSON object.
    """
    try:
        profile = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the seccomp profile {name} is no JSON: {error}", hint=_FORMS) from error
    if not isinstance(profile, dict):
        raise UsageError(f"the seccomp profile {name} is no JSON object", hint=_FORMS)
    return profile


def resolve(profile: Mapping[str, Any], held: int, *, machine: str, release: str) -> dict[str, Any]:
    """``profile`` in OCI's form, as it applies to capabilities ``held`` on ``machine`` with kernel ``release``.

    Raises:
        UsageError: a part of it is malformed.
    """
    arch, native = MACHINES.get(machine, (machine, ""))
    resolved = {key: profile[key] for key in ("defaultAction", "defaultErrnoRet", "flags") if key in profile}
    if "archMap" in profile:
        if profile.get("architectures"):
            raise UsageError("a seccomp profile has architectures or archMap, not both", hint=_FORMS)
        resolved["architectures"] = _architectures(_objects(profile, "archMap"), native)
    elif "architectures" in profile:
        resolved["architectures"] = profile["architectures"]
    resolved["syscalls"] = [
        rule
        for rule in _objects(profile, "syscalls")
        if _applies(rule.get("includes"), rule.get("excludes"), held, arch, release)
    ]
    return resolved


def _architectures(rows: Sequence[Mapping[str, Any]], native: str) -> list[str]:
    for row in rows:
        if row.get("architecture") == native:
            return [native, *_texts(row, "subArchitectures")]
    return []


def _applies(includes: object, excludes: object, held: int, arch: str, release: str) -> bool:
    """Every condition of ``includes`` must hold, and none of ``excludes``."""
    return all(_holding(_conditions(includes), held, arch, release)) and not any(
        _holding(_conditions(excludes), held, arch, release)
    )


def _conditions(found: object) -> Mapping[str, Any]:
    if found is None:
        return {}
    if not isinstance(found, dict) or found.keys() - _CONDITIONS:
        raise UsageError(f"{found!r} is no condition of a seccomp rule: arches, caps, minKernel", hint=_FORMS)
    return found


def _holding(conditions: Mapping[str, Any], held: int, arch: str, release: str) -> list[bool]:
    """Which of ``conditions`` hold; of ``caps`` each counts by itself, and one we do not know is not held."""
    found = []
    if arches := _texts(conditions, "arches"):
        found.append(arch in arches)
    names = _texts(conditions, "caps")
    found += [name in capabilities.NAMES and bool(held & capabilities.mask([name])) for name in names]
    if minimum := conditions.get("minKernel"):
        found.append(_version(release) >= _version(str(minimum)))
    return found


def _version(text: str) -> tuple[int, int]:
    major, _, rest = text.partition(".")
    minor = rest.partition(".")[0].partition("-")[0]
    try:
        return int(major), int(minor or 0)
    except ValueError:
        raise UsageError(f"{text!r} is no version of a kernel", hint='write "4.8"') from None


def _objects(profile: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    rows = profile.get(key) or []
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UsageError(f"{key} of a seccomp profile is no list of objects", hint=_FORMS)
    return rows


def _texts(found: Mapping[str, Any], key: str) -> list[str]:
    texts = found.get(key) or []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise UsageError(f"{key} of a seccomp profile is no list of names", hint=_FORMS)
    return texts


def of_this_host(profile: Mapping[str, Any], held: int) -> dict[str, Any]:
    """``resolve`` for the running kernel."""
    host = os.uname()
    return resolve(profile, held, machine=host.machine, release=host.release)
