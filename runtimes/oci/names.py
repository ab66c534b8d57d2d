"""Names in a layer: what the special ones mean, and which are refused (image-spec 1.1, layer.md)."""

from __future__ import annotations

from typing import Final

from bench.errors import ImageError

WHITEOUT: Final = ".wh."
"""Prefix of an entry that hides its namesake in lower layers."""
OPAQUE: Final = ".wh..wh..opq"
"""An entry that hides all that lower layers have in its directory."""
AUFS_NOTES: Final = ".wh..wh."
"""Prefix of what aufs, Docker's first storage driver, kept for itself; never applied."""
MAX_DEPTH: Final = 256
"""Directories within directories: what removing a tree recursively can still take."""
MALICIOUS: Final = "the image is damaged or malicious; do not use it"
DAMAGED: Final = "the image is damaged or malicious; fetch or build it again"


def parts_of(path: str) -> list[str]:
    """Return the components of an entry's path, without "." and empty ones: "/etc/x" is "etc/x", as for every engine.

    Raises:
        ImageError: the path climbs with "..", or is deeper than ``MAX_DEPTH``.
    """
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise ImageError(f"a layer names {path[:200]!r}, which leads outside", hint=MALICIOUS)
    if len(parts) > MAX_DEPTH:
        raise too_deep()
    return parts


def too_deep() -> ImageError:
    """The error for directories nested without end."""
    return ImageError(f"an image has directories nested deeper than {MAX_DEPTH}", hint=MALICIOUS)
