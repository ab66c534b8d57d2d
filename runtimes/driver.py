"""What the native and the container driver share: one sandbox helper, one order of steps, one probe."""

from __future__ import annotations

import json
import os
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

from bench.channel import Channel
from bench.driver import Lab, Launch
from bench.errors import DriverUnavailable, HostError, InstanceError
from bench.journal import OWNER_VARIABLE, Entry
from bench.model import Image, Kind, Limits, WorkloadImage
from runtimes.detached import make_root
from runtimes.instance import ProcessInstance, remove_tree
from runtimes.spawner import Child, Spawner
from runtimes.spec import Spec

SCRATCH: Final = "/isomark/scratch"
"""Where an instance may write files that it measures; in the image, a directory."""
PROBE_SECONDS: Final = 10.0
MOUNT_POINTS: Final = ("proc", "sys", "dev", "tmp", "run", SCRATCH.lstrip("/"))
"""The directories every image must have, so that something can be mounted there."""


@dataclass(frozen=True)
class Prepared:
    """What the instance needs besides its ``Spec``.

    ``adopt`` does from outside what is to do while the instance sets itself up, and lets it go on; its last
    argument removes the instance. ``entrances`` are descriptors of the version 1 groups to enter.
    """

    adopt: Callable[[Child, Channel, ExitStack], ProcessInstance]
    entrances: Sequence[int] = ()


class SandboxDriver(ABC):
    """Starts instances through the sandbox helper, which starts with the first use and ends with ``close``."""

    name: str
    kind: Kind
    form: ClassVar[str]
    directories: ClassVar[Mapping[str, int]]
    """What is made in an instance's directory below ``lab.scratch``, name -> mode."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._spawner = Spawner(lab.journal.owner.id)
        self._entry: Entry | None = None

    def check(self) -> None:
        """Set up an instance of an empty image, down to the last step before its program runs.

        Raises:
            DriverUnavailable: a step failed; the hint fits it.
        """
        name = f"check-{secrets.token_hex(4)}"
        tree = self._lab.scratch / f"{name}-tree"
        try:
            with self._lab.journal.owning("directory", path=str(tree)):
                try:
                    for point in MOUNT_POINTS:
                        (tree / point).mkdir(parents=True)
                    self._probe(name, tree)
                finally:
                    remove_tree(tree)
        except (HostError, InstanceError) as error:
            raise DriverUnavailable(error.message, hint=error.hint) from error
        except OSError as error:
            raise DriverUnavailable(f"cannot write {tree}: {error.strerror}", hint="set ISOMARK_STATE") from error

    @abstractmethod
    def describe(self) -> Mapping[str, str]:
        """Engine, isolation, security profile, limits and what differs from other drivers."""

    def build(self, image: WorkloadImage) -> Image:
        """Return the unpacked tree, which instances start from as it is; the helper is started here, untimed."""
        self._open()
        return image.as_tree(self.form)

    def start(self, image: Image, launch: Launch) -> ProcessInstance:
        """Start an instance and return when its program runs.

        Raises:
            InstanceError: it could not be set up; nothing of it is left.
            HostError: the host refused a directory, a cgroup or a descriptor.
        """
        spawned_at = time.monotonic()
        self._open()
        undo = ExitStack()
        try:
            instance = self._begin(image, launch, undo, spawned_at)
        except BaseException:
            undo.close()
            raise
        return instance

    def _begin(self, image: Image, launch: Launch, undo: ExitStack, spawned_at: float) -> ProcessInstance:
        """Ask for the instance, and make what it needs while it comes to be.

        Its copy and its namespaces take the kernel long enough for all else; only its birthplace must be there.
        """
        spec = self._spec(image.location, launch)
        made = undo.enter_context(ExitStack())  # entered first, so it is undone when the instance is dead
        with ExitStack() as brief:
            child = self._spawner.spawn(spec, self._birthplace(launch, made, brief))
            channel = _own(child, undo)
            self._make_directories(launch.name, made)
            prepared = self._prepare(launch, made, brief)
            root = make_root(spec)
            if root is not None:
                brief.callback(os.close, root)
            child.provide(prepared.entrances, root)
        channel.push("spawned", spawned_at)
        instance = prepared.adopt(child, channel, undo)
        child.await_exec()
        return instance

    def preview(self, launch: Launch) -> str:
        """The request to the sandbox, a line for each key and each mount, in JSON."""
        spec = self._spec(Path("IMAGE"), launch)
        mounts = [f"mounts: {json.dumps(operation)}" for operation in spec["mounts"]]
        return "\n".join([*(f"{key}: {json.dumps(value)}" for key, value in spec.items() if key != "mounts"), *mounts])

    def close(self) -> None:
        """End the helper and every instance that still runs; idempotent."""
        self._spawner.close()
        if self._entry is not None:
            self._lab.journal.gone(self._entry)
            self._entry = None

    @abstractmethod
    def _spec(self, tree: Path, launch: Launch) -> Spec:
        """How to start an instance of ``tree``; makes nothing."""

    @abstractmethod
    def _prepare(self, launch: Launch, undo: ExitStack, brief: ExitStack) -> Prepared:
        """Make what the instance needs besides its directories.

        ``undo`` removes what was made when the instance is; ``brief`` ends when it has been provided for.
        """

    def _birthplace(self, _launch: Launch, _undo: ExitStack, _brief: ExitStack) -> int | None:
        """The directory of the version 2 cgroup to be born in, made and open as long as ``brief`` is."""
        return None

    def _open(self) -> None:
        if self._entry is None:
            self._entry = self._lab.journal.own("process", marker=self._lab.journal.owner.id)
        self._spawner.open()

    def _environment(self, launch: Launch) -> dict[str, str]:
        return {**launch.environment, OWNER_VARIABLE: self._lab.journal.owner.id}

    def _make_directories(self, name: str, undo: ExitStack) -> None:
        directory = self._lab.scratch / name
        entry = self._lab.journal.own("directory", path=str(directory))
        undo.callback(self._lab.journal.gone, entry)
        undo.callback(remove_tree, directory)
        try:
            directory.mkdir(mode=0o711)
            for part, mode in self.directories.items():
                (directory / part).mkdir()
                (directory / part).chmod(mode)
        except OSError as error:
            raise HostError(f"cannot make {directory}: {error.strerror}", hint="is the disk full? (df)") from error

    def _probe(self, name: str, tree: Path) -> None:
        image = Image("", self.form, tree, None, None, None)
        lease = self._lab.network.lease() if self._lab.network is not None and self.kind != "process" else None
        with self.start(image, Launch(name, (), {}, Limits(), lease)) as instance:
            if not instance.stop(PROBE_SECONDS):
                raise InstanceError("a probe that should end at once does not", hint="is the host overloaded?")


def choose_cpus(count: int) -> Sequence[int]:
    """``count`` of the CPUs this process may use, the highest numbers, because low ones serve interrupts."""
    return sorted(os.sched_getaffinity(0))[-count:]


def _own(child: Child, undo: ExitStack) -> Channel:
    channel = Channel(child.read_fd, child.write_fd)
    undo.callback(channel.close)
    undo.callback(child.abandon)
    return channel
