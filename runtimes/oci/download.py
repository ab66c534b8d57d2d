"""Downloading one blob: refused as soon as it is too much, gone on with where it broke off, verified to the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import httpx

from bench.errors import ImageError
from runtimes.oci.ingest import Partial
from runtimes.oci.registry import Repository
from runtimes.oci.text import printable

_PROGRESS_BYTES: Final = 1024**2
"""A download that brought this much between two faults may go on trying."""
_SLOWEST_BYTES: Final = 4096
"""Less than this in ``Patience.silence_seconds`` counts as silence: a drop a minute would never end."""
_RESTARTS: Final = 2

Advanced = Callable[[int], None]
"""Told of every piece of a transfer, in bytes; less than zero when it starts over."""


def download(repository: Repository, partial: Partial, advanced: Advanced) -> None:
    """Bring what ``partial`` lacks; ``Layout.fetching`` verifies and publishes it.

    Raises:
        ImageError: the registry has no such blob, sends another, or keeps breaking off.
    """
    session = repository.session
    pauses = session.pauses()
    left, restarts, in_one_go = session.patience.tries, _RESTARTS, False
    while not partial.is_right:
        if partial.offset == partial.descriptor.size:
            # what was put together from parts gets another chance, what came in one go is what the registry has
            if in_one_go or restarts == 0:
                partial.verify()
            restarts -= 1
            _restart(partial, advanced)
        before = partial.offset
        fault: httpx.HTTPError | None = None
        try:
            in_one_go = _download_once(repository, partial, advanced)
        except httpx.HTTPError as error:
            fault = error
        if partial.offset == partial.descriptor.size and fault is None:
            continue
        left = session.patience.tries if partial.offset - before >= _PROGRESS_BYTES else left - 1
        if fault is not None:
            session.explain(fault, last=left <= 0)
        elif left <= 0:  # it ended early without breaking any rule of HTTP
            partial.verify()
        session.pause(next(pauses))


def _download_once(repository: Repository, partial: Partial, advanced: Advanced) -> bool:
    """Read one response into ``partial``; return whether it began with the first byte."""
    descriptor, session = partial.descriptor, repository.session
    headers = {"Range": f"bytes={partial.offset}-"} if partial.offset else {}
    with session.open(
        "GET", repository.path("blobs", descriptor.digest), scopes=repository.pulling, headers=headers
    ) as response:
        if response.status_code == 416 and partial.offset:
            _restart(partial, advanced)
            return False
        _check_status(repository, partial, response)
        if response.status_code == 200 and partial.offset:  # it does not know Range
            _restart(partial, advanced)
        _check_length(repository, partial, response)
        from_first = partial.offset == 0
        since, floor = time.monotonic(), partial.offset + _SLOWEST_BYTES
        for chunk in response.iter_raw():
            partial.write(chunk)
            advanced(len(chunk))
            session.check_cancelled()
            if partial.offset >= floor:
                since, floor = time.monotonic(), partial.offset + _SLOWEST_BYTES
            elif time.monotonic() - since > session.patience.silence_seconds:
                raise httpx.ReadTimeout("next to nothing comes")
    return from_first


def _restart(partial: Partial, advanced: Advanced) -> None:
    advanced(-partial.offset)
    partial.restart()


def _check_status(repository: Repository, partial: Partial, response: httpx.Response) -> None:
    if response.status_code == 206:
        start = response.headers.get("content-range", "").removeprefix("bytes ").partition("-")[0]
        if not partial.offset or start != str(partial.offset):
            raise ImageError(
                f"{repository.label} answers with another part of blob {partial.descriptor.digest} than asked",
                hint="the registry is broken or malicious",
            )
    elif response.status_code != 200:
        raise repository.refusal(response, f"reading blob {partial.descriptor.digest} of {repository.label}")


def _check_length(repository: Repository, partial: Partial, response: httpx.Response) -> None:
    """Refuse at once what announces another length than the blob has."""
    length, wanted = response.headers.get("content-length"), partial.descriptor.size - partial.offset
    if length is not None and length != str(wanted):
        raise ImageError(
            f"{repository.label} offers {printable(length, 30)} bytes where {wanted} of blob "
            f"{partial.descriptor.digest} are due",
            hint="the registry is broken or malicious",
        )
