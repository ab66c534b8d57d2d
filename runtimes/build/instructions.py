"""The instructions of a Containerfile as data, before any variable is replaced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from runtimes.build.lines import Document

Pair = tuple[str, str]


@dataclass(frozen=True)
class Place:
    """Where an instruction stands: ``line`` counts from 1; ``text`` is its source with continuations joined."""

    line: int
    text: str


@dataclass(frozen=True)
class Command:
    """A command line: ``words`` as they are, or one string for the shell if ``in_shell``."""

    words: tuple[str, ...]
    in_shell: bool
    documents: tuple[Document, ...] = ()


@dataclass(frozen=True)
class Mount:
    """``RUN --mount``: a directory that the layer does not get."""

    kind: Literal["tmpfs", "cache"]
    target: str
    options: Mapping[str, str]


@dataclass(frozen=True)
class From:
    """``FROM base AS name``; ``name`` is empty if it has none."""

    place: Place
    base: str
    name: str
    platform: str


@dataclass(frozen=True)
class Arg:
    """``ARG name=default``: a default of ``None`` is none."""

    place: Place
    names: tuple[tuple[str, str | None], ...]


@dataclass(frozen=True)
class Env:
    """``ENV name=value``."""

    place: Place
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class Label:
    """``LABEL name=value``."""

    place: Place
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class Run:
    """``RUN``; ``network`` is empty where the instruction does not say."""

    place: Place
    command: Command
    mounts: tuple[Mount, ...]
    network: str


@dataclass(frozen=True)
class Copy:
    """``COPY`` and, with ``adds``, ``ADD``; ``documents`` are sources too, named as their delimiters."""

    place: Place
    adds: bool
    sources: tuple[str, ...]
    documents: tuple[Document, ...]
    target: str
    stage: str = ""
    owner: str = ""
    mode: str = ""
    links: bool = False
    excluded: tuple[str, ...] = ()
    checksum: str = ""


@dataclass(frozen=True)
class Workdir:
    """``WORKDIR``."""

    place: Place
    path: str


@dataclass(frozen=True)
class User:
    """``USER``."""

    place: Place
    name: str


@dataclass(frozen=True)
class Expose:
    """``EXPOSE``."""

    place: Place
    ports: tuple[str, ...]


@dataclass(frozen=True)
class Volume:
    """``VOLUME``."""

    place: Place
    paths: tuple[str, ...]


@dataclass(frozen=True)
class Entrypoint:
    """``ENTRYPOINT``."""

    place: Place
    command: Command


@dataclass(frozen=True)
class Cmd:
    """``CMD``."""

    place: Place
    command: Command


@dataclass(frozen=True)
class Shell:
    """``SHELL``."""

    place: Place
    words: tuple[str, ...]


@dataclass(frozen=True)
class StopSignal:
    """``STOPSIGNAL``."""

    place: Place
    signal: str


@dataclass(frozen=True)
class HealthCheck:
    """``HEALTHCHECK``; ``command`` is ``None`` for NONE, times are in nanoseconds as the image says them."""

    place: Place
    command: Command | None
    times: tuple[tuple[str, int], ...]
    retries: int


@dataclass(frozen=True)
class OnBuild:
    """``ONBUILD``; ``trigger`` is the instruction that children run, with its here-documents."""

    place: Place
    trigger: str


@dataclass(frozen=True)
class Maintainer:
    """``MAINTAINER``."""

    place: Place
    name: str


Step = (
    Arg | Env | Label | Run | Copy | Workdir | User | Expose | Volume | Entrypoint | Cmd | Shell | StopSignal
    | HealthCheck | OnBuild | Maintainer
)  # fmt: skip
"""Everything that stands in a stage."""


@dataclass(frozen=True)
class Stage:
    """One ``FROM`` and what follows it; ``number`` counts from 0."""

    number: int
    start: From
    steps: tuple[Step, ...]

    @property
    def title(self) -> str:
        """Its name, or its number where it has none."""
        return self.start.name or str(self.number)


@dataclass(frozen=True)
class Containerfile:
    """A whole file: ``arguments`` stand before the first stage; ``name`` is for messages."""

    name: str
    escape: str
    arguments: tuple[Arg, ...]
    stages: tuple[Stage, ...]
    warnings: tuple[tuple[int, str], ...]


KEYWORDS: Final = (
    "ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "MAINTAINER", "ONBUILD",
    "RUN", "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR",
)  # fmt: skip
