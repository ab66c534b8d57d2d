"""Capabilities: names and options as Docker means them, and what the kernel says once they are given up."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from forked import forked
from hypothesis import given
from hypothesis import strategies as st
from small_tree import needs_root

from bench.errors import UsageError
from runtimes import libc
from runtimes.security import capabilities as caps

DOCKER = {
    "CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
}  # fmt: skip
SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


def status() -> dict[str, str]:
    lines = Path("/proc/self/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def masks() -> list[int]:
    return [int(status()[name], 16) for name in SETS]


def test_the_default_set_is_dockers() -> None:
    assert set(caps.names(caps.DEFAULT)) == DOCKER
    assert caps.DEFAULT == 0xA80425FB, "as /proc/self/status shows it in a container of Docker's"


def test_the_names_have_the_kernels_numbers() -> None:
    header = Path("/usr/include/linux/capability.h")
    if not header.exists():
        pytest.skip("linux/capability.h is not installed")
    words = [line.split() for line in header.read_text().splitlines() if line.startswith("#define CAP_")]
    known = {word[1]: int(word[2]) for word in words if len(word) == 3 and word[2].isdigit()}
    assert {name: number for number, name in enumerate(caps.NAMES) if name in known} == known


def test_every_capability_of_this_kernel_has_a_name() -> None:
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    assert caps.every() == (1 << min(last + 1, len(caps.NAMES))) - 1


@pytest.mark.parametrize("name", ["CAP_NET_ADMIN", "NET_ADMIN", "net_admin", "cap_net_admin"])
def test_a_name_is_read_with_and_without_its_prefix(name: str) -> None:
    assert caps.names(caps.mask([name])) == ["CAP_NET_ADMIN"]


@pytest.mark.parametrize("name", ["", "CAP_", "NET_ADMN", "CAP_ALL", "42", "CAP_CAP_CHOWN", "NET ADMIN", "é"])
def test_an_unknown_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="is no capability"):
        caps.number(name)


def test_a_misspelt_name_is_told_its_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        caps.number("NET_ADMN")
    assert "CAP_NET_ADMIN" in caught.value.hint


@pytest.mark.parametrize(
    ("add", "drop", "wanted"),
    [
        ([], [], DOCKER),
        (["SYS_TIME"], [], DOCKER | {"CAP_SYS_TIME"}),
        ([], ["chown", "CAP_KILL"], DOCKER - {"CAP_CHOWN", "CAP_KILL"}),
        (["CHOWN"], ["ALL"], {"CAP_CHOWN"}),
        (["ALL"], ["SYS_ADMIN"], set(caps.NAMES) - {"CAP_SYS_ADMIN"}),
        (["all"], ["all"], set(caps.NAMES)),
        ([], ["ALL"], set()),
        (["CHOWN"], ["CHOWN"], DOCKER),
        (["SYS_TIME"], ["SYS_TIME"], DOCKER | {"CAP_SYS_TIME"}),
    ],
)
def test_adding_and_dropping_is_as_docker_does(add: list[str], drop: list[str], wanted: set[str]) -> None:
    assert set(caps.names(caps.adjust(caps.DEFAULT, add, drop))) == wanted & set(caps.names(caps.every()))


@given(st.sets(st.sampled_from(caps.NAMES)))
def test_a_mask_and_its_names_are_the_same(chosen: set[str]) -> None:
    assert set(caps.names(caps.mask(chosen))) == chosen


def test_a_capability_of_a_later_kernel_is_called_by_its_number() -> None:
    assert caps.names(1 << 45) == ["CAP_45"]


@needs_root
def test_root_keeps_what_it_is_given_and_no_more() -> None:
    wanted = caps.mask(["CHOWN", "NET_RAW"])

    def give_up() -> list[int]:
        caps.limit_bounding(wanted)
        caps.keep()
        caps.apply(caps.sets(wanted))
        return masks()

    assert forked(give_up) == [0, wanted, wanted, wanted, 0]


@needs_root
def test_the_bounding_set_loses_every_bit_that_the_kernel_knows() -> None:
    def give_up() -> list[int]:
        caps.limit_bounding(0)
        caps.apply(caps.sets(0))
        return masks()

    assert forked(give_up) == [0, 0, 0, 0, 0]


@needs_root
def test_an_ordinary_user_keeps_ambient_capabilities_over_an_execution_and_no_others() -> None:
    kept = caps.mask(["NET_BIND_SERVICE"])

    def become() -> str:
        caps.limit_bounding(caps.DEFAULT)
        caps.keep()
        os.setgroups([])
        os.setresgid(12345, 12345, 12345)
        os.setresuid(12345, 12345, 12345)
        caps.apply(caps.sets(caps.DEFAULT, ambient=kept))
        with os.popen("cat /proc/self/status") as pipe:
            return pipe.read()

    lines = dict(line.split(":\t", 1) for line in forked(become).splitlines() if ":\t" in line)
    assert [int(lines[name], 16) for name in SETS] == [kept, kept, kept, caps.DEFAULT, kept]


@needs_root
def test_without_ambient_ones_an_ordinary_user_executes_with_none() -> None:
    def become() -> str:
        caps.limit_bounding(caps.DEFAULT)
        caps.keep()
        os.setresuid(12345, 12345, 12345)
        caps.apply(caps.sets(caps.DEFAULT))
        with os.popen("cat /proc/self/status") as pipe:
            return pipe.read()

    lines = dict(line.split(":\t", 1) for line in forked(become).splitlines() if ":\t" in line)
    assert [int(lines[name], 16) for name in SETS] == [0, 0, 0, caps.DEFAULT, 0]


@needs_root
def test_what_we_lack_is_left_out() -> None:
    lacking = caps.every() & ~caps.DEFAULT

    def give_up_twice() -> list[int]:
        caps.apply(caps.sets(caps.DEFAULT))
        caps.apply(caps.sets(caps.DEFAULT | lacking))
        return list(libc.capget())

    effective, permitted, _ = forked(give_up_twice)
    assert effective == permitted == caps.DEFAULT & caps.held()
