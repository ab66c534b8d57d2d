"""The version of this program."""

from __future__ import annotations


def own_version() -> str:
    """What is installed; ``unknown`` in a tree that is not."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("isomark")
    except PackageNotFoundError:
        return "unknown"
