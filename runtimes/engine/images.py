"""The image that a container is made of: found in well under a millisecond if it is unpacked, else fetched."""

from __future__ import annotations

import os
import sys

from bench.errors import ImageError, UsageError
from runtimes.oci import quick

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

POLICIES = ("missing", "always", "never")
_SOURCES = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def resolve(state: str, reference: str, policy: str = "missing") -> tuple[dict[str, Any], int]:
    """``reference``, ``manifest``, ``tree`` and ``config`` of an image; it is pulled and unpacked if need be.

    The second value is a descriptor that keeps the image from being collected: to be closed when the digest stands in
    a container's config.

    Raises:
        ImageError: there is no such image, or it cannot be pulled.
        UsageError: ``reference`` is none, or ``policy``.
    """
    if policy not in POLICIES:
        raise UsageError(f"option --pull: {policy!r} is no policy", hint=", ".join(POLICIES))
    if policy == "always":
        pull(reference)
    while True:
        held = _hold(state)
        found = quick.lookup(state, reference)
        if found is None:
            _close(held)
            found = _find(state, reference, may_pull=policy == "missing")
            held = _hold(state)
        digest, tree, config = found
        if held != -1 and os.path.isdir(tree):  # else it was collected in between
            image = {"reference": reference, "manifest": digest, "tree": tree, "config": config.get("config") or {}}
            return image, held
        _close(held)


def _hold(state: str) -> int:
    try:
        return quick.hold(state)
    except FileNotFoundError:
        return -1


def _close(fd: int) -> None:
    if fd != -1:
        os.close(fd)


def _find(state: str, reference: str, *, may_pull: bool) -> tuple[str, str, dict[str, Any]]:
    """The long way, with everything that it imports."""
    from pathlib import Path

    from bench.journal import Journal
    from runtimes.oci.images import Images

    images = Images(Path(state))
    try:
        stored = images.find(reference)
    except ImageError:
        if not may_pull:
            raise
        pull(reference)
        stored = images.find(reference)
    with Journal(Path(state) / "owned") as journal:
        tree = images.tree(stored, journal)
    return stored.descriptor.digest, str(tree.path), stored.config


def pull(reference: str) -> None:
    """Have ``isomark image pull`` get it; its progress goes to standard error.

    Raises:
        ImageError: it cannot.
    """
    if reference.startswith("-"):
        raise UsageError(f"{reference!r} is no image")
    sys.stderr.write(f"isomark: pulling {reference}\n")
    sys.stderr.flush()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [_SOURCES, os.environ.get("PYTHONPATH")]))}
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, "-m", "bench.cli", "image", "pull", reference],
        environment,
        file_actions=[(os.POSIX_SPAWN_DUP2, 2, 1)],
    )
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0:
        raise ImageError(f"image {reference} is not here and cannot be pulled", hint=f"isomark image pull {reference}")
