"""What a driver is, and what it is given.

Drivers arrive through the entry-point group ``isomark.drivers``: name -> ``factory(lab) -> Driver``.
A driver starts and destroys; it times nothing. Whatever it creates on the host it writes to
``lab.journal`` first, so that ``isomark clean`` can remove it after a ``kill -9``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self, runtime_checkable

from bench.journal import Journal
from bench.model import Event, Image, Kind, Limits, Line, MemoryReading, Step, WorkloadImage
from bench.network import LabNetwork, Lease

ENTRY_POINTS = "isomark.drivers"
CHECK_ENTRY_POINTS = "isomark.checks"


@dataclass(frozen=True)
class Lab:
    """What the host offers to drivers for one run.

    ``state`` is a directory that outlives the run (kernels, disks, proofs), ``scratch`` one that
    does not. ``network`` is ``None`` where the host grants no network namespace.
    """

    state: Path
    scratch: Path
    journal: Journal
    network: LabNetwork | None


@dataclass(frozen=True)
class Launch:
    """One request to start an instance.

    ``name`` is unique on the host, at most 24 characters of ``[a-z0-9-]``. ``command`` is the
    payload inside the image; ``environment`` is all it sees. ``lease`` is the address the instance
    shall have; without one it gets no network of its own.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    limits: Limits
    lease: Lease | None


class Instance(Protocol):
    """One started copy; a context manager that removes everything it made on exit."""

    @property
    def events(self) -> Sequence[Event]:
        """What happened so far, in order: spawned, kernel, init, ready, exited."""

    @property
    def steps(self) -> Sequence[Step]:
        """What its driver and its guest told of the way to ready beside the events, in order; may be empty."""

    @property
    def tail(self) -> Sequence[str]:
        """The last console lines."""

    def lines(self, timeout_seconds: float) -> Iterator[Line]:
        """Yield console lines until it closes; see ``bench.channel.Channel.lines``."""

    def send(self, text: str) -> None:
        """Write one line to the payload's standard input."""

    def memory(self) -> MemoryReading:
        """Read what the instance costs the host now.

        Raises:
            InstanceError: the instance is gone.
        """

    def address(self) -> str | None:
        """The address that the host reaches the payload's ports at, ``None`` without network."""

    def stop(self, timeout_seconds: float) -> bool:
        """End it gracefully (SIGTERM, ACPI); return whether it ended in time."""

    def kill(self) -> None:
        """End it at once; idempotent."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Driver(Protocol):
    """One kind of isolation."""

    name: str
    kind: Kind

    def check(self) -> None:
        """Prove by trying that an instance could be started here.

        Raises:
            DriverUnavailable: it could not; the hint says what would help.
        """

    def describe(self) -> Mapping[str, str]:
        """Engine, version, accelerator, security profile …: goes into the fingerprint.

        The key ``emulated`` is ``"yes"`` where the figures come from an emulated CPU.
        The key ``memory limit`` is ``"not enforced"`` where an instance may use more than it is granted.
        The key ``parity`` may hold sentences (one a line) on what differs from the other drivers.
        """

    def build(self, image: WorkloadImage) -> Image:
        """Make the form of ``image`` that this driver starts; idempotent, content-addressed, untimed."""

    def start(self, image: Image, launch: Launch) -> Instance:
        """Start an instance and return at once, without waiting for it to be ready.

        Raises:
            InstanceError: it could not be started; nothing of it is left.
        """

    def preview(self, launch: Launch) -> str:
        """What ``start`` would ask of the host for ``launch``, for people to read; starts nothing.

        A virtual server's is its domain XML, with placeholders for files that do not exist yet.
        """

    def close(self) -> None:
        """Give back what the driver holds between instances; idempotent."""


@runtime_checkable
class Configurable(Protocol):
    """A driver that takes options from a suite; others need no such method."""

    def configured(self, options: Mapping[str, object]) -> Driver:
        """Return the driver with ``options``, the table ``[options.NAME]`` of a suite; called before ``check``.

        Raises:
            OptionsError: they are wrong; each by its key in that table.
        """


Factory = Callable[[Lab], Driver]

Severity = Literal["ok", "note", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One thing ``isomark doctor`` found; entry points of ``isomark.checks`` return lists of them.

    ``ok`` needs nothing; a ``note`` weakens comparisons; a ``warning`` makes figures doubtful; a
    ``problem`` keeps something from running. ``remedy`` is a command or a sentence.
    """

    subject: str
    severity: Severity
    message: str
    remedy: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
