"""Proving to a registry who we are: Basic, or bearer tokens from the server that its challenge names.

Distribution's "Token Authentication Specification" and "OAuth2 Token Authentication"; challenges are RFC 9110.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from bench.errors import ImageError
from runtimes.oci.credentials import Credentials
from runtimes.oci.endpoint import Endpoint, is_loopback

if TYPE_CHECKING:
    import httpx

_CHALLENGE: Final = re.compile(r"\s*,?\s*([A-Za-z]+)(?=\s|$)\s*")
_PARAMETER: Final = re.compile(r'\s*,?\s*([A-Za-z_]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')
_SCHEMES: Final = ("bearer", "basic")
"""What we know, in order of preference."""
_CLIENT: Final = "isomark"
_SHORTEST_SECONDS: Final = 60
"""How long a token lives that does not say (the specification's minimum)."""
_MARGIN: Final = 0.8
"""A token is renewed once this much of its life is over."""

Ask = Callable[..., "httpx.Response"]
"""Sends one request, with retries and without authorization; see ``Session.ask``."""


@dataclass(frozen=True)
class Challenge:
    """One of a 401's ``WWW-Authenticate``; ``scheme`` is lower case."""

    scheme: str
    parameters: Mapping[str, str]


@dataclass(frozen=True)
class _Token:
    value: str
    renew_at: float


class Authenticator:
    """Keeps the tokens of one registry; safe to use from several threads."""

    def __init__(self, endpoint: Endpoint, credentials: Credentials | None, ask: Ask) -> None:
        self._endpoint = endpoint
        self._credentials = credentials
        self._ask = ask
        self._challenge: Challenge | None = None
        self._tokens: dict[frozenset[str], _Token] = {}
        self._identity_token = credentials.identity_token if credentials else ""
        self._lock = threading.Lock()

    def authorization(self, scopes: Iterable[str]) -> str | None:
        """The header to send for ``scopes`` (``repository:team/app:pull``), as far as is known what is wanted."""
        with self._lock:
            if self._credentials and self._credentials.registry_token:
                return f"Bearer {self._credentials.registry_token}"
            if self._challenge is None:
                return None
            if self._challenge.scheme == "basic":
                return self._credentials.basic() if self._credentials else None
            return f"Bearer {self._token(frozenset(scopes), self._challenge)}"

    def challenged(self, headers: Iterable[str], scopes: Iterable[str], refused: str | None) -> bool:
        """Take in a 401's challenges after ``refused`` was sent; return whether another try may go better.

        Raises:
            ImageError: the registry wants what we have not.
        """
        with self._lock:
            offered = [challenge for header in headers for challenge in parse_challenges(header)]
            usable = [
                challenge for scheme in ("bearer", "basic") for challenge in offered if challenge.scheme == scheme
            ]
            if not usable:
                names = ", ".join(sorted({challenge.scheme for challenge in offered})) or "nothing"
                raise ImageError(
                    f"{self._endpoint.registry} wants authentication by {names[:100]}, which isomark does not know",
                    hint="give its token as registrytoken in ~/.docker/config.json, if it takes bearer tokens",
                )
            self._challenge = usable[0]
            if refused is None:
                return self._challenge.scheme == "bearer" or self._credentials is not None
            # one renewal, in case the token was revoked or expired early
            token = self._tokens.get(frozenset(scopes))
            if token is not None and refused == f"Bearer {token.value}":
                del self._tokens[frozenset(scopes)]
            return self._challenge.scheme == "bearer"

    def _token(self, scopes: frozenset[str], challenge: Challenge) -> str:
        token = self._tokens.get(scopes)
        if token is None or time.monotonic() >= token.renew_at:
            token = self._tokens[scopes] = self._fetch(scopes, challenge)
        return token.value

    def _fetch(self, scopes: frozenset[str], challenge: Challenge) -> _Token:
        realm = challenge.parameters.get("realm", "")
        self._check_realm(realm)
        fields = {"service": challenge.parameters["service"]} if "service" in challenge.parameters else {}
        wanted = sorted(scopes) or challenge.parameters.get("scope", "").split()
        response = self._by_refreshing(realm, fields, wanted) if self._identity_token else None
        if response is None:
            response = self._by_asking(realm, fields, wanted)
        if response.status_code != 200:
            said = "the credentials are wrong" if response.status_code in (401, 403) else f"HTTP {response.status_code}"
            who = f"as {self._credentials.username!r}" if self._credentials else "anonymously"
            raise ImageError(
                f"{self._endpoint.registry} gave no token {who}: {said}", hint=f"docker login {self._endpoint.registry}"
            )
        return self._read(response)

    def _by_refreshing(self, realm: str, fields: Mapping[str, str], scopes: list[str]) -> httpx.Response | None:
        """OAuth2's refresh; ``None`` where the server does not know it."""
        form = {
            **fields,
            "grant_type": "refresh_token",
            "client_id": _CLIENT,
            "scope": " ".join(scopes),
            "refresh_token": self._identity_token,
        }
        response = self._ask("POST", realm, form=form)
        return None if response.status_code in (404, 405) else response

    def _by_asking(self, realm: str, fields: Mapping[str, str], scopes: list[str]) -> httpx.Response:
        known = self._credentials
        query = [*fields.items(), *(("scope", scope) for scope in scopes), ("client_id", _CLIENT)]
        if known and known.username:
            return self._ask("GET", realm, query=[*query, ("account", known.username)], authorization=known.basic())
        return self._ask("GET", realm, query=query)

    def _read(self, response: httpx.Response) -> _Token:
        try:
            answer = json.loads(response.content)
            value = answer.get("token") or answer["access_token"]
            seconds = float(answer.get("expires_in") or _SHORTEST_SECONDS)
            if not isinstance(value, str) or not value.isascii() or not value.isprintable():
                raise ValueError
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ImageError(
                f"the token server of {self._endpoint.registry} answered without a token",
                hint="try again later; if it stays so, tell who runs the registry",
            ) from error
        if isinstance(new := answer.get("refresh_token"), str) and new:
            self._identity_token = new
        return _Token(value, time.monotonic() + max(seconds, 1) * _MARGIN)

    def _check_realm(self, realm: str) -> None:
        """A registry decides where our password goes; at least it goes there encrypted."""
        parts = urlsplit(realm)
        plain = parts.scheme == "http" and self._endpoint.plain and is_loopback(parts.netloc)
        if not parts.hostname or (parts.scheme != "https" and not plain):
            raise ImageError(
                f"{self._endpoint.registry} wants tokens fetched from {realm[:200]!r}, which is not https",
                hint="the registry is misconfigured or malicious",
            )


def parse_challenges(header: str) -> list[Challenge]:
    """Return the challenges in one ``WWW-Authenticate`` header; what cannot be read ends the list."""
    found: list[Challenge] = []
    at = 0
    while match := _CHALLENGE.match(header, at):
        at = match.end()
        parameters: dict[str, str] = {}
        while parameter := _PARAMETER.match(header, at):
            quoted, bare = parameter[2], parameter[3]
            parameters[parameter[1].lower()] = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else bare
            at = parameter.end()
        found.append(Challenge(match[1].lower(), parameters))
    return found
