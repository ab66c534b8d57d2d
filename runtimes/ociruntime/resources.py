"""linux.resources of a configuration, or of ``update``, as ``runtimes.container.resources.Resources``.

runtime-spec 1.2, config-linux.md, "Control groups". A figure of 0 means "not asked for", as in runc: engines written in
Go send it for what their user left out.
"""

from __future__ import annotations

from runtimes.container.resources import Resources
from runtimes.ociruntime.node import MAX_INT64, MAX_UINT64, MIN_INT64, Node
from runtimes.security.device_rules import DEFAULT, Rule

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

_UNSUPPORTED: Final = {
    "cpu": ("realtimeRuntime", "realtimePeriod", "burst", "idle"),
    "blockIO": (
        "leafWeight", "weightDevice", "throttleReadBpsDevice", "throttleWriteBpsDevice", "throttleReadIOPSDevice",
        "throttleWriteIOPSDevice",
    ),
    "network": ("classID", "priorities"),
}  # fmt: skip
_OUTDATED: Final = ("kernel", "kernelTCP")
"""Limits that Linux 5.16 and later have no more; runc ignores them too."""


def parse(node: Node | None, warnings: list[str]) -> Resources:
    """Read limits; what is passed over is added to ``warnings``.

    Raises:
        UsageError: malformed, or a limit that cannot be set.
    """
    if node is None:
        return Resources()
    _refuse_unsupported(node)
    wanted: dict[str, Any] = {}
    _read_memory(node.get("memory"), wanted, warnings)
    _read_cpu(node.get("cpu"), wanted)
    if (pids := node.get("pids")) is not None:
        limit = pids.integer_of("limit", MIN_INT64, MAX_INT64) or None
        wanted["pids"] = -1 if limit is not None and limit < 0 else limit
    if (block := node.get("blockIO")) is not None:
        wanted["blkio_weight"] = block.integer_of("weight", 0, 1000) or None
        if wanted["blkio_weight"] is not None:
            block.need("weight").integer(10, 1000)
    if rules := node.elements("devices"):  # behind them, as in runc, what every container may do
        wanted["devices"] = (*map(_rule, rules), *DEFAULT[1:])
    pages = {
        each.need("pageSize").text(): each.need("limit").integer(0, MAX_UINT64)
        for each in node.elements("hugepageLimits")
    }
    if any("/" in size for size in pages):
        raise node.need("hugepageLimits").fault("names a page size with a slash")
    wanted["hugetlb"] = pages or None
    if (unified := node.get("unified")) is not None:
        wanted["unified"] = {name: each.text() for name, each in unified.entries().items()} or None
    return Resources(**wanted)


def _read_memory(node: Node | None, wanted: dict[str, Any], warnings: list[str]) -> None:
    if node is None:
        return
    for name, field in (("limit", "memory"), ("reservation", "memory_reservation"), ("swap", "memory_swap")):
        wanted[field] = node.integer_of(name, -1, MAX_INT64) or None
    wanted["swappiness"] = node.integer_of("swappiness", 0, 100)
    wanted["oom_kill_disable"] = node.flag_of("disableOOMKiller") or None
    warnings += [
        f"{node.path}.{name} is ignored: the kernel has no such limit any more"
        for name in _OUTDATED
        if node.integer_of(name, MIN_INT64, MAX_INT64)
    ]


def _read_cpu(node: Node | None, wanted: dict[str, Any]) -> None:
    if node is None:
        return
    wanted["cpu_shares"] = node.integer_of("shares", 0, MAX_UINT64) or None
    wanted["cpu_quota"] = node.integer_of("quota", MIN_INT64, MAX_INT64) or None
    wanted["cpu_period"] = node.integer_of("period", 0, MAX_UINT64) or None
    wanted["cpuset_cpus"] = _set_of(node, "cpus")
    wanted["cpuset_mems"] = _set_of(node, "mems")


def _set_of(node: Node, name: str) -> str | None:
    text = node.text_of(name) or None
    if text is not None and set(text) - set("0123456789,-"):
        raise node.need(name).fault(f"must be a list like 0-2,4, not {text[:60]!a}")
    return text


def _rule(node: Node) -> Rule:
    kind = node.text_of("type") or "a"
    if kind not in ("a", "b", "c"):
        raise node.need("type").fault("must be a, b or c")
    access = node.text_of("access") or "rwm"
    if set(access) - set("rwm"):
        raise node.need("access").fault("must be made of r, w and m")
    major, minor = (node.integer_of(name, -1, 2**32 - 1) for name in ("major", "minor"))
    return Rule(
        node.need("allow").flag(), kind, None if major == -1 else major, None if minor == -1 else minor,
        "".join(each for each in "rwm" if each in access),
    )  # fmt: skip


def _refuse_unsupported(node: Node) -> None:
    for group, names in _UNSUPPORTED.items():
        below = node.get(group)
        for name in names if below is not None else ():
            found = below.get(name) if below is not None else None
            if found is not None and found.value not in (0, False, []):
                raise found.fault("is not supported")
    if (rdma := node.get("rdma")) is not None and rdma.entries():
        raise rdma.fault("is not supported")
