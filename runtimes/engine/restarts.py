"""Whether and when a container is started again after it has ended."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 60.0
STEADY_SECONDS = 10.0
"""A container that ran so long starts its back-off anew (moby, restartmanager)."""


class Restarts:
    """The policy of one container, and its back-off."""

    def __init__(self, policy: str, most: int) -> None:
        """``policy`` as of ``--restart``; ``most`` starts again on failure, 0: without end."""
        self._policy = policy
        self._most = most
        self._pause_seconds = FIRST_PAUSE_SECONDS

    def shall(self, state: dict[str, Any]) -> bool:
        """Whether it shall start again, as its ``state`` is now that it has ended."""
        if state["stopped"] or self._policy == "no":
            return False
        if self._policy == "on-failure":
            return bool(state["exit_code"]) and not 0 < self._most <= state["restarts"]
        return True

    def ran(self, seconds: float) -> None:
        """It ran for so long."""
        if seconds > STEADY_SECONDS:
            self._pause_seconds = FIRST_PAUSE_SECONDS

    def pause(self) -> float:
        """How many seconds to wait before the next start; each time twice as long."""
        seconds = self._pause_seconds
        self._pause_seconds = min(seconds * 2, LONGEST_PAUSE_SECONDS)
        return seconds
