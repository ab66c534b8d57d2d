"""The filter on system calls as a container's start needs it: found in the cache, read, installed (seccomp(2)).

What compiles it, once, is ``runtimes.security.compiler``; this half is on the way of every start, so light. A compiled
filter is a file of ``MAGIC``, one byte of flags and a classic BPF program (``struct sock_filter``, host byte order).
"""

from __future__ import annotations

import errno
import os
import stat
import sys

from bench.errors import HostError, UsageError
from runtimes import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

MAGIC: Final = b"ISOMSEC"
LOG: Final = 2
"""SECCOMP_FILTER_FLAG_LOG: log what is not allowed."""
SPEC_ALLOW: Final = 4
"""SECCOMP_FILTER_FLAG_SPEC_ALLOW: do not turn speculation off for the filtered, which runc sets for Docker as well;
since Linux 5.16 the kernel does not either."""
MAX_INSTRUCTIONS: Final = 4096
MAX_PROFILE_BYTES: Final = 1 << 20
BUILT_IN: Final = ("default", "strict")
CACHE: Final = "seccomp"
"""The directory of compiled filters below the state directory."""

_INSTRUCTION_BYTES: Final = 8
_SET_MODE_FILTER: Final = 1
_VERSION: Final = "1"
"""Of the compiler's output: a change of it makes every cached filter a stranger."""


class Program:
    """A filter in memory, ready to be installed.

    Attributes:
        flags: SECCOMP_FILTER_FLAG_*.
        code: The instructions.
    """

    __slots__ = ("code", "flags")

    def __init__(self, flags: int, code: bytes) -> None:
        if not code or len(code) % _INSTRUCTION_BYTES or len(code) > MAX_INSTRUCTIONS * _INSTRUCTION_BYTES:
            raise HostError(
                f"a filter of {len(code)} bytes is none: instructions have {_INSTRUCTION_BYTES}, {MAX_INSTRUCTIONS} "
                "of them at most"
            )
        self.flags = flags
        self.code = code


def read(path: str) -> Program:
    """Read the compiled filter at ``path``; nobody but root and us may have written it.

    To be called before the instance's root is entered, where ``path`` leads elsewhere.

    Raises:
        HostError: it is missing, somebody else's, or no filter.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            status = os.fstat(fd)
            data = os.read(fd, len(MAGIC) + 1 + (MAX_INSTRUCTIONS + 1) * _INSTRUCTION_BYTES)
        finally:
            os.close(fd)
    except OSError as error:
        raise HostError(f"cannot read the seccomp filter {path}: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode) or status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
        raise HostError(
            f"the seccomp filter {path} could have been written by others",
            hint=f"remove it: rm {path}; it is compiled again",
        )
    if not data.startswith(MAGIC) or len(data) != status.st_size:
        raise HostError(f"{path} is no compiled seccomp filter", hint=f"remove it: rm {path}; it is compiled again")
    return Program(data[len(MAGIC)], data[len(MAGIC) + 1 :])


def install(program: Program) -> None:
    """Filter the system calls of this process and of all it will execute.

    With no_new_privileges this can be the last thing before execve(2), and should be; without, it needs CAP_SYS_ADMIN
    and comes before the capabilities are given up, as in runc.

    Raises:
        OSError: EACCES without either, EINVAL where the kernel takes no filter.
    """
    code = bytearray(program.code)
    # struct sock_fprog: a 16-bit count, padding to the pointer's alignment, a pointer
    count = (len(code) // _INSTRUCTION_BYTES).to_bytes(2, sys.byteorder)
    wanted = count + bytes(6) + libc.address_of(code).to_bytes(8, sys.byteorder)
    try:
        libc.seccomp(_SET_MODE_FILTER, program.flags, wanted)
    except OSError as error:
        if error.errno != errno.EINVAL or not program.flags:
            raise
        libc.seccomp(_SET_MODE_FILTER, 0, wanted)  # flags that this kernel is too old for (before 4.14, 4.17)


def compiled(state: str, profile: str, capabilities: int) -> str:
    """The path of the compiled filter ``profile`` for a container with the bounding set ``capabilities``.

    Args:
        state: isomark's state directory.
        profile: ``default``, ``strict`` or the path of a profile in Docker's or OCI's form.
        capabilities: A mask; a profile may allow more with a capability.

    Raises:
        UsageError: the profile cannot be read or is none.
        HostError: there is no libseccomp, or the cache cannot be written.
    """
    text = _source(profile)
    path = _profile_path(state, text, capabilities)
    if not os.path.exists(path):
        from runtimes.security import compiler  # heavy, and needed once

        compiler.compile_profile(text, profile, capabilities, path)
    return path


def is_compiled(state: str, profile: str, capabilities: int) -> bool:
    """Whether ``compiled`` would find it in the cache.

    Raises:
        UsageError: the profile cannot be read.
    """
    return os.path.exists(_profile_path(state, _source(profile), capabilities))


def _profile_path(state: str, text: bytes, capabilities: int) -> str:
    return cache_path(state, b"%s\0%x" % (text, capabilities))


def cache_path(state: str, content: bytes) -> str:
    """Where the filter made of ``content`` on this host is or will be kept."""
    from _blake2 import blake2b  # hashlib costs what half a container's start may

    host = os.uname()
    about = f"{_VERSION}\0{host.release}\0{host.machine}\0{_library()}\0"
    return f"{state}/{CACHE}/{blake2b(about.encode() + content, digest_size=32).hexdigest()}.bpf"


def _source(profile: str) -> bytes:
    path = f"{os.path.dirname(__file__)}/{profile}.json" if profile in BUILT_IN else profile
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(fd)
            usable = stat.S_ISREG(status.st_mode) and status.st_size <= MAX_PROFILE_BYTES
            text = os.read(fd, status.st_size) if usable else None
        finally:
            os.close(fd)
    except OSError as error:
        hint = f"there are the built-in ones, {' and '.join(BUILT_IN)}, files, and unconfined"
        raise UsageError(f"cannot read the seccomp profile {profile}: {error.strerror}", hint=hint) from error
    if text is None:
        raise UsageError(f"the seccomp profile {profile} is no file of at most {MAX_PROFILE_BYTES} bytes")
    return text


def _library() -> str:
    """The version of libseccomp as its file name tells it: opening the library takes longer than all the rest."""
    machine = os.uname().machine
    for directory in (f"/usr/lib/{machine}-linux-gnu", "/usr/lib64", "/usr/lib", f"/lib/{machine}-linux-gnu", "/lib64"):
        try:
            return os.readlink(f"{directory}/libseccomp.so.2")
        except OSError:
            continue
    return "?"
