"""Finding an unpacked image in well under a millisecond, on the way of a container start: os and fcntl only.

Everything that is not the plain case (an id, an index, an image not unpacked yet) is ``None`` here, and is
for ``runtimes.oci.images``.
"""

from __future__ import annotations

import _json
import fcntl
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_NAME = "org.opencontainers.image.ref.name"


def lookup(state: str, reference: str) -> tuple[str, str, dict[str, Any]] | None:
    """Return an image's manifest digest, the path of its tree and its configuration without the history.

    ``state`` is the state directory. Keep ``hold(state)`` open from before this call until the digest is
    written where the collector finds it (a container's config.json).
    """
    index = _load(f"{state}/images/index.json")
    if index is None:
        return None
    wanted = {reference, _familiar(reference)}
    for entry in index["manifests"]:
        if entry.get("annotations", {}).get(_NAME) in wanted:
            digest: str = entry["digest"]
            tree = f"{state}/trees/{digest.rpartition(':')[2]}"
            facts = _load(f"{tree}.json")
            if facts is None or "config" not in facts or not os.path.isdir(tree):
                return None
            return digest, tree, facts["config"]
    return None


def hold(state: str) -> int:
    """Return a descriptor that keeps the collector out until it, and every copy that a fork made, is closed.

    Raises:
        FileNotFoundError: there is no image store.
    """
    fd = os.open(f"{state}/images/gc.lock", os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    fcntl.flock(fd, fcntl.LOCK_SH)
    return fd


def _familiar(reference: str) -> str:
    """The name under which the store has ``reference``; see ``runtimes.oci.reference``."""
    name = reference[6:] if reference.startswith("index.docker.io/") else reference
    rest = name.removeprefix("docker.io/")
    first, slash, _ = rest.partition("/")
    # docker.io/localhost/x is not localhost/x
    if not slash or not ("." in first or ":" in first or first == "localhost" or first != first.lower()):
        name = rest
    if name.startswith("library/") and name.count("/") == 1:
        name = name[8:]
    return name if "@" in name or ":" in name.rpartition("/")[2] else f"{name}:latest"


class _Plain:
    """What CPython's scanner asks of a decoder: json itself imports re, which costs ten times this lookup."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float
    memo: dict[str, str] = {}  # noqa: RUF012 - json.decoder has it so


def _load(path: str) -> dict[str, Any] | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        data = b""
        while piece := os.read(fd, 1 << 20):
            data += piece
    finally:
        os.close(fd)
    try:
        value, _ = _json.make_scanner(_Plain)(data.decode(), 0)  # type: ignore[arg-type]  # it reads these attributes
    except (ValueError, StopIteration):  # damaged: for images.py to explain
        return None
    return value if isinstance(value, dict) else None
