"""What a bundle asks for beyond a ``Spec``: scheduling, I/O priority, personality; and its compiled filter."""

from __future__ import annotations

import os
import sys

from bench.errors import InstanceError
from runtimes import libc
from runtimes.ociruntime import documents
from runtimes.security import seccomp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from runtimes.ociruntime.node import Node
    from runtimes.ociruntime.process import Process

_X86: Final = os.uname().machine == "x86_64"
# asm-generic/unistd.h and, for x86_64, its own table
_NR_IOPRIO_SET: Final = 251 if _X86 else 30
_NR_SCHED_SETATTR: Final = 314 if _X86 else 274
_NR_PERSONALITY: Final = 135 if _X86 else 92
_IOPRIO_WHO_PROCESS: Final = 1
_SCHED_ATTR_BYTES: Final = 48
"""struct sched_attr without the clamps of Linux 5.3 (sched_setattr(2))."""

_call = libc._declare("syscall", libc._Long, libc._Long, libc._Long, libc._Long, kind=libc._LongCall)
_call_with_structure = libc._declare(
    "syscall", libc._Long, libc._Int, libc._Pointer, libc._Unsigned, kind=libc._LongCall
)


def has_apparmor() -> bool:
    """Whether this host's kernel confines by AppArmor."""
    try:
        with open("/sys/module/apparmor/parameters/enabled", "rb", buffering=0) as file:
            return file.read(1) == b"Y"
    except OSError:
        return False


def take_on(process: Process, personality: int | None) -> None:
    """Have this very process scheduled as ``process`` wants to be; the child inherits it.

    Raises:
        InstanceError: the kernel refuses.
    """
    if process.scheduler is not None:
        policy, flags, nice, priority, *times = process.scheduler
        sizes = [
            (_SCHED_ATTR_BYTES, 4),
            (policy, 4),
            (flags, 8),
            (nice, 4),
            (priority, 4),
            *((each, 8) for each in times),
        ]
        packed = b"".join([value.to_bytes(size, sys.byteorder, signed=value < 0) for value, size in sizes])
        _ask("process.scheduler", _NR_SCHED_SETATTR, 0, packed, 0)
    if process.io_priority is not None:
        _ask("process.ioPriority", _NR_IOPRIO_SET, _IOPRIO_WHO_PROCESS, 0, process.io_priority)
    if personality is not None:
        _ask("linux.personality", _NR_PERSONALITY, personality, 0, 0)


def _ask(what: str, number: int, *arguments: int | bytes) -> None:
    try:
        (_call_with_structure if isinstance(arguments[1], bytes) else _call)(number, *arguments)
    except OSError as error:
        raise InstanceError(f"cannot set {what}: {error.strerror}") from error


def compiled_filter(node: Node, root: str) -> str:
    """The path of the compiled linux.seccomp, kept below ``root`` by its digest.

    Raises:
        UsageError: it is malformed, or wants a listener.
        HostError: libseccomp is missing.
    """
    for name in ("listenerPath", "listenerMetadata"):
        if node.text_of(name):
            raise node.need(name).fault("asks for a seccomp agent, which is not supported")
    path = seccomp.cache_path(root, b"isomark-oci\0" + documents.dumps(node.entries() and node.value).encode())
    if not os.path.exists(path):
        if sys.flags.no_site:  # started by ``python -S`` to be quick: installed packages are out of sight
            import site

            site.main()
        from runtimes.security import compiler  # heavy, and needed once for each profile

        made = compiler.compile_oci(node.value, root)
        try:  # noqa: SIM105 - contextlib is slow to import
            os.link(made, path)
        except FileExistsError:  # another create was faster
            pass
    return path
