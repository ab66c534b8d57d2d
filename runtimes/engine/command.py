"""One command of the command line, as data."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runtimes.engine.options import Options, Table


class Command:
    """What a command takes and does.

    Attributes:
        work: Called with the options; returns the exit status.
        table: Its options.
        arguments: Its usage line after its name.
        about: One sentence.
        runs: Whether its exit status is that of a container's command, so that 125 means our own failure.
    """

    __slots__ = ("about", "arguments", "runs", "table", "work")

    def __init__(
        self, work: Callable[[Options], int], table: Table, arguments: str, about: str, *, runs: bool = False
    ) -> None:
        self.work = work
        self.table = table
        self.arguments = arguments
        self.about = about
        self.runs = runs
