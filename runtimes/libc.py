"""Declarations of the Linux calls that Python 3.11 lacks, with errno turned into OSError; nothing else.

On the way of every container start, so it stands on ``_ctypes`` alone: the package ``ctypes`` takes longer to import
than a container to start. Each function has the name of the call, whose manual page is its documentation.
"""

from __future__ import annotations

import _ctypes
import errno
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, Final

EINVAL: Final = errno.EINVAL

# linux/sched.h
CLONE_NEWTIME: Final = 0x0000_0080
CLONE_NEWNS: Final = 0x0002_0000
CLONE_NEWCGROUP: Final = 0x0200_0000
CLONE_NEWUTS: Final = 0x0400_0000
CLONE_NEWIPC: Final = 0x0800_0000
CLONE_NEWUSER: Final = 0x1000_0000
CLONE_NEWPID: Final = 0x2000_0000
CLONE_NEWNET: Final = 0x4000_0000
CLONE_PIDFD: Final = 0x0000_1000
CLONE_PARENT: Final = 0x0000_8000
CLONE_CLEAR_SIGHAND: Final = 0x1_0000_0000
CLONE_INTO_CGROUP: Final = 0x2_0000_0000

# linux/mount.h
MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REMOUNT: Final = 32
MS_BIND: Final = 4096
MS_REC: Final = 16384
MS_UNBINDABLE: Final = 1 << 17
MS_PRIVATE: Final = 1 << 18
MS_SLAVE: Final = 1 << 19
MS_SHARED: Final = 1 << 20
MS_RELATIME: Final = 1 << 21
MS_STRICTATIME: Final = 1 << 24
MNT_DETACH: Final = 2
MOUNT_ATTR_RDONLY: Final = 1
MOUNT_ATTR_NOSUID: Final = 2
MOUNT_ATTR_NODEV: Final = 4
MOUNT_ATTR_NOEXEC: Final = 8
MOUNT_ATTR_NOATIME: Final = 0x10
MOUNT_ATTR_STRICTATIME: Final = 0x20
MOUNT_ATTR__ATIME: Final = 0x70
MOUNT_ATTR_NODIRATIME: Final = 0x80
MOUNT_ATTR_IDMAP: Final = 0x0010_0000
MOUNT_ATTR_NOSYMFOLLOW: Final = 0x0020_0000
OPEN_TREE_CLONE: Final = 1
OPEN_TREE_CLOEXEC: Final = 0x8_0000
MOVE_MOUNT_F_EMPTY_PATH: Final = 4
MOVE_MOUNT_T_EMPTY_PATH: Final = 0x40
FSOPEN_CLOEXEC: Final = 1
FSMOUNT_CLOEXEC: Final = 1
FSCONFIG_SET_FLAG: Final = 0
FSCONFIG_SET_STRING: Final = 1
FSCONFIG_CMD_CREATE: Final = 6

# linux/fcntl.h, linux/openat2.h
AT_FDCWD: Final = -100
AT_SYMLINK_NOFOLLOW: Final = 0x100
AT_EMPTY_PATH: Final = 0x1000
AT_RECURSIVE: Final = 0x8000
RESOLVE_NO_XDEV: Final = 0x01
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
RESOLVE_IN_ROOT: Final = 0x10

# linux/prctl.h
PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
PR_SET_KEEPCAPS: Final = 8
PR_SET_NAME: Final = 15
PR_SET_SECCOMP: Final = 22
PR_CAPBSET_DROP: Final = 24
PR_SET_CHILD_SUBREAPER: Final = 36
PR_SET_NO_NEW_PRIVS: Final = 38
PR_CAP_AMBIENT: Final = 47

# linux/magic.h
PROC_SUPER_MAGIC: Final = 0x9FA0
DEVPTS_SUPER_MAGIC: Final = 0x1CD1

CLOSE_RANGE_CLOEXEC: Final = 4
KEYCTL_JOIN_SESSION_KEYRING: Final = 1

