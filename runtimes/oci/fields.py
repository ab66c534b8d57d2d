"""The fields of tar headers: text and numbers, each checked; what is wrong with one is an ImageError."""

from __future__ import annotations

from typing import Final

from bench.errors import ImageError
from runtimes.oci.names import DAMAGED

BLOCK_BYTES: Final = 512
_LONGEST_DECIMAL: Final = 19
"""Digits of 2^63, beyond which no size is."""


def text(raw: bytes) -> str:
    """What stands before the first NUL."""
    return raw.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def number(raw: bytes) -> int:
    """A numeric field: octal, or base-256 (GNU) where the first bit is set; empty is 0.

    Raises:
        ImageError: it is neither.
    """
    digits = raw.rstrip(b" \0").lstrip(b" ")
    if not digits.isdigit():  # int() would take signs and underscores too
        return _odd_number(raw)
    try:
        return int(digits, 8)
    except ValueError as error:
        raise _no_number() from error


def _odd_number(raw: bytes) -> int:
    if raw[0] & 0x80:
        value = int.from_bytes(bytes([raw[0] & 0x7F]) + raw[1:], "big")
        return value - (1 << (8 * len(raw) - 1)) if raw[0] & 0x40 else value
    digits = raw.partition(b"\0")[0].strip(b" ")
    if digits.strip(b"01234567"):
        raise _no_number()
    return int(digits or b"0", 8)


def decimal(raw: bytes) -> int:
    """A number as pax and GNU's sparse maps write it.

    Raises:
        ImageError: it is none, or beyond 64 bits.
    """
    if not raw.isdigit() or len(raw) > _LONGEST_DECIMAL:
        raise damaged("has a malformed decimal number")
    return int(raw)


def nanoseconds(raw: bytes) -> int:
    """A time in decimal seconds, as pax writes it; digits beyond nanoseconds are dropped.

    Raises:
        ImageError: it is none.
    """
    whole, _, fraction = raw.removeprefix(b"-").partition(b".")
    if not whole.isdigit() or len(whole) > 12 or (fraction and not fraction.isdigit()):
        raise damaged("has a malformed time in a pax header")
    total = int(whole) * 10**9 + int(fraction[:9].ljust(9, b"0"))
    return -total if raw.startswith(b"-") else total


def padded(size: int) -> int:
    """``size`` rounded up to whole blocks."""
    return size + -size % BLOCK_BYTES


def damaged(what: str) -> ImageError:
    """An error that says what a layer does."""
    return ImageError(f"a layer {what}", hint=DAMAGED)


def _no_number() -> ImageError:
    return damaged("has a header with a number that is none")
