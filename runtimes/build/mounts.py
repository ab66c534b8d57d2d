"""``RUN --mount``: which kinds there are, and which of them are not supported."""

from __future__ import annotations

import csv
from typing import Final, Literal, cast

from bench.errors import UsageError
from runtimes.build.instructions import Mount

_OPTIONS: Final = {
    "tmpfs": ("target", "size"),
    "cache": ("target", "id", "sharing", "mode", "uid", "gid"),
}
_UNSUPPORTED: Final = {
    "bind": "COPY what the step needs, in a stage of its own if it shall not stay",
    "secret": "give it as a build argument of a stage that does not stay",
    "ssh": "fetch over https, or COPY what was fetched before",
}
_TARGETS: Final = ("target", "dst", "destination")


def mount_of(text: str) -> Mount:
    """Return the mount that ``--mount=text`` asks for.

    Raises:
        UsageError: it is malformed, or of a kind that is not supported.
    """
    options: dict[str, str] = {}
    for part in next(csv.reader([text]), []):
        name, _, value = part.partition("=")
        options["target" if name in _TARGETS else name] = value
    kind = options.pop("type", "bind")
    if kind in _UNSUPPORTED:
        raise UsageError(f"RUN --mount=type={kind} is not supported", hint=_UNSUPPORTED[kind])
    if kind not in _OPTIONS:
        raise UsageError(f"RUN --mount=type={kind[:40]} is unknown", hint=f"there are {', '.join(_OPTIONS)}")
    for name in options:
        if name not in _OPTIONS[kind]:
            raise UsageError(
                f"RUN --mount=type={kind} has no option {name[:40]}", hint=f"it has {', '.join(_OPTIONS[kind])}"
            )
    target = options.pop("target", "")
    if not target:
        raise UsageError(f"RUN --mount=type={kind} has no target", hint="write target=/path")
    return Mount(cast('Literal["tmpfs", "cache"]', kind), target, options)
