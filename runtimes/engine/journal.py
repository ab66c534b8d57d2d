"""The journal of ``bench.journal``, in the same file format and without its imports: for monitors and commands.

``isomark clean`` reads both kinds.
"""

from __future__ import annotations

import errno
import os

from bench.errors import HostError
from runtimes.engine import text
from runtimes.engine.process import boot_id, start_ticks


class Entry:
    """One thing owned; see ``bench.journal.Entry``."""

    __slots__ = ("kind", "number", "what")

    def __init__(self, number: int, kind: str, what: dict[str, str]) -> None:
        self.number = number
        self.kind = kind
        self.what = what


class Owner:
    """Who the journal belongs to: this process."""

    __slots__ = ("boot_id", "id", "pid", "start_ticks")

    def __init__(self) -> None:
        ticks = start_ticks(os.getpid())
        assert ticks is not None
        self.id = os.urandom(4).hex()
        self.pid = os.getpid()
        self.start_ticks = ticks
        self.boot_id = boot_id()


class Journal:
    """An open journal. The process that made it is its owner: a fork makes its own."""

    def __init__(self, directory: str) -> None:
        """Open a new journal below ``directory``.

        Raises:
            HostError: the directory cannot be written.
        """
        self.owner = Owner()
        self.path = f"{directory}/{self.owner.id}.jsonl"
        self._open: set[int] = set()
        self._next = 0
        try:
            os.makedirs(directory, exist_ok=True)
            self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise HostError(
                f"cannot write the journal in {directory}: {error.strerror}",
                hint="set ISOMARK_STATE to a directory that you may write",
            ) from error
        owner = {name: getattr(self.owner, name) for name in ("id", "pid", "start_ticks", "boot_id")}
        try:
            self._write({"owner": owner})
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
        """Record that the thing was removed, or is now somebody else's; call after that."""
        if entry.number in self._open:
            self._open.discard(entry.number)
            if self._open:  # else the file goes
                self._write({"gone": entry.number})

    def leave(self) -> None:
        """Forget the journal with all it names: it is whole, or somebody else's by now."""
        self._open.clear()
        self.close()

    def close(self) -> None:
        """Forget the journal if all it named is gone; otherwise leave it for ``clean``."""
        if self._fd == -1:
            return
        os.close(self._fd)
        self._fd = -1
        if not self._open:
            try:
                os.unlink(self.path)
            except FileNotFoundError:  # a clean from a later boot was here
                return

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, record: dict[str, object]) -> None:
        data = text.dumps(record).encode() + b"\n"
        size = os.fstat(self._fd).st_size
        try:
            if os.write(self._fd, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            os.ftruncate(self._fd, size)  # no torn line before the next one
            raise HostError(
                f"cannot write the journal {self.path}: {error.strerror}", hint="is the disk full? (df)"
            ) from error
