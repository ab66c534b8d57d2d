"""The seccomp filter: decided by its instructions as by the profile, by the kernel as promised, never half written."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from classic_bpf import ALLOW, ERRNO, I386, KILL, X32_BIT, X86_64, decide
from forked import forked
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tree import needs_root

from bench.errors import HostError, UsageError
from runtimes import libc
from runtimes.security import capabilities as caps
from runtimes.security import compiler, newer, profile, seccomp

pyseccomp = pytest.importorskip("pyseccomp", reason="libseccomp is not installed")
on_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers are x86_64's")
OPERATORS = {
    "SCMP_CMP_EQ": lambda found, value, _: found == value,
    "SCMP_CMP_NE": lambda found, value, _: found != value,
    "SCMP_CMP_LT": lambda found, value, _: found < value,
    "SCMP_CMP_LE": lambda found, value, _: found <= value,
    "SCMP_CMP_GT": lambda found, value, _: found > value,
    "SCMP_CMP_GE": lambda found, value, _: found >= value,
    "SCMP_CMP_MASKED_EQ": lambda found, mask, value: found & mask == value,
}
ARCHES = {X86_64: "X86_64", I386: "X86"}
EPERM = ERRNO | errno.EPERM
ENOSYS = ERRNO | errno.ENOSYS


@pytest.fixture(scope="session")
def state(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("state"))


@cache
def rules(name: str, held: int) -> dict[str, Any]:
    text = (Path(seccomp.__file__).parent / f"{name}.json").read_bytes()
    return profile.resolve(profile.parse(text, name), held, machine="x86_64", release="6.18.0")


@cache
def code(name: str, held: int) -> bytes:
    return compiler.assemble(rules(name, held))


@cache
def numbers(arch: str) -> Mapping[int, str]:
    """Number -> name, as libseccomp and, for what it is too old for, the kernel have it."""
    found = {}
    for number in range(600):
        try:
            found[number] = pyseccomp.resolve_syscall(getattr(pyseccomp.Arch, arch), number).decode()
        except ValueError:
            continue
    later = {number: name for name, number in newer.COMMON.items()}
    return {**later, **({335: "uretprobe"} if arch == "X86_64" else {}), **found}


def expected(config: Mapping[str, Any], arch: str, number: int, arguments: list[int]) -> int:
    """What a profile says of a call, read from the profile alone."""
    name = numbers(arch).get(number)
    for rule in config["syscalls"]:
        if name in rule["names"] and all(
            OPERATORS[each["op"]](arguments[each["index"]], each["value"], each.get("valueTwo", 0))
            for each in rule.get("args", [])
        ):
            return ALLOW if rule["action"] == "SCMP_ACT_ALLOW" else ERRNO | rule.get("errnoRet", errno.EPERM)
    known = [
        number for number, each in numbers(arch).items() if any(each in rule["names"] for rule in config["syscalls"])
    ]
    return ENOSYS if number > max(known) else EPERM


@on_x86
@pytest.mark.parametrize("name", seccomp.BUILT_IN)
@pytest.mark.parametrize("held", [0, caps.DEFAULT, caps.mask(["SYS_ADMIN", "SYS_PTRACE"]), caps.every()])
def test_every_call_is_decided_as_the_profile_says(name: str, held: int) -> None:
    config, filtered = rules(name, held), code(name, held)
    wrong = [
        (number, numbers("X86_64").get(number), hex(decide(filtered, number)))
        for number in range(600)
        if decide(filtered, number) != expected(config, "X86_64", number, [0] * 6)
    ]
    assert wrong == []


@on_x86
@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from([X86_64, I386]),
    st.one_of(st.sampled_from(["socket", "clone", "personality", "mknod", "mknodat", "clone3"]), st.integers(0, 600)),
    st.lists(
        st.one_of(st.integers(0, 64), st.sampled_from([0x20000, 0x20008, 0xFFFFFFFF, 0x10000000, 0o10644, 0o60644]),
                  st.integers(0, 2**64 - 1)), min_size=6, max_size=6),
    st.sampled_from([0, caps.DEFAULT, caps.DEFAULT | caps.mask(["SYS_ADMIN"])]),
)  # fmt: skip
def test_arguments_are_decided_as_the_profile_says(
    architecture: int, call: str | int, arguments: list[int], held: int
) -> None:
    arch = ARCHES[architecture]
    number = pyseccomp.resolve_syscall(getattr(pyseccomp.Arch, arch), call) if isinstance(call, str) else call
    if number < 0:
        return
    assert decide(code("default", held), number, arguments, architecture) == expected(
        rules("default", held), arch, number, arguments
    )


@on_x86
def test_the_strict_profile_has_the_hosts_architecture_only() -> None:
    filtered = code("strict", 0)
    assert decide(filtered, 20, architecture=I386) == KILL, "getpid by int 0x80"
    assert decide(filtered, 39 | X32_BIT) == KILL
    assert decide(filtered, 39) == ALLOW


@on_x86
def test_x32_is_decided_by_its_own_numbers() -> None:
    filtered = code("default", caps.DEFAULT)
    assert decide(filtered, X32_BIT | 39) == ALLOW, "getpid"
    assert decide(filtered, X32_BIT | 520) == ALLOW, "execve has another number than on x86_64"
    assert decide(filtered, X32_BIT | 165) == EPERM, "mount"
    assert decide(filtered, X32_BIT | 999) == ENOSYS


@on_x86
def test_an_unknown_architecture_is_killed() -> None:
    assert decide(code("default", caps.DEFAULT), 39, architecture=0xC00000B7) == KILL


@on_x86
def test_high_bits_of_an_argument_do_not_get_past_the_filter() -> None:
    filtered = code("default", caps.DEFAULT)
    assert decide(filtered, 41, [40]) == EPERM, "AF_VSOCK"
    assert decide(filtered, 41, [(1 << 32) | 40]) == EPERM
    assert decide(filtered, 41, [2]) == ALLOW
    assert decide(filtered, 56, [0x10000000]) == EPERM, "clone(CLONE_NEWUSER)"
    assert decide(filtered, 56, [(1 << 32) | 0x10000000]) == EPERM


@on_x86
@pytest.mark.parametrize("name", seccomp.BUILT_IN)
def test_what_the_kernel_lets_pass_without_running_the_filter_stays_most(name: str) -> None:
    """Linux 5.11 emulates a filter once per call; what it cannot emulate it runs every time."""
    emulated = {0x20, 0x54, 0x05, 0x15, 0x25, 0x35, 0x45, 0x06}
    filtered = code(name, caps.DEFAULT)
    assert {row[0] for row in struct.iter_unpack("=HBBI", filtered)} <= emulated


def install_and(call: Any, name: str = "default", held: int = caps.DEFAULT) -> Any:
    """What ``call`` answers in a copy of this process that the filter is installed in."""
    filtered = seccomp.Program(seccomp.SPEC_ALLOW, code(name, held))

    def filtered_call() -> Any:
        library = ctypes.CDLL(None, use_errno=True)  # before: to look a library up takes more calls than some profiles
        libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
        seccomp.install(filtered)
        return call(library)

    return forked(filtered_call)


def errno_of(library: ctypes.CDLL, number: int, *arguments: int) -> str:
    """The name of the error of a system call, ``"0"`` for none."""
    ctypes.set_errno(0)
    result = library.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments))
    return errno.errorcode[ctypes.get_errno()] if result == -1 else "0"


@on_x86
@pytest.mark.parametrize("name", seccomp.BUILT_IN)
@pytest.mark.parametrize(
    ("number", "arguments", "answer"),
    [
        (39, [], "0"),  # getpid
        (165, [0, 0, 0, 0, 0], "EPERM"),  # mount
        (272, [0x10000000], "EPERM"),  # unshare(CLONE_NEWUSER)
        (250, [0, 0, 0], "EPERM"),  # keyctl
        (248, [0, 0, 0, 0, 0], "EPERM"),  # add_key
        (246, [0, 0, 0, 0], "EPERM"),  # kexec_load
        (304, [0, 0, 0], "EPERM"),  # open_by_handle_at
        (321, [0, 0, 0], "EPERM"),  # bpf
        (298, [0, 0, 0, 0, 0], "EPERM"),  # perf_event_open
        (425, [1, 0], "EPERM"),  # io_uring_setup
        (323, [0], "EPERM"),  # userfaultfd
        (169, [0, 0, 0, 0], "EPERM"),  # reboot
        (175, [0, 0, 0], "EPERM"),  # init_module
        (308, [0, 0], "EPERM"),  # setns
        (41, [40, 1, 0], "EPERM"),  # socket(AF_VSOCK)
        (41, [38, 5, 0], "EPERM"),  # socket(AF_ALG)
        (135, [1], "EPERM"),  # personality
        (435, [0, 0], "ENOSYS"),  # clone3: the C library falls back
        (452, [-1, 0, 0, 0], "EBADF"),  # fchmodat2, allowed though libseccomp may be too old to know it
        (600, [], "ENOSYS"),
    ],
)
def test_the_kernel_refuses_and_allows_as_promised(name: str, number: int, arguments: list[int], answer: str) -> None:
    if number == 452:
        major, minor = map(int, os.uname().release.split("-")[0].split(".")[:2])
        answer = "EBADF" if (major, minor) >= (6, 6) else "ENOSYS"
        name_of_nothing = ctypes.create_string_buffer(b"nothing")
        arguments = [-1, ctypes.addressof(name_of_nothing), 0, 0]
    assert install_and(lambda library: errno_of(library, number, *arguments), name) == answer


@on_x86
def test_strict_refuses_what_default_allows() -> None:
    calls = {"ptrace": (101, [0, 0, 0, 0]), "netlink": (41, [16, 3, 0]), "vmsplice": (278, [-1, 0, 0, 0])}
    found = {
        name: {
            call: install_and(lambda library, n=number, a=arguments: errno_of(library, n, *a), name)
            for call, (number, arguments) in calls.items()
        }
        for name in seccomp.BUILT_IN
    }
    assert set(found["strict"].values()) == {"EPERM"}
    assert "EPERM" not in (found["default"]["netlink"], found["default"]["vmsplice"])


@on_x86
def test_strict_makes_pipes_and_files_but_no_devices(tmp_path: Path) -> None:
    def make(_library: object) -> list[str]:
        os.mkfifo(tmp_path / "pipe")
        os.mknod(tmp_path / "file", 0o600 | stat.S_IFREG)
        try:
            os.mknod(tmp_path / "null", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        except PermissionError:
            return sorted(os.listdir(tmp_path))
        return ["made a device"]

    assert install_and(make, "strict") == ["file", "pipe"]


@pytest.mark.parametrize("name", seccomp.BUILT_IN)
def test_an_ordinary_program_runs_under_the_filter(name: str) -> None:
    program = (
        "import concurrent.futures, socket, subprocess, tempfile, os\n"
        "with concurrent.futures.ThreadPoolExecutor(3) as pool: assert sum(pool.map(len, ['a', 'bb'])) == 3\n"
        "server = socket.create_server(('127.0.0.1', 0)); client = socket.create_connection(server.getsockname())\n"
        "client.sendall(b'x'); assert server.accept()[0].recv(1) == b'x'\n"
        "assert subprocess.run(['sh', '-c', 'echo ok | cat'], capture_output=True).stdout == b'ok\\n'\n"
        "with tempfile.TemporaryDirectory() as d: os.chmod(d, 0o700); os.utime(d)\n"
        "print('all well')\n"
    )

    def run(_library: object) -> str:
        ended = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=False)
        return ended.stdout + ended.stderr

    assert install_and(run, name) == "all well\n"


def test_a_filter_is_compiled_once(state: str) -> None:
    path = seccomp.compiled(state, "default", caps.DEFAULT)
    made = os.stat(path)
    assert seccomp.compiled(state, "default", caps.DEFAULT) == path
    assert os.stat(path).st_mtime_ns == made.st_mtime_ns
    assert seccomp.compiled(state, "default", 0) != path
    assert seccomp.compiled(state, "strict", caps.DEFAULT) != path
    assert stat.S_IMODE(made.st_mode) == 0o644
    assert seccomp.read(path).code == code("default", caps.DEFAULT) or platform.machine() != "x86_64"


def test_a_cached_filter_costs_no_heavy_import(state: str) -> None:
    seccomp.compiled(state, "default", caps.DEFAULT)
    root = str(Path(seccomp.__file__).parents[2])
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from runtimes.security import capabilities, seccomp, levels\n"
        "seccomp.read(seccomp.compiled(sys.argv[2], 'default', capabilities.DEFAULT))\n"
        "print([name for name in ('ctypes', 'dataclasses', 'enum', 'hashlib', 'json', 'pathlib', 'pyseccomp', 're',"
        " 'subprocess', 'typing') if name in sys.modules])\n"
    )
    ended = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program, root, state], capture_output=True, text=True, check=False
    )
    assert ended.stdout == "[]\n", ended.stderr


def test_many_who_compile_at_once_leave_one_whole_filter(tmp_path: Path) -> None:
    def compile_one() -> int:
        if pid := os.fork():
            return pid
        try:
            seccomp.read(seccomp.compiled(str(tmp_path), "default", caps.DEFAULT))
            os._exit(0)
        finally:
            os._exit(1)

    children = [compile_one() for _ in range(6)]
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0] * 6
    assert len(os.listdir(tmp_path / seccomp.CACHE)) == 1


@pytest.fixture
def cached(tmp_path: Path) -> Path:
    return Path(seccomp.compiled(str(tmp_path), "strict", 0))


def spoil(path: Path, how: str) -> None:
    if how == "writable by all":
        path.chmod(0o666)
    elif how == "writable by its group":
        path.chmod(0o664)
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:-3])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "no magic":
        path.write_bytes(path.read_bytes()[1:])
    elif how == "too long":
        path.write_bytes(path.read_bytes() + bytes(8 * 4096))
    elif how == "somebody else's":
        os.chown(path, 12345, 12345)
    else:
        kept = path.rename(path.with_name("elsewhere"))
        {"a link": lambda: path.symlink_to(kept), "a pipe": lambda: os.mkfifo(path), "gone": lambda: None}[how]()


@needs_root
@pytest.mark.parametrize("how", [
    "writable by all", "writable by its group", "truncated", "empty", "no magic", "too long", "somebody else's",
    "a link", "a pipe", "gone",
])  # fmt: skip
def test_a_cached_filter_that_is_not_ours_is_refused(cached: Path, how: str) -> None:
    seccomp.read(str(cached))
    spoil(cached, how)
    with pytest.raises(HostError):
        seccomp.read(str(cached))


def simple(**more: object) -> dict[str, Any]:
    return {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [], **more}


DENY = {"names": ["getppid"], "action": "SCMP_ACT_ERRNO"}


@on_x86
def test_an_oci_filter_says_what_it_is_asked_to(state: str) -> None:
    config = simple(syscalls=[
        {"names": ["getppid", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOTTY},
        {"names": ["personality"], "action": "SCMP_ACT_KILL_PROCESS",
         "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]},
        {"names": ["fchmodat2"], "action": "SCMP_ACT_ERRNO"},
        {"names": ["mseal"], "action": "SCMP_ACT_LOG"},
        {"names": ["umask"], "action": "SCMP_ACT_TRACE", "errnoRet": 7},
    ])  # fmt: skip
    filtered = seccomp.read(compiler.compile_oci(config, state)).code
    assert decide(filtered, 110) == ERRNO | errno.ENOTTY
    assert decide(filtered, 135, [8]) == 0x80000000
    assert decide(filtered, 135, [0]) == ALLOW
    assert decide(filtered, 452) == EPERM
    assert decide(filtered, 462) == 0x7FFC0000
    assert decide(filtered, 95) == 0x7FF00007
    assert decide(filtered, 600) == ALLOW, "whoever allows the rest allows what is not known yet"


@on_x86
def test_conditions_on_one_argument_are_alternatives_and_on_two_must_both_hold(state: str) -> None:
    def equal(index: int, value: int) -> dict[str, Any]:
        return {"index": index, "value": value, "op": "SCMP_CMP_EQ"}

    either, both = (
        seccomp.read(
            compiler.compile_oci(simple(syscalls=[{**DENY, "names": ["socket"], "args": arguments}]), state)
        ).code
        for arguments in ([equal(0, 1), equal(0, 2)], [equal(0, 1), equal(1, 2)])
    )
    assert [decide(either, 41, [family]) for family in (1, 2, 3)] == [EPERM, EPERM, ALLOW]
    assert [decide(both, 41, [1, kind]) for kind in (1, 2)] == [ALLOW, EPERM]


def test_flags_travel_with_the_filter(state: str) -> None:
    def flags(*names: str) -> int:
        return seccomp.read(compiler.compile_oci(simple(syscalls=[DENY], flags=list(names)), state)).flags

    assert flags("SECCOMP_FILTER_FLAG_LOG") == seccomp.LOG
    assert flags("SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW") == seccomp.LOG | seccomp.SPEC_ALLOW
    assert flags() == 0
    assert seccomp.read(compiler.compile_oci(simple(syscalls=[DENY]), state)).flags == seccomp.SPEC_ALLOW, "as runc"


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"defaultAction": "ALLOW"},
        {"defaultAction": "SCMP_ACT_NOTIFY"},
        simple(syscalls=[{"names": ["read"], "action": "SCMP_ACT_NOTIFY"}]),
        simple(syscalls=[{"names": ["read"], "action": "SCMP_ACT_MAYBE"}]),
        simple(syscalls=[{"names": ["read"], "action": "SCMP_ACT_ALLOW", "errnoRet": 3}]),
        simple(syscalls=[{**DENY, "errnoRet": -1}]),
        simple(syscalls=[{**DENY, "errnoRet": "EPERM"}]),
        simple(syscalls=[{**DENY, "names": "read"}]),
        simple(syscalls=[{**DENY, "names": [3]}]),
        simple(syscalls=[{**DENY, "names": [None]}]),
        simple(syscalls=[{**DENY, "names": ["a b"]}]),
        simple(syscalls=[{**DENY, "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]}]),
        simple(syscalls=[{**DENY, "args": [{"index": 0, "value": 1 << 64, "op": "SCMP_CMP_EQ"}]}]),
        simple(syscalls=[{**DENY, "args": [{"index": 0, "value": 0, "op": "EQUALS"}]}]),
        simple(syscalls=[{**DENY, "args": [7]}]),
        simple(syscalls=["read"]),
        simple(architectures=["SCMP_ARCH_PDP11"]),
        simple(architectures=[3]),
        simple(flags=["SECCOMP_FILTER_FLAG_NEW_LISTENER"]),
        simple(flags="SECCOMP_FILTER_FLAG_LOG"),
    ],
)
def test_a_malformed_oci_filter_is_a_usage_error(config: dict[str, Any], state: str) -> None:
    with pytest.raises(UsageError):
        compiler.compile_oci(config, state)


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{", "null", '{"syscalls": 3}', '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [3]}',
        '{"archMap": [], "architectures": ["SCMP_ARCH_X86"], "syscalls": []}',
        '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"includes": {"kernel": "4"}}]}',
        '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"includes": {"minKernel": "new"}}]}',
        '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"includes": {"caps": 3}}]}',
        '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"excludes": {"arches": "amd64"}}]}',
        '{"defaultAction": "SCMP_ACT_ALLOW", "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": 3}]}',
        "[" * 100_000,
    ],
)  # fmt: skip
def test_a_malformed_profile_is_a_usage_error(text: str, state: str, tmp_path: Path) -> None:
    (tmp_path / "profile.json").write_text(text)
    with pytest.raises(UsageError):
        seccomp.compiled(state, str(tmp_path / "profile.json"), 0)


@pytest.mark.parametrize("path", ["/nowhere.json", "/", "/dev/zero", "/proc/kmsg"])
def test_what_is_no_file_is_no_profile(path: str, state: str) -> None:
    with pytest.raises(UsageError):
        seccomp.compiled(state, path, 0)


def conditions() -> Iterator[tuple[dict[str, Any], dict[str, Any], bool]]:
    held, kernel = {"caps": ["CAP_CHOWN"]}, {"minKernel": "5.10"}
    yield {}, {}, True
    yield held, {}, True
    yield {}, held, False
    yield {"caps": ["CAP_SYS_ADMIN"]}, {}, False
    yield {"caps": ["CAP_CHOWN", "CAP_SYS_ADMIN"]}, {}, False
    yield {}, {"caps": ["CAP_SYS_ADMIN", "CAP_CHOWN"]}, False
    yield {"caps": ["CAP_FUTURE"]}, {}, False
    yield {"arches": ["amd64"]}, {}, True
    yield {"arches": ["arm64"]}, {}, False
    yield {}, {"arches": ["arm64", "amd64"]}, False
    yield kernel, {}, True
    yield {"minKernel": "6.2"}, {}, False
    yield {}, kernel, False


@pytest.mark.parametrize(("includes", "excludes", "kept"), list(conditions()))
def test_a_rule_applies_under_its_conditions(includes: dict[str, Any], excludes: dict[str, Any], kept: bool) -> None:
    found = profile.resolve(
        {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{**DENY, "includes": includes, "excludes": excludes}]},
        caps.mask(["CHOWN"]), machine="x86_64", release="6.1.0-13-amd64",
    )  # fmt: skip
    assert bool(found["syscalls"]) is kept


@settings(max_examples=150, deadline=None)
@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["defaultAction", "syscalls", "names", "action", "args", "index", "op", "value", "includes",
                         "caps", "archMap", "architecture", "flags", "architectures", "subArchitectures", "minKernel",
                         "arches"]),
        inner, max_size=5),
    max_leaves=20,
))  # fmt: skip
def test_no_profile_breaks_the_compiler(tree: object) -> None:
    try:
        config = profile.of_this_host(profile.parse(json.dumps(tree).encode(), "fuzzed"), caps.DEFAULT)
        compiler.assemble(config)
    except (UsageError, HostError):
        pass


def test_a_machine_without_libseccomp_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pyseccomp", None)
    with pytest.raises(HostError) as caught:
        seccomp.compiled(str(tmp_path), "default", caps.DEFAULT)
    assert "seccomp=unconfined" in caught.value.hint


def test_the_network_still_works_where_a_family_is_refused() -> None:
    def refused(_library: object) -> str:
        try:
            socket.socket(40, socket.SOCK_STREAM)
        except PermissionError:
            return "refused"
        return "given"

    assert install_and(refused) == "refused"
