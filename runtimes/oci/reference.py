"""Image references as Docker writes them: ``nginx``, ``localhost:5000/team/app:1.2``, ``debian@sha256:…``.

Grammar and defaults are those of github.com/distribution/reference: without a registry it is docker.io,
there without a slash it is ``library/``, and without tag and digest the tag is ``latest``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final

from bench.errors import ImageError, UsageError
from runtimes.oci.descriptor import checked_digest

DEFAULT_REGISTRY: Final = "docker.io"
DEFAULT_TAG: Final = "latest"
MAX_NAME: Final = 255
_HOST: Final = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*"
    r"|\[[0-9A-Fa-f:]+\])(?::[0-9]{1,5})?"
)
_COMPONENT: Final = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*")
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_ID: Final = re.compile(r"[0-9a-f]{64}")
_HINT: Final = "write it like debian:12, registry.example:5000/team/app:1.0 or debian@sha256:…"


@dataclass(frozen=True)
class Reference:
    """Where an image is: always with its registry, and with either a tag or a digest."""

    registry: str
    repository: str
    tag: str | None
    digest: str | None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Return what ``text`` names.

        Raises:
            UsageError: it is no reference; the message says which part is wrong.
        """
        rest, at, digest = text.partition("@")
        if at:
            digest = _digest(digest, text)
        name, tag = _split_tag(rest)
        registry, repository = _split_registry(name, text)
        if tag is not None and not _TAG.fullmatch(tag):
            raise _wrong(text, f"the tag {tag[:140]!r} is not 1 to 128 letters, digits, '_', '.' or '-'")
        if tag is None and not at:
            tag = DEFAULT_TAG
        # with a digest the tag says nothing; Docker ignores it too
        return cls(registry, repository, None if at else tag, digest or None)

    @property
    def familiar(self) -> str:
        """As people write it, and as the store names images: defaults left out, but for the tag."""
        name = f"{self.registry}/{self.repository}"
        if self.registry == DEFAULT_REGISTRY and not _names_host(self.repository):
            name = self.repository.removeprefix("library/") if self._is_official else self.repository
        tag = f":{self.tag}" if self.tag else ""
        return f"{name}{tag}@{self.digest}" if self.digest else f"{name}{tag}"

    @property
    def name(self) -> str:
        """The familiar name without tag and digest."""
        return replace(self, tag=None, digest=None).familiar

    @property
    def target(self) -> str:
        """What a registry is asked for: the digest if there is one, else the tag."""
        return self.digest or self.tag or DEFAULT_TAG

    @property
    def _is_official(self) -> bool:
        return self.repository.startswith("library/") and self.repository.count("/") == 1

    def __str__(self) -> str:
        return self.familiar


def _split_tag(rest: str) -> tuple[str, str | None]:
    """Split ``name:tag``; a colon before the last slash belongs to a port."""
    colon = rest.rfind(":")
    return (rest[:colon], rest[colon + 1 :]) if colon > rest.rfind("/") else (rest, None)


def _split_registry(name: str, text: str) -> tuple[str, str]:
    if not name:
        raise _wrong(text, "it has no name")
    first, _, rest = name.partition("/")
    registry, repository = (first, rest) if _names_host(name) else (DEFAULT_REGISTRY, name)
    if not _HOST.fullmatch(registry):
        raise _wrong(text, f"{registry[:100]!r} is not a host name with an optional port")
    if registry == "index.docker.io":
        registry = DEFAULT_REGISTRY
    if registry == DEFAULT_REGISTRY and "/" not in repository:
        repository = f"library/{repository}"
    _check_repository(repository, name, text)
    return registry, repository


def _names_host(name: str) -> bool:
    """Whether the part before the first slash of ``name`` is a registry."""
    first, slash, _ = name.partition("/")
    return bool(slash) and (any(char in first for char in ".:") or first == "localhost" or first != first.lower())


def _check_repository(repository: str, name: str, text: str) -> None:
    if _ID.fullmatch(name):
        raise _wrong(text, "64 hexadecimal digits are an image's id, not a name")
    for component in repository.split("/"):
        if component != component.lower():
            raise _wrong(text, f"{component[:100]!r} has capital letters, and repositories have none")
        if not _COMPONENT.fullmatch(component):
            raise _wrong(text, f"{component[:100]!r} is not letters and digits, with '.', '_' or '-' between them")
    if len(repository) > MAX_NAME:
        raise _wrong(text, f"the name is longer than {MAX_NAME} characters")


def _digest(digest: str, text: str) -> str:
    try:
        return checked_digest(digest)
    except ImageError as error:
        raise _wrong(text, error.message) from error


def _wrong(text: str, reason: str) -> UsageError:
    return UsageError(f"{text[:300]!r} is not an image reference: {reason}", hint=_HINT)
