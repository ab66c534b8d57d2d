"""Where the engine keeps things, as plain strings: ``bench.state`` without ``pathlib``."""

from __future__ import annotations

import os

VARIABLE = "ISOMARK_STATE"


def state_directory() -> str:
    """The same directory as ``bench.state.state_directory``."""
    if chosen := os.environ.get(VARIABLE):
        return os.path.abspath(chosen)
    if os.geteuid() == 0:
        return "/var/lib/isomark"
    return (os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")) + "/isomark"


class Place:
    """The directories below one state directory; ``ensure`` makes those that are the engine's own."""

    __slots__ = ("containers", "journals", "names", "state", "volumes")

    def __init__(self, state: str | None = None) -> None:
        self.state = state or state_directory()
        self.containers = self.state + "/containers"
        self.names = self.state + "/containers/names"
        self.volumes = self.state + "/volumes"
        self.journals = self.state + "/owned"

    def ensure(self) -> None:
        """Make the directories. Containers are for their owner alone: images bring set-user-ID programs and devices."""
        os.makedirs(self.state, exist_ok=True)
        for path in (self.containers, self.names, self.volumes):
            if not os.path.isdir(path):
                os.makedirs(path, 0o700 if path == self.containers else 0o755, exist_ok=True)
