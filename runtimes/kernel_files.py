"""Writing to the kernel's files in /proc, and to nothing that only looks like one.

The directory held is the host's own /proc, opened before the image's is in sight: what an image puts at /proc (a
tmpfs, a symbolic link; CVE-2019-16884, CVE-2019-19921) is never written to. What a sysctl of a namespace means is
decided by who opens it, not by where the file system was mounted.
"""

from __future__ import annotations

import os

from runtimes import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_RESOLVE: Final = libc.RESOLVE_BENEATH | libc.RESOLVE_NO_XDEV | libc.RESOLVE_NO_SYMLINKS | libc.RESOLVE_NO_MAGICLINKS


def open_proc() -> int:
    """A descriptor of the host's /proc.

    Raises:
        OSError: what is mounted there is no procfs.
    """
    proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    if libc.fstatfs(proc) != libc.PROC_SUPER_MAGIC:
        os.close(proc)
        raise FileNotFoundError(2, "/proc is no procfs")
    return proc


def write(proc: int, path: str, text: str) -> None:
    """Write ``text`` to the file ``path`` below ``proc`` in one go.

    Raises:
        OSError: there is no such file, or the kernel refuses the text.
    """
    fd = libc.openat2(proc, path, os.O_WRONLY, _RESOLVE)
    try:
        os.write(fd, os.fsencode(text))
    finally:
        os.close(fd)


def write_own(proc: int, path: str, text: str) -> None:
    """The same for a file of this process, ``/proc/self/path``."""
    write(proc, f"{os.readlink('self', dir_fd=proc)}/{path}", text)


def sysctl_path(name: str) -> str:
    """Where a setting is; the first separator, dot or slash, is the one that separates (sysctl(8))."""
    dot, slash = name.find("."), name.find("/")
    if dot != -1 and (slash == -1 or dot < slash):
        name = name.translate({ord("."): "/", ord("/"): "."})
    return f"sys/{name}"
