"""The words of a Containerfile: quotes, escapes and variables as BuildKit's shell lexer reads them.

``$name``, ``${name}``, and of the modifiers ``:-`` ``-`` ``:+`` ``+`` ``:?`` ``?`` ``#`` ``##`` ``%`` ``%%`` ``/``
and ``//`` (Dockerfile reference, "Environment replacement").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from bench.errors import UsageError
from runtimes.build import glob
from runtimes.build.glob import Token

_SPECIAL: Final = "@*#?-$!0"
"""Parameters that a shell has and a build has not; they are read as names and are never set."""
MAX_DEPTH: Final = 64
"""Substitutions within substitutions; nobody writes so many, and each costs stack."""


@dataclass(frozen=True)
class Reading:
    """How to read: ``escape`` is the escape character; the rest keeps in the result what is otherwise consumed.

    ``quotes_mean_nothing`` is for the text of here-documents, where only variables and escapes are special.
    """

    escape: str = "\\"
    keep_quotes: bool = False
    keep_escapes: bool = False
    keep_unset: bool = False
    quotes_mean_nothing: bool = False


PLAIN: Final = Reading()


def expand(text: str, variables: Mapping[str, str], reading: Reading = PLAIN) -> str:
    """Return ``text`` with quotes and escapes consumed and variables replaced.

    Raises:
        UsageError: a quote or substitution is not closed, or a substitution is malformed or demands a variable.
    """
    return _Scanner(text, variables, reading).run().text


def split(text: str, variables: Mapping[str, str], reading: Reading = PLAIN) -> list[str]:
    """Return the words that ``text`` becomes. Raises as ``expand``."""
    return _Scanner(text, variables, reading).run().words()


def is_space(char: str) -> bool:
    """What Go's unicode.IsSpace calls one."""
    return char.isspace() and not "\x1c" <= char <= "\x1f"


