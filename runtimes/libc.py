"""ctypes declarations of the Linux calls that Python 3.11 lacks, with errno turned into OSError; nothing else.

Imported by the sandbox helper: it must stay light. Each function has the name of the call, whose
manual page is its documentation.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import Any, Final

# linux/sched.h
CLONE_NEWNS: Final = 0x0002_0000
CLONE_NEWCGROUP: Final = 0x0200_0000
CLONE_NEWUTS: Final = 0x0400_0000
CLONE_NEWIPC: Final = 0x0800_0000
CLONE_NEWUSER: Final = 0x1000_0000
CLONE_NEWPID: Final = 0x2000_0000
CLONE_NEWNET: Final = 0x4000_0000
CLONE_PIDFD: Final = 0x0000_1000
CLONE_INTO_CGROUP: Final = 0x2_0000_0000

# linux/mount.h
MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_BIND: Final = 4096
MS_REC: Final = 16384
MS_PRIVATE: Final = 1 << 18
MS_STRICTATIME: Final = 1 << 24
MNT_DETACH: Final = 2
MOUNT_ATTR_RDONLY: Final = 1
MOUNT_ATTR_NOSUID: Final = 2
MOUNT_ATTR_NODEV: Final = 4
MOUNT_ATTR_NOEXEC: Final = 8

# linux/fcntl.h, linux/openat2.h
AT_EMPTY_PATH: Final = 0x1000
AT_RECURSIVE: Final = 0x8000
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_IN_ROOT: Final = 0x10

# linux/prctl.h
PR_SET_PDEATHSIG: Final = 1
PR_SET_NAME: Final = 15
PR_SET_CHILD_SUBREAPER: Final = 36
PR_SET_NO_NEW_PRIVS: Final = 38

CLOSE_RANGE_CLOEXEC: Final = 4

# Both numbers are the same on every architecture (asm-generic/unistd.h); glibc 2.36 wraps neither.
_NR_CLONE3: Final = 435
_NR_OPENAT2: Final = 437

_libc = ctypes.CDLL(None, use_errno=True)
_holding_gil = ctypes.PyDLL(None, use_errno=True)  # a forked copy must not wait for a lock that nobody gives back


class _CloneArgs(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "flags",
            "pidfd",
            "child_tid",
            "parent_tid",
            "exit_signal",
            "stack",
            "stack_size",
            "tls",
            "set_tid",
            "set_tid_size",
            "cgroup",
        )
    ]


class _OpenHow(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("flags", "mode", "resolve")]


class _MountAttr(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


def _errcheck(result: Any, _function: object, _arguments: object) -> Any:  # noqa: ANN401 - as ctypes declares it
    if result == -1:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno))
    return result


def _declare(library: ctypes.CDLL, name: str, *types: type, result: type = ctypes.c_int) -> Callable[..., Any]:
    function = library[name]  # indexing makes a new function object, so that two signatures do not meet
    function.argtypes = types
    function.restype = result
    function.errcheck = _errcheck
    return function


_INT, _LONG, _STR, _PTR = ctypes.c_int, ctypes.c_long, ctypes.c_char_p, ctypes.c_void_p
_mount = _declare(_libc, "mount", _STR, _STR, _STR, ctypes.c_ulong, _STR)
_umount2 = _declare(_libc, "umount2", _STR, _INT)
_pivot_root = _declare(_libc, "pivot_root", _STR, _STR)
_mount_setattr = _declare(_libc, "mount_setattr", _INT, _STR, ctypes.c_uint, _PTR, ctypes.c_size_t)
_unshare = _declare(_libc, "unshare", _INT)
_setns = _declare(_libc, "setns", _INT, _INT)
_prctl = _declare(_libc, "prctl", _INT, *[ctypes.c_ulong] * 4)
_sethostname = _declare(_libc, "sethostname", _STR, ctypes.c_size_t)
_close_range = _declare(_libc, "close_range", ctypes.c_uint, ctypes.c_uint, _INT)
_openat2 = _declare(_libc, "syscall", _LONG, _INT, _STR, _PTR, ctypes.c_size_t, result=_LONG)
_clone3 = _declare(_holding_gil, "syscall", _LONG, _PTR, ctypes.c_size_t, result=_LONG)


def mount(source: str | None, target: str, fstype: str | None, flags: int, data: str | None = None) -> None:
    """Mount a file system or bind a tree (man 2 mount)."""
    _mount(_encode(source), os.fsencode(target), _encode(fstype), flags, _encode(data))


def umount2(target: str, flags: int) -> None:
    """Unmount (man 2 umount)."""
    _umount2(os.fsencode(target), flags)


def pivot_root(new_root: str, put_old: str) -> None:
    """Change the root mount (man 2 pivot_root)."""
    _pivot_root(os.fsencode(new_root), os.fsencode(put_old))


def mount_setattr(dirfd: int, flags: int, attributes: int) -> None:
    """Set ``attributes`` of the mount that ``dirfd`` itself is, and clear none (man 2 mount_setattr)."""
    wanted = _MountAttr(attr_set=attributes)
    _mount_setattr(dirfd, b"", flags | AT_EMPTY_PATH, ctypes.byref(wanted), ctypes.sizeof(wanted))


def unshare(flags: int) -> None:
    """Leave namespaces for new ones (man 2 unshare)."""
    _unshare(flags)


def setns(fd: int, nstype: int) -> None:
    """Enter a namespace (man 2 setns)."""
    _setns(fd, nstype)


def prctl(option: int, argument: int | ctypes.Array[ctypes.c_char] = 0) -> None:
    """Set an attribute of this process with one argument (man 2 prctl)."""
    _prctl(option, argument if isinstance(argument, int) else ctypes.addressof(argument), 0, 0, 0)


def sethostname(name: str) -> None:
    """Name this UTS namespace (man 2 sethostname)."""
    encoded = os.fsencode(name)
    _sethostname(encoded, len(encoded))


def close_range(first: int, last: int, flags: int) -> None:
    """Close or mark a range of descriptors (man 2 close_range)."""
    _close_range(first, last, flags)


def openat2(dirfd: int, path: str, flags: int, resolve: int) -> int:
    """Open with a rule for the path (man 2 openat2); the descriptor is closed on exec."""
    how = _OpenHow(flags=flags | os.O_CLOEXEC, resolve=resolve)
    return int(_openat2(_NR_OPENAT2, dirfd, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how)))


def clone3(flags: int, exit_signal: int, cgroup: int | None = None) -> tuple[int, int]:
    """Fork into the namespaces of ``flags`` (man 2 clone3): (0, -1) in the child, (pid, pidfd) in the parent.

    ``cgroup`` is the directory of a version 2 group to be born in. Only for a process of one thread: Python's own
    work at a fork, which mends what other threads hold and would copy a hundred pages, is left out.
    """
    pidfd = ctypes.c_int(-1)
    arguments = _CloneArgs(flags=flags | CLONE_PIDFD, pidfd=ctypes.addressof(pidfd), exit_signal=exit_signal)
    if cgroup is not None:
        arguments.flags |= CLONE_INTO_CGROUP
        arguments.cgroup = cgroup
    pid = int(_clone3(_NR_CLONE3, ctypes.byref(arguments), ctypes.sizeof(arguments)))
    return pid, pidfd.value if pid else -1


def _encode(text: str | None) -> bytes | None:
    return None if text is None else os.fsencode(text)
