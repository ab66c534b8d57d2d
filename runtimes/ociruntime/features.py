"""What this runtime understands, as the features document of runtime-spec 1.2 (features.md): the same on every host."""

from __future__ import annotations

from runtimes.ociruntime import config, hooks, isolation, mount_options
from runtimes.security.capabilities import NAMES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

ARCHITECTURES: Final = [
    "AARCH64",
    "ARM",
    "MIPS",
    "MIPS64",
    "MIPS64N32",
    "MIPSEL",
    "MIPSEL64",
    "MIPSEL64N32",
    "PARISC",
    "PARISC64",
    "PPC",
    "PPC64",
    "PPC64LE",
    "RISCV64",
    "S390",
    "S390X",
    "X32",
    "X86",
    "X86_64",
]
"""Those of libseccomp 2.5."""


def document() -> dict[str, Any]:
    """The document."""
    from runtimes.security import compiler  # only here its lists are wanted

    options = [
        *mount_options.FLAGS, *mount_options.PROPAGATIONS, *mount_options.RECURSIVE, *mount_options.EXTENSIONS,
    ]  # fmt: skip
    return {
        "ociVersionMin": config.OLDEST,
        "ociVersionMax": config.SPEC_VERSION,
        "hooks": list(hooks.POINTS),
        "mountOptions": sorted(options),
        "linux": {
            "namespaces": sorted(isolation.NAMESPACES),
            "capabilities": list(NAMES),
            "cgroup": {"v1": True, "v2": True, "systemd": False, "systemdUser": False, "rdma": False},
            "seccomp": {
                "enabled": True,
                "actions": sorted(f"SCMP_ACT_{name}" for name in compiler._ACTIONS),
                "operators": sorted(f"SCMP_CMP_{name}" for name in compiler.OPERATORS),
                "archs": [f"SCMP_ARCH_{name}" for name in ARCHITECTURES],
                "knownFlags": sorted(compiler.FLAGS),
                "supportedFlags": sorted(compiler.FLAGS),
            },
            "apparmor": {"enabled": True},
            "selinux": {"enabled": False},
            "intelRdt": {"enabled": False},
            "mountExtensions": {"idmap": {"enabled": False}},
        },
        "potentiallyUnsafeConfigAnnotations": [],
    }
