"""Talking HTTP to one registry: authorization, retries with backoff, redirects that leak nothing, and an end.

Every request is sent with ``Session.open``; what goes wrong on the way is tried again, what the registry says
is not. Timeouts bound silence, not the length of a transfer.
"""

from __future__ import annotations

import email.utils
import random
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from socket import EAI_NONAME, SHUT_RDWR, gaierror, socket
from typing import Any, Final
from urllib.parse import urlencode, urljoin

import httpx

from bench.errors import ImageError
from runtimes.oci.auth import Authenticator
from runtimes.oci.credentials import Credentials
from runtimes.oci.descriptor import MAX_DOCUMENT_BYTES
from runtimes.oci.endpoint import Endpoint, is_loopback
from runtimes.oci.text import printable

RETRIED: Final = (408, 429, 500, 502, 503, 504)
_REDIRECTS: Final = (301, 302, 303, 307, 308)
_MAX_REDIRECTS: Final = 5
_AGENT: Final = "isomark (+OCI distribution 1.1)"
_CONNECTIONS: Final = 16


@dataclass(frozen=True)
class Patience:
    """How long to wait for what."""

    connect_seconds: float = 20.0
    silence_seconds: float = 60.0
    """Without a byte, a connection counts as broken."""
    tries: int = 6
    first_pause_seconds: float = 0.5
    longest_pause_seconds: float = 60.0
    """A registry that asks for a longer pause is told of, not obeyed."""


Content = Callable[[], Iterable[bytes]] | bytes | None


class Cancelled(ImageError):
    """Another part of the same transfer failed: that is what is to be reported."""


