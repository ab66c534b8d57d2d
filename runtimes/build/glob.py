"""Wildcards in linear memory and quadratic time, whoever wrote the pattern: three dialects, one matcher.

A pattern becomes a list of tokens; matching keeps the set of positions in the text that the tokens read so far can
end at, so that no pattern can make it backtrack.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

Accepts = Callable[[str], bool]


@dataclass(frozen=True)
class Token:
    """``one`` character that ``accepts`` takes, ``many`` of them (or none), or ``below``: any directories, or none."""

    kind: Literal["one", "many", "below"]
    accepts: Accepts


class BadPattern(ValueError):
    """The pattern is malformed; its text says how."""


def character(wanted: str) -> Token:
    """One very character."""
    return Token("one", lambda found: found == wanted)


def anything(_: str) -> bool:
    """Accept every character."""
    return True


def within_a_name(found: str) -> bool:
    """Accept every character but the one that separates the parts of a path."""
    return found != "/"


BELOW: Final = Token("below", anything)


def ends(tokens: Sequence[Token], text: str, start: int = 0) -> set[int]:
    """Every position at which a match of all ``tokens`` that begins at ``start`` can end."""
    positions = {start}
    for token in tokens:
        positions = _STEPS[token.kind](token.accepts, text, positions)
        if not positions:
            break
    return positions


def matches(tokens: Sequence[Token], text: str) -> bool:
    """Whether ``tokens`` describe the whole of ``text``."""
    return len(text) in ends(tokens, text)


def path_tokens(pattern: str) -> list[Token]:
    """Read a pattern for one path as Go's filepath.Match does: ``*``, ``?``, ``[a-z]``, ``[^a-z]``, backslash escapes.

    Raises:
        BadPattern: a class is not closed or empty, or an escape has nothing to escape.
    """
    tokens: list[Token] = []
    at = 0
    while at < len(pattern):
        char = pattern[at]
        if char == "*":
            tokens.append(Token("many", within_a_name))
        elif char == "?":
            tokens.append(Token("one", within_a_name))
        elif char == "[":
            token, at = _character_class(pattern, at + 1)
            tokens.append(token)
            continue
        else:
            if char == "\\":
                at += 1
            tokens.append(character(_at(pattern, at)))
        at += 1
    return tokens


def has_wildcard(pattern: str) -> bool:
    """Whether a pattern for a path means anything but the very path."""
    at = 0
    while at < len(pattern):
        if pattern[at] in "*?[":
            return True
        at += 2 if pattern[at] == "\\" else 1
    return False


def _character_class(pattern: str, at: int) -> tuple[Token, int]:
    """Read a class after its ``[``; return it and where it ended."""
    negated = pattern[at : at + 1] == "^"
    at += negated
    ranges: list[tuple[str, str]] = []
    while not (pattern[at : at + 1] == "]" and ranges):
        low, at = _class_character(pattern, at)
        high = low
        if pattern[at : at + 1] == "-":
            high, at = _class_character(pattern, at + 1)
        ranges.append((low, high))

    def accepts(found: str) -> bool:
        return any(low <= found <= high for low, high in ranges) != negated

    return Token("one", lambda found: found != "/" and accepts(found)), at + 1


def _class_character(pattern: str, at: int) -> tuple[str, int]:
    if pattern[at : at + 1] in ("", "-", "]"):
        raise BadPattern(f"{pattern!r} has a malformed [class]")
    if pattern[at] == "\\":
        at += 1
    return _at(pattern, at), at + 1


def _at(pattern: str, at: int) -> str:
    if at >= len(pattern):
        raise BadPattern(f"{pattern!r} ends too early")
    return pattern[at]


def _one(accepts: Accepts, text: str, positions: set[int]) -> set[int]:
    return {at + 1 for at in positions if at < len(text) and accepts(text[at])}


def _many(accepts: Accepts, text: str, positions: set[int]) -> set[int]:
    reached = set(positions)
    for start in positions:
        at = start
        while at < len(text) and accepts(text[at]) and at + 1 not in reached:
            at += 1
            reached.add(at)
    return reached


def _below(_: Accepts, text: str, positions: set[int]) -> set[int]:
    return positions | {at + 1 for at in range(min(positions), len(text)) if text[at] == "/"}


_STEPS: Final = {"one": _one, "many": _many, "below": _below}
