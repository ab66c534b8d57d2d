"""The outer form of a Containerfile: directives, comments, continued lines, flags and here-documents.

As BuildKit reads it (moby/buildkit, frontend/dockerfile/parser), which is what the Dockerfile reference describes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from bench.errors import HostError, ImageError, IsomarkError, UsageError
from runtimes.build.words import Reading, is_space, split

MAX_BYTES: Final = 4 * 1024**2
"""A Containerfile larger than this is something else."""
_DIRECTIVE: Final = re.compile(r"#\s*([a-zA-Z][a-zA-Z0-9]*)\s*=\s*(.+?)\s*")
_DIRECTIVES: Final = ("syntax", "escape", "check")
_HERE: Final = re.compile(r"\d*<<(-?)\s*([^<]*)")
_MAY_HOLD_DOCUMENTS: Final = ("ADD", "COPY", "RUN")
_NO_NULL: Final = "neither a path nor an argument can hold one"
_TABS: Final = re.compile(r"^\t+", re.MULTILINE)


@dataclass(frozen=True)
class Document:
    """A here-document: the text after ``<<name`` up to the line ``name``.

    ``raw`` is the text as it stands; ``expands`` says whether variables in it are replaced.
    """

    name: str
    raw: str
    expands: bool
    dedents: bool

    @property
    def text(self) -> str:
        """The text, without leading tabs if it was written ``<<-``."""
        return _TABS.sub("", self.raw) if self.dedents else self.raw


@dataclass(frozen=True)
class Statement:
    """One instruction as it stands: ``keyword`` in capitals, ``flags`` like ``--from=x``, and the ``rest`` untouched.

    ``line`` and ``last_line`` count from 1; ``source`` is the line with its continuations joined.
    """

    keyword: str
    flags: tuple[str, ...]
    rest: str
    documents: tuple[Document, ...]
    line: int
    last_line: int
    source: str


@dataclass
class Source:
    """A whole file; ``warnings`` are ``(line, what)``."""

    name: str
    escape: str = "\\"
    statements: list[Statement] = field(default_factory=list)
    warnings: list[tuple[int, str]] = field(default_factory=list)


@contextmanager
def located(name: str, line: int) -> Iterator[None]:
    """Put the file and line before the message of an error from this block."""
    try:
        yield
    except IsomarkError as error:
        kind = next((kind for kind in (UsageError, HostError) if isinstance(error, kind)), ImageError)
        raise kind(f"{name}:{line}: {error.message}", hint=error.hint) from error


def read_statements(text: str, name: str) -> Source:
    """Split the text of the file called ``name`` into statements.

    Raises:
        UsageError: it is malformed; the message begins with file and line.
    """
    if len(text) > MAX_BYTES:
        raise UsageError(f"{name} is larger than {MAX_BYTES} characters", hint="is it a Containerfile?")
    if "\0" in text:
        raise UsageError(f"{name}:{text[: text.index(chr(0))].count(chr(10)) + 1}: a null byte", hint=_NO_NULL)
    return _Reader(text.removeprefix("\ufeff"), name).read()


def statement_of(source: str, escape: str, line: int = 1, documents: tuple[Document, ...] = ()) -> Statement:
    """Take one joined line apart.

    Raises:
        UsageError: a quote in its flags is not closed.
    """
    stripped = _strip(source)
    keyword, rest = _first_word(stripped)
    flags, rest = _flags(rest, escape)
    return Statement(keyword.upper(), flags, _strip(rest), documents, line, line, stripped)


class _Reader:
    def __init__(self, text: str, name: str) -> None:
        self._lines = text.split("\n")
        if self._lines and not self._lines[-1]:
            self._lines.pop()
        self._at = 0
        self._source = Source(name)

    def read(self) -> Source:
        self._read_directives()
        while self._at < len(self._lines):
            start = self._at + 1
            line = self._logical_line()
            if not _strip(line):
                continue
            with located(self._source.name, start):
                statement = statement_of(line, self._source.escape, start)
                documents = tuple(self._documents(statement))
            self._source.statements.append(
                Statement(
                    statement.keyword, statement.flags, statement.rest, documents, start, self._at, statement.source
                )
            )
        if not self._source.statements:
            raise UsageError(f"{self._source.name} holds no instructions", hint="the first one is FROM")
        return self._source

    def _read_directives(self) -> None:
        """Directives stand before everything else; the first line that is none ends them."""
        seen: set[str] = set()
        for number, line in enumerate(self._lines, 1):
            found = _DIRECTIVE.fullmatch(_strip(line))
            key = found[1].lower() if found else ""
            if found is None or key not in _DIRECTIVES:
                return
            with located(self._source.name, number):
                if key in seen:
                    raise UsageError(f"the directive {key} is given twice", hint="leave one out")
                if key == "escape" and found[2] not in ("\\", "`"):
                    raise UsageError(f"the escape character cannot be {found[2]!r}", hint="use \\ or `")
            seen.add(key)
            if key == "escape":
                self._source.escape = found[2]
            self._at = number

    def _logical_line(self) -> str:
        """Join a line with those that continue it; comments in between count for nothing, and so do empty lines."""
        pieces: list[str] = []
        continued = False
        while self._at < len(self._lines):
            line = self._lines[self._at].rstrip("\r")
            self._at += 1
            if _strip(line).startswith("#"):
                if continued:
                    continue
                return ""
            if continued and not _strip(line):
                self._source.warnings.append((self._at, "an empty line inside a continued one"))
                continue
            line, continued = self._continued(line)
            pieces.append(line)
            if not continued:
                break
        return "".join(pieces)

    def _continued(self, line: str) -> tuple[str, bool]:
        """Cut the escape character off a line that ends with one; two of them are an escaped one."""
        trimmed = line.rstrip(" \t")
        escape = self._source.escape
        if trimmed.endswith(escape) and not trimmed.endswith(escape * 2):
            return trimmed[:-1], True
        return line, False

    def _documents(self, statement: Statement) -> Iterator[Document]:
        if not _may_hold_documents(statement, self._source.escape) or "<<" not in statement.source:
            return
        for name, expands, dedents in here_words(statement.source):
            content: list[str] = []
            while True:
                if self._at >= len(self._lines):
                    raise UsageError(f"the here-document <<{name} does not end", hint=f"a line {name} ends it")
                line = self._lines[self._at]
                self._at += 1
                bare = line.rstrip("\r")
                if (bare.lstrip("\t") if dedents else bare) == name:
                    break
                content.append(f"{line}\n")
            yield Document(name, "".join(content), expands, dedents)


def here_words(line: str) -> Iterator[tuple[str, bool, bool]]:
    """Every ``<<name`` of a line: the name, whether its document expands variables, whether it loses its tabs.

    Raises:
        UsageError: a quote is not closed.
    """
    try:
        words = split(line, {}, Reading(keep_quotes=True, keep_escapes=True, keep_unset=True))
    except UsageError:  # quotes that only the shell of the step understands: then there is no document
        return
    for word in words:
        if (found := here_word(word)) is not None:
            yield found


def here_word(word: str) -> tuple[str, bool, bool] | None:
    """What ``here_words`` yields for one word; ``None`` if it is no ``<<name``."""
    found = _HERE.fullmatch(word)
    if found is None or not found[2]:
        return None
    names = split(found[2], {}, Reading(keep_unset=True))
    if len(names) != 1:
        return None
    quoted = split(found[2], {}, Reading(keep_quotes=True, keep_unset=True)) != names
    return names[0], not quoted, bool(found[1])


def json_list(text: str) -> list[str] | None:
    """The strings of the JSON form, ``["a", "b"]``; ``None`` if ``text`` is not one, which then means plain words.

    Raises:
        UsageError: it is a JSON array of something else.
    """
    if not text.startswith("["):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, list):
        return None
    if not all(isinstance(item, str) for item in value):
        raise UsageError("the JSON form holds something else than strings", hint='write it like ["a", "b"]')
    if any("\0" in item for item in value):
        raise UsageError("the JSON form holds a null byte", hint=_NO_NULL)
    return value


def _may_hold_documents(statement: Statement, escape: str) -> bool:
    if statement.keyword == "ONBUILD":
        return _may_hold_documents(statement_of(statement.rest, escape), escape)
    return statement.keyword in _MAY_HOLD_DOCUMENTS and json_list(statement.rest) is None


def _flags(text: str, escape: str) -> tuple[tuple[str, ...], str]:
    """Take the words that begin with ``--`` off the front; quotes and escapes in them are consumed."""
    flags: list[str] = []
    while text.startswith("--"):
        word, text = _flag(text, escape)
        if word == "--":
            break
        flags.append(word)
    return tuple(flags), text


def _flag(text: str, escape: str) -> tuple[str, str]:
    word: list[str] = []
    quote = ""
    at = 0
    while at < len(text):
        char = text[at]
        if not quote and is_space(char):
            break
        if char == quote:
            quote = ""
        elif not quote and char in "'\"":
            quote = char
        else:
            if char == escape and at + 1 < len(text):
                at += 1
            word.append(text[at])
        at += 1
    if quote:
        raise UsageError(f"a quote is not closed, in {text[:200]!r}", hint="close it, or write a backslash before it")
    return "".join(word), text[at:].lstrip()


def _first_word(text: str) -> tuple[str, str]:
    for at, char in enumerate(text):
        if is_space(char):
            return text[:at], _strip(text[at:])
    return text, ""


def _strip(text: str) -> str:
    return text.strip().strip("\r")
