"""Debian trees as tar streams, made by mmdebstrap(1) so that the same packages give the same bytes."""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench.errors import ImageError
from bench.journal import OWNER_VARIABLE, Journal
from bench.units import GIB
from runtimes.oci import apt

EPOCH: Final = 1686355200
"""SOURCE_DATE_EPOCH of every image: 2023-06-10, the day bookworm was released. Later times are cut to it."""
PACKAGES_PATH: Final = "usr/share/isomark/packages"
"""In every tree: a line for each package with its name, version, architecture and its archive's SHA-256."""
MEMORY_BYTES: Final = 2 * GIB
"""With this much memory free the tree is made on a tmpfs, which spares the disk and is gone with its namespace."""

DPKG_CONFIG: Final = """\
path-exclude=/usr/share/man/*
path-exclude=/usr/share/locale/*
path-exclude=/usr/share/info/*
path-exclude=/usr/share/doc/*
path-include=/usr/share/doc/*/copyright
force-unsafe-io
"""
FINISH: Final = r"""#!/bin/sh
set -eu
cd "$1"
mkdir -p usr/share/isomark
chroot . dpkg-query --show --showformat '${Package}=${Version}\n' > tmp/installed
APT_CONFIG=$MMDEBSTRAP_APT_CONFIG xargs apt-cache show < tmp/installed |
    awk '/^(Package|Version|Architecture|SHA256):/ { f[$1] = $2 }
        /^$/ { print f["Package:"], f["Version:"], f["Architecture:"], f["SHA256:"] }' |
    LC_ALL=C sort -u > usr/share/isomark/packages
rm tmp/installed
rm -rf usr/share/man/* usr/share/locale/* usr/share/info/*
find usr/share/doc -mindepth 2 ! -type d ! -name copyright -delete
find usr/share/doc -mindepth 1 -depth -type d -empty -delete
find . -xdev -depth -type d -name __pycache__ -exec rm -rf {} +
find var/log -xdev -type f -delete
rm -rf etc/apt/sources.list etc/apt/sources.list.d/* etc/apt/apt.conf.d/*isomark
rm -f var/cache/debconf/*-old var/lib/dpkg/*-old etc/passwd- etc/group- etc/shadow- etc/gshadow-
rm -f etc/hostname etc/resolv.conf
echo isomark > etc/hostname
: > etc/resolv.conf
"""
"""Run once everything is installed: record what it is, and take out what nobody runs or what differs by host.

Compiled Python goes because its stamps would no longer fit the times cut to EPOCH.
"""

_MERGED_USR: Final = "/usr/share/mmdebstrap/hooks/merged-usr"
_IN_NAMESPACES: Final = ("setpriv", "--pdeathsig", "KILL", "--", "unshare", "--mount", "--pid", "--fork",
                         "--kill-child", "--mount-proc", "--propagation", "private")  # fmt: skip
"""Killing the first process, or dying without a chance to, ends everything and takes its mounts along."""
_AS_ROOT_OF_OWN: Final = ("--user", "--map-root-user", "--map-auto")
_ON_TMPFS: Final = ("sh", "-c", 'mount -t tmpfs -o mode=755 tmpfs "$TMPDIR" && exec "$@"', "sh")
_STAGES: Final = ("I: running apt-get update", "I: downloading", "I: extracting", "I: installing", "I: creating")
_TAIL_LINES: Final = 12
_PASSED_ON: Final = ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
_CHUNK_BYTES: Final = 1024**2
_REMOVE_SECONDS: Final = 10.0

Progress = Callable[[str], None]


@contextmanager
def debian_tree(
    packages: Sequence[str], work: Path, journal: Journal, progress: Progress, *, finish: str = FINISH
) -> Iterator[Iterator[bytes]]:
    """Make a tree of Debian's essential packages and ``packages``; the block gets it as pieces of a tar.

    It is made under the existing directory ``work``. Leaving the block early ends mmdebstrap.
    ``progress`` is called from a thread of its own; ``finish`` is run with the tree as its argument when all is there.

    Raises:
        ImageError: mmdebstrap is missing or failed; its last lines are in the message.
    """
    for program in ("mmdebstrap", "unshare", "setpriv"):
        if shutil.which(program) is None:
            raise ImageError(f"{program} is not installed", hint="apt-get install mmdebstrap util-linux")
    directory = work / f"debian-{secrets.token_hex(6)}"
    owned = journal.own("directory", path=str(directory))
    try:
        (directory / "tree").mkdir(parents=True)
        with _running(_command(packages, directory, finish), directory, journal, progress) as output:
            yield output.chunks()
    finally:
        _remove(directory)
        journal.gone(owned)


