"""Compiles seccomp profiles to BPF with libseccomp, into a cache. Heavy; needed once for each profile and kernel.

What libseccomp is too old to know is added in front of its program (``runtimes.security.newer``).
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

from bench.errors import HostError, UsageError
from runtimes.security import newer, profile, seccomp

FLAGS: Final[Mapping[str, int]] = {
    "SECCOMP_FILTER_FLAG_TSYNC": 0,  # the one thread that installs it executes the command: there are no others
    "SECCOMP_FILTER_FLAG_LOG": seccomp.LOG,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": seccomp.SPEC_ALLOW,
}
OPERATORS: Final = ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ")
"""From 1, as libseccomp numbers them."""

_ACTIONS: Final[Mapping[str, int]] = {
    "KILL": 0,
    "KILL_THREAD": 0,
    "KILL_PROCESS": 0x8000_0000,
    "TRAP": 0x0003_0000,
    "ERRNO": 0x0005_0000,
    "TRACE": 0x7FF0_0000,
    "LOG": 0x7FFC_0000,
    "ALLOW": 0x7FFF_0000,
}
"""SECCOMP_RET_* (linux/seccomp.h), which libseccomp's actions are."""
_WITH_NUMBER: Final = ("ERRNO", "TRACE")
_BINARY_TREE: Final = 2
_TREE_PAYS_FROM: Final = 32
"""Rules; and libseccomp before 2.5.5 makes a bad tree of none."""
_ARGUMENT_LIMITS: Final = (("index", 6), ("value", 1 << 64), ("valueTwo", 1 << 64))
_FORM: Final = 'runtime-spec, config-linux.md, "Seccomp", has the form'


def compile_profile(text: bytes, name: str, capabilities: int, path: str) -> None:
    """Compile the profile in ``text``, in Docker's or OCI's form, to a file at ``path``.

    Raises:
        UsageError: the profile is malformed.
        HostError: libseccomp is missing or refuses, or ``path`` cannot be written.
    """
    resolved = profile.of_this_host(profile.parse(text, name), capabilities)
    _write(path, _header(resolved) + assemble(resolved))


def compile_oci(config: Mapping[str, Any], state: str) -> str:
    """The path of the compiled filter of an OCI ``linux.seccomp`` object, below the state directory.

    Raises:
        UsageError: the object is malformed or asks for a listener, which nobody here is.
        HostError: libseccomp is missing or refuses, or the cache cannot be written.
    """
    path = seccomp.cache_path(state, b"oci\0" + json.dumps(config, sort_keys=True).encode())
    if not os.path.exists(path):
        _write(path, _header(config) + assemble(config))
    return path


def assemble(config: Mapping[str, Any]) -> bytes:
    """The instructions for an OCI ``linux.seccomp`` object.

    Raises:
        UsageError: the object is malformed.
        HostError: libseccomp is missing or refuses.
    """
    library = _library()
    default = _action(config.get("defaultAction"), config.get("defaultErrnoRet"))
    architectures = [_architecture(name) for name in config.get("architectures") or []]
    rules = [each for rule in config.get("syscalls") or [] for each in _rules(rule)]
    try:
        program = library.SyscallFilter(default)
        for name in architectures:
            _add_architecture(library, program, name)
        if len(rules) > _TREE_PAYS_FROM:
            _optimize(library, program)
        for rule in rules:
            _add_rule(library, program, default, *rule)
        body = _export(program)
    except OSError as error:
        raise HostError(f"libseccomp cannot compile the profile: {error.strerror or error}") from error
    simple = {name: action for name, action, arguments in rules if not arguments}
    names = [name for name, _, _ in rules]
    return newer.front(library, architectures, default, simple, names) + body


def _header(config: Mapping[str, Any]) -> bytes:
    """Without flags it is runc's default: SPEC_ALLOW."""
    names = config.get("flags")
    if names is None:
        return seccomp.MAGIC + bytes([seccomp.SPEC_ALLOW])
    if not isinstance(names, list) or not all(name in FLAGS for name in names):
        raise UsageError(f"flags {names!r} of a seccomp profile are not among {', '.join(FLAGS)}", hint=_FORM)
    return seccomp.MAGIC + bytes([sum({FLAGS[name] for name in names})])


def _rules(rule: object) -> list[tuple[str, int, list[tuple[int, int, int, int]]]]:
    """What libseccomp is to be told, one (name, action, arguments) for each rule of its.

    Conditions on one argument twice are alternatives, on different ones all must hold: so runc does.
    """
    if not isinstance(rule, dict):
        raise UsageError(f"{rule!r} is no seccomp rule", hint=_FORM)
    names = rule.get("names") or [rule.get("name")]
    if not isinstance(names, list) or not all(isinstance(name, str) and name.isidentifier() for name in names):
        raise UsageError(f"{names!r} are no names of system calls", hint=_FORM)
    action = _action(rule.get("action"), rule.get("errnoRet"))
    arguments = [_argument(each) for each in rule.get("args") or []]
    if len({index for index, *_ in arguments}) < len(arguments):
        return [(name, action, [argument]) for name in names for argument in arguments]
    return [(name, action, arguments) for name in names]


