"""Who we are to a registry: from ~/.docker/config.json and the credential helpers that it names.

The file is described with ``docker login`` (docs.docker.com, "Credential stores"), the helpers' protocol in
github.com/docker/docker-credential-helpers.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.errors import HostError, UsageError

VARIABLE: Final = "DOCKER_CONFIG"
DOCKER_HUB: Final = "https://index.docker.io/v1/"
_HUB_NAMES: Final = ("docker.io", "index.docker.io", "registry-1.docker.io")
_HELPER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HELPER_SECONDS: Final = 60
_NO_CREDENTIALS: Final = "credentials not found in native keychain"
_TOKEN_USER: Final = "<token>"


@dataclass(frozen=True)
class Credentials:
    """What a registry or its token server is shown; never printed."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    """An OAuth2 refresh token (``docker login`` stores one for some registries)."""
    registry_token: str = field(default="", repr=False)
    """A bearer token to use as it is."""

    def basic(self) -> str:
        """The value of a Basic Authorization header (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


def config_path() -> Path:
    """Docker's configuration file: in ``$DOCKER_CONFIG``, else in ~/.docker."""
    directory = os.environ.get(VARIABLE)
    return (Path(directory) if directory else Path.home() / ".docker") / "config.json"


def find_credentials(registry: str) -> Credentials | None:
    """Return what is known for ``registry`` (``docker.io``, ``host:port``); ``None``: be anonymous.

    Raises:
        UsageError: the configuration file is malformed.
        HostError: a credential helper is missing or failed.
    """
    path = config_path()
    try:
        config = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", hint=f"chown it, or set {VARIABLE}") from error
    except ValueError as error:
        raise _malformed(path, f"it is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise _malformed(path, "it is not a JSON object")
    helper = _helper_for(_section(config, "credHelpers", path), registry) or config.get("credsStore")
    if helper:
        found = _ask_helper(str(helper), DOCKER_HUB if registry in _HUB_NAMES else registry, path)
        if found is not None:
            return found
    for key, entry in _section(config, "auths", path).items():
        if _is_for(key, registry) and isinstance(entry, dict) and entry:
            return _from_entry(entry, key, path)
    return None


def _section(config: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    section = config.get(name)
    if section is None:
        return {}
    if not isinstance(section, dict):
        raise _malformed(path, f"{name} is not an object")
    return section


def _helper_for(helpers: Mapping[str, Any], registry: str) -> str | None:
    return next((str(name) for key, name in helpers.items() if _is_for(key, registry)), None)


def _is_for(key: str, registry: str) -> bool:
    """Whether a key of the file, a host or a URL of the registry's API, means ``registry``."""
    host, _, path = key.partition("://")[2].partition("/") if "://" in key else key.partition("/")
    if path.strip("/") not in ("", "v1", "v2"):
        return False
    return host == registry or (host in _HUB_NAMES and registry in _HUB_NAMES)


def _from_entry(entry: Mapping[str, Any], key: str, path: Path) -> Credentials | None:
    username, password = str(entry.get("username", "")), str(entry.get("password", ""))
    if auth := entry.get("auth"):
        try:
            decoded = base64.b64decode(str(auth), validate=True).decode().strip("\0")
        except (binascii.Error, ValueError) as error:
            raise _malformed(path, f"auth of {key!r} is not base64 of user:password") from error
        username, colon, password = decoded.partition(":")
        if not colon:
            raise _malformed(path, f"auth of {key!r} is not base64 of user:password")
    found = Credentials(
        username, password, str(entry.get("identitytoken") or ""), str(entry.get("registrytoken") or "")
    )
    return found if any((username, found.identity_token, found.registry_token)) else None


def _ask_helper(name: str, server: str, path: Path) -> Credentials | None:
    """Run ``docker-credential-NAME get``."""
    if not _HELPER.fullmatch(name):
        raise _malformed(path, f"{name[:100]!r} is not the name of a credential helper")
    program = f"docker-credential-{name}"
    try:
        ended = subprocess.run(
            [program, "get"], input=server, capture_output=True, text=True, check=False, timeout=_HELPER_SECONDS
        )
    except FileNotFoundError as error:
        raise HostError(
            f"{path} names the helper {program}, which is not installed",
            hint="install it, or take it out of credsStore and credHelpers there",
        ) from error
    except (subprocess.TimeoutExpired, OSError, UnicodeDecodeError) as error:
        raise HostError(f"{program} get failed: {error}", hint="run it by hand") from error
    if ended.returncode != 0:
        said = (ended.stdout.strip() or ended.stderr.strip())[:300]
        if _NO_CREDENTIALS in said:
            return None
        raise HostError(f"{program} failed for {server}: {said}", hint=f"echo {server} | {program} get")
    try:
        answer = json.loads(ended.stdout)
        username, secret = str(answer["Username"]), str(answer["Secret"])
    except (ValueError, TypeError, KeyError) as error:
        raise HostError(f"{program} get printed something else than credentials", hint="run it by hand") from error
    return Credentials(identity_token=secret) if username == _TOKEN_USER else Credentials(username, secret)


def _malformed(path: Path, reason: str) -> UsageError:
    return UsageError(f"{path} is malformed: {reason}", hint="mend it, or log in again with docker login")
