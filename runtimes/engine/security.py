"""What a container's --security, --cap-add, --privileged and so on come to on this host."""

from __future__ import annotations

from runtimes import usernamespace
from runtimes.security import device_rules
from runtimes.security.levels import Security, level

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


def security_of(config: Mapping[str, Any], state: str, *, privileged: bool = False) -> Security:
    """The security of a container, or with ``privileged`` of an exec that may do everything.

    Raises:
        UsageError: an option is malformed.
        HostError: the host lacks what it takes.
    """
    asked = config["security"]
    remapped = config["namespaces"]["userns"] == "private" and usernamespace.privileged()
    rules = []
    if config["devices"] and (remapped or not asked["privileged"]):
        rules = [device_rules.for_node(device["source"], device["access"]) for device in config["devices"]]
    found = level(
        "off" if privileged else asked["level"],
        state=state,
        cap_add=() if privileged else asked["cap_add"],
        cap_drop=() if privileged else asked["cap_drop"],
        security_opt=() if privileged else asked["options"],
        devices=rules,
        user_namespace=not usernamespace.privileged(),
    )
    if remapped and found.devices is None:  # its root is host-made and may hold nodes: no level opens the host's disks
        found.devices = (*device_rules.DEFAULT, *rules)
    return found
