"""A bundle's configuration as a plan: a ``Spec`` to start, and what an engine does around it. Pure: no host is asked.

runtime-spec 1.2. Unknown properties are ignored, malformed ones refused with their path.
"""

from __future__ import annotations

from bench.errors import UsageError
from runtimes.birth import plain
from runtimes.ociruntime import filesystem, hooks, isolation, process
from runtimes.ociruntime.node import Node

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from runtimes.ociruntime.process import Process
    from runtimes.spec import Spec

FILE: Final = "config.json"
SPEC_VERSION: Final = "1.2.0"
OLDEST: Final = "1.0.0"

PERSONALITIES: Final = {"LINUX": 0x0000, "LINUX32": 0x0008}
"""sys/personality.h."""


class Plan:
    """What ``config.json`` asks for.

    Attributes:
        version: Its ociVersion.
        spec: What to start; ``seccomp``, ``hold`` and the completion of some mounts depend on the host and are missing.
        process: The same process as ``spec`` has it, with what a ``Spec`` cannot say.
        hooks: Point -> hooks.
        cgroups_path: As the caller wrote it; ``None``: the runtime's own choice.
        resources: The object linux.resources, to be read by ``resources.parse``.
        seccomp: The object linux.seccomp, to be read by the compiler.
        personality: Of personality(2); ``None``: left as it is.
        annotations: Handed on.
        warnings: What was passed over.
    """

    __slots__ = (
        "annotations", "cgroups_path", "hooks", "personality", "process", "resources", "rootfs", "seccomp", "spec",
        "version", "warnings",
    )  # fmt: skip

    def __init__(self, version: str, spec: Spec, own: Process) -> None:
        self.version = version
        self.spec = spec
        self.process = own
        self.rootfs = ""
        self.hooks: dict[str, list[list[Any]]] = {}
        self.cgroups_path: str | None = None
        self.resources: Node | None = None
        self.seccomp: Node | None = None
        self.personality: int | None = None
        self.annotations: dict[str, str] = {}
        self.warnings: list[str] = []


def parse(value: Any, bundle: str, document: str = FILE) -> Plan:  # noqa: ANN401 - any JSON
    """Read a configuration; ``bundle`` is the absolute path of its directory.

    Raises:
        UsageError: with the path of what is wrong.
    """
    node = Node(value, document)
    version = _version(node.need("ociVersion"))
    linux = node.get("linux") or Node({}, document, "linux")
    own = process.parse(node.need("process"))
    apart = isolation.parse(node, linux)
    files = filesystem.parse(node, linux, apart, bundle)
    plan = Plan(version, plain(), own)
    plan.rootfs = files.root
    plan.warnings = own.warnings
    _fill(plan.spec, own, apart, files)
    plan.hooks = hooks.parse(node)
    plan.cgroups_path = linux.text_of("cgroupsPath") or None
    plan.resources = linux.get("resources")
    plan.seccomp = linux.get("seccomp")
    plan.personality = _personality(linux.get("personality"))
    if (annotations := node.get("annotations")) is not None:
        plan.annotations = {name: each.text() for name, each in annotations.entries().items()}
    if (intel := linux.get("intelRdt")) is not None and intel.entries():
        raise intel.fault("is not supported: there is no control over caches and memory bandwidth")
    return plan


def _fill(
    spec: Spec, own: Process, apart: isolation.Isolation, files: filesystem.FileSystem
) -> None:  # fmt: skip
    process.adopt(own, spec)
    spec["namespaces"] = apart.made
    spec["join"] = apart.join
    spec["uid_map"] = apart.uid_map
    spec["gid_map"] = apart.gid_map
    spec["time_offsets"] = apart.time_offsets
    spec["hostname"] = apart.hostname
    spec["domainname"] = apart.domainname
    spec["sysctls"] = apart.sysctls
    spec["root"] = ["directory", files.root]
    spec["root_readonly"] = files.root_readonly
    spec["propagation"] = files.propagation
    spec["mounts"] = files.operations
    spec["tie"] = False


def _version(node: Node) -> str:
    """A version of the specification that this runtime understands: any 1.x, for 1.x is compatible with 1.0."""
    text = node.text()
    numbers = text.partition("+")[0].partition("-")[0].split(".")
    if len(numbers) != 3 or not all(number.isascii() and number.isdecimal() for number in numbers):
        raise node.fault(f"must be a version like {SPEC_VERSION}, not {text!a}")
    if numbers[0].lstrip("0") != "1":
        raise UsageError(
            f"{node.document}: ociVersion {text} is not supported", hint=f"{OLDEST} and later 1.x versions are"
        )
    return text


def _personality(node: Node | None) -> int | None:
    if node is None:
        return None
    domain = PERSONALITIES[node.need("domain").choice(PERSONALITIES, "LINUX or LINUX32")]
    if node.elements("flags"):
        raise node.need("flags").fault("must be empty: the specification defines no flag")
    return domain
