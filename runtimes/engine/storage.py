"""An ordinary user's overlay: the kernel's where that mounts in a user namespace, else fuse-overlayfs.

A container stays with the one that it began with: their marks for what was deleted differ.
"""

from __future__ import annotations

import os

from bench.errors import HostError
from runtimes import detached

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

    from runtimes.engine.container import Container
    from runtimes.engine.fuse import FuseOverlay

VARIABLE: Final = "ISOMARK_STORAGE"
"""``overlay`` or ``fuse-overlayfs``, for a container that never ran; unset: whichever works."""
KERNEL: Final = "overlay"
FUSE: Final = "fuse-overlayfs"


class Storage:
    """A container's writable tree, in this process's mount namespace.

    Attributes:
        kind: ``overlay`` or ``fuse-overlayfs``.
        mounted: A detached mount, the caller's to close; ``None``: it is mounted at the container's ``root``.
    """

    __slots__ = ("_fuse", "kind", "mounted")

    def __init__(self, container: Container, state: dict[str, Any], mark: Callable[[], str]) -> None:
        """Make it; ``mark`` returns the marker for the environment of a process that has to serve it.

        Raises:
            HostError: neither works.
        """
        path, tree = container.path, container.config["tree"]
        former = (state.get("rootless") or {}).get("storage")
        self.kind = former or os.environ.get(VARIABLE) or KERNEL
        self.mounted: int | None = None
        self._fuse: FuseOverlay | None = None
        if self.kind not in (KERNEL, FUSE):
            raise HostError(f"{VARIABLE} is {self.kind!r}", hint=f"it is {KERNEL} or {FUSE}")
        if self.kind == KERNEL:
            try:
                self.mounted = _open_overlay(tree, f"{path}/upper", f"{path}/work")
            except OSError as error:
                if former is not None or VARIABLE in os.environ:
                    hint = "the container began with it" if former else f"unset {VARIABLE}"
                    raise HostError(f"an ordinary user cannot mount an overlay: {error.strerror}", hint=hint) from error
                self.kind = FUSE
        if self.kind == FUSE:
            from runtimes.engine.fuse import FuseOverlay  # only where the kernel does not do it

            self._fuse = FuseOverlay(tree, path, mark())

    def end(self) -> None:
        """End the process that serves it, if there is one; idempotent."""
        if self._fuse is not None:
            self._fuse.end()
            self._fuse = None


def _open_overlay(tree: str, upper: str, work: str) -> int:
    """A detached overlay, its marks extended attributes of users (kernel, filesystems/overlayfs.rst, "User xattr").

    Raises:
        OSError: the kernel or the file system does not do it.
    """
    # by descriptor: an option's value has at most 255 bytes (fsconfig(2))
    held = [os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for path in (tree, upper, work)]
    lower, above, beside = (f"/proc/self/fd/{fd}" for fd in held)
    try:
        return detached.make("overlay", 0, f"lowerdir={lower},upperdir={above},workdir={beside},userxattr")
    finally:
        for fd in held:
            os.close(fd)
