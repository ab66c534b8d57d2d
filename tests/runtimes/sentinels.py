"""What the tests of hostile layers share: a sentinel all around the tree, and a child process with a time limit."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from handmade import fingerprint

from bench.errors import ImageError
from runtimes.oci.descriptor import Descriptor
from runtimes.oci.layer import Member
from runtimes.oci.layout import Layout
from runtimes.oci.trees import unpack_image

BUDGET = 2**24
CPU_SECONDS = 5
"""Nothing hostile may keep a CPU busy for longer,"""
WALL_SECONDS = 20.0
"""nor wait for longer: more than that, because other tests may keep all CPUs busy."""
MEMORY_BYTES = 2**29
"""Nor may the process that unpacks it, with pytest in it, ever have held more."""
OUTSIDE = "@OUTSIDE@"
"""Stands for the absolute path of the sentinel directory, in names and link targets."""


@contextmanager
def sentinel(where: Path) -> Iterator[Path]:
    """Yield an empty directory to unpack to; all around it must be as before when the block ends."""
    for name in ("below", "jail/tree", "jail/beside"):
        (where / name).mkdir(parents=True)
    for name in ("secret", "below/file", "jail/secret", "jail/beside/file"):
        (where / name).write_text(f"sentinel {name}")
    (where / "linked").hardlink_to(where / "secret")
    (where / "script").write_text("#!/bin/sh\n")
    (where / "script").chmod(0o755)
    (where / "to-tree").symlink_to("jail/tree")
    os.mkfifo(where / "pipe")
    before = everything(where)
    yield where / "jail/tree"
    assert everything(where) == before


def everything(where: Path) -> dict[str, tuple[object, ...]]:
    """All that can be seen around the tree; the time of change gives away what was changed and changed back."""
    seen = {}
    for name, facts in fingerprint(where, skip=where / "jail/tree").items():
        status = (where / name).lstat()
        seen[name] = (*facts, status.st_ino, status.st_nlink, status.st_size, status.st_ctime_ns)
    return seen


def placed(member: Member, tree: Path) -> Member:
    """``member`` with the sentinel's real path for its placeholder."""
    outside = str(tree.parent.parent)
    return replace(member, path=member.path.replace(OUTSIDE, outside), link=member.link.replace(OUTSIDE, outside))


@dataclass(frozen=True)
class Outcome:
    """How unpacking ended: ``error`` is empty if it did well."""

    error: str
    hint: str
    seconds: float
    peak_bytes: int


def unpack(layout: Layout, descriptor: Descriptor, tree: Path, budget_bytes: int = BUDGET) -> Outcome:
    """Unpack in a child that is killed, and the test failed, when it takes too long."""
    outcome = in_child(lambda: unpack_image(layout, descriptor, tree, budget_bytes))
    assert outcome.peak_bytes < MEMORY_BYTES
    assert allocated(tree) <= budget_bytes + 2**20, "more than the budget was written"
    return outcome


def refuse(layout: Layout, descriptor: Descriptor, tree: Path, budget_bytes: int = BUDGET) -> str:
    """Unpack what must be refused, and return why it was."""
    outcome = unpack(layout, descriptor, tree, budget_bytes)
    assert outcome.error, "it was unpacked"
    return outcome.error


def allocated(tree: Path) -> int:
    """The bytes that files below ``tree`` take."""
    total = 0
    for folder, _, names in os.walk(tree):
        for name in names:
            status = os.lstat(os.path.join(folder, name))
            total += status.st_blocks * 512 if stat.S_ISREG(status.st_mode) else 0
    return total


def in_child(work: Callable[[], object], wall_seconds: float = WALL_SECONDS, cpu_seconds: int = CPU_SECONDS) -> Outcome:
    """Run ``work`` in a fork; an ImageError is an outcome, everything else a failure of the test."""
    read_end, write_end = os.pipe()
    begun = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))
            os.write(write_end, json.dumps(_outcome(work)).encode())
        finally:
            os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        answered, _, _ = select.select([pipe], [], [], wall_seconds)
        took = time.monotonic() - begun
        if not answered:
            os.kill(child, signal.SIGKILL)
        said = pipe.read()
    _, status, usage = os.wait4(child, 0)
    assert said, (
        f"no answer after {took:.1f} s: {'crashed' if status == 0 else signal.Signals(os.WTERMSIG(status)).name}"
    )
    error, hint = json.loads(said)
    return Outcome(error, hint, took, usage.ru_maxrss * 1024)


def _outcome(work: Callable[[], object]) -> list[str]:
    try:
        work()
    except ImageError as error:
        return [error.message, error.hint]
    return ["", ""]
