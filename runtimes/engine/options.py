"""Options of the container commands as data, and the small parser that reads them.

A table is a tuple of rows ``(name, short, metavar, help)``. A row without a metavar is a switch; a metavar that ends in
``…`` may be given several times. ``argparse`` would cost a start 10 ms, and typer 70.
"""

from __future__ import annotations

from bench.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Row = tuple[str, str, str, str]
    Table = tuple[Row, ...]
    Value = bool | str | list[str]

_TRUE = frozenset({"1", "t", "true", "yes"})
_FALSE = frozenset({"0", "f", "false", "no"})


class Options:
    """What was asked for: ``flag``, ``text`` or ``list`` by the option's long name."""

    __slots__ = ("_given", "rest")

    def __init__(self, given: Mapping[str, Value], rest: Sequence[str]) -> None:
        self._given = given
        self.rest = list(rest)

    def flag(self, name: str) -> bool:
        """Whether a switch is on."""
        return self._given.get(name) is True

    def text(self, name: str) -> str | None:
        """The last value given; ``None`` if there is none."""
        value = self._given.get(name)
        return value if isinstance(value, str) else None

    def list(self, name: str) -> list[str]:
        """Every value given, in order."""
        value = self._given.get(name)
        return list(value) if isinstance(value, list) else []

    def has(self, name: str) -> bool:
        """Whether the option was given at all."""
        return name in self._given


class HelpAsked(Exception):
    """Somebody wrote --help."""


def parse(table: Table, arguments: Sequence[str], *, interspersed: bool) -> Options:
    """Read ``arguments``; with ``interspersed`` false, options end at the first argument that is none (docker run).

    Raises:
        UsageError: an unknown option, or a value missing or too many.
        HelpAsked: --help is among the options.
    """
    return _Parser(table).parse(arguments, interspersed=interspersed)


class _Parser:
    def __init__(self, table: Table) -> None:
        self._long = {row[0]: row for row in table}
        self._short = {row[1]: row for row in table if row[1]}
        self._given: dict[str, Value] = {}

    def parse(self, arguments: Sequence[str], *, interspersed: bool) -> Options:
        waiting = list(reversed(arguments))
        rest: list[str] = []
        while waiting:
            argument = waiting.pop()
            if argument == "--":
                rest += reversed(waiting)
                break
            if argument.startswith("--"):
                self._take_long(argument[2:], waiting)
            elif argument.startswith("-") and argument != "-":
                self._take_short(argument[1:], waiting)
            else:
                rest.append(argument)
                if not interspersed:
                    rest += reversed(waiting)
                    break
        return Options(self._given, rest)

    def _take_long(self, argument: str, waiting: list[str]) -> None:
        name, equals, value = argument.partition("=")
        if name == "help":
            raise HelpAsked
        row = self._long.get(name)
        if row is None:
            raise UsageError(f"unknown option --{name}{_meant(name, self._long)}")
        if equals:
            self._put(row, value)
        elif not row[2]:
            self._given[name] = True
        else:
            self._put(row, self._next(f"--{name}", row, waiting))

    def _take_short(self, letters: str, waiting: list[str]) -> None:
        for position, letter in enumerate(letters, start=1):
            row = self._short.get(letter)
            if row is None:
                raise UsageError(f"unknown option -{letter}" + (f" in -{letters}" if len(letters) > 1 else ""))
            if row[2]:
                value = letters[position:].removeprefix("=")
                self._put(row, value or self._next(f"-{letter}", row, waiting))
                return
            self._given[row[0]] = True

    def _next(self, written: str, row: Row, waiting: list[str]) -> str:
        if not waiting:
            raise UsageError(f"option {written} needs a value: {row[2].rstrip('…')}")
        return waiting.pop()

    def _put(self, row: Row, value: str) -> None:
        name, _, metavar, _ = row
        if not metavar:
            if value.lower() not in _TRUE | _FALSE:
                raise UsageError(f"option --{name} is a switch: {value!r} is neither true nor false")
            self._given[name] = value.lower() in _TRUE
        elif metavar.endswith("…"):
            values = self._given.setdefault(name, [])
            assert isinstance(values, list)
            values.append(value)
        else:
            self._given[name] = value


def _meant(name: str, known: Mapping[str, object]) -> str:
    """``; did you mean --memory?`` if something is near."""
    from difflib import get_close_matches  # only for a mistake

    near = get_close_matches(name, list(known), n=1)
    return f"; did you mean --{near[0]}?" if near else ""


def usage(line: str, about: str, table: Table) -> str:
    """The text that --help prints."""
    rows = []
    for name, short, metavar, told in sorted(table):
        value = f" {metavar.rstrip('…')}" if metavar else ""
        again = " (may be given again)" if metavar.endswith("…") else ""
        rows.append((f"{f'-{short}, ' if short else '    '}--{name}{value}", told + again))
    width = min(36, max((len(left) for left, _ in rows), default=0))
    told_rows = [
        f"  {left:{width}}  {told}" if len(left) <= width else f"  {left}\n  {'':{width}}  {told}"
        for left, told in rows
    ]
    options = ["", "Options:", *told_rows, f"  {'    --help':{width}}  Show this."]
    return "\n".join([f"Usage: isomark {line}", "", about, *options, ""])
