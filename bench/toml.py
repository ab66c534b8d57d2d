"""TOML files checked against a pydantic model, with every fault named by line and key."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from bench.errors import SuiteError

if TYPE_CHECKING:
    from pydantic import BaseModel

    Model = TypeVar("Model", bound=BaseModel)

Place = tuple[str | int, ...]

_HEADER = re.compile(r"\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"""\s*(?P<key>[A-Za-z0-9_.-]+|"[^"]*"|'[^']*')\s*=""")


def load(path: Path, model: type[Model]) -> Model:
    """Read the TOML file at ``path`` into ``model``.

    Raises:
        SuiteError: it cannot be read, is not TOML, or does not fit the model; every fault is listed
            with its line and key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SuiteError(f"cannot read {path}", [str(error)]) from error
    return parse(text, model, str(path))


def parse(text: str, model: type[Model], name: str) -> Model:
    """Read TOML ``text`` into ``model``; ``name`` stands for it in messages. See ``load``."""
    from pydantic import ValidationError

    try:
        data = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise SuiteError(f"{name} is not TOML", [str(error)], hint="see toml.io for the syntax") from error
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise malformed(text, name, [(fault["loc"], fault["msg"]) for fault in error.errors()]) from error


def malformed(text: str, name: str, faults: Sequence[tuple[Place, str]]) -> SuiteError:
    """What to raise for TOML ``text`` called ``name``: each fault, a place and a reason, with its line."""
    places = dict(_places(text))
    told = [f"line {_line(places, place)}: {_key(place)}: {_reason(reason)}" for place, reason in faults]
    plural = "fault" if len(told) == 1 else f"{len(told)} faults"
    return SuiteError(f"{name} is malformed ({plural})", told, hint="mend the lines named above")


def _places(text: str) -> Iterator[tuple[Place, int]]:
    """Yield the place of every table header and key with its line number."""
    table: Place = ()
    seen: Counter[str] = Counter()
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            name = header[2]
            table = tuple(part.strip().strip("\"'") for part in name.split("."))
            if header[1] == "[[":
                table = (*table, seen[name])
                seen[name] += 1
            yield table, number
        elif key := _KEY.match(line):
            yield (*table, *(part.strip("\"'") for part in key["key"].split("."))), number


def _line(places: dict[Place, int], place: Sequence[str | int]) -> int:
    """The line of ``place``, or of the nearest thing around it (a missing key has no line)."""
    for length in range(len(place), 0, -1):
        if (found := tuple(place[:length])) in places:
            return places[found]
    return 1


def _key(place: Sequence[str | int]) -> str:
    return ".".join(str(part) for part in place) or "the file"


def _reason(message: str) -> str:
    return message.removeprefix("Value error, ")
