"""The record of everything a run owns on the host, written before each thing is created.

One file per owner: a first line that names the owning process, then ``own`` and ``gone`` lines.
Records survive ``kill -9`` because they reach the page cache before the thing exists; they need
not survive a power cut, which takes processes, cgroups, mounts, namespaces and interfaces with it,
and which leaves directories that the next ``clean`` still finds named here.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.errors import HostError

OWNER_VARIABLE: Final = "ISOMARK_OWNER"
"""In the environment of every process a run starts; the value is the owner's id."""


@dataclass(frozen=True)
class Entry:
    """One thing owned: its ``kind`` selects the remover, ``what`` tells it which one."""

    number: int
    kind: str
    what: Mapping[str, str]


@dataclass(frozen=True)
class Owner:
    """The process that a journal belongs to, told apart from a later one of the same pid."""

    id: str
    pid: int
    start_ticks: int
    boot_id: str

    def is_alive(self) -> bool:
        """Whether that very process still runs."""
        return self.boot_id == boot_id() and start_ticks(self.pid) == self.start_ticks


class Journal:
    """An open journal; use as a context manager around everything a run starts."""

    def __init__(self, directory: Path) -> None:
        """Open a new journal below ``directory`` for this process.

        Raises:
            HostError: the directory cannot be written.
        """
        ticks = start_ticks(os.getpid())
        assert ticks is not None
        self.owner = Owner(secrets.token_hex(4), os.getpid(), ticks, boot_id())
        self.path = directory / f"{self.owner.id}.jsonl"
        self._open: set[int] = set()
        self._next = 0
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise HostError(
                f"cannot write the journal in {directory}: {error.strerror}",
                hint="set ISOMARK_STATE to a directory that you may write",
            ) from error
        try:
            self._write({"owner": vars(self.owner)})
        except HostError:
            self.close()
            raise

    def own(self, kind: str, **what: str) -> Entry:
        """Record that a thing is about to be created; call before creating it."""
        entry = Entry(self._next, kind, what)
        self._next += 1
        self._write({"own": entry.number, "kind": kind, "what": what})
        self._open.add(entry.number)
        return entry

    def gone(self, entry: Entry) -> None:
        """Record that the thing was removed; call after removing it."""
        if entry.number in self._open:
            self._write({"gone": entry.number})
            self._open.discard(entry.number)

    @contextmanager
    def owning(self, kind: str, **what: str) -> Iterator[Entry]:
        """Own a thing for the length of a block that removes it before it leaves."""
        entry = self.own(kind, **what)
        yield entry
        self.gone(entry)

    def close(self) -> None:
        """Forget the journal if all it named is gone; otherwise leave it for ``clean``."""
        if self._fd == -1:
            return
        os.close(self._fd)
        self._fd = -1
        if not self._open:
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, record: Mapping[str, object]) -> None:
        data = json.dumps(record).encode() + b"\n"
        size = os.fstat(self._fd).st_size
        try:
            if os.write(self._fd, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            os.ftruncate(self._fd, size)  # no torn line before the next one
            raise HostError(
                f"cannot write the journal {self.path}: {error.strerror}", hint="is the disk full? (df)"
            ) from error


@dataclass(frozen=True)
class Leftovers:
    """A journal on disk: who wrote it and what it still names, newest first."""

    path: Path
    owner: Owner
    entries: tuple[Entry, ...]


def read_journals(directory: Path) -> Iterator[Leftovers]:
    """Yield every journal below ``directory``; a line torn by a crash is passed over."""
    for path in sorted(directory.glob("*.jsonl")):
        left = read_journal(path)
        if left is not None:  # else its owner closed it meanwhile
            yield left


def read_journal(path: Path) -> Leftovers | None:
    """The journal at ``path``, ``None`` if there is none; a line that is not as it was written is passed over."""
    owner = Owner(path.stem, 0, -1, "")  # killed between creating the file and writing its first line: owns nothing
    entries: dict[int, Entry] = {}
    try:
        lines = path.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return None
    for line in lines:
        try:
            record = json.loads(line)
            if "owner" in record:
                owner = _owner(**record["owner"])
            elif "own" in record:
                entry = _entry(record["own"], record["kind"], record["what"])
                entries[entry.number] = entry
            else:
                entries.pop(record["gone"], None)
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
    return Leftovers(path, owner, tuple(reversed(entries.values())))


def _owner(id: object, pid: object, start_ticks: object, boot_id: object) -> Owner:  # noqa: A002 - as it is written
    if not (isinstance(id, str) and isinstance(pid, int) and isinstance(start_ticks, int) and isinstance(boot_id, str)):
        raise TypeError("this is no owner")
    return Owner(id, pid, start_ticks, boot_id)


def _entry(number: object, kind: object, what: object) -> Entry:
    if not (isinstance(number, int) and isinstance(kind, str) and isinstance(what, dict)):
        raise TypeError("this is no entry")
    if not all(isinstance(text, str) for text in (*what, *what.values())):
        raise TypeError("what is owned is told in text")
    return Entry(number, kind, what)


def boot_id() -> str:
    """The kernel's random id of this boot (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_ticks(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat (proc(5)): clock ticks from boot to the start of ``pid``; ``None`` if gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])
