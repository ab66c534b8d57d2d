"""The words of the project as types; see ARCHITECTURE.md for what each means.

Everything here is a frozen value. All times are seconds on the host's CLOCK_MONOTONIC.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Kind = Literal["process", "container", "vm"]
Load = Literal["none", "payload", "http", "lifecycle", "density", "minimum"]
Direction = Literal["higher", "lower"]
EventName = Literal["spawned", "kernel", "init", "ready", "exited"]
EVENT_ORDER: tuple[EventName, ...] = ("spawned", "kernel", "init", "ready", "exited")


@dataclass(frozen=True)
class Metric:
    """One measured quantity and what exactly it means.

    ``name`` ends in its unit (``boot_seconds``); ``unit`` is that unit for display.
    ``definition`` names start event, stop event, clock, scope and exclusions in sentences.
    """

    name: str
    title: str
    unit: str
    direction: Direction
    definition: str


@dataclass(frozen=True)
class Limits:
    """What an instance is granted; equal for every driver in a case."""

    cpus: int = 1
    memory_bytes: int = 512 * 1024**2
    pids: int = 512
    disk_bytes: int = 2 * 1024**3


@dataclass(frozen=True)
class Workload:
    """A payload under test and how to read its figures; identical for every driver.

    ``load`` says what is done with an instance: nothing (``none``: it is started and idles); rounds that the payload
    itself drives, or an HTTP load generator on the host; or a study of another kind: ``lifecycle`` puts it through
    its life, ``density`` starts more and more of them, ``minimum`` looks for the least memory that one needs.
    ``folder`` holds ``payload/``, which becomes ``/isomark/FOLDER/`` in the image: the workload's own, called as it is,
    or that of another one whose payload it starts.
    ``instances`` is how many a density workload starts.
    """

    name: str
    title: str
    description: str
    packages: tuple[str, ...]
    load: Load
    metrics: tuple[Metric, ...]
    folder: Path
    port: int | None = None
    instances: int | None = None

    @property
    def command(self) -> tuple[str, ...]:
        """The payload's argument vector inside the image."""
        return (f"/isomark/{self.folder.name}/run",)


@dataclass(frozen=True, order=True)
class Case:
    """Workload × driver; the suite's limits hold for all its cases."""

    workload: str
    driver: str

    def __str__(self) -> str:
        return f"{self.workload}/{self.driver}"


@dataclass(frozen=True)
class Event:
    """A point in an instance's life, on the host's CLOCK_MONOTONIC."""

    name: EventName
    at_seconds: float


@dataclass(frozen=True)
class Step:
    """Something on the way to ready that a driver or a guest told of, and when it began, on the host's CLOCK_MONOTONIC.

    Names are the driver's own (``create its namespaces``, ``basic.target``); a step lasts until the next or an event.
    """

    name: str
    at_seconds: float


@dataclass(frozen=True)
class Line:
    """One console line without its line end, and when the host read it."""

    text: str
    at_seconds: float


@dataclass(frozen=True)
class MemoryReading:
    """Host memory that one instance costs at one moment.

    ``pss_bytes`` is the sum of proportional set sizes (proc(5), smaps_rollup) over every process
    that exists because of the instance; ``processes`` counts them; both are ``None`` where the host is
    another one. ``anonymous_bytes``, ``shmem_bytes`` and ``file_bytes`` are what it consists of, ``None`` before
    Linux 5.4. ``cgroup_bytes`` is the memory cgroup's own figure, ``None`` where the instance has none.
    ``hypervisor_bytes`` is what the hypervisor's own management says, ``None`` where nobody was asked.
    """

    pss_bytes: int | None
    processes: int | None
    cgroup_bytes: int | None = None
    hypervisor_bytes: int | None = None
    anonymous_bytes: int | None = None
    shmem_bytes: int | None = None
    file_bytes: int | None = None


@dataclass(frozen=True)
class Sample:
    """One measured value. ``round`` counts from 0 within the trial, ``None`` outside rounds."""

    metric: str
    value: float
    round: int | None = None
    warmup: bool = False


class OutcomeKind(enum.StrEnum):
    """How a trial ended."""

    OK = "ok"
    FAILED = "failed"
    ABORTED = "aborted"


@dataclass(frozen=True)
class Outcome:
    """How a trial ended; a failed trial has a reason and the console's tail, never a figure."""

    kind: OutcomeKind
    reason: str = ""
    hint: str = ""
    tail: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trial:
    """One fresh instance: started, measured, destroyed."""

    index: int
    block: int
    case: Case
    outcome: Outcome
    image_digest: str
    events: tuple[Event, ...] = ()
    steps: tuple[Step, ...] = ()
    samples: tuple[Sample, ...] = ()
    started_at: str = ""
    """Wall-clock start, ISO 8601 in UTC; for people, never for a duration."""
    wall_seconds: float | None = None
    """From the request to start until everything was removed."""
    round_seconds: float = 0.0
    """Of ``wall_seconds``, what the rounds and the settling pause took."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Metrics that this trial would have had, and why each could not be taken."""


@dataclass(frozen=True)
class WorkloadImage:
    """The one image of a workload set, as every driver's ``build`` receives it.

    ``digest`` is the manifest digest in the OCI layout at ``layout``; ``tree`` is that image
    unpacked, never written to again. ``compressed_bytes`` sums the layer blobs,
    ``unpacked_bytes`` the regular files of the tree, ``tree_bytes`` its allocated blocks.
    """

    reference: str
    digest: str
    layout: Path
    tree: Path
    compressed_bytes: int
    unpacked_bytes: int
    tree_bytes: int
    packages: Mapping[str, str] = field(default_factory=dict)
    """Debian package name -> version."""

    def as_tree(self, form: str) -> Image:
        """Return the unpacked tree as the ``form`` that a driver starts, for drivers that start from it as it is."""
        return Image(
            digest=self.digest,
            form=form,
            location=self.tree,
            compressed_bytes=self.compressed_bytes,
            unpacked_bytes=self.unpacked_bytes,
            on_disk_bytes=self.tree_bytes,
            parts={"tree": self.digest},
        )


@dataclass(frozen=True)
class Image:
    """The form of a workload image that one driver starts.

    The sizes follow the definitions in ``bench.metrics``; ``None`` is unknown, or nothing that this form has.
    ``parts`` names each file or tree with its digest or path, for the record.
    """

    digest: str
    form: str
    location: Path
    compressed_bytes: int | None
    unpacked_bytes: int | None
    on_disk_bytes: int | None
    parts: Mapping[str, str] = field(default_factory=dict)
    virtual_bytes: int | None = None
    used_bytes: int | None = None
