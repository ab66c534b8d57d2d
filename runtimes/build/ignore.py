"""``.dockerignore``: what of the context no instruction sees (Dockerfile reference, ".dockerignore file").

The patterns mean what github.com/moby/patternmatcher makes of them: Go's filepath.Match, ``**`` for any directories,
and ``!`` for exceptions, of which the last that fits counts.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.errors import UsageError
from runtimes.build import glob
from runtimes.build.glob import BadPattern, Token

MAX_BYTES: Final = 1024**2
_NAMES: Final = (".containerignore", ".dockerignore")


@dataclass(frozen=True)
class _Pattern:
    tokens: Sequence[Token]
    excepts: bool

    def fits(self, path: str) -> bool:
        return glob.matches(self.tokens, path)


class Ignore:
    """Which paths, relative to the context and with slashes, are left out."""

    def __init__(self, patterns: Iterable[str] = ()) -> None:
        """Read ``patterns``, one for each line of the file.

        Raises:
            UsageError: one is malformed.
        """
        self._patterns = [pattern for line in patterns if (pattern := _pattern(line)) is not None]
        self.has_exceptions = any(pattern.excepts for pattern in self._patterns)

    def __bool__(self) -> bool:
        return bool(self._patterns)

    def hides(self, path: str) -> bool:
        """Whether ``path`` is left out, itself or with a directory above it; the context itself never is."""
        if path in ("", "."):
            return False
        parts = path.split("/")
        above = ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
        hidden = False
        for pattern in self._patterns:
            if pattern.excepts == hidden and any(pattern.fits(prefix) for prefix in above):
                hidden = not pattern.excepts
        return hidden

    def hides_all_below(self, path: str) -> bool:
        """Whether a directory need not be looked into."""
        return not self.has_exceptions and self.hides(path)


def find_ignore(context: Path, containerfile: Path | None) -> tuple[str, ...]:
    """Return the lines of the file that belongs to ``containerfile``, else of the context's own.

    Raises:
        UsageError: it cannot be read.
    """
    beside = [containerfile.with_name(f"{containerfile.name}.dockerignore")] if containerfile is not None else []
    for path in [*beside, *(context / name for name in _NAMES)]:
        try:
            # not blocking: it could be a pipe
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise UsageError(
                f"cannot read {path}: {error.strerror}", hint="make it readable, or take it away"
            ) from error
        with open(fd, "rb") as file:
            data = file.read(MAX_BYTES + 1) if path.is_file() else b""
        if len(data) > MAX_BYTES:
            raise UsageError(f"{path} is larger than {MAX_BYTES} bytes", hint="name directories, not each file")
        return tuple(data.decode("utf-8", "surrogateescape").removeprefix("\ufeff").splitlines())
    return ()


def _pattern(line: str) -> _Pattern | None:
    if line.startswith("#") or not (text := line.strip()):
        return None
    excepts = text.startswith("!")
    if excepts and not (text := text[1:].strip()):
        raise UsageError("the ignore file has the pattern '!'", hint="an exception names what it excepts")
    cleaned = posixpath.normpath(text)
    if len(cleaned) > 1:
        cleaned = cleaned.lstrip("/")
    try:
        return _Pattern(_tokens(cleaned), excepts)
    except BadPattern as error:
        raise UsageError(
            f"the ignore file has a malformed pattern: {error}",
            hint="mend that line: [ needs its ], and \\ something after it",
        ) from error


def _tokens(pattern: str) -> list[Token]:
    """``**`` and what stands between; a pattern that begins with ``**`` and goes on plainly fits any such ending."""
    tokens: list[Token] = []
    head, *tails = pattern.split("**")
    tokens += glob.path_tokens(head)
    for number, tail in enumerate(tails):
        plain = tail.removeprefix("/")
        ends_all = not plain and number == len(tails) - 1
        begins_all = number == 0 and not head and plain == tail and not glob.has_wildcard(tail)
        tokens.append(Token("many", glob.anything) if ends_all or begins_all else glob.BELOW)
        tokens += glob.path_tokens(plain)
    return tokens