class Session:
    """A pool of connections to one registry; safe to use from several threads, a context manager."""

    def __init__(
        self, endpoint: Endpoint, credentials: Credentials | None = None, patience: Patience | None = None
    ) -> None:
        self.endpoint = endpoint
        self.patience = patience or Patience()
        self._cancelled = threading.Event()
        self._open: set[httpx.Response] = set()
        self._authenticator = Authenticator(endpoint, credentials, self.ask)
        timeout = httpx.Timeout(self.patience.silence_seconds, connect=self.patience.connect_seconds, pool=None)
        self._client = httpx.Client(
            verify=endpoint.ssl_context(),
            timeout=timeout,
            limits=httpx.Limits(max_connections=_CONNECTIONS),
            headers={"User-Agent": _AGENT, "Accept-Encoding": "identity"},
            trust_env=not endpoint.is_loopback,  # a proxy cannot reach our loopback
        )

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def cancel(self) -> None:
        """Make every transfer of this session end soon; from any thread."""
        self._cancelled.set()
        for response in list(self._open):
            stream = response.extensions.get("network_stream")
            raw = stream.get_extra_info("socket") if stream else None
            if isinstance(raw, socket):
                with suppress(OSError):
                    socket.shutdown(raw, SHUT_RDWR)  # wakes a thread that reads from it

    @contextmanager
    def open(
        self, method: str, path: str, *, scopes: Sequence[str], headers: Mapping[str, str] | None = None
    ) -> Iterator[httpx.Response]:
        """Send a request and offer the response, its body unread, whatever its status.

        ``path`` is below the registry's root, or a URL that the registry gave; only its own origin sees
        authorization. What breaks while the body is read is the caller's, an ``httpx.HTTPError``.

        Raises:
            ImageError: it cannot be reached, cannot be trusted, or keeps failing.
        """
        response = self._insist(method, path, scopes, headers or {}, None, None, self.patience.tries)
        try:
            yield response
        finally:
            self._open.discard(response)
            response.close()

    def request(
        self,
        method: str,
        path: str,
        *,
        scopes: Sequence[str],
        headers: Mapping[str, str] | None = None,
        content: Content = None,
        tries: int | None = None,
        limit_bytes: int = MAX_DOCUMENT_BYTES,
    ) -> httpx.Response:
        """Send a request and return the response with its body, of at most ``limit_bytes``.

        ``content`` is called again for every try. Raises as ``open`` does; with ``tries`` of 1 also httpx.HTTPError.
        """
        return self._insist(method, path, scopes, headers or {}, content, limit_bytes, tries or self.patience.tries)

    def ask(
        self,
        method: str,
        url: str,
        *,
        query: Sequence[tuple[str, str]] = (),
        form: Mapping[str, str] | None = None,
        authorization: str | None = None,
    ) -> httpx.Response:
        """Send a small request to a token server and return its answer; retried as ``open`` does."""
        joint = "&" if "?" in url else "?"
        target = f"{url}{joint}{urlencode(query)}" if query else url
        headers = _authorized(authorization)
        if form is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        content = urlencode(form).encode() if form is not None else None
        pauses = self.pauses()
        for left in reversed(range(self.patience.tries)):
            try:
                response = self._send(method, target, headers, content, MAX_DOCUMENT_BYTES)
            except httpx.HTTPError as error:
                self.explain(error, last=left == 0)
            else:
                if response.status_code not in RETRIED or left == 0:
                    return response
            self.pause(next(pauses))
        raise AssertionError

    def _insist(
        self,
        method: str,
        path: str,
        scopes: Sequence[str],
        headers: Mapping[str, str],
        content: Content,
        limit_bytes: int | None,
        tries: int,
    ) -> httpx.Response:
        """Send until an answer came that another try would not change."""
        url = urljoin(self.endpoint.url, path)
        pauses = self.pauses()
        left, renewals = tries, 2
        while True:
            self.check_cancelled()
            sent = self._authenticator.authorization(scopes) if self.is_ours(url) else None
            left -= 1
            try:
                response = self._send(method, url, {**headers, **_authorized(sent)}, content, limit_bytes)
            except httpx.HTTPError as error:
                self.explain(error, last=left <= 0 and tries > 1)
                if left <= 0:
                    raise
                self.pause(next(pauses))
                continue
            if response.status_code == 401 and renewals > 0:
                renewals -= 1
                if self._may_renew(response, scopes, sent):
                    left += 1
                    continue
            if response.status_code not in RETRIED or left <= 0:
                return response
            self._drop(response)
            self.pause(self._asked_pause(response) or next(pauses))

    def _may_renew(self, response: httpx.Response, scopes: Sequence[str], sent: str | None) -> bool:
        challenges = response.headers.get_list("www-authenticate")
        if self._authenticator.challenged(challenges, scopes, sent):
            self._drop(response)
            return True
        return False

    def _drop(self, response: httpx.Response) -> None:
        self._open.discard(response)
        response.close()

    def explain(self, error: httpx.HTTPError, *, last: bool) -> None:
        """Raise what an error on the way means, unless it is worth another try."""
        self.check_cancelled()
        registry = self.endpoint.registry
        cause = _cause(error)
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise ImageError(
                f"the certificate of {registry} is not trusted: {cause.verify_message}",
                hint=f"--ca-file FILE, or put its authority in /etc/docker/certs.d/{registry}/ca.crt",
            ) from error
        if isinstance(cause, ssl.SSLError) and "WRONG_VERSION_NUMBER" in str(cause):
            hint = "--insecure" if self.endpoint.is_loopback else "let it use TLS: isomark sends nothing unencrypted"
            raise ImageError(f"{registry} does not speak TLS", hint=hint) from error
        if isinstance(error, (httpx.UnsupportedProtocol, httpx.TooManyRedirects, httpx.InvalidURL)):
            raise ImageError(
                f"{registry} sent us to an impossible address: {printable(error)}",
                hint="look at its name; behind a proxy also at http_proxy and https_proxy",
            ) from error
        unknown = isinstance(cause, gaierror) and cause.errno == EAI_NONAME
        if last or unknown:
            what = "did not answer in time" if isinstance(error, httpx.TimeoutException) else "cannot be reached"
            raise ImageError(
                f"{registry} {what}: {printable(cause)}", hint="look at the network and at the registry, and try again"
            ) from error

    def check_cancelled(self) -> None:
        """Raise ``Cancelled`` once the transfer was given up."""
        if self._cancelled.is_set():
            raise Cancelled("the transfer was given up")

    def pause(self, seconds: float) -> None:
        """Wait before another try, unless the transfer is given up meanwhile."""
        self._cancelled.wait(seconds)
        self.check_cancelled()

    def is_ours(self, url: str) -> bool:
        """Whether ``url`` is of the registry itself, and so may see authorization."""
        return _same_origin(self.endpoint.url, url)

    def _send(
        self, method: str, url: str, headers: Mapping[str, str], content: Content, limit_bytes: int | None
    ) -> httpx.Response:
        """Send once, following redirects of what has no body; authorization stays with the first origin.

        With ``limit_bytes`` the body is read and the response closed.
        """
        kept = dict(headers)
        for _ in range(_MAX_REDIRECTS):
            body: Any = content() if callable(content) else content
            request = self._client.build_request(method, url, headers=kept, content=body)
            response = self._client.send(request, stream=True, follow_redirects=False)
            self._open.add(response)
            if response.status_code in _REDIRECTS and content is None and "location" in response.headers:
                self._drop(response)
                target = self._redirected(url, response.headers["location"])
                if not _same_origin(url, target):
                    kept.pop("Authorization", None)
                url = target
                continue
            if limit_bytes is not None:
                try:
                    response._content = read_limited(response, limit_bytes, url)
                finally:
                    self._drop(response)
            return response
        raise ImageError(f"{self.endpoint.registry} redirects without end", hint="the registry is broken or malicious")

    def _redirected(self, url: str, location: str) -> str:
        try:
            target = httpx.URL(url).join(location)
        except httpx.InvalidURL as error:
            raise ImageError(
                f"{self.endpoint.registry} redirects to {location[:200]!r}, which is no URL",
                hint="the registry is broken or malicious",
            ) from error
        host = target.netloc.decode("ascii", "replace")
        plain = self.endpoint.plain and target.scheme == "http" and is_loopback(host)
        if target.scheme != "https" and not plain:
            raise ImageError(
                f"{self.endpoint.registry} redirects to {location[:200]!r}, which is not https",
                hint="the registry is misconfigured or malicious",
            )
        return str(target)

    def pauses(self) -> Iterator[float]:
        """Growing pauses, spread out so that many clients do not come back together."""
        pause = self.patience.first_pause_seconds
        while True:
            yield pause * random.uniform(0.75, 1.25)
            pause = min(pause * 2, self.patience.longest_pause_seconds)

    def _asked_pause(self, response: httpx.Response) -> float | None:
        """What Retry-After asks for (RFC 9110, 10.2.3), in seconds."""
        value = response.headers.get("retry-after", "").strip()
        if not value:
            return None
        if value.isdecimal() and len(value) < 10:
            seconds = float(value)
        else:
            try:
                seconds = max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
            except ValueError:
                return None
        if seconds > self.patience.longest_pause_seconds:
            raise ImageError(
                f"{self.endpoint.registry} answers {response.status_code} and asks to come back in {seconds:.0f} s",
                hint="wait that long; a log-in may have a higher limit",
            )
        return seconds


def _same_origin(one: str, other: str) -> bool:
    first, second = httpx.URL(one), httpx.URL(other)
    return (first.scheme, first.host, first.port) == (second.scheme, second.host, second.port)


def read_limited(response: httpx.Response, limit_bytes: int, what: str) -> bytes:
    """Return a body of at most ``limit_bytes``.

    Raises:
        ImageError: it is longer.
    """
    data = bytearray()
    for chunk in response.iter_raw():
        data += chunk
        if len(data) > limit_bytes:
            raise ImageError(f"{what} is answered with more than {limit_bytes} bytes", hint="the server is broken")
    return bytes(data)


def _authorized(authorization: str | None) -> dict[str, str]:
    return {"Authorization": authorization} if authorization else {}


def _cause(error: BaseException) -> BaseException:
    """The error at the bottom: httpx and httpcore wrap what the socket said."""
    while (below := error.__cause__ or error.__context__) is not None:
        if isinstance(error, ssl.SSLError):
            break
        error = below
    return error
