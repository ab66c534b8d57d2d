"""config.json -> what is started: golden plans, and every fault named by its place. Nothing is started here."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.errors import HostError, UsageError
from runtimes import libc
from runtimes.ociruntime import config, features, groups, mount_options, process, resources, template
from runtimes.ociruntime.node import Node
from runtimes.security import compiler

GOLDEN = Path(__file__).parent / "golden"
INPUTS = sorted(each for each in GOLDEN.glob("ociruntime-*.json") if not each.name.endswith("-plan.json"))
BASE = template.document(rootless=False)


def plan_as_json(plan: config.Plan) -> dict[str, Any]:
    """All of a plan, as the golden file has it."""
    warnings: list[str] = []
    wanted = resources.parse(plan.resources, warnings)
    return {
        "version": plan.version,
        "rootfs": plan.rootfs,
        "spec": {name: value for name, value in plan.spec.items() if name != "mounts"},
        "operations": [json.dumps(each) for each in plan.spec["mounts"]],
        "hooks": plan.hooks,
        "cgroups_path": plan.cgroups_path,
        "resources": {
            name: repr(value) for name in wanted.__slots__ if (value := getattr(wanted, name)) is not None
        },
        "seccomp": plan.seccomp is not None,
        "personality": plan.personality,
        "io_priority": plan.process.io_priority,
        "scheduler": plan.process.scheduler,
        "selinux": plan.process.selinux,
        "annotations": plan.annotations,
        "warnings": plan.warnings + warnings,
    }  # fmt: skip


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: path.stem)
def test_a_configuration_becomes_the_plan_that_was_agreed_on(path: Path) -> None:
    plan = plan_as_json(config.parse(json.loads(path.read_text()), "/bundle"))
    golden = path.with_name(f"{path.stem}-plan.json")
    text = json.dumps(plan, indent=1, ensure_ascii=False) + "\n"
    if os.environ.get("ISOMARK_REGENERATE"):
        golden.write_text(text)
    assert text == golden.read_text()


def test_reading_a_configuration_leaves_it_as_it_is() -> None:
    value = json.loads((GOLDEN / "ociruntime-everything.json").read_text())
    before = copy.deepcopy(value)
    config.parse(value, "/bundle")
    assert value == before


Change = Callable[[dict[str, Any]], object]

FAULTS: list[tuple[str, Change]] = [
    ("ociVersion is missing", lambda c: c.pop("ociVersion")),
    ("ociVersion must be a version", lambda c: c.update(ociVersion="latest")),
    ("ociVersion must be a string", lambda c: c.update(ociVersion=1.0)),
    ("ociVersion 2.0.0 is not supported", lambda c: c.update(ociVersion="2.0.0")),
    ("ociVersion 0.9.0 is not supported", lambda c: c.update(ociVersion="0.9.0")),
    ("process is missing", lambda c: c.pop("process")),
    ("process must be an object", lambda c: c.update(process=[])),
    ("process.args is missing", lambda c: c["process"].pop("args")),
    ("process.args must name a command", lambda c: c["process"].update(args=[])),
    (r"process.args\[0\] must name a command", lambda c: c["process"].update(args=[""])),
    (r"process.args\[1\] must be a string, not 7", lambda c: c["process"].update(args=["a", 7])),
    (r"process.args\[0\] must not contain a null byte", lambda c: c["process"].update(args=["a\0b"])),
    (r"process.args\[0\] must be a string that UTF-8", lambda c: c["process"].update(args=["\ud800"])),
    ("process.cwd is missing", lambda c: c["process"].pop("cwd")),
    ("process.cwd must be an absolute path", lambda c: c["process"].update(cwd="tmp")),
    (r"process.env\[0\] must be NAME=VALUE", lambda c: c["process"].update(env=["A"])),
    (r"process.env\[0\] must be NAME=VALUE", lambda c: c["process"].update(env=["=A"])),
    ("process.user.uid must be a whole number from 0", lambda c: c["process"]["user"].update(uid=-1)),
    ("process.user.uid must be a whole number", lambda c: c["process"]["user"].update(uid=1.5)),
    ("process.user.uid must be a whole number", lambda c: c["process"]["user"].update(uid=True)),
    ("process.user.gid must be a whole number", lambda c: c["process"]["user"].update(gid=2**32)),
    (r"process.user.additionalGids\[0\] must", lambda c: c["process"]["user"].update(additionalGids=["a"])),
    ("process.user.umask must be", lambda c: c["process"]["user"].update(umask=0o1000)),
    ("process.capabilities must be an object", lambda c: c["process"].update(capabilities=["CAP_KILL"])),
    (r"process.rlimits\[0\].type must be the name", lambda c: c["process"]["rlimits"][0].update(type="NOFILE")),
    (r"process.rlimits\[1\] limits RLIMIT_NOFILE a second",
     lambda c: c["process"]["rlimits"].append({"type": "RLIMIT_NOFILE", "soft": 1, "hard": 1})),
    (r"process.rlimits\[0\] has a soft limit of 2000 above", lambda c: c["process"]["rlimits"][0].update(soft=2000)),
    ("process.oomScoreAdj must be", lambda c: c["process"].update(oomScoreAdj=1001)),
    ("process.ioPriority.class must be one of", lambda c: c["process"].update(ioPriority={"class": "BEST"})),
    ("process.scheduler.policy must be one of", lambda c: c["process"].update(scheduler={"policy": "FAIR"})),
    ("root is missing", lambda c: c.pop("root")),
    ("root.path is missing", lambda c: c["root"].pop("path")),
    ("root.path must not be empty", lambda c: c["root"].update(path="")),
    ("root.readonly must be true or false", lambda c: c["root"].update(readonly="yes")),
    ("hostname must be a string", lambda c: c.update(hostname=5)),
    ("hostname needs a uts namespace", lambda c: c["linux"].update(namespaces=[{"type": "mount"}])),
    (r"mounts\[0\].destination is missing", lambda c: c["mounts"][0].pop("destination")),
    (r"mounts\[0\] has no type", lambda c: c["mounts"][0].pop("type")),
    (r"mounts\[1\] asks for 'idmap'", lambda c: c["mounts"][1].update(options=["idmap"])),
    (r"mounts\[1\].uidMappings asks for an id-mapped",
     lambda c: c["mounts"][1].update(uidMappings=[{"containerID": 0, "hostID": 0, "size": 1}])),
    (r"mounts\[0\] has the option tmpcopyup", lambda c: c["mounts"][0].update(options=["tmpcopyup"])),
    (r"mounts\[0\] has no source to bind", lambda c: c["mounts"][0].update(source="", type="bind")),
    (r"mounts\[1\] is inside /proc", lambda c: c["mounts"][1].update(destination="/proc/sys/")),
    (r"mounts\[1\] is inside /proc", lambda c: c["mounts"][1].update(destination="/a/../proc")),
    (r"mounts\[1\] is inside /proc",
     lambda c: c["mounts"][1].update(destination="/proc/1/status", type="bind", source="/etc/passwd")),
    (r"mounts\[1\].options\[0\] must be a string", lambda c: c["mounts"][1].update(options=[None])),
    (r"linux.namespaces\[0\].type must be one of", lambda c: c["linux"]["namespaces"][0].update(type="net")),
    (r"linux.namespaces\[6\].type is 'pid' a second time", lambda c: c["linux"]["namespaces"].append({"type": "pid"})),
    (r"linux.namespaces\[0\].path must be an absolute", lambda c: c["linux"]["namespaces"][0].update(path="ns/pid")),
    ("linux.namespaces must have a new mount", lambda c: c["linux"].update(namespaces=[{"type": "uts"}])),
    ("linux.uidMappings is missing", lambda c: c["linux"]["namespaces"].append({"type": "user"})),
    ("linux.timeOffsets needs a new time namespace",
     lambda c: c["linux"].update(timeOffsets={"monotonic": {"secs": 1}})),
    (r"linux.devices\[0\].type must be c, b, u or p",
     lambda c: c["linux"].update(devices=[{"type": "a", "path": "/dev/x"}])),
    (r"linux.devices\[0\].major is missing", lambda c: c["linux"].update(devices=[{"type": "c", "path": "/dev/x"}])),
    (r"linux.maskedPaths\[0\] must not be the root", lambda c: c["linux"].update(maskedPaths=["/a/.."])),
    ("linux.rootfsPropagation must be one of", lambda c: c["linux"].update(rootfsPropagation="public")),
    ("linux.mountLabel cannot be set",
     lambda c: c["linux"].update(mountLabel="system_u:object_r:svirt_sandbox_file_t:s0")),
    ("linux.intelRdt is not supported", lambda c: c["linux"].update(intelRdt={"closID": "a"})),
    ("linux.personality.domain must be", lambda c: c["linux"].update(personality={"domain": "BSD"})),
    ("linux.sysctl.*belongs to no namespace", lambda c: c["linux"].update(sysctl={"kernel.panic": "1"})),
    ("belongs to no namespace", lambda c: c["linux"].update(sysctl={"kernel/core_pattern": "|/x"})),
    ("is no sysctl", lambda c: c["linux"].update(sysctl={"net..core": "1"})),
    ("is no sysctl", lambda c: c["linux"].update(sysctl={"net/../kernel/panic": "1"})),
    ("must be set by the property hostname", lambda c: c["linux"].update(sysctl={"kernel.hostname": "x"})),
    ("needs a namespace of type 'ipc'",
     lambda c: c["linux"].update(sysctl={"kernel.shmmax": "1"}, namespaces=[{"type": "mount"}, {"type": "uts"}])),
    (r"hooks.prestart\[0\].path must be an absolute", lambda c: c.update(hooks={"prestart": [{"path": "x"}]})),
    (r"hooks.poststop\[0\].timeout must be a whole number from 1",
     lambda c: c.update(hooks={"poststop": [{"path": "/x", "timeout": 0}]})),
    ("annotations.a must be a string", lambda c: c.update(annotations={"a": 1})),
]  # fmt: skip


@pytest.mark.parametrize(("message", "change"), FAULTS, ids=[message[:60] for message, _ in FAULTS])
def test_a_fault_is_named_by_its_place(message: str, change: Change) -> None:
    value = copy.deepcopy(BASE)
    change(value)
    with pytest.raises(UsageError, match=message) as caught:
        config.parse(value, "/bundle")
    assert caught.value.message.startswith("config.json: ")
    assert "\n" not in caught.value.message


RESOURCE_FAULTS: list[tuple[str, dict[str, Any]]] = [
    ("linux.resources.memory.limit must be a whole number", {"memory": {"limit": "64m"}}),
    ("linux.resources.memory.swappiness must be", {"memory": {"swappiness": 101}}),
    ("linux.resources.cpu.cpus must be a list", {"cpu": {"cpus": "0; rm"}}),
    ("linux.resources.cpu.realtimeRuntime is not supported", {"cpu": {"realtimeRuntime": 1}}),
    (r"linux.resources.devices\[0\].allow is missing", {"devices": [{"access": "r"}]}),
    (r"linux.resources.devices\[0\].access must be made of", {"devices": [{"allow": True, "access": "x"}]}),
    (r"linux.resources.devices\[0\].type must be", {"devices": [{"allow": True, "type": "z"}]}),
    ("linux.resources.blockIO.throttleReadBpsDevice is not", {"blockIO": {"throttleReadBpsDevice": [{"rate": 1}]}}),
    ("linux.resources.blockIO.weight must be", {"blockIO": {"weight": 5}}),
    ("linux.resources.network.classID is not", {"network": {"classID": 1}}),
    ("linux.resources.rdma is not", {"rdma": {"mlx5_1": {}}}),
    ("linux.resources.hugepageLimits names a page size", {"hugepageLimits": [{"pageSize": "../2MB", "limit": 1}]}),
    ("linux.resources.unified", {"unified": {"memory.high": 1}}),
]


@pytest.mark.parametrize(("message", "value"), RESOURCE_FAULTS, ids=[message[:50] for message, _ in RESOURCE_FAULTS])
def test_a_limit_that_cannot_be_set_is_named(message: str, value: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=message):
        resources.parse(Node(value, "config.json", "linux.resources"), [])


def test_zeros_that_go_programs_send_are_no_limits() -> None:
    """What Docker 20.10 sends for a container without limits."""
    value = {
        "memory": {"limit": 0, "swap": 0, "disableOOMKiller": False, "swappiness": None},
        "cpu": {"shares": 0, "quota": 0, "period": 0, "realtimePeriod": 0, "cpus": "", "mems": ""},
        "pids": {"limit": 0}, "blockIO": {"weight": 0, "throttleReadBpsDevice": []}, "network": {"priorities": []},
    }  # fmt: skip
    wanted = resources.parse(Node(value, "config.json", "linux.resources"), [])
    assert [name for name in wanted.__slots__ if getattr(wanted, name) is not None] == []


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    below = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, each in below for place in _places(each, (*path, key)))]


EVERYTHING = json.loads((GOLDEN / "ociruntime-everything.json").read_text())
PLACES = _places(EVERYTHING)[1:]
JUNK = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.just([])
    | st.just({})
    | st.just([None])
    | st.just({"": 1})
)


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(PLACES), JUNK)
def test_junk_anywhere_is_accepted_or_refused_and_nothing_else(place: tuple[Any, ...], junk: Any) -> None:
    value = copy.deepcopy(EVERYTHING)
    target = value
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = junk
    told = _refusal(value)
    assert told is None or (told.startswith("config.json: ") and "\n" not in told)


def _refusal(value: Any) -> str | None:
    try:
        plan = config.parse(value, "/bundle")
        resources.parse(plan.resources, [])
    except UsageError as error:
        return error.message
    return None


def test_labels_that_cannot_be_set_are_refused() -> None:
    own = process.Process()
    process.require_labels(own, "config.json", apparmor=False)
    own.apparmor = "unconfined"
    process.require_labels(own, "config.json", apparmor=False)
    own.apparmor = "docker-default"
    with pytest.raises(UsageError, match="AppArmor is not enabled"):
        process.require_labels(own, "config.json", apparmor=False)
    process.require_labels(own, "config.json", apparmor=True)
    own.selinux = "a:b:c"
    with pytest.raises(UsageError, match="SELinux is not supported"):
        process.require_labels(own, "config.json", apparmor=True)


@pytest.mark.parametrize(
    ("path", "name"),
    [(None, "/isomark-oci/one"), ("/a//b/./c", "/a/b/c"), ("a/b", "/isomark-oci/a/b"), ("/a:b:c", "/a:b:c")],
)
def test_a_group_is_where_its_path_says(path: str | None, name: str) -> None:
    assert groups.name_of(path, "one") == name


@pytest.mark.parametrize("path", ["/", "//", "/a/../b", "..", "system.slice:docker:one", "."])
def test_a_path_that_leads_elsewhere_is_refused(path: str) -> None:
    with pytest.raises(UsageError):
        groups.name_of(path, "one")


def test_later_options_override_earlier_ones() -> None:
    parsed = mount_options.parse(["ro", "nosuid", "rw", "suid", "rro", "rrw", "size=1m", "", "mode=755"])
    assert parsed.flags == 0
    assert parsed.lifted == libc.MOUNT_ATTR_NOSUID
    assert parsed.recursive == (0, libc.MOUNT_ATTR_RDONLY)
    assert parsed.data == "size=1m,mode=755"


def test_times_of_access_exclude_each_other() -> None:
    wanted, cleared = mount_options.parse(["noatime", "nodiratime"]).attributes()
    assert wanted == mount_options.ATTR_NOATIME | mount_options.ATTR_NODIRATIME
    assert cleared == mount_options.ATTR_ATIME


def test_features_name_what_is_understood_and_nothing_else() -> None:
    """Every name in the document is tried (features.md: "The runtime MUST recognize the elements in this array")."""
    document = features.document()
    for option in document["mountOptions"]:
        assert mount_options.parse([option]).data == "", option
    linux = document["linux"]
    for name in linux["namespaces"]:
        value = copy.deepcopy(BASE)
        value["linux"] = {
            "namespaces": [{"type": each} for each in {"mount", "uts", name}],
            "uidMappings": [{"containerID": 0, "hostID": 1, "size": 1}],
            "gidMappings": [{"containerID": 0, "hostID": 1, "size": 1}],
        }
        config.parse(value, "/bundle")
    warnings: list[str] = []
    process.capability_bits(Node(linux["capabilities"], "x"), warnings)
    assert warnings == []
    for version in (document["ociVersionMin"], document["ociVersionMax"], "1.0.2-dev", "1.9.0"):
        config.parse({**BASE, "ociVersion": version}, "/bundle")


def test_seccomp_features_compile() -> None:
    pytest.importorskip("pyseccomp")
    seccomp = features.document()["linux"]["seccomp"]
    for action in seccomp["actions"]:
        default = "SCMP_ACT_ALLOW" if action != "SCMP_ACT_ALLOW" else "SCMP_ACT_ERRNO"
        assert compiler.assemble({"defaultAction": default, "syscalls": [{"names": ["getpid"], "action": action}]})
    for operator in seccomp["operators"]:
        rule = {
            "names": ["read"],
            "action": "SCMP_ACT_ERRNO",
            "args": [{"index": 0, "value": 1, "valueTwo": 1, "op": operator}],
        }
        assert compiler.assemble({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]})
    for architecture in seccomp["archs"]:
        try:
            compiler.assemble({"defaultAction": "SCMP_ACT_ALLOW", "architectures": [architecture]})
        except (
            HostError
        ) as error:  # of another byte order than this host: known, and not to be mixed (seccomp_arch_add(3))
            assert "endian" in error.message or "Numerical" in error.message or "compile" in error.message  # noqa: PT017
