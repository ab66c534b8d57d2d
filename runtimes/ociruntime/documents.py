"""Reading and writing JSON by the interpreter's own C parts: the package ``json`` imports ``re``, 10 ms of a start.

What is read is refused where it is wrong, with the place; what is written reaches its name whole or not at all.
"""

from __future__ import annotations

import _json
import os

from bench.errors import HostError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

MAX_BYTES: Final = 16 << 20
"""More than any bundle's configuration; a seccomp profile has 15 KB."""
_SPACE: Final = " \t\r\n"


class _Rules:
    """What the scanner looks up (cpython, Modules/_json.c, scanner_new)."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    memo: dict[str, str] = {}  # noqa: RUF012 - its own, emptied after each use

    @staticmethod
    def parse_constant(name: str) -> Any:  # noqa: ANN401 - never returns
        """Refuse NaN and the infinities, which JSON has not (RFC 8259, 6)."""
        raise ValueError(f"{name} is no number")


_scan = _json.make_scanner(_Rules)  # type: ignore[arg-type]
_encode = _json.make_encoder(None, None, _json.encode_basestring_ascii, None, ": ", ", ", False, False, False)  # type: ignore[arg-type]


def parse(text: str) -> Any:  # noqa: ANN401 - whatever the document says
    """The value that ``text`` stands for.

    Raises:
        ValueError: it is not JSON; the message says where.
    """
    begin = len(text) - len(text.lstrip(_SPACE))
    try:
        value, end = _scan(text, begin)
    except StopIteration as stop:
        raise ValueError(f"a value is missing {_place(text, stop.value)}") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    rest = text[end:].lstrip(_SPACE)
    if rest:
        raise ValueError(f"something follows the document {_place(text, len(text) - len(rest))}")
    return value


def read(path: str) -> Any:  # noqa: ANN401 - whatever the document says
    """The document at ``path``.

    Raises:
        UsageError: it is missing, unreadable, too big or no JSON.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # nobody writes to a FIFO of that name
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", hint="is --bundle right?") from None
    with open(fd, "rb", buffering=0) as file:
        try:
            content = file.read(MAX_BYTES + 1) or b""
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}") from None
    if len(content) > MAX_BYTES:
        raise UsageError(f"{path} is larger than {MAX_BYTES >> 20} MiB")
    return decode(content, path)


def decode(content: bytes, name: str) -> Any:  # noqa: ANN401 - whatever the document says
    """The document with these bytes; ``name`` stands in an error.

    Raises:
        UsageError: it is no JSON in UTF-8.
    """
    try:
        return parse(content.decode())
    except ValueError as error:
        raise UsageError(f"{name} is no JSON: {error}") from None


def dumps(value: Any) -> str:  # noqa: ANN401 - anything JSON can say
    """``value`` as JSON on one line."""
    return "".join(_encode(value, 0))


def pretty(value: Any, depth: int = 0) -> str:  # noqa: ANN401 - anything JSON can say
    """``value`` as JSON to be read, two spaces a level."""
    inner, outer = "  " * (depth + 1), "  " * depth
    if isinstance(value, dict) and value:
        rows = [f"{inner}{dumps(name)}: {pretty(each, depth + 1)}" for name, each in value.items()]
        return "{\n" + ",\n".join(rows) + f"\n{outer}}}"
    if isinstance(value, list) and value:
        return "[\n" + ",\n".join(inner + pretty(each, depth + 1) for each in value) + f"\n{outer}]"
    return dumps(value)


def write(path: str, value: Any, mode: int = 0o600) -> None:  # noqa: ANN401 - anything JSON can say
    """Make ``value`` the document at ``path``; whoever is killed at it leaves the old one or the new one.

    Raises:
        HostError: it cannot be written.
    """
    replace(path, dumps(value).encode(), mode)


def replace(path: str, content: bytes, mode: int) -> None:
    """Make ``content`` what the file ``path`` holds, in one step.

    It survives a kill, for it is in the page cache; a power cut, which takes the container as well, it need not
    survive.

    Raises:
        HostError: it cannot be written.
    """
    directory, name = os.path.split(path)
    draft = os.path.join(directory, f".{name}.new")
    try:
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(fd, rest) :]
        finally:
            os.close(fd)
        os.rename(draft, path)
    except OSError as error:
        raise HostError(f"cannot write {path}: {error.strerror}") from error


def _place(text: str, position: int) -> str:
    line = text.count("\n", 0, position) + 1
    return f"(line {line}, column {position - text.rfind(chr(10), 0, position)})"
