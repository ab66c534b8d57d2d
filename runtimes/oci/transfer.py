"""Several blobs at once, and one end for all: the first that fails stops the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Final, Protocol

from runtimes.oci.descriptor import Descriptor
from runtimes.oci.session import Cancelled, Session

PARALLEL: Final = 4
"""Blobs at once; Docker has three, skopeo six."""


class Watcher(Protocol):
    """Is told how a transfer goes, from several threads."""

    def begins(self, descriptor: Descriptor, what: str) -> None:
        """A blob's turn has come; ``what`` is "layer" or "config"."""

    def advanced(self, descriptor: Descriptor, count: int) -> None:
        """So many bytes more of it went over, or fewer when it starts over."""

    def ended(self, descriptor: Descriptor, how: str) -> None:
        """It is done: "pulled", "there", "sent" or "mounted"."""

    def stage(self, text: str) -> None:
        """What comes next, in words."""


class Silent:
    """A ``Watcher`` that does not watch."""

    def begins(self, descriptor: Descriptor, what: str) -> None:
        """See ``Watcher``."""

    def advanced(self, descriptor: Descriptor, count: int) -> None:
        """See ``Watcher``."""

    def ended(self, descriptor: Descriptor, how: str) -> None:
        """See ``Watcher``."""

    def stage(self, text: str) -> None:
        """See ``Watcher``."""


def in_parallel(
    session: Session,
    descriptors: Iterable[Descriptor],
    work: Callable[[Descriptor], None],
    parallel: int = PARALLEL,
    *,
    beside: Callable[[], None] | None = None,
    stop: Callable[[], None] = lambda: None,
) -> None:
    """Do ``work`` for each blob once, ``parallel`` at a time, and ``beside`` meanwhile; ``stop`` ends the latter.

    Raises:
        ImageError: what the first that failed raised; the others were cancelled.
    """
    wanted = {descriptor.digest: descriptor for descriptor in descriptors}
    threads = max(1, min(parallel, len(wanted)))
    pool = ThreadPoolExecutor(threads + (beside is not None), thread_name_prefix="isomark-transfer")
    futures = [pool.submit(beside)] if beside is not None else []
    futures += [pool.submit(work, descriptor) for descriptor in wanted.values()]
    try:
        # this thread only waits, so that an interrupt finds it at once
        wait(futures, return_when=FIRST_EXCEPTION)
        _raise_first(futures)
    except BaseException:
        session.cancel()
        stop()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _raise_first(futures: Iterable[Future[None]]) -> None:
    """Raise a cause rather than what it cancelled."""
    done = [future for future in futures if future.done() and not future.cancelled()]
    errors = [error for future in done if (error := future.exception()) is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, Cancelled)):
        raise error
