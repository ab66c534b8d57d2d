"""Removing containers, and setting right what a killed monitor or command left."""

from __future__ import annotations

import _signal
import os

from bench.errors import HostError, InstanceError
from runtimes import usernamespace
from runtimes.engine.clock import now
from runtimes.engine.container import LIVE, SHORT, Container, fresh_state
from runtimes.engine.containers import ID_DIGITS, drop_name, remove_directory
from runtimes.engine.files import Damaged, remove_tree, sweep_drafts
from runtimes.engine.journal import Journal
from runtimes.engine.place import Place
from runtimes.engine.process import Process
from runtimes.engine.volumes import remove_anonymous

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

KILLED = 137
_SETTLED = ("container", "cgroup")
"""Kinds in a monitor's journal that ``settle`` sees to."""
MONITOR_DIED = "its monitor was killed"


def erase(container: Container, journal: Journal, *, volumes: bool) -> None:
    """Delete a container that does not run, with its anonymous volumes if ``volumes``. ``journal`` owns it already."""
    config = container.config
    if volumes:
        remove_anonymous(container.place, config, journal)
    remove_directory(container, config["name"])


def erase_damaged(container: Container) -> None:
    """Delete a container whose records cannot be read, by its id alone; its anonymous volumes stay.

    Its lock is held by the caller.

    Raises:
        InstanceError: its monitor lives.
        HostError: something of it does not go away.
    """
    try:
        state = container.state()
    except Damaged:
        state = fresh_state()
    monitor = container.lock_monitor()
    if monitor is None:
        raise InstanceError(
            f"container {container.id[:SHORT]} runs, and its records are damaged", hint="kill its monitor"
        )
    try:
        _give_back(container, state, networked=os.path.isdir(f"{container.place.state}/network"))
        with_own_journal(container, lambda _: _remove_by_id(container))
    finally:
        os.close(monitor)


def _remove_by_id(container: Container) -> None:
    remove_directory(container, "")
    _drop_stray_names(container.place, container.id)


def settle(container: Container, lock: int) -> dict[str, Any] | None:
    """Make the state true of a container whose monitor may have been killed; return it, ``None`` if it is gone now.

    ``lock`` is the container's, held by the caller: nobody starts it meanwhile.

    Raises:
        HostError: something of it does not go away.
    """
    assert lock >= 0
    state = container.state()
    if state["journal"] is None and state["status"] not in LIVE:
        return state
    monitor = container.lock_monitor()
    if monitor is None:
        return state
    try:
        sweep_drafts(container.path)
        _give_back(container, state, networked=container.config["network"] == "bridge")
        if container.config["auto_remove"]:
            with_own_journal(container, lambda journal: erase(container, journal, volumes=True))
            _forget(container.place, state)
            return None
        if state["status"] in LIVE:
            state.update(exit_code=KILLED, error=MONITOR_DIED, finished=now())
        state.update(status="exited", process=None, network=None)
        container.write_state(state)
        _forget(container.place, state)
        state["journal"] = state["monitor"] = None
        container.write_state(state)
        return state
    finally:
        os.close(monitor)


def with_own_journal(container: Container, work: Callable[[Journal], None]) -> None:
    """Do ``work`` on the container under a journal of its own, so that ``clean`` can finish it."""
    journal = Journal(container.place.journals)
    entry = journal.own("container", state=container.place.state, id=container.id)
    work(journal)
    journal.gone(entry)
    journal.close()


def _give_back(container: Container, state: dict[str, Any], *, networked: bool) -> None:
    """Kill what still runs and return what the host lent."""
    process = Process.read(state["process"])
    if process is not None:
        process.signal(_signal.SIGKILL)
    from runtimes.container.cgroup import remove  # only after an accident

    delegated = (state.get("rootless") or {}).get("delegated")
    remove({"name": container.id, **({"delegated": delegated} if delegated else {})})
    if networked and usernamespace.privileged():
        from runtimes.network import attach

        attach.disconnect(container.place.state, container.id)
        attach.linger(container.place.state, 0)


def _forget(place: Place, state: dict[str, Any]) -> None:
    """Close the dead monitor's journal: beside the container it may name volumes that it was making or removing.

    It must not stay: its cgroup's name is that of the container's next life.

    Raises:
        HostError: something of these does not go away.
    """
    if state["journal"] is None:
        return
    from importlib.metadata import entry_points  # only after an accident
    from pathlib import Path

    from bench.journal import read_journal

    path = Path(f"{place.journals}/{state['journal']}.jsonl")
    left = read_journal(path)
    for entry in left.entries if left is not None else ():
        if entry.kind not in _SETTLED:
            (remover,) = entry_points(group="isomark.removers", name=entry.kind)
            remover.load()(entry.what)
    path.unlink(missing_ok=True)


def remove_container(what: Mapping[str, str]) -> None:
    """For ``isomark clean``: remove what a killed command or monitor left of container ``what["id"]``.

    A half-made or half-removed one goes; a whole one stays, with its state set right, unless it was started with
    --rm. A live monitor's is left alone.

    Raises:
        HostError: something of it cannot be removed.
    """
    place, ident = Place(what["state"]), what["id"]
    if len(ident) != ID_DIGITS or not ident.isalnum():
        raise HostError(f"{ident!r} is no container's id")
    container = Container(place, ident)
    for prefix in (".making-", ".removing-"):
        half = f"{place.containers}/{prefix}{ident}"
        if os.path.lexists(half):
            _drop_stray_names(place, ident)
        remove_tree(half)
    if not os.path.isdir(container.path):
        _drop_stray_names(place, ident)
        return
    try:
        lock = container.lock()
    except InstanceError:  # another clean was faster
        return
    try:
        state = settle(container, lock)
        if state is not None and container.config["auto_remove"] and not container.is_monitored():
            with_own_journal(container, lambda journal: erase(container, journal, volumes=True))
    finally:
        os.close(lock)


def remove_owned_tree(what: Mapping[str, str]) -> None:
    """For ``isomark clean``: remove directory or file ``what["path"]``, with what is some subordinate id's in it.

    Raises:
        HostError: something of it cannot be removed.
    """
    path = what["path"]
    if os.path.isdir(path) and not os.path.islink(path):
        remove_tree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def _drop_stray_names(place: Place, ident: str) -> None:
    try:
        names = os.listdir(place.names)
    except FileNotFoundError:
        return
    for name in names:
        drop_name(place, name, ident)
