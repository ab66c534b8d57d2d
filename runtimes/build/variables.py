"""The variables of a stage: ARG and ENV, which of them win, and what Docker defines by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from runtimes.oci.platform import Platform

PREDEFINED: Final = frozenset(
    name for lower in ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy")
    for name in (lower, lower.upper())
)  # fmt: skip
"""Build arguments that every RUN sees without an ARG; they are neither in the history nor in the cache's keys."""
DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def platform_arguments(target: Platform) -> dict[str, str]:
    """The automatic arguments in the global scope (Dockerfile reference, "Automatic platform ARGs")."""
    values: dict[str, str] = {}
    for side, platform in (("TARGET", target), ("BUILD", Platform.here())):
        values |= {
            f"{side}PLATFORM": str(platform),
            f"{side}OS": platform.os,
            f"{side}ARCH": platform.architecture,
            f"{side}VARIANT": platform.variant or "",
        }
    return values


def environment(lines: Sequence[str]) -> dict[str, str]:
    """The variables of an image's ``Env``; the last of a name counts."""
    pairs = (line.partition("=") for line in lines)
    return {name: value for name, _, value in pairs}


def environment_lines(variables: Mapping[str, str]) -> list[str]:
    """``variables`` as an image's ``Env`` has them."""
    return [f"{name}={value}" for name, value in variables.items()]
