"""Showing what others wrote."""

from __future__ import annotations


def printable(value: object, limit: int = 300) -> str:
    """``value`` as one line that cannot steer a terminal."""
    return "".join(char if char.isprintable() else " " for char in str(value)[:limit]).strip()
