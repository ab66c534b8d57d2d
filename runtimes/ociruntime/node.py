"""A place in a JSON document: its value and the path to it, so that every fault names where it is."""

from __future__ import annotations

from bench.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container
    from typing import Any, Final

MAX_UINT32: Final = 2**32 - 1
MAX_UINT64: Final = 2**64 - 1
MIN_INT64: Final = -(2**63)
MAX_INT64: Final = 2**63 - 1


class Node:
    """One value, its path (``process.user.uid``) and the document's name.

    A property that is ``null`` counts as absent, as Go's decoder has it. What is asked for and is of another type
    is a ``UsageError``; unknown properties are nobody's business (runtime-spec, config.md, "Extensibility").
    """

    __slots__ = ("document", "path", "value")

    def __init__(self, value: Any, document: str, path: str = "") -> None:  # noqa: ANN401 - any JSON
        self.value = value
        self.document = document
        self.path = path

    def fault(self, what: str) -> UsageError:
        """An error at this place; ``what`` completes "process.cwd …"."""
        return UsageError(f"{self.document}: {self.path or 'the document'} {what}")

    def get(self, name: str) -> Node | None:
        """The property ``name`` of this object; ``None`` if absent."""
        if not isinstance(self.value, dict):
            raise self.fault(f"must be an object, not {_shown(self.value)}")
        value = self.value.get(name)
        return None if value is None else self._child(name, value)

    def need(self, name: str) -> Node:
        """The property ``name``, which must be there."""
        found = self.get(name)
        if found is None:
            raise UsageError(f"{self.document}: {self._below(name)} is missing")
        return found

    def items(self) -> list[Node]:
        """The elements of this array."""
        if not isinstance(self.value, list):
            raise self.fault(f"must be an array, not {_shown(self.value)}")
        return [Node(value, self.document, f"{self.path}[{index}]") for index, value in enumerate(self.value)]

    def elements(self, name: str) -> list[Node]:
        """The elements of the array ``name``; none if absent."""
        found = self.get(name)
        return [] if found is None else found.items()

    def entries(self) -> dict[str, Node]:
        """The properties of this object."""
        if not isinstance(self.value, dict):
            raise self.fault(f"must be an object, not {_shown(self.value)}")
        return {name: self._child(name, value) for name, value in self.value.items()}

    def text(self) -> str:
        """This string; one with a null byte or half a surrogate pair cannot be handed to the kernel."""
        value = self.value
        if not isinstance(value, str):
            raise self.fault(f"must be a string, not {_shown(value)}")
        if "\0" in value:
            raise self.fault("must not contain a null byte")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise self.fault("must be a string that UTF-8 can hold") from None
        return value

    def absolute(self) -> str:
        """This string, an absolute path."""
        path = self.text()
        if not path.startswith("/"):
            raise self.fault(f"must be an absolute path, not {_shown(path)}")
        return path

    def choice(self, choices: Container[str], said: str) -> str:
        """This string, one of ``choices``; ``said`` names them."""
        value = self.text()
        if value not in choices:
            raise self.fault(f"must be {said}, not {_shown(value)}")
        return value

    def flag(self) -> bool:
        """This boolean."""
        if not isinstance(self.value, bool):
            raise self.fault(f"must be true or false, not {_shown(self.value)}")
        return self.value

    def integer(self, low: int, high: int) -> int:
        """This whole number from ``low`` to ``high``."""
        value = self.value
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.fault(f"must be a whole number from {low} to {high}, not {_shown(self.value)}")
        return value

    def text_of(self, name: str) -> str | None:
        """The string ``name``; ``None`` if absent."""
        found = self.get(name)
        return None if found is None else found.text()

    def flag_of(self, name: str) -> bool:
        """The boolean ``name``; false if absent."""
        found = self.get(name)
        return False if found is None else found.flag()

    def integer_of(self, name: str, low: int, high: int) -> int | None:
        """The whole number ``name``; ``None`` if absent."""
        found = self.get(name)
        return None if found is None else found.integer(low, high)

    def texts_of(self, name: str) -> list[str]:
        """The strings of the array ``name``; none if absent."""
        return [each.text() for each in self.elements(name)]

    def _child(self, name: str, value: Any) -> Node:  # noqa: ANN401 - any JSON
        return Node(value, self.document, self._below(name))

    def _below(self, name: str) -> str:
        """The path of property ``name``; one that is no plain word stands quoted, and short, in brackets."""
        if name.replace("_", "").isalnum() and len(name) <= 64:
            return f"{self.path}.{name}" if self.path else name
        return f"{self.path}[{_shown(name)}]"


def _shown(value: Any) -> str:  # noqa: ANN401 - any JSON
    """``value`` for an error message: one line, short."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "an array"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    said = ascii(value)
    return said if len(said) <= 64 else said[:60] + "…"
