"""A lab that outlives the command that asked for it: a process of its own keeps it until it is told to end."""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench.clean import clean
from bench.errors import HostError
from bench.journal import Journal, Owner
from bench.state import VARIABLE, journal_directory
from runtimes.oci.debian import Progress
from xenlab.build import built_lab, locked, told
from xenlab.lab import lab_root, running_lab

END_SECONDS: Final = 30.0
_PACKAGE: Final = Path(__file__).parent


def up(state: Path, progress: Progress) -> str:
    """Return the URI of the kept lab, which is started unless it runs.

    Raises:
        HostError, ImageError, InstanceError: it cannot be built or started.
    """
    with _alone(state):
        if (uri := running(state)) is not None:
            return uri
        clean(journal_directory(state))
        with Journal(journal_directory(state)) as journal, built_lab(lab_root(state), journal, progress):
            progress("thawing")
            return _start_keeper(state)


def keep(state: Path) -> None:
    """Run a lab until SIGTERM comes or the lab ends; what the keeper does. Prints its URI, then lets go of the output.

    Raises:
        HostError, ImageError, InstanceError: it cannot be started.
    """
    signals = {signal.SIGTERM, signal.SIGCHLD}
    with Journal(journal_directory(state)) as journal, running_lab(state, journal, _silent) as lab:
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # the lab's processes must not inherit this
        entry = journal.own("directory", path=str(_record(state)))
        try:
            written = lab.console.with_name("record")
            written.write_text(json.dumps({"owner": vars(journal.owner), "uri": lab.uri}))
            written.rename(_record(state))  # `status` reads it whole or not at all
            print(lab.uri, flush=True)  # fails, and so ends the lab, when nobody waits for it any longer
            _let_go_of_output()
            while lab.process.poll() is None and signal.sigwait(signals) != signal.SIGTERM:
                continue
        finally:
            _record(state).unlink(missing_ok=True)
            journal.gone(entry)


def down(state: Path) -> bool:
    """End the kept lab and remove what it or a killed one left; return whether there was one.

    Raises:
        HostError: it does not end, or something cannot be removed.
    """
    with _alone(state):
        uri = running(state)
        if uri is not None:
            _end(_read(state)[0])
        removals = clean(journal_directory(state), gone=[] if uri is None else [uri])
        faults = [removal.fault for removal in removals if removal.fault]
        if faults:
            raise HostError(f"not everything could be removed: {'; '.join(faults)}", hint="isomark clean")
        return uri is not None


def running(state: Path) -> str | None:
    """The URI of the kept lab, ``None`` if none runs."""
    try:
        owner, uri = _read(state)
    except FileNotFoundError:
        return None
    return uri if owner.is_alive() else None


def _record(state: Path) -> Path:
    return state / "labs/kept/xen.json"


def _read(state: Path) -> tuple[Owner, str]:
    record = json.loads(_record(state).read_text())
    return Owner(**record["owner"]), record["uri"]


@contextmanager
def _alone(state: Path) -> Iterator[None]:
    """One ``up`` or ``down`` at a time."""
    directory = _record(state).parent
    with told("keep a lab"):
        directory.mkdir(parents=True, exist_ok=True)
        with locked(directory, fcntl.LOCK_EX):
            yield


def _start_keeper(state: Path) -> str:
    """Start the keeper as a program of its own, so that it holds none of our locks; return its lab's URI."""
    keeper = subprocess.Popen(
        [sys.executable, "-m", _PACKAGE.name, "keep"],
        cwd="/",
        env={**os.environ, VARIABLE: str(state), "PYTHONPATH": str(_PACKAGE.parent)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert keeper.stdout is not None
    said = keeper.stdout.read().strip()  # until it lets go
    if not said.startswith("xen+"):
        raise HostError(f"the lab did not start\n{said or 'its keeper was killed'}")
    return said


def _let_go_of_output() -> None:
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nothing, stream.fileno())


def _end(keeper: Owner) -> None:
    """Ask the keeper to end its lab, and wait for it.

    Raises:
        HostError: it does not.
    """
    try:
        fd = os.pidfd_open(keeper.pid)
    except ProcessLookupError:
        return
    try:
        if keeper.is_alive():  # now that the descriptor pins it
            signal.pidfd_send_signal(fd, signal.SIGTERM)
            if not select.select([fd], [], [], END_SECONDS)[0]:
                raise HostError(
                    f"the lab's keeper {keeper.pid} does not end", hint=f"kill -9 {keeper.pid}; isomark clean"
                )
    except ProcessLookupError:
        return
    finally:
        os.close(fd)


def _silent(_: str) -> None:
    """The lab was built by whoever started the keeper."""
