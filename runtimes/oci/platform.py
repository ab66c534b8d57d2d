"""Which image of an index runs here (image-spec, image-index.md; names are Go's GOOS and GOARCH)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bench.errors import ImageError, UsageError
from runtimes.oci.descriptor import Descriptor

_MACHINES: Final = {
    "x86_64": ("amd64", None), "i686": ("386", None), "i386": ("386", None),
    "aarch64": ("arm64", "v8"), "armv8l": ("arm", "v8"), "armv7l": ("arm", "v7"), "armv6l": ("arm", "v6"),
    "ppc64le": ("ppc64le", None), "riscv64": ("riscv64", None), "s390x": ("s390x", None),
    "loongarch64": ("loong64", None), "mips64": ("mips64le", None),
}  # fmt: skip
"""uname(2)'s machine -> architecture and variant."""
_ALIASES: Final = {"x86_64": "amd64", "aarch64": "arm64", "armhf": "arm", "i386": "386"}
_IMPLIED: Final = {"arm64": "v8", "amd64": "v1", "arm": "v7"}
"""The variant meant where none is written, as containerd's platforms package has it."""


@dataclass(frozen=True)
class Platform:
    """An operating system, an architecture and, where it matters, its variant."""

    os: str
    architecture: str
    variant: str | None = None

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Return what ``linux/arm64/v8``, ``linux/amd64`` or ``arm64`` names.

        Raises:
            UsageError: it is none of these.
        """
        parts = text.split("/")
        if len(parts) == 1:
            parts = ["linux", *parts]
        if len(parts) > 3 or not all(part.replace(".", "").replace("_", "").isalnum() for part in parts):
            raise UsageError(f"{text[:100]!r} is not a platform", hint="write it like linux/amd64 or linux/arm64/v8")
        system, architecture, *variant = parts
        return cls(system, _ALIASES.get(architecture, architecture), variant[0] if variant else None)

    @classmethod
    def here(cls) -> Platform:
        """This host's."""
        machine = os.uname().machine
        architecture, variant = _MACHINES.get(machine, (machine, None))
        return cls("linux", architecture, variant)

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Platform:
        """The platform that an index entry or a configuration states."""
        variant = value.get("variant")
        return cls(str(value.get("os", "")), str(value.get("architecture", "")), variant or None)

    def rank(self, offered: Platform) -> int | None:
        """How well ``offered`` runs here, lower is better; ``None`` if it does not.

        Exactly the variant is best; then, for arm and amd64, the nearest lower one.
        """
        if (self.os, self.architecture) != (offered.os, offered.architecture):
            return None
        wanted, found = self._level, offered._level
        if wanted is None or found is None:
            return 0 if (self.variant or "") == (offered.variant or "") else None
        return wanted - found if found <= wanted else None

    def may_be(self, stated: Platform) -> bool:
        """Whether a configuration that states this much may be for this platform; variants are often left out."""
        return stated.os in ("", self.os) and stated.architecture in ("", self.architecture)

    @property
    def _level(self) -> int | None:
        variant = self.variant or _IMPLIED.get(self.architecture, "")
        return int(variant[1:]) if variant[:1] == "v" and variant[1:].isdecimal() and len(variant) < 4 else None

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


def select(entries: Sequence[Descriptor], wanted: Platform, what: str) -> Descriptor:
    """Return the entry of an index that fits ``wanted`` best; the first of equals.

    Raises:
        ImageError: none fits; the message lists what is offered.
    """
    offered = [(Platform.of(entry.platform), entry) for entry in entries if entry.platform is not None]
    ranked = [(rank, entry) for platform, entry in offered if (rank := wanted.rank(platform)) is not None]
    if ranked:
        return min(ranked, key=lambda pair: pair[0])[1]
    if len(entries) == 1 and entries[0].platform is None:  # an index of one that does not say: skopeo writes such
        return entries[0]
    names = ", ".join(sorted({str(platform) for platform, _ in offered if platform.os != "unknown"})) or "nothing"
    raise ImageError(f"{what} has no image for {wanted}; it offers {names[:500]}", hint="choose one with --platform")