# The same on every architecture (asm-generic/unistd.h); glibc wraps none of them, or only lately.
_NR_OPEN_TREE: Final = 428
_NR_MOVE_MOUNT: Final = 429
_NR_FSOPEN: Final = 430
_NR_FSCONFIG: Final = 431
_NR_FSMOUNT: Final = 432
_NR_CLONE3: Final = 435
_NR_OPENAT2: Final = 437
_NR_MOUNT_SETATTR: Final = 442
# Not the same: (x86_64, all others that Linux has added since)
_X86 = os.uname().machine == "x86_64"
_NR_KEYCTL: Final = 250 if _X86 else 219
_NR_CAPGET: Final = 125 if _X86 else 90
_NR_CAPSET: Final = 126 if _X86 else 91
_NR_SECCOMP: Final = 317 if _X86 else 277
_NR_EXECVEAT: Final = 322 if _X86 else 281
_NR_BPF: Final = 321 if _X86 else 280

_CAPABILITY_VERSION_3: Final = 0x2008_0522


class _Int(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "i"


class _Unsigned(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "I"


class _Long(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "l"


class _Size(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "L"


class _Text(_ctypes._SimpleCData):  # type: ignore[type-arg]
    """``char *``: bytes or None."""

    _type_ = "z"


class _Byte(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "b"


class _Pointer:
    """``void *``: bytes, a bytearray, which the call may write to, an address, or None."""

    @staticmethod
    def from_param(value: Any) -> Any:  # noqa: ANN401 - as ctypes declares it
        """Convert an argument."""
        if isinstance(value, bytearray):
            return _ctypes.byref((_Byte * len(value)).from_buffer(value))
        return _Size(value) if isinstance(value, int) else value


class _Call(_ctypes.CFuncPtr):
    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
    _restype_ = _Int


class _LongCall(_ctypes.CFuncPtr):
    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
    _restype_ = _Long


class _LongCallHoldingGil(_ctypes.CFuncPtr):
    """A forked copy must not wait for a lock that nobody gives back."""

    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO | _ctypes.FUNCFLAG_PYTHONAPI
    _restype_ = _Long


class _Program:
    """This process, in which the C library's functions are looked up."""

    _handle = _ctypes.dlopen(None, 0)  # type: ignore[arg-type]


def _errcheck(result: Any, _function: object, _arguments: object) -> Any:  # noqa: ANN401 - as ctypes declares it
    if result == -1:
        number = _ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _declare(name: str, *types: type, kind: type = _Call) -> Callable[..., Any]:
    function = kind((name, _Program))
    function.argtypes = types
    function.errcheck = _errcheck
    return function  # type: ignore[no-any-return]


_mount = _declare("mount", _Text, _Text, _Text, _Size, _Text)
_umount2 = _declare("umount2", _Text, _Int)
_pivot_root = _declare("pivot_root", _Text, _Text)
_unshare = _declare("unshare", _Int)
_setns = _declare("setns", _Int, _Int)
_prctl = _declare("prctl", _Int, _Size, _Size, _Size, _Size)
_prctl_text = _declare("prctl", _Int, _Text, _Size, _Size, _Size)
_sethostname = _declare("sethostname", _Text, _Size)
_setdomainname = _declare("setdomainname", _Text, _Size)
_prlimit = _declare("prlimit64", _Int, _Int, _Pointer, _Pointer)
_fstatfs = _declare("fstatfs64", _Int, _Pointer)
_close_range = _declare("close_range", _Unsigned, _Unsigned, _Int)
_openat2 = _declare("syscall", _Long, _Int, _Text, _Pointer, _Size, kind=_LongCall)
_clone3 = _declare("syscall", _Long, _Pointer, _Size, kind=_LongCallHoldingGil)
_execveat = _declare("syscall", _Long, _Int, _Text, _Pointer, _Pointer, _Int, kind=_LongCall)
_mount_setattr = _declare("syscall", _Long, _Int, _Text, _Unsigned, _Pointer, _Size, kind=_LongCall)
_open_tree = _declare("syscall", _Long, _Int, _Text, _Unsigned, kind=_LongCall)
_move_mount = _declare("syscall", _Long, _Int, _Text, _Int, _Text, _Unsigned, kind=_LongCall)
_fsopen = _declare("syscall", _Long, _Text, _Unsigned, kind=_LongCall)
_fsconfig = _declare("syscall", _Long, _Int, _Unsigned, _Text, _Text, _Int, kind=_LongCall)
_fsmount = _declare("syscall", _Long, _Int, _Unsigned, _Unsigned, kind=_LongCall)
_keyctl = _declare("syscall", _Long, _Int, _Text, kind=_LongCall)
_capability = _declare("syscall", _Long, _Pointer, _Pointer, kind=_LongCall)
_bpf = _declare("syscall", _Long, _Int, _Pointer, _Unsigned, kind=_LongCall)
_seccomp = _declare("syscall", _Long, _Unsigned, _Unsigned, _Pointer, kind=_LongCall)


def mount(source: str | None, target: str, fstype: str | None, flags: int, data: str | None = None) -> None:
    """Mount a file system or bind a tree (man 2 mount)."""
    _mount(_encode(source), os.fsencode(target), _encode(fstype), flags, _encode(data))


def umount2(target: str, flags: int) -> None:
    """Unmount (man 2 umount)."""
    _umount2(os.fsencode(target), flags)


def pivot_root(new_root: str, put_old: str) -> None:
    """Change the root mount (man 2 pivot_root)."""
    _pivot_root(os.fsencode(new_root), os.fsencode(put_old))


def mount_setattr(
    dirfd: int, flags: int, attributes: int, *, clear: int = 0, propagation: int = 0, userns: int = 0
) -> None:
    """Set and ``clear`` attributes of the mount that ``dirfd`` itself is (man 2 mount_setattr).

    ``userns`` is the descriptor of the user namespace whose map MOUNT_ATTR_IDMAP takes.
    """
    wanted = _words(attributes, clear, propagation, userns)
    _mount_setattr(_NR_MOUNT_SETATTR, dirfd, b"", flags | AT_EMPTY_PATH, wanted, len(wanted))


def open_tree(dirfd: int, path: str, flags: int) -> int:
    """A descriptor of a mount, or with OPEN_TREE_CLONE of a detached copy of it (man 2 open_tree, Linux 5.2)."""
    return int(_open_tree(_NR_OPEN_TREE, dirfd, os.fsencode(path), flags | OPEN_TREE_CLOEXEC))


def move_mount(mounted: int, target: int) -> None:
    """Attach the detached mount ``mounted`` where ``target`` is (man 2 move_mount, Linux 5.2)."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    _move_mount(_NR_MOVE_MOUNT, mounted, b"", target, b"", flags)


def fsopen(fstype: str) -> int:
    """Begin to configure a new file system (man 2 fsopen, Linux 5.2)."""
    return int(_fsopen(_NR_FSOPEN, os.fsencode(fstype), FSOPEN_CLOEXEC))


def fsconfig(fs: int, command: int, key: str | None = None, value: str | None = None) -> None:
    """Configure or create a file system (man 2 fsconfig)."""
    _fsconfig(_NR_FSCONFIG, fs, command, _encode(key), _encode(value), 0)


def fsmount(fs: int, attributes: int) -> int:
    """A detached mount of a created file system (man 2 fsmount)."""
    return int(_fsmount(_NR_FSMOUNT, fs, FSMOUNT_CLOEXEC, attributes))


def unshare(flags: int) -> None:
    """Leave namespaces for new ones (man 2 unshare)."""
    _unshare(flags)


def setns(fd: int, nstype: int) -> None:
    """Enter a namespace (man 2 setns)."""
    _setns(fd, nstype)


def prctl(option: int, second: int = 0, third: int = 0, fourth: int = 0, fifth: int = 0) -> int:
    """Set or get an attribute of this process (man 2 prctl)."""
    return int(_prctl(option, second, third, fourth, fifth))


def set_name(name: str) -> None:
    """Name this thread in at most 15 bytes (man 2 prctl, PR_SET_NAME)."""
    _prctl_text(PR_SET_NAME, os.fsencode(name), 0, 0, 0)


def sethostname(name: str) -> None:
    """Name this UTS namespace (man 2 sethostname)."""
    encoded = os.fsencode(name)
    _sethostname(encoded, len(encoded))


def setdomainname(name: str) -> None:
    """Set the NIS domain of this UTS namespace (man 2 setdomainname)."""
    encoded = os.fsencode(name)
    _setdomainname(encoded, len(encoded))


def setrlimit(resource: int, soft: int, hard: int) -> None:
    """Limit a resource (man 2 setrlimit); -1 is no limit."""
    endless = (1 << 64) - 1
    _prlimit(0, resource, _words(soft & endless, hard & endless), None)


def fstatfs(fd: int) -> int:
    """The magic number of the file system that ``fd`` is on (man 2 fstatfs, ``f_type``)."""
    answer = bytearray(256)
    _fstatfs(fd, answer)
    return int.from_bytes(answer[:4], sys.byteorder)


def close_range(first: int, last: int, flags: int) -> None:
    """Close or mark a range of descriptors (man 2 close_range)."""
    _close_range(first, last, flags)


def openat2(dirfd: int, path: str, flags: int, resolve: int, mode: int = 0) -> int:
    """Open with a rule for the path (man 2 openat2); the descriptor is closed on exec."""
    how = _words(flags | os.O_CLOEXEC, mode, resolve)
    return int(_openat2(_NR_OPENAT2, dirfd, os.fsencode(path), how, len(how)))


def clone3(flags: int, exit_signal: int, cgroup: int | None = None) -> tuple[int, int]:
    """Fork into the namespaces of ``flags`` (man 2 clone3): (0, -1) in the child, (pid, pidfd) in the parent.

    ``cgroup`` is the directory of a version 2 group to be born in. Only for a process of one thread: Python's own
    work at a fork, which mends what other threads hold and would copy a hundred pages, is left out.
    """
    pidfd = _Int(-1)
    flags |= CLONE_PIDFD | (CLONE_INTO_CGROUP if cgroup is not None else 0)
    # flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup
    arguments = _words(flags, _ctypes.addressof(pidfd), 0, 0, exit_signal, 0, 0, 0, 0, 0, cgroup or 0)
    pid = int(_clone3(_NR_CLONE3, arguments, len(arguments)))
    return pid, pidfd.value if pid else -1


def execveat(dirfd: int, path: str, command: Sequence[str], environment: Mapping[str, str], flags: int) -> None:
    """Execute a program found from a directory (man 2 execveat); returns only by raising.

    Raises:
        ValueError: a null byte in an argument.
    """
    variables = [f"{name}={value}" for name, value in environment.items()]
    _execveat(_NR_EXECVEAT, dirfd, os.fsencode(path), _vector(command), _vector(variables), flags)


def capget() -> tuple[int, int, int]:
    """This process's effective, permitted and inheritable capabilities as masks (man 2 capget)."""
    data = bytearray(24)
    _capability(_NR_CAPGET, _halves(_CAPABILITY_VERSION_3, 0), data)
    low, high = ([int.from_bytes(data[at : at + 4], sys.byteorder) for at in range(start, start + 12, 4)]
                 for start in (0, 12))  # fmt: skip
    effective, permitted, inheritable = (one | other << 32 for one, other in zip(low, high, strict=True))
    return effective, permitted, inheritable


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """Set this process's capabilities (man 2 capset)."""
    low = [mask & 0xFFFF_FFFF for mask in (effective, permitted, inheritable)]
    high = [mask >> 32 for mask in (effective, permitted, inheritable)]
    _capability(_NR_CAPSET, _halves(_CAPABILITY_VERSION_3, 0), _halves(*low, *high))


def seccomp(operation: int, flags: int, argument: bytes | bytearray | int | None) -> int:
    """Operate on this process's filters (man 2 seccomp)."""
    return int(_seccomp(_NR_SECCOMP, operation, flags, argument))


def bpf(command: int, attributes: bytearray) -> int:
    """Load, attach or look at BPF programs (man 2 bpf); a new descriptor is closed on exec."""
    return int(_bpf(_NR_BPF, command, attributes, len(attributes)))


def join_session_keyring(name: str | None) -> None:
    """Leave the session's keys for a keyring of one's own (man 3 keyctl_join_session_keyring)."""
    _keyctl(_NR_KEYCTL, KEYCTL_JOIN_SESSION_KEYRING, _encode(name))


def address_of(data: bytearray) -> int:
    """Where ``data`` is, for a structure that points to it; ``data`` must outlive its use."""
    return int(_ctypes.addressof((_Byte * len(data)).from_buffer(data)))


def _words(*numbers: int) -> bytes:
    """A structure of 64-bit members."""
    return b"".join([number.to_bytes(8, sys.byteorder) for number in numbers])


def _halves(*numbers: int) -> bytes:
    """A structure of 32-bit members."""
    return b"".join([number.to_bytes(4, sys.byteorder) for number in numbers])


def _vector(texts: Sequence[str]) -> Any:  # noqa: ANN401 - ctypes makes the class
    """A null-terminated array of strings."""
    encoded = [os.fsencode(text) for text in texts]
    if any(b"\0" in each for each in encoded):
        raise ValueError("embedded null byte")
    return _ctypes.byref((_Text * (len(encoded) + 1))(*encoded))


def _encode(text: str | None) -> bytes | None:
    return None if text is None else os.fsencode(text)
