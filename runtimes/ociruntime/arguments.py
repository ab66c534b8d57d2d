"""The command line as runc takes it: options of the program, a command, its options, its operands.

Small, because ``argparse`` takes as long to import as a container to start.
"""

from __future__ import annotations

from bench.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

FLAG: Final = "flag"
VALUE: Final = "value"
MANY: Final = "many"


class Option:
    """One option: its names without dashes, the first of which is its own, whether it takes a value, and its help."""

    __slots__ = ("kind", "names", "text", "value")

    def __init__(self, names: str, kind: str, text: str, value: str = "VALUE") -> None:
        self.names = names.split()
        self.kind = kind
        self.text = text
        self.value = value


class Options:
    """What was given: flags, values, and lists of values, by the option's own name."""

    __slots__ = ("flags", "lists", "values")

    def __init__(self) -> None:
        self.flags: set[str] = set()
        self.values: dict[str, str] = {}
        self.lists: dict[str, list[str]] = {}

    def many(self, name: str) -> list[str]:
        """Every value of an option that may be repeated."""
        return self.lists.get(name, [])

    def number(self, name: str) -> int | None:
        """The whole number that option ``name`` has; ``None`` if it was not given."""
        text = self.values.get(name)
        if text is None:
            return None
        try:
            return int(text)
        except ValueError:
            raise UsageError(f"--{name} must be a whole number, not {text!r}") from None


def read(
    arguments: Sequence[str], known: Sequence[Option], *, command: str, mixed: bool
) -> tuple[Options, list[str]]:  # fmt: skip
    """Split ``arguments`` into options and operands.

    One dash or two, ``--name value`` or ``--name=value``, as Go's flag package has it; ``--`` ends the options. With
    ``mixed`` they may follow operands (``kill ID --all``); without, the first operand ends them (``exec ID ps -e``).

    Raises:
        UsageError: an unknown option, or one without its value.
    """
    options, operands = Options(), []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "--":
            operands += rest
            break
        if not word.startswith("-") or word == "-" or (mixed and word[1:].isdecimal()):  # "-9" is a signal
            operands.append(word)
            if not mixed:
                operands += rest
                break
            continue
        _take(word, rest, options, known, command)
    return options, operands


def _take(word: str, rest: list[str], options: Options, known: Sequence[Option], command: str) -> None:
    name, equals, value = word.lstrip("-").partition("=")
    option = next((each for each in known if name in each.names), None)
    if option is None:
        raise UsageError(f"{command} has no option {word.partition('=')[0]}", hint=f"see {command} --help")
    own = option.names[0]
    if option.kind == FLAG:
        _set_flag(own, value if equals else "true", options)
        return
    if not equals:
        if not rest:
            raise UsageError(f"{word} needs a value")
        value = rest.pop(0)
    if option.kind == MANY:
        options.lists.setdefault(own, []).append(value)
    else:
        options.values[own] = value


def _set_flag(name: str, value: str, options: Options) -> None:
    if value.lower() in ("true", "1", "t"):
        options.flags.add(name)
    elif value.lower() in ("false", "0", "f"):
        options.flags.discard(name)
    else:
        raise UsageError(f"--{name} is true or false, not {value!r}")