class _Output:
    """The text, and where words end in it: at spaces that no quote or escape protects."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self._words: list[str] = []
        self._word: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def add(self, text: str) -> None:
        self.pieces.append(text)
        for char in text:
            if is_space(char):
                self._end_word()
            else:
                self._word.append(char)

    def add_protected(self, text: str) -> None:
        self.pieces.append(text)
        self._word.append(text)

    def words(self) -> list[str]:
        self._end_word()
        return self._words

    def _end_word(self) -> None:
        if word := "".join(self._word):
            self._words.append(word)
        self._word = []


class _Scanner:
    def __init__(self, text: str, variables: Mapping[str, str], reading: Reading) -> None:
        self._text = text
        self._at = 0
        self._variables = variables
        self._reading = reading
        self._depth = 0

    def run(self) -> _Output:
        return self._until("", keep_escapes=self._reading.keep_escapes)

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _next(self) -> str:
        char = self._peek()
        self._at += len(char)
        return char

    def _until(self, stop: str, *, keep_escapes: bool) -> _Output:
        """Read up to and with the character ``stop``; empty: to the end."""
        output = _Output()
        quoted = not self._reading.quotes_mean_nothing
        while char := self._next():
            if char == stop:
                return output
            if char == "$":
                output.add(self._dollar())
            elif char in "'\"" and quoted:
                output.add_protected(self._single() if char == "'" else self._double())
            elif char == "<" and self._peek() == "<" and not stop:
                output.add_protected(self._here())
            elif char == self._reading.escape:
                output.add_protected((char if keep_escapes else "") + self._next())
            else:
                output.add(char)
        if stop:
            raise _error(self._text, f"a substitution lacks its {stop!r}")
        return output

    def _here(self) -> str:
        """The blanks between << and a delimiter belong to the word."""
        start = self._at - 1
        self._at += 1
        if self._peek() == "-":
            self._at += 1
        while self._peek() and self._peek() in " \t":
            self._at += 1
        return self._text[start : self._at]

    def _single(self) -> str:
        end = self._text.find("'", self._at)
        if end < 0:
            raise _error(self._text, "a single quote is not closed")
        inside, self._at = self._text[self._at : end], end + 1
        return f"'{inside}'" if self._reading.keep_quotes else inside

    def _double(self) -> str:
        pieces: list[str] = []
        while char := self._next():
            if char == '"':
                inside = "".join(pieces)
                return f'"{inside}"' if self._reading.keep_quotes else inside
            if char == "$":
                pieces.append(self._dollar())
            elif char == self._reading.escape and (following := self._peek()) and following in f'"${char}':
                pieces.append((char if self._reading.keep_escapes else "") + self._next())
            else:
                pieces.append(char)
        raise _error(self._text, "a double quote is not closed")

    def _dollar(self) -> str:
        """A variable, after its ``$``."""
        start = self._at
        if self._peek() != "{":
            name = self._name()
            unset = self._reading.keep_unset and name not in self._variables
            return f"${name}" if not name or unset else self._variables.get(name, "")
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _error(self._text, f"substitutions are nested deeper than {MAX_DEPTH}")
        self._next()
        name = self._name()
        if not name:
            raise _error(self._text, "a substitution names no variable")
        value = self._modified(name)
        self._depth -= 1
        if self._reading.keep_unset and name not in self._variables:
            return f"${self._text[start : self._at]}"
        return value

    def _name(self) -> str:
        start = self._at
        first = self._peek()
        if first.isdecimal():
            while self._peek().isdecimal():
                self._at += 1
        elif first and first in _SPECIAL:
            self._at += 1
        else:
            while (char := self._peek()) and (char.isalpha() or char.isdecimal() or char == "_"):
                self._at += 1
        return self._text[start : self._at]

    def _modified(self, name: str) -> str:
        """What ``${name…}`` stands for, from after the name to the closing brace."""
        value = self._variables.get(name)
        modifier = self._next()
        if modifier == "}":
            return value or ""
        colon = modifier == ":"
        if colon:
            modifier = self._next()
        if modifier in ("+", "-", "?"):
            word = self._until("}", keep_escapes=False).text
            return self._conditional(name, modifier, word, value, empty_counts=not colon)
        if modifier in ("#", "%") and not colon:
            return _trimmed(value or "", modifier, self._until("}", keep_escapes=True).text)
        if modifier == "/" and not colon:
            return self._replaced(value or "")
        wrong = f":{modifier}" if colon else modifier
        raise _error(self._text, f"the modifier {wrong!r} of ${{{name}}} is not supported" if wrong else "a '}' lacks")

    def _conditional(self, name: str, modifier: str, word: str, value: str | None, *, empty_counts: bool) -> str:
        counts = value is not None and (empty_counts or value != "")
        if modifier == "+":
            return word if counts else ""
        if counts:
            return value or ""
        if modifier == "?":
            missing = "is not allowed to be unset" if value is None else "is not allowed to be empty"
            raise _error(self._text, f"{name}: {word or missing}", hint=f"give it with --build-arg {name}=…")
        return word

    def _replaced(self, value: str) -> str:
        everywhere = self._peek() == "/"
        if everywhere:
            self._next()
        pattern = _shell_tokens(self._until("/", keep_escapes=True).text)
        replacement = self._until("}", keep_escapes=True).text
        return _replace(value, pattern, replacement, everywhere=everywhere)


def _trimmed(value: str, modifier: str, pattern: str) -> str:
    longest = pattern.startswith(modifier)
    tokens = _shell_tokens(pattern[1:] if longest else pattern)
    choose = max if longest else min
    if modifier == "#":
        found = glob.ends(tokens, value)
        return value[choose(found) :] if found else value
    # the shortest tail is the shortest head of what is read backwards
    found = glob.ends(tokens[::-1], value[::-1])
    return value[: len(value) - choose(found)] if found else value


def _replace(value: str, tokens: Sequence[Token], replacement: str, *, everywhere: bool) -> str:
    pieces: list[str] = []
    at = 0
    while at < len(value):
        end = max(glob.ends(tokens, value, at), default=at)
        if end == at:
            pieces.append(value[at])
            at += 1
            continue
        pieces.append(replacement)
        at = end
        if not everywhere:
            break
    return "".join([*pieces, value[at:]])


def _shell_tokens(pattern: str) -> list[Token]:
    """``*`` and ``?`` as a shell means them, no brackets; an escape before ``}`` and ``/`` is only for the lexer."""
    tokens: list[Token] = []
    at = 0
    while at < len(pattern):
        char = pattern[at]
        at += 1
        if char == "\\":
            char = pattern[at : at + 1]
            at += 1
            if not char or char not in "*?\\}/":
                raise _error(pattern, f"the pattern has the unknown escape \\{char}")
            tokens.append(glob.character(char))
        elif char == "*":
            tokens.append(Token("many", glob.anything))
        elif char == "?":
            tokens.append(Token("one", glob.anything))
        else:
            tokens.append(glob.character(char))
    return tokens


def _error(text: str, what: str, hint: str = "see “Environment replacement” in the Dockerfile reference") -> UsageError:
    return UsageError(f"{what}, in {text[:200]!r}", hint=hint)
