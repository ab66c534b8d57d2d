"""What the user sees of a build: numbered steps with their times, and the output of those that run something."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final

Say = Callable[[str], None]
TAIL_LINES: Final = 20
"""How many lines of a step's output its failure repeats."""
_MAX_TITLE: Final = 160


class Telling:
    """Tells ``say`` a line at a time."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self.total = 0
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._number = 0
        self._began = 0.0
        self._indent = ""

    def begins(self, title: str) -> None:
        """The next step begins."""
        self._number += 1
        self._began = time.monotonic()
        self.tail.clear()
        mark = f"[{self._number}/{self.total}]"
        self._indent = " " * (len(mark) + 1)
        title = " ".join(title.split())
        self._say(f"{mark} {title if len(title) <= _MAX_TITLE else title[: _MAX_TITLE - 1] + '…'}")

    def hears(self, line: str) -> None:
        """The step prints ``line``."""
        shown = line.rpartition("\r")[2] if "\r" in line.rstrip("\r") else line.rstrip("\r")
        self.tail.append(shown)
        self._say(f"{self._indent}| {shown}")

    def says(self, text: str) -> None:
        """Something about the step."""
        self._say(f"{self._indent}{text}")

    def ends(self, *, cached: bool) -> None:
        """The step, one that takes time, is done."""
        self._say(f"{self._indent}{'CACHED' if cached else f'done in {time.monotonic() - self._began:.1f} s'}")

    def warns(self, text: str) -> None:
        """Something is odd but does not stop the build."""
        self._say(f"warning: {text}")
