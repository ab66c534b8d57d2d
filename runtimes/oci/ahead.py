"""Working ahead: an iterator that runs in a thread of its own while what it yielded is used.

Hashing, inflating and reading let go of the interpreter's lock, so each such step keeps another CPU busy.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

DEPTH: Final = 4
"""How many pieces are made before they are asked for."""


def ahead(source: Generator[bytes, None, None]) -> Generator[bytes, None, None]:
    """Yield what ``source`` yields, made by a thread; close it early, and ``source`` is closed, the thread gone.

    Raises what ``source`` raises, in its place.
    """
    worker = ThreadPoolExecutor(1, thread_name_prefix="isomark-ahead")
    try:
        pending: deque[Future[bytes | None]] = deque(worker.submit(next, source, None) for _ in range(DEPTH))
        while (piece := pending.popleft().result()) is not None:
            pending.append(worker.submit(next, source, None))
            yield piece
    finally:
        worker.shutdown(cancel_futures=True)
        source.close()
