"""What the host's own apt is configured to use, so that images come from where its packages come from."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from bench.errors import HostError, ImageError

SUITE: Final = "bookworm"
_CODENAMES: Final = (SUITE, f"{SUITE}-updates", f"{SUITE}-security")
_NOT_FOR_IMAGES: Final = ("Acquire::IndexTargets", "Acquire::Changelogs", "Acquire::Languages", "Acquire::cdrom")


def sources() -> Mapping[str, str]:
    """The entries of the host's apt sources that bring Debian bookworm, as they are written there.

    They are kept apart by format: the keys are file suffixes, ``.list`` for one-line entries and
    ``.sources`` for deb822 stanzas (sources.list(5)). Mirrors, keys and options stay the host's.

    Raises:
        ImageError: the host has no such sources.
        HostError: apt is not installed.
    """
    command = ["apt-get", "indextargets", "--format", "$(SOURCESENTRY)|$(CODENAME)", "Created-By: Packages"]
    rows = (row.rpartition("|") for row in _output([*command, "Origin: Debian"]).splitlines())
    wanted = sorted({place for place, _, codename in rows if codename in _CODENAMES})
    texts: dict[str, list[str]] = {}
    for place in wanted:
        name, _, number = place.rpartition(":")
        suffix = Path(name).suffix if Path(name).suffix == ".sources" else ".list"
        texts.setdefault(suffix, []).append(_entry(Path(name), int(number)))
    if not texts:
        raise ImageError(
            f"the host's apt knows no Debian {SUITE}, which images are made from",
            hint=f"add Debian {SUITE} to /etc/apt/sources.list.d and run apt-get update",
        )
    return {suffix: "\n\n".join(found) + "\n" for suffix, found in texts.items()}


def settings() -> str:
    """How the host's apt fetches: proxies, certificates, credentials, time-outs; as apt.conf(5)."""
    lines = _output(["apt-config", "dump", "--no-empty", "--format", '%F "%v";%n', "Acquire"]).splitlines()
    kept = [line for line in lines if not line.startswith(_NOT_FOR_IMAGES)]
    for option in ("Dir::Etc::netrc/f", "Dir::Etc::netrcparts/d"):
        shown = _output(["apt-config", "shell", "value", option])
        if (path := re.fullmatch(r"value='(.+)'\s*", shown)) and Path(path[1]).exists():
            kept.append(f'{option.split("/", maxsplit=1)[0]} "{path[1].rstrip("/")}";')
    return "\n".join([*kept, 'Acquire::Retries "3";', ""])


def architecture() -> str:
    """The host's Debian architecture, such as ``amd64``."""
    return _output(["dpkg", "--print-architecture"]).strip()


def _entry(path: Path, number: int) -> str:
    """Entry ``number`` of a sources file: a line, or the number-th stanza that is not only comments."""
    lines = path.read_text().splitlines()
    return list(_stanzas(lines))[number - 1] if path.suffix == ".sources" else lines[number - 1]


def _stanzas(lines: list[str]) -> Iterator[str]:
    stanza: list[str] = []
    for line in [*lines, ""]:
        if line.strip():
            stanza += [] if line.startswith("#") else [line]
        elif stanza:
            yield "\n".join(stanza)
            stanza = []


def _output(command: list[str]) -> str:
    try:
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise HostError(f"the program {command[0]} is not installed", hint="images are made on Debian hosts") from error
    if ended.returncode != 0:
        raise HostError(f"{command[0]} failed: {ended.stderr.strip()}", hint="apt-get update")
    return ended.stdout