class _Output:
    """Reads what mmdebstrap prints: the tar, and beside it the stages it goes through."""

    def __init__(self, process: subprocess.Popen[bytes], progress: Progress) -> None:
        self._process = process
        self._progress = progress
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._reader = threading.Thread(target=self._read_messages, daemon=True)
        self._reader.start()

    def chunks(self) -> Iterator[bytes]:
        assert self._process.stdout is not None
        while chunk := self._process.stdout.read(_CHUNK_BYTES):
            yield chunk
        self._reader.join()
        if self._process.wait() != 0:
            raise self._failure()

    def end(self) -> None:
        """Kill mmdebstrap if it still runs, and wait until nothing reads from it."""
        self._process.kill()
        self._reader.join()

    def _read_messages(self) -> None:
        assert self._process.stderr is not None
        for raw in self._process.stderr:
            text = raw.decode("utf-8", "replace").strip()
            if text.startswith(_STAGES):
                self._progress(f"Debian tree: {text.removeprefix('I: ').rstrip('.')}")
            elif text and not text.startswith("I: "):
                self._tail.append(text)

    def _failure(self) -> ImageError:
        said = "\n".join(self._tail)
        hint = "see whether apt-get update works on this host"
        if "No space left" in said:
            hint = "free some disk space, or set ISOMARK_STATE to a larger disk"
        elif "unshare: " in said or "newuidmap" in said:
            hint = "run as root, or apt-get install uidmap and give this user a range in /etc/subuid and /etc/subgid"
        return ImageError(f"mmdebstrap could not make the image:\n{said}", hint=hint)


@contextmanager
def _running(command: Sequence[str], directory: Path, journal: Journal, progress: Progress) -> Iterator[_Output]:
    environment = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C.UTF-8",
        "SOURCE_DATE_EPOCH": str(EPOCH),
        "TMPDIR": str(directory / "tree"),
        OWNER_VARIABLE: journal.owner.id,
        **{name: os.environ[name] for name in _PASSED_ON if name in os.environ},
    }
    owned = journal.own("process", marker=journal.owner.id)
    try:
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            cwd="/",
            start_new_session=True,  # Ctrl-C is for us; we end it in our own way
        ) as process:
            output = _Output(process, progress)
            try:
                yield output
            finally:
                output.end()
    finally:
        journal.gone(owned)


def _command(packages: Sequence[str], directory: Path, script: str) -> list[str]:
    """Write what mmdebstrap shall read into ``directory`` and return its command."""
    mirrors = []
    for suffix, text in apt.sources().items():
        path = directory / f"host{suffix}"
        path.write_text(text)
        mirrors.append(str(path))
    (directory / "apt.conf").write_text(apt.settings())
    (directory / "dpkg.cfg").write_text(DPKG_CONFIG)
    finish = directory / "finish"
    finish.write_text(script)
    finish.chmod(0o755)
    upload = [
        f"--setup-hook=upload {shlex.quote(str(directory / name))} {target}"
        for name, target in (
            ("apt.conf", "/etc/apt/apt.conf.d/80isomark"),
            ("dpkg.cfg", "/etc/dpkg/dpkg.cfg.d/isomark"),
        )
    ]
    return [
        *_surroundings(),
        *("mmdebstrap", "--mode=root", "--variant=essential", "--format=tar"),
        *([f"--include={','.join(packages)}"] if packages else []),
        f"--hook-dir={_MERGED_USR}",
        *upload,
        f"--customize-hook={finish}",
        apt.SUITE,
        "-",
        *mirrors,
    ]


def _surroundings() -> list[str]:
    privileged = os.geteuid() == 0
    # what other ids wrote could not be removed without privilege, so then it never meets the disk
    on_tmpfs = not privileged or _available_memory_bytes() > MEMORY_BYTES
    return [*_IN_NAMESPACES, *(() if privileged else _AS_ROOT_OF_OWN), "--", *(_ON_TMPFS if on_tmpfs else ())]


def _available_memory_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def _remove(directory: Path) -> None:
    """Remove ``directory``, in which killed processes may still write for a moment."""
    deadline = time.monotonic() + _REMOVE_SECONDS
    while directory.exists():
        try:
            shutil.rmtree(directory)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
