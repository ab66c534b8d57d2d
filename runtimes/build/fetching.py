"""ADD of a URL: the file behind it, verified where the instruction says what it must be."""

from __future__ import annotations

import email.utils
import hashlib
import os
import posixpath
import re
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from bench.errors import ImageError, UsageError
from bench.units import GIB, format_bytes

SCHEMES: Final = ("http://", "https://")
MAX_BYTES: Final = 16 * GIB
_SECONDS: Final = 60.0
_REDIRECTS: Final = 10
_ALGORITHMS: Final = {"sha256": 64, "sha384": 96, "sha512": 128}
_GIT: Final = re.compile(r"(git@|git://|ssh://|https?://.*\.git(#.*)?$)")


def is_url(source: str) -> bool:
    """Whether ADD downloads ``source``.

    Raises:
        UsageError: it is a git repository, which is not supported.
    """
    if _GIT.match(source):
        raise UsageError(f"ADD of the git repository {source[:100]} is not supported", hint="clone it, then COPY")
    return source.startswith(SCHEMES)


def file_name(url: str) -> str:
    """What a file from ``url`` is called, empty if the URL does not say."""
    name = posixpath.basename(unquote(urlsplit(url).path))
    return "" if name in (".", "..") or "\0" in name else name


def checked_checksum(text: str) -> tuple[str, str]:
    """Return the algorithm and the digits of ``--checksum``.

    Raises:
        UsageError: it is malformed.
    """
    algorithm, _, digits = text.partition(":")
    if _ALGORITHMS.get(algorithm) != len(digits) or not re.fullmatch(r"[0-9a-f]*", digits):
        raise UsageError(f"{text[:80]!r} is no checksum", hint="write it like sha256: and 64 digits")
    return algorithm, digits


def download(url: str, path: Path, checksum: str) -> None:
    """Write what ``url`` holds to ``path``, readable by its owner only, with the time that the server tells.

    Raises:
        ImageError: it cannot be had, is larger than 16 GiB, or is not what ``checksum`` says.
    """
    import httpx

    algorithm, expected = checked_checksum(checksum) if checksum else ("sha256", "")
    hashed = hashlib.new(algorithm)
    timeout = httpx.Timeout(_SECONDS)
    headers = {"User-Agent": "isomark", "Accept-Encoding": "identity"}
    try:
        with (
            httpx.Client(timeout=timeout, follow_redirects=True, max_redirects=_REDIRECTS, headers=headers) as client,
            client.stream("GET", url) as response,
        ):
            if response.status_code != httpx.codes.OK:
                raise ImageError(f"{url} answers {response.status_code} {response.reason_phrase}", hint="is it right?")
            size = 0
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
                for chunk in response.iter_raw():
                    size += len(chunk)
                    if size > MAX_BYTES:
                        raise ImageError(f"{url} is larger than {format_bytes(MAX_BYTES)}", hint="fetch it yourself")
                    hashed.update(chunk)
                    file.write(chunk)
            _take_time(path, response.headers.get("Last-Modified"))
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ImageError(f"cannot download {url}: {error}", hint="is the host reachable from here?") from error
    if expected and hashed.hexdigest() != expected:
        raise ImageError(f"{url} is {algorithm}:{hashed.hexdigest()}, not what --checksum says", hint="do not use it")


def _take_time(path: Path, text: str | None) -> None:
    try:
        seconds = email.utils.parsedate_to_datetime(text).timestamp() if text else None
        if seconds is not None:
            os.utime(path, (seconds, seconds))
    except (ValueError, OverflowError):
        return
