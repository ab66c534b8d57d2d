"""Executing the instance's command without ever handing out our own interpreter (CVE-2019-5736).

``/proc/self/exe`` is a door to the file that a process was executed from, and who comes through it may write to that
file. Until it executes, a process of ours was executed from the host's Python; a command, a script's interpreter or a
link that leads back through that door would make the host's Python run inside, with the door open to the container.

So every path on the way to the command is resolved without the kernel's magic links, and a script's interpreters are
looked at one by one. Where somebody else may alter the files meanwhile (a running container, a volume), looking is not
enough: there the program is executed by its directory's descriptor, which closes on exec. For such a one the kernel
starts no interpreter, neither a script's nor one of binfmt_misc, and follows no link (execve(2), execveat(2), ENOENT).
"""

from __future__ import annotations

import errno
import os
import stat

from runtimes import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Final

DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MAX_INTERPRETERS: Final = 5
"""As the kernel (fs/exec.c, exec_binprm)."""
_HEADER_BYTES: Final = 256
"""What the kernel looks at (linux/binfmts.h, BINPRM_BUF_SIZE)."""
_MAX_LINKS: Final = 40
_ELF: Final = b"\x7fELF"
with open("/proc/self/exe", "rb", buffering=0) as _own:
    _MACHINE: Final = _own.read(20)[18:]
    """The ELF header's e_machine of this host's programs."""


class _Suspicious(Exception):
    """The program lies on another mount, or is not of a kind that the kernel starts without help."""


def find(name: str, environment: Mapping[str, str]) -> str:
    """The path of the command ``name``, searched in PATH if it has no slash.

    Raises:
        OSError: it is not there, or not executable.
    """
    if "\0" in name:
        raise ValueError("embedded null byte")
    if "/" in name:
        path = os.path.join(os.getcwd(), name)
        if not _may_execute(os.stat(path), path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return path
    worst = errno.ENOENT
    for directory in environment.get("PATH", DEFAULT_PATH).split(":"):
        path = os.path.join(os.getcwd(), directory, name)
        try:
            found = os.stat(path)
        except OSError:
            continue
        if _may_execute(found, path):
            return path
        worst = errno.EACCES
    raise OSError(worst, os.strerror(worst))


def _may_execute(found: os.stat_result, path: str) -> bool:
    return stat.S_ISREG(found.st_mode) and os.access(path, os.X_OK)


class Program:
    """A command that was found and looked at; what is left is to execute it."""

    __slots__ = ("_arguments", "_directory", "_environment", "_path")

    def __init__(self, directory: int, path: str, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        self._directory = directory
        self._path = path
        self._arguments = list(arguments)
        self._environment = environment

    def execute(self) -> None:
        """Execute it; returns only by raising.

        Raises:
            OSError: the kernel refuses it.
            ValueError: a null byte in an argument or variable.
        """
        if self._directory == -1:
            os.execve(self._path, self._arguments, self._environment)
        libc.execveat(self._directory, self._path, self._arguments, self._environment, libc.AT_SYMLINK_NOFOLLOW)


def prepare(command: Sequence[str], environment: Mapping[str, str], *, alone: bool) -> Program:
    """Find ``command`` below the root that this process is in.

    ``alone``: nothing else runs that could alter the root file system, volumes aside.

    Raises:
        OSError: it cannot be executed.
        ValueError: a null byte in its name.
    """
    path = find(command[0], environment)
    if alone:
        try:
            _inspect(path)
        except (_Suspicious, PermissionError):  # one that cannot be read may be executable all the same
            pass
        else:
            return Program(-1, path, command, environment)
    program, arguments = _without_scripts(path, command)
    directory, name = os.path.split(_without_links(program))
    held = libc.openat2(libc.AT_FDCWD, directory, os.O_PATH | os.O_DIRECTORY, libc.RESOLVE_NO_MAGICLINKS)
    return Program(held, name, arguments, environment)


def _inspect(path: str) -> None:
    """Make sure that the kernel will start only programs of the root's own mount, which nobody else alters."""
    for _ in range(_MAX_INTERPRETERS):
        header = _header(path, libc.RESOLVE_NO_MAGICLINKS | libc.RESOLVE_NO_XDEV)
        interpreter = _interpreter(header)
        if interpreter is None:
            if not header.startswith(_ELF) or header[18:20] != _MACHINE:
                raise _Suspicious
            return
        path = interpreter[0]
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def _without_scripts(path: str, command: Sequence[str]) -> tuple[str, list[str]]:
    """Do the kernel's part for a script: the interpreter that is to be executed, and its arguments."""
    arguments = list(command)
    for _ in range(_MAX_INTERPRETERS):
        try:
            interpreter = _interpreter(_header(path, libc.RESOLVE_NO_MAGICLINKS))
        except PermissionError:  # may be executable all the same; if it is a script, the kernel will refuse it
            interpreter = None
        if interpreter is None:
            return path, arguments
        if not os.access(path, os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        arguments = [*interpreter, path, *arguments[1:]]
        path = os.path.join(os.getcwd(), interpreter[0])
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def _header(path: str, resolve: int) -> bytes:
    """The beginning of a regular file; anything else is not executable."""
    try:
        fd = libc.openat2(libc.AT_FDCWD, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY, resolve)
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise _Suspicious from error
        raise
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return os.pread(fd, _HEADER_BYTES, 0)
    finally:
        os.close(fd)


def _interpreter(header: bytes) -> list[str] | None:
    """The interpreter that a script names, and its one argument, as the kernel reads them (fs/binfmt_script.c).

    Spaces and tabs part them, and no other white space, which may be in a name; a null byte ends either.
    """
    if not header.startswith(b"#!"):
        return None
    line = header[2:].partition(b"\n")[0].strip(b" \t")
    length = next((at for at, byte in enumerate(line) if byte in b" \t\0"), len(line))
    name, rest = line[:length], line[length:]
    if not name:
        raise OSError(errno.ENOEXEC, os.strerror(errno.ENOEXEC))
    argument = rest.lstrip(b" \t").partition(b"\0")[0]
    return [os.fsdecode(word) for word in (name, argument) if word]


def _without_links(path: str) -> str:
    """The same program by a path whose last part is no symbolic link, as far as one can tell."""
    for _ in range(_MAX_LINKS):
        try:
            path = os.path.join(os.path.dirname(path), os.readlink(path))
        except OSError:  # no link: if it is not there either, its execution says so
            return path
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
