"""Letting a step's apt use the host's sources: mounted for the step alone, and named by a variable that only it has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from runtimes import libc
from runtimes.build.running import Extras
from runtimes.oci import apt

PLACE: Final = "/dev/isomark-apt"
"""Below /dev, which is not the image's."""
_KEYS: Final = re.compile(r"(?P<before>Signed-By:\s*|signed-by=)(?P<path>/[^\s\],]+)", re.IGNORECASE)
_FILES: Final = re.compile(r'"(?P<path>/[^"]+)"')
_EVERYWHERE: Final = "/usr/share/keyrings/"
"""Where packages that the image has too keep keys."""


def provide(extras: Extras, files: Path) -> None:
    """Write the host's sources and settings below ``files`` and add them to what the step sees.

    Raises:
        ImageError: the host has no sources for this Debian.
        HostError: the host has no apt.
    """
    directory = files / "apt"
    (directory / "sources").mkdir(parents=True)
    taken = _Taken(directory)
    for suffix, text in apt.sources().items():
        (directory / "sources" / f"host{suffix}").write_text(_KEYS.sub(taken.key, text))
    settings = _FILES.sub(taken.file, apt.settings())
    own = f'Dir::Etc::sourcelist "/dev/null";\nDir::Etc::sourceparts "{PLACE}/sources";\n'
    (directory / "apt.conf").write_text(settings + own)
    extras.mounts.append(["user_bind", PLACE, str(directory), libc.MOUNT_ATTR_RDONLY, 0, False, False, 0])
    extras.environment["APT_CONFIG"] = f"{PLACE}/apt.conf"


class _Taken:
    """Copies of the host's files that its sources and settings name."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._count = 0

    def key(self, found: re.Match[str]) -> str:
        """A keyring that the image cannot be expected to have."""
        path = Path(found["path"])
        return found[0] if found["path"].startswith(_EVERYWHERE) else f"{found['before']}{self._copied(path)}"

    def file(self, found: re.Match[str]) -> str:
        """A certificate, or a file or directory with credentials."""
        path = Path(found["path"])
        return f'"{self._copied(path)}"' if path.exists() else found[0]

    def _copied(self, path: Path) -> str:
        self._count += 1
        target = self._directory / f"{self._count}{path.suffix}"
        if path.is_dir():
            target.mkdir()
            for entry in path.iterdir():
                if entry.is_file():
                    self._write(entry, target / entry.name)
        else:
            self._write(path, target)
        return f"{PLACE}/{target.name}"

    def _write(self, path: Path, target: Path) -> None:
        target.write_bytes(path.read_bytes())
        # as on the host: credentials are root's, keys are read by apt's own user
        target.chmod(path.stat().st_mode & 0o777)
