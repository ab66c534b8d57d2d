"""The user's own terminal: raw while a container has it, its size, and the keys that leave a container running."""

from __future__ import annotations

import fcntl
import os
import termios
from struct import unpack

from bench.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DETACH_KEYS = "ctrl-p,ctrl-q"
_SPECIAL = {"@": 0, "[": 27, "\\": 28, "]": 29, "^": 30, "_": 31}


def size(fd: int) -> list[int] | None:
    """Rows and columns of the terminal ``fd``; ``None`` if it is none."""
    try:
        rows, columns, _, _ = unpack("HHHH", fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8)))
    except OSError:
        return None
    return [rows, columns]


class Raw:
    """A context manager: a terminal that passes every key on at once and shows nothing itself (cfmakeraw(3))."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._saved: list[Any] | None = None

    def __enter__(self) -> Raw:
        if os.isatty(self._fd):
            self._saved = termios.tcgetattr(self._fd)
            mode = termios.tcgetattr(self._fd)
            mode[0] &= ~(
                termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP
                | termios.INLCR | termios.IGNCR | termios.ICRNL | termios.IXON
            )  # fmt: skip
            mode[1] &= ~termios.OPOST
            mode[2] = (mode[2] & ~(termios.CSIZE | termios.PARENB)) | termios.CS8
            mode[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
            mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
            termios.tcsetattr(self._fd, termios.TCSADRAIN, mode)
        return self

    def __exit__(self, *_: object) -> None:
        if self._saved is not None:
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._saved)


def parse_keys(text: str) -> bytes:
    """The bytes of ``ctrl-p,ctrl-q`` or ``a,b``; none for an empty text.

    Raises:
        UsageError: it names no keys.
    """
    keys = bytearray()
    for key in text.split(",") if text else ():
        name = key.lower().removeprefix("ctrl-") if key.lower().startswith("ctrl-") else None
        if name is None and len(key) == 1 and key.isascii():
            keys.append(ord(key))
        elif name is not None and len(name) == 1 and "a" <= name <= "z":
            keys.append(ord(name) - 96)
        elif name in _SPECIAL:
            keys.append(_SPECIAL[name])
        else:
            raise UsageError(f"{text!r} names no keys", hint="write it like ctrl-p,ctrl-q")
    return bytes(keys)


class KeyWatch:
    """Looks for a sequence of keys in what is typed, across reads."""

    __slots__ = ("_keys", "_matched", "found")

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._matched = 0
        self.found = False

    def feed(self, data: bytes) -> bytes:
        """What to pass on of ``data``; a beginning of the sequence is held back until it is known to be none."""
        if not self._keys:
            return data
        passed = bytearray()
        for byte in data:
            if byte == self._keys[self._matched]:
                self._matched += 1
                if self._matched == len(self._keys):
                    self.found = True
                    break
                continue
            passed += self._keys[: self._matched]
            self._matched = 1 if byte == self._keys[0] else 0
            if not self._matched:
                passed.append(byte)
        return bytes(passed)