def _action(name: object, number: object) -> int:
    short = str(name).removeprefix("SCMP_ACT_")
    if short == "NOTIFY":
        raise UsageError("SCMP_ACT_NOTIFY asks a listener for every call, and there is none here", hint="allow or deny")
    if short not in _ACTIONS or not str(name).startswith("SCMP_ACT_"):
        raise UsageError(f"{name!r} is no action of a seccomp profile", hint=_FORM)
    if short not in _WITH_NUMBER:
        if number:
            raise UsageError(f"{name} returns no error number, but {number!r} is asked for", hint=_FORM)
        return _ACTIONS[short]
    if number is None:
        number = errno.EPERM
    if not isinstance(number, int) or not 0 <= number <= 0xFFFF:
        raise UsageError(f"{number!r} is no error number", hint=_FORM)
    return _ACTIONS[short] | number


def _argument(found: object) -> tuple[int, int, int, int]:
    if not isinstance(found, dict):
        raise UsageError(f"{found!r} is no condition on an argument", hint=_FORM)
    operator = str(found.get("op")).removeprefix("SCMP_CMP_")
    index, value, second = (_whole(found.get(key) or 0, limit) for key, limit in _ARGUMENT_LIMITS)
    if operator not in OPERATORS or index is None or value is None or second is None:
        raise UsageError(f"{found!r} is no condition on an argument", hint=_FORM)
    return index, OPERATORS.index(operator) + 1, value, second


def _whole(number: object, limit: int) -> int | None:
    return number if isinstance(number, int) and 0 <= number < limit else None


def _architecture(name: object) -> str:
    if not isinstance(name, str) or not name.startswith("SCMP_ARCH_"):
        raise UsageError(f"{name!r} is no architecture of a seccomp profile", hint=_FORM)
    return name.removeprefix("SCMP_ARCH_")


def _library() -> Any:  # noqa: ANN401 - untyped
    try:
        import pyseccomp  # it looks for the library with ldconfig and a compiler
    except (ImportError, RuntimeError) as error:
        raise HostError(
            f"no seccomp filter can be compiled: {error}",
            hint="apt-get install libseccomp2, or go without: --security-opt seccomp=unconfined",
        ) from error
    return pyseccomp


def _add_architecture(library: Any, program: Any, name: str) -> None:  # noqa: ANN401 - untyped
    token = newer.token(library, name)
    if token is None:
        raise UsageError(f"this libseccomp does not know the architecture SCMP_ARCH_{name}", hint=_FORM)
    try:
        program.add_arch(token)
    except OSError as error:
        if error.errno != errno.EEXIST:  # the host's own is always there
            raise


def _optimize(library: Any, program: Any) -> None:  # noqa: ANN401 - untyped
    """Make a binary tree of it instead of a list: libseccomp 2.5."""
    try:
        program.set_attr(library.Attr.CTL_OPTIMIZE, _BINARY_TREE)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise


def _add_rule(
    library: Any, program: Any, default: int, name: str, action: int, arguments: Sequence[tuple[int, int, int, int]]  # noqa: ANN401
) -> None:  # fmt: skip
    number = library.resolve_syscall(library.Arch.NATIVE, name)
    if action == default or number == newer.UNKNOWN:  # what no kernel of its time had is denied or allowed as the rest
        return
    try:
        program.add_rule(action, number, *(library.Arg(*argument) for argument in arguments))
    except OSError as error:
        if error.errno != errno.EEXIST:  # said twice
            raise


def _export(program: Any) -> bytes:  # noqa: ANN401 - untyped
    with os.fdopen(os.memfd_create("bpf"), "rb") as file:
        program.export_bpf(file)
        file.seek(0)
        return file.read()


def _write_all(fd: int, content: bytes) -> None:
    """A disk that is nearly full takes a part, and refuses the next one."""
    while content:
        content = content[os.write(fd, content) :]


def _write(path: str, content: bytes) -> None:
    """Write, fsync, rename: whoever finds ``path`` finds all of it."""
    draft = f"{path}.{os.getpid()}"
    try:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            os.fchmod(fd, 0o644)
            _write_all(fd, content)
            os.fsync(fd)
            os.rename(draft, path)
        except BaseException:
            os.unlink(draft)
            raise
        finally:
            os.close(fd)
    except OSError as error:
        raise HostError(f"cannot write {path}: {error.strerror}", hint="set ISOMARK_STATE") from error
