"""Device rules: as text, as the program that version 2 asks, and as both kernels' halves decide for real."""

from __future__ import annotations

import os
import stat
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from forked import forked
from hypothesis import given
from hypothesis import strategies as st
from small_tree import needs_root

from bench.errors import HostError, UsageError
from runtimes.container import cgroup
from runtimes.container.cgroup import Group
from runtimes.container.hierarchy import Layout, detect
from runtimes.container.resources import Resources
from runtimes.security import device_rules
from runtimes.security.device_rules import DEFAULT, NOTHING, STRICT, Rule

BITS = {"m": 1, "r": 2, "w": 4}
KINDS = {"b": 1, "c": 2}

rules = st.lists(
    st.builds(
        Rule,
        st.booleans(),
        st.sampled_from("abc"),
        st.none() | st.integers(0, 3),
        st.none() | st.integers(0, 3),
        st.sets(st.sampled_from("rwm"), min_size=1).map(lambda letters: "".join(sorted(letters))),
    ),
    max_size=7,
)


def ask(program: bytes, kind: str, major: int, minor: int, access: str) -> bool:  # noqa: C901 - one case an opcode
    """What the version 2 program returns: enough of an eBPF machine for it."""
    bits = sum(BITS[letter] for letter in access)
    context = struct.pack("=III", bits << 16 | KINDS[kind], major, minor)
    rows = list(struct.iter_unpack("=BBhi", program))
    registers = [0] * 11
    at = 0
    while True:
        code, pair, offset, constant = rows[at]
        destination, source = (pair & 15, pair >> 4) if sys.byteorder == "little" else (pair >> 4, pair & 15)
        at += 1
        match code:
            case 0x61:
                assert source == 1, "only the context is read"
                (registers[destination],) = struct.unpack_from("=I", context, offset)
            case 0xBF:
                registers[destination] = registers[source]
            case 0xB7:
                registers[destination] = constant
            case 0x57:
                registers[destination] &= constant
            case 0x77:
                registers[destination] >>= constant
            case 0x05:
                at += offset
            case 0x15:
                at += offset if registers[destination] == constant else 0
            case 0x55:
                at += offset if registers[destination] != constant else 0
            case 0x45:
                at += offset if registers[destination] & constant else 0
            case 0x95:
                return bool(registers[0])
            case _:
                raise AssertionError(f"opcode {code:#x} at {at - 1}")


def decided(wanted: Sequence[Rule], kind: str, major: int, minor: int, access: str) -> bool:
    """For each way of access, the last rule that is about it."""

    def one(letter: str) -> bool:
        for rule in reversed(wanted):
            about = rule.kind in ("a", kind) and rule.major in (None, major) and rule.minor in (None, minor)
            if about and letter in rule.access:
                return rule.allow
        return True

    return all(map(one, access))


@given(rules, st.sampled_from("bc"), st.integers(0, 4), st.integers(0, 4), st.sets(st.sampled_from("rwm"), min_size=1))
def test_the_program_decides_by_the_last_rule_about_each_way(
    wanted: list[Rule], kind: str, major: int, minor: int, access: set[str]
) -> None:
    ways = "".join(sorted(access))
    assert ask(device_rules.version_2(wanted), kind, major, minor, ways) == decided(wanted, kind, major, minor, ways)


@pytest.mark.parametrize(
    ("kind", "major", "minor", "access", "allowed"),
    [
        ("c", 1, 3, "rw", True),  # null
        ("c", 5, 1, "rw", True),  # console
        ("c", 136, 9, "rw", True),  # pts/9
        ("c", 10, 200, "m", True),  # a node for tun may be made
        ("c", 10, 200, "rw", False),  # and not be opened
        ("b", 8, 0, "m", True),  # the same for the host's disk
        ("b", 8, 0, "r", False),
        ("c", 1, 1, "r", False),  # mem
        ("c", 10, 229, "r", False),  # fuse
    ],
)
def test_the_default_rules_are_dockers(kind: str, major: int, minor: int, access: str, allowed: bool) -> None:
    assert ask(device_rules.version_2(DEFAULT), kind, major, minor, access) is allowed
    assert decided(DEFAULT, kind, major, minor, access) is allowed


def test_the_strict_rules_let_no_other_node_be_made() -> None:
    assert not ask(device_rules.version_2(STRICT), "c", 10, 200, "m")
    assert not ask(device_rules.version_2(STRICT), "b", 8, 0, "m")
    assert ask(device_rules.version_2(STRICT), "c", 1, 3, "rw")
    assert not ask(device_rules.version_2(STRICT), "c", 5, 1, "r"), "the host's console"


@given(rules)
def test_a_rule_is_read_as_it_is_written(wanted: list[Rule]) -> None:
    assert [device_rules.parse(str(rule), allow=rule.allow) for rule in wanted] == wanted


@pytest.mark.parametrize(
    "text",
    [
        "", "c", "c 1:3", "c 1:3 x", "c 1:3 rr", "d 1:3 r", "c 1 r", "c 1:2:3 r", "c -1:3 r", "c 1:3 r w", "c :3 r",
        "c 0x1:3 r", "c 1:99999999999 r", "c ١:3 r", "c 1:3 rwm\n*:* b", "c **:3 r",
    ],
)  # fmt: skip
def test_a_malformed_rule_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="device rule"):
        device_rules.parse(text)


