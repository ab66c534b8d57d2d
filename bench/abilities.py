"""What an instance or a driver may be able to do beside what ``bench.driver`` asks of all.

Each is a protocol of its own, and who has its methods has the ability. What somebody lacks is missing in the report.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

Verb = Literal["suspend", "resume", "save", "restore", "snapshot", "reboot"]


@runtime_checkable
class Manageable(Protocol):
    """An instance that can do more than start and end; others need no such properties."""

    @property
    def verbs(self) -> Mapping[Verb, Callable[[], float]]:
        """What it can do. Each asks for it, waits, and returns when it was seen to be so, on CLOCK_MONOTONIC.

        suspend: all of it stands still, with its memory where it was; ``resume`` lets it go on.
        save: its memory is in a file and nothing of it runs; ``restore`` starts it from there, on the same console.
        snapshot: its disk is kept as it is at this moment, while it goes on.
        reboot: it has been asked to end the payload and to start again, which it is still about to do.

        ``suspend`` and ``save`` come with what undoes them; after either nothing else but that, ``kill`` and the end of
        the context may follow. Each raises InstanceError, HostError or OSError where it fails.
        """

    @property
    def lacks(self) -> Mapping[Verb, str]:
        """Why it cannot do those of suspend, save, snapshot and reboot that are not among its ``verbs``."""


@runtime_checkable
class CountsCpu(Protocol):
    """An instance that knows what CPU time it has used; others need no such method."""

    def cpu_seconds(self) -> float | None:
        """CPU time used on the host so far, the hypervisor's part included; ``None`` where nobody counts.

        Raises:
            InstanceError: the instance is gone.
        """


@runtime_checkable
class OwnDisk(Protocol):
    """An instance that knows what it takes on its host's disk; others need no such method."""

    def own_disk_bytes(self) -> int:
        """Blocks allocated now for what this instance has for itself, not for the image that it shares.

        Raises:
            InstanceError: nobody can tell.
        """


@runtime_checkable
class Ballooned(Protocol):
    """An instance whose hypervisor keeps balloon statistics; others need no such method."""

    def balloon(self) -> Mapping[str, int]:
        """What libvirt's virDomainMemoryStats tells, in bytes by its names there (``actual``, ``rss``, ``unused`` …).

        Raises:
            InstanceError: the instance is gone.
        """


@dataclass(frozen=True)
class House:
    """The memory of a host as its hypervisor tells it; what the host can drop counts as free."""

    used_bytes: int
    free_bytes: int


@runtime_checkable
class Housed(Protocol):
    """A driver whose instances may use other memory than this kernel's: another host's, or Xen's."""

    def house(self) -> House | None:
        """That memory now; ``None`` where it is this kernel's.

        Raises:
            InstanceError: the hypervisor does not tell.
        """


@runtime_checkable
class OnHugePages(Protocol):
    """A driver whose instances may have their memory on huge pages; others need no such property."""

    @property
    def on_huge_pages(self) -> bool:
        """Whether they have it there now, so that it takes none of the host's ordinary memory."""
