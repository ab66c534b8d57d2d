"""Opening the lab for one run: leftovers of dead runs go first, then journal, scratch space and network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.clean import clean, remove_directory
from bench.driver import Lab
from bench.errors import HostError
from bench.journal import Journal
from bench.network import LabNetwork
from bench.state import journal_directory


@contextmanager
def open_lab(state: Path) -> Iterator[Lab]:
    """Offer a lab for the length of a block; what drivers left open in it is removed at its end.

    Raises:
        HostError: the state directory cannot be written.
    """
    clean(journal_directory(state))
    with Journal(journal_directory(state)) as journal:
        scratch = state / "scratch" / journal.owner.id
        entry = journal.own("directory", path=str(scratch))
        try:
            try:
                scratch.mkdir(parents=True, mode=0o711)
            except OSError as error:
                raise HostError(f"cannot write {scratch}: {error.strerror}", hint="set ISOMARK_STATE") from error
            yield from _with_network(state, scratch, journal)
        finally:
            remove_directory({"path": str(scratch)})
            journal.gone(entry)


def _with_network(state: Path, scratch: Path, journal: Journal) -> Iterator[Lab]:
    try:
        network = LabNetwork(journal)
    except HostError:  # instances then have no network of their own; doctor says so with the remedy
        yield Lab(state, scratch, journal, None)
        return
    try:
        yield Lab(state, scratch, journal, network)
    finally:
        network.close()
