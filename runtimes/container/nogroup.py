"""What stands for a cgroup where nobody but root may make one. Light."""

from __future__ import annotations

from bench.errors import HostError
from runtimes.container.stats import Stats

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtimes.container.resources import Resources


class NoGroup:
    """Stands for a group where there can be none: it limits nothing and counts nothing, and says so.

    Attributes:
        reason: Why there is none.
    """

    __slots__ = ("name", "reason")

    def __init__(self, name: str, reason: HostError) -> None:
        self.name = name
        self.reason = reason

    def entrances(self, *, born: bool = True) -> tuple[int | None, list[int]]:  # noqa: ARG002 - as Group
        """None."""
        return None, []

    def members(self) -> list[int]:
        """Unknown.

        Raises:
            HostError: always.
        """
        raise self.reason

    def oom_kills(self) -> int | None:
        """Nobody counts."""
        return None

    def cpu_seconds(self) -> float | None:
        """Nobody counts."""
        return None

    def stats(self) -> Stats:
        """Nothing is known."""
        return Stats()

    def freeze(self) -> None:
        """Impossible.

        Raises:
            HostError: always.
        """
        raise self.reason

    def thaw(self) -> None:
        """Nothing is frozen."""

    def frozen(self) -> bool:
        """Nothing is."""
        return False

    def update(self, _resources: Resources) -> None:
        """Impossible.

        Raises:
            HostError: always.
        """
        raise self.reason

    def remove(self) -> None:
        """There is nothing."""