def test_a_node_gives_its_rule() -> None:
    assert str(device_rules.for_node("/dev/null", "rw")) == "c 1:3 rw"


@pytest.mark.parametrize(
    ("path", "access"), [("/dev/nowhere", "r"), ("/etc/passwd", "r"), ("/dev/null", "x"), ("/dev", "r")]
)
def test_what_is_no_device_gives_none(path: str, access: str) -> None:
    with pytest.raises(UsageError):
        device_rules.for_node(path, access)


def test_version_1_is_told_the_default_rules_line_by_line() -> None:
    told = device_rules.version_1(DEFAULT)
    assert told[:3] == [("devices.deny", b"a"), ("devices.allow", b"c *:* m"), ("devices.allow", b"b *:* m")]
    assert ("devices.allow", b"c 136:* rwm") in told


def test_version_1_cannot_make_a_hole_and_says_so() -> None:
    wide, hole = Rule(True, "c", 1, None, "rw"), Rule(False, "c", 1, 1, "r")
    with pytest.raises(HostError, match="version 1 cannot deny"):
        device_rules.version_1([NOTHING, wide, hole])
    assert device_rules.version_1([NOTHING, hole, wide]), "the other way round nothing is lost"
    assert device_rules.version_1([NOTHING, wide, Rule(False, "c", 1, None, "w")]), "what was said can be taken back"


def test_version_1_is_not_told_everything_where_less_is_meant() -> None:
    assert device_rules.version_1([NOTHING, Rule(True, "a", 1, None, "r")])[1:] == [
        ("devices.allow", b"c 1:* r"),
        ("devices.allow", b"b 1:* r"),
    ]


def layouts() -> Iterator[tuple[str, Layout]]:
    layout = detect()
    held = layout.holding("devices")
    if held is not None and held.version == 1:
        yield "version 1", Layout((held, *filter(None, [layout.holding("memory")])))
    if layout.unified is not None:
        yield "version 2", Layout((layout.unified,))


@contextmanager
def confined(layout: Layout, wanted: Sequence[Rule]) -> Iterator[Group]:
    name = f"test{os.getpid()}/devices"
    try:
        yield Group(layout, name, Resources(devices=wanted))
    finally:
        cgroup.remove_group(layout, name)
        cgroup.remove_group(layout, name.partition("/")[0])


def tried(group: Group, directory: Path) -> dict[str, str]:
    """What a process in ``group`` may do with some devices."""

    def attempt() -> dict[str, str]:
        group.enter(os.getpid())
        found = {}
        for name, kind, major, minor in (
            ("null", "c", 1, 3),
            ("mem", "c", 1, 1),
            ("full", "c", 1, 7),
            ("disk", "b", 7, 99),
        ):
            path = directory / name
            word = ""
            try:
                os.mknod(path, 0o600 | (stat.S_IFCHR if kind == "c" else stat.S_IFBLK), os.makedev(major, minor))
                word += "m"
            except PermissionError:
                pass
            for letter, flags in (("r", os.O_RDONLY), ("w", os.O_WRONLY)):
                try:
                    os.close(os.open(path if path.exists() else f"/dev/{name}", flags | os.O_NONBLOCK))
                    word += letter
                except (PermissionError, FileNotFoundError):
                    pass
                except OSError:  # ENXIO: the device rules let us through to a device that is not there
                    word += letter
            found[name] = word
        return found

    return forked(attempt)  # type: ignore[no-any-return]


@needs_root
@pytest.mark.parametrize("version", ["version 1", "version 2"])
def test_the_kernel_decides_by_the_default_rules(version: str, tmp_path: Path) -> None:
    layout = dict(layouts()).get(version)
    if layout is None:
        pytest.skip(f"no {version} of device control here")
    with confined(layout, DEFAULT) as group:
        assert tried(group, tmp_path) == {"null": "mrw", "mem": "m", "full": "mrw", "disk": "m"}


@needs_root
@pytest.mark.parametrize("version", ["version 1", "version 2"])
def test_the_kernel_decides_each_way_by_itself(version: str, tmp_path: Path) -> None:
    layout = dict(layouts()).get(version)
    if layout is None:
        pytest.skip(f"no {version} of device control here")
    wanted = [NOTHING, Rule(True, "c", 1, 3, "rm"), Rule(True, "c", 1, 7, "wm"), Rule(True, "c", 1, 3, "w")]
    with confined(layout, wanted) as group:
        assert tried(group, tmp_path) == {"null": "mrw", "mem": "", "full": "mw", "disk": ""}


@needs_root
def test_the_kernel_takes_a_program_of_many_rules() -> None:
    if not any(name == "version 2" for name, _ in layouts()):
        pytest.skip("no version 2 of device control here")
    many = [NOTHING, *(Rule(minor % 3 > 0, "c", 10, minor, "rw") for minor in range(250))]
    os.close(device_rules.load(many))


@needs_root
def test_the_program_goes_with_its_group() -> None:
    layout = dict(layouts()).get("version 2")
    if layout is None:
        pytest.skip("no version 2 of device control here")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with confined(layout, DEFAULT):
            pass
    assert len(os.listdir("/proc/self/fd")) == before
