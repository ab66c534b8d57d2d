"""A result on disk: a folder with ``header.json`` and ``trials.jsonl``, one line a trial, fsynced.

Killed at any moment, a run loses at most the trial in flight: a torn last line is dropped when the
folder is opened again.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import StoreError
from bench.model import OutcomeKind, Trial
from bench.result import Header, Result

if TYPE_CHECKING:
    from pydantic import TypeAdapter

HEADER = "header.json"
TRIALS = "trials.jsonl"


class ResultWriter:
    """Appends trials to a result folder; one writer at a time, held by a lock on the trials file."""

    def __init__(self, folder: Path, fd: int) -> None:
        self.folder = folder
        self._fd = fd

    @classmethod
    def create(cls, folder: Path, header: Header) -> ResultWriter:
        """Make ``folder`` with the header in it.

        Raises:
            StoreError: the folder exists and is not empty, or cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()):
                raise StoreError(
                    f"{folder} is not empty", hint="choose another --out, or continue it with isomark run --resume"
                )
            _write_durably(folder / HEADER, _adapter(Header).dump_json(header, indent=1) + b"\n")
            fd = os.open(folder / TRIALS, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)
            _sync_directory(folder)
        except OSError as error:
            raise StoreError(
                f"cannot write the result folder {folder}: {error.strerror}", hint="choose another with --out"
            ) from error
        return cls(folder, _locked(folder, fd))

    @classmethod
    def reopen(cls, folder: Path) -> ResultWriter:
        """Open ``folder`` to append; a torn last line is cut off first.

        Raises:
            StoreError: it is no result folder, or another run is writing to it.
        """
        try:
            fd = os.open(folder / TRIALS, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StoreError(f"cannot open the result {folder}: {error.strerror}") from error
        _locked(folder, fd)
        data = (folder / TRIALS).read_bytes()
        os.ftruncate(fd, data.rfind(b"\n") + 1)
        return cls(folder, fd)

    def append(self, trial: Trial) -> None:
        """Write ``trial`` and wait until it is on the disk.

        Raises:
            StoreError: it could not be written (no space); what was written before stays whole.
        """
        line = _adapter(Trial).dump_json(trial) + b"\n"
        end = os.fstat(self._fd).st_size
        try:
            if os.write(self._fd, line) != len(line):
                raise OSError(28, "No space left on device")
            os.fsync(self._fd)
        except OSError as error:
            os.ftruncate(self._fd, end)
            raise StoreError(
                f"cannot write to the result {self.folder}: {error.strerror}",
                hint=f"free some space, then: isomark run --resume {self.folder}",
            ) from error

    def close(self) -> None:
        """Release the folder; idempotent."""
        if self._fd != -1:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> ResultWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_result(folder: Path) -> Result:
    """Read a result folder, finished or not. An aborted trial that was taken again is left out.

    Raises:
        StoreError: there is none, or what it holds is not a result.
    """
    from pydantic import ValidationError

    try:
        header = _adapter(Header).validate_json((folder / HEADER).read_bytes())
        text = (folder / TRIALS).read_bytes() if (folder / TRIALS).exists() else b""
        whole = text[: text.rfind(b"\n") + 1]
        adapter = _adapter(Trial)
        trials = {trial.index: trial for trial in map(adapter.validate_json, whole.splitlines())}
    except FileNotFoundError as error:
        raise StoreError(f"{folder} is no result folder: {error.filename} is missing") from error
    except OSError as error:
        raise StoreError(f"cannot read the result {folder}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise StoreError(
            f"{folder} does not hold a result of this version: {place}: {first['msg']}",
            hint="was it written by another version, or changed by hand?",
        ) from error
    return Result(folder, header, tuple(trials.values()))


def done_slots(result: Result) -> set[int]:
    """The indexes of the slots that need no further trial: those that ended by themselves, well or badly."""
    return {trial.index for trial in result.trials if trial.outcome.kind is not OutcomeKind.ABORTED}


def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _locked(folder: Path, fd: int) -> int:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise StoreError(f"another run is writing to {folder}") from error
    return fd


def _write_durably(path: Path, data: bytes) -> None:
    temporary = path.with_suffix(".new")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


def _sync_directory(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
