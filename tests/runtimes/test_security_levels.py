"""The security levels and the options that refine them."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import HostError, IsomarkError, UsageError
from runtimes.security import capabilities, device_rules, levels
from runtimes.security.levels import LEVELS, Security, level

pytest.importorskip("pyseccomp", reason="libseccomp is not installed")


@pytest.fixture(scope="session")
def state(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("state"))


def held(found: Security) -> list[str]:
    assert found.capabilities is not None
    return capabilities.names(found.capabilities["bounding"])


def test_default_is_dockers_with_no_new_privileges(state: str) -> None:
    found = level("default", state=state, user_namespace=True)
    assert found.capabilities == capabilities.sets(capabilities.DEFAULT)
    assert found.capabilities["inheritable"] == found.capabilities["ambient"] == 0
    assert found.seccomp is not None
    assert found.no_new_privileges
    assert {"/proc/kcore", "/proc/keys", "/sys/firmware", "/proc/timer_list"} <= {*found.masked}
    assert found.readonly == ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
    assert not found.read_only_root


def test_the_device_rules_are_for_containers_without_a_user_namespace(state: str) -> None:
    rule = device_rules.parse("c 10:200 rwm")
    assert level("default", state=state, devices=[rule]).devices == (*device_rules.DEFAULT, rule)
    assert level("default", state=state, devices=[rule], user_namespace=True).devices is None
    assert level("off", state=state).devices is None


def test_off_leaves_everything_as_it_is(state: str) -> None:
    found = level("off", state=state)
    assert (found.capabilities, found.seccomp, found.no_new_privileges, found.masked, found.readonly) == (
        None, None, False, (), (),
    )  # fmt: skip


def test_strict_gives_nothing(state: str) -> None:
    strict, default = (level(name, state=state) for name in ("strict", "default"))
    assert held(strict) == []
    assert strict.read_only_root
    assert {*default.masked} < {*strict.masked}
    assert strict.seccomp not in (None, default.seccomp)


def test_off_with_something_dropped_has_all_the_rest(state: str) -> None:
    everything = capabilities.names(capabilities.every())
    assert set(held(level("off", state=state, cap_drop=["NET_RAW"], user_namespace=True))) == {*everything} - {
        "CAP_NET_RAW"
    }


def test_what_we_do_not_have_we_cannot_give(state: str) -> None:
    lacking = capabilities.names(capabilities.every() & ~capabilities.held())
    if not lacking:
        pytest.skip("this process has every capability")
    with pytest.raises(HostError, match=lacking[0]):
        level("default", state=state, cap_add=[lacking[0]])
    assert lacking[0] in held(level("default", state=state, cap_add=[lacking[0]], user_namespace=True))
    assert lacking[0] not in held(level("default", state=state, cap_add=["ALL"]))


def test_another_profile_for_other_capabilities(state: str) -> None:
    assert level("default", state=state).seccomp != level("default", state=state, cap_drop=["SYS_CHROOT"]).seccomp


@pytest.mark.parametrize(
    ("option", "wanted"),
    [
        ("no-new-privileges", True),
        ("no-new-privileges=true", True),
        ("no-new-privileges:true", True),
        ("no-new-privileges=false", False),
        ("no-new-privileges=0", False),
        ("no-new-privileges:False", False),
    ],
)
def test_new_privileges_are_an_option(state: str, option: str, wanted: bool) -> None:
    assert level("default", state=state, security_opt=[option]).no_new_privileges is wanted


def test_the_filter_is_an_option(state: str, tmp_path: Path) -> None:
    (tmp_path / "own.json").write_text('{"defaultAction": "SCMP_ACT_ALLOW"}')

    def filtered(option: str, name: str = "default") -> str | None:
        return level(name, state=state, security_opt=[option]).seccomp

    assert filtered("seccomp=unconfined") is None
    assert filtered("seccomp:unconfined") is None
    assert filtered("seccomp=builtin") == level("default", state=state).seccomp
    assert filtered("seccomp=builtin", "off") is not None
    assert filtered("seccomp=strict") not in (None, filtered("seccomp=builtin"))
    assert filtered(f"seccomp={tmp_path}/own.json") not in (None, filtered("seccomp=builtin"))


def test_paths_are_options(state: str) -> None:
    def paths(*options: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        found = level("default", state=state, security_opt=options)
        return found.masked, found.readonly

    masked, readonly = paths()
    assert paths("systempaths=unconfined") == ((), ())
    assert paths("unmask=ALL") == ((), ())
    assert paths("mask=/proc/cpuinfo:/sys/class", "mask=/a") == (
        (*masked, "/proc/cpuinfo", "/sys/class", "/a"),
        readonly,
    )
    assert paths("unmask=/proc/keys:/proc/sys") == (
        tuple(path for path in masked if path != "/proc/keys"),
        tuple(path for path in readonly if path != "/proc/sys"),
    )
    assert paths("unmask=ALL", "mask=/a") == (("/a",), ())


@pytest.mark.parametrize(
    "option",
    [
        "", "=", "seccomp", "seccomp=", "seccomp=/nowhere.json", "no-new-privileges=perhaps", "label=type:x", "label",
        "systempaths", "systempaths=all", "mask", "mask=relative", "unmask=", "apparmor", "sekcomp=x", "writable",
    ],
)  # fmt: skip
def test_a_malformed_option_is_refused(state: str, option: str) -> None:
    with pytest.raises(UsageError) as caught:
        level("default", state=state, security_opt=[option])
    assert caught.value.hint or "absolute" in caught.value.message or "neither" in caught.value.message


def test_a_profile_of_apparmor_that_is_not_there_is_an_error(state: str) -> None:
    with pytest.raises(HostError, match="AppArmor"):
        level("default", state=state, security_opt=["apparmor=no-such-profile"])
    assert level("default", state=state, security_opt=["apparmor=unconfined"]).apparmor is None


@pytest.mark.parametrize("name", ["", "Default", "none", "privileged"])
def test_an_unknown_level_is_refused(state: str, name: str) -> None:
    with pytest.raises(UsageError, match="no security level"):
        level(name, state=state)


def test_a_description_names_every_difference(state: str) -> None:
    found = level(
        "default", state=state, cap_drop=["CHOWN"], security_opt=["seccomp=unconfined", "no-new-privileges=false"]
    )
    assert found.description == (
        f"default: 13 capabilities (-CHOWN), no seccomp filter, {len(found.masked)} masked and 5 read-only paths, "
        "device rules"
    )
    assert [levels.describe(name).partition(":")[0] for name in LEVELS] == [*LEVELS]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), max_size=3), st.sampled_from(LEVELS))
def test_no_option_breaks_it(tmp_path_factory: pytest.TempPathFactory, options: list[str], name: str) -> None:
    with contextlib.suppress(IsomarkError):
        level(name, state=str(tmp_path_factory.getbasetemp()), security_opt=options)
