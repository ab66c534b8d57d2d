"""The pool of addresses: who holds which, on disk, decided under one lock that dies with its holder.

A lease is a file of the journals' form (``bench.journal``) in ``STATE/owned``, named after its address and its
container: reading the directory tells what is free, and ``isomark clean`` finds what a kill left.
"""

from __future__ import annotations

import fcntl
import os

from bench.errors import HostError
from runtimes.engine import files, text
from runtimes.engine.process import Process
from runtimes.network.lease import Port, interface_of, number_of, text_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from runtimes.network.bridge import Bridge

KIND = "network"
_PREFIX = "net="
_SUFFIX = ".jsonl"
_IDLE = "net=idle="
_LONGEST_CONTAINER = 128


class Record:
    """A lease on disk, by its file's name: ``net=ADDRESS=CONTAINER.jsonl``."""

    __slots__ = ("address", "container", "name", "path")

    def __init__(self, directory: str, name: str) -> None:
        _, self.address, self.container = name.removesuffix(_SUFFIX).split("=")
        self.name = name
        self.path = f"{directory}/{name}"

    @property
    def interface(self) -> str:
        """The host-side device's name."""
        return interface_of(number_of(self.address))


class Pool:
    """The leases of one state directory, locked while this is open; a context manager."""

    __slots__ = ("_idle", "_lock", "_names", "directory", "owned", "state")

    def __init__(self, state: str) -> None:
        """Wait for the lock, then see which leases there are.

        Raises:
            HostError: the state directory cannot be written.
        """
        self.state = state
        self.directory = f"{state}/network"
        self.owned = f"{state}/owned"
        try:
            os.makedirs(self.directory, 0o700, exist_ok=True)
            os.makedirs(self.owned, exist_ok=True)
            self._lock = os.open(f"{self.directory}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise HostError(
                f"cannot write {error.filename}: {error.strerror}", hint="set ISOMARK_STATE to a directory of your own"
            ) from error
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        ours = [name for name in os.listdir(self.owned) if name.startswith(_PREFIX) and name.count("=") == 2]
        self._idle = [name for name in ours if name.startswith(_IDLE)]
        self._names = [name for name in ours if name.endswith(_SUFFIX) and not name.startswith(_IDLE)]

    def close(self) -> None:
        """Give the lock back."""
        os.close(self._lock)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        """How many leases there are, of the living and the dead."""
        return len(self._names)

    def records(self) -> Iterator[Record]:
        """Every lease; leases may be written and dropped meanwhile."""
        return (Record(self.owned, name) for name in tuple(self._names))

    def of_container(self, container: str) -> list[Record]:
        """The leases of ``container``."""
        end = f"={container}{_SUFFIX}"
        return [Record(self.owned, name) for name in self._names if name.endswith(end)]

    def of_address(self, address: str) -> Record | None:
        """The lease of ``address``."""
        begin = f"{_PREFIX}{address}="
        return next((Record(self.owned, name) for name in self._names if name.startswith(begin)), None)

    def free_address(self, bridge: Bridge) -> str | None:
        """The next free address after the one granted last, so that none is used again soon; ``None``: all taken."""
        first, last = bridge.gateway + 1, bridge.network + (1 << 32 - bridge.prefix_length) - 2
        granted = self._last_granted()
        number = granted if first <= granted <= last else last
        for _ in range(last - first + 1):
            number = number + 1 if number < last else first
            address = text_of(number)
            if self.of_address(address) is None:
                os.pwrite(self._lock, f"{address}\n".encode(), 0)  # in place: creating a file takes 0.2 ms
                return address
        return None

    def write(self, container: str, address: str, ports: list[Port], owner: Process) -> Record:
        """Record a lease, before anything of it exists."""
        name = f"{_PREFIX}{address}={container}{_SUFFIX}"
        record = Record(self.owned, name)
        fd = os.open(record.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._names.append(name)
        try:
            data = self._journal(name, owner, container, address, ports)
            while data:
                data = data[os.write(fd, data) :]
        except OSError:
            self.drop(record)
            raise
        finally:
            os.close(fd)
        return record

    def rewrite(self, record: Record, owner: Process) -> None:
        """Record a lease's new owner."""
        ports = read(record)[1]
        data = self._journal(record.name, owner, record.container, record.address, ports)
        files.write_whole(record.path, data, sync=False)

    def drop(self, record: Record) -> None:
        """The lease ended, and all that was made for it is gone."""
        self._names.remove(record.name)
        _unlink(record.path)

    def is_idle_since(self, token: str) -> bool:
        """Whether no lease was granted after ``write_idle`` returned ``token``."""
        return token in self._idle

    def write_idle(self) -> str:
        """Let the journal own the bridge that no container owns; returns a token for ``is_idle_since``.

        Under a new name each time: a ``clean`` that found the bridge in use again is about to delete the former one.
        """
        name = f"{_IDLE}{os.urandom(4).hex()}{_SUFFIX}"
        data = self._journal(name, Process(0, -1, ""), "", "", [])
        files.write_whole(f"{self.owned}/{name}", data, sync=False)
        self.forget_idle()
        self._idle.append(name)
        return name

    def forget_idle(self) -> None:
        """The bridge is gone, or some container's again."""
        for name in self._idle:
            _unlink(f"{self.owned}/{name}")
        self._idle = []

    def _journal(self, name: str, owner: Process, container: str, address: str, ports: list[Port]) -> bytes:
        """A journal with one entry. As other journals it is not synced: a power cut takes what it names with it."""
        identity = name.removesuffix(_SUFFIX)
        head = {"id": identity, "pid": owner.pid, "start_ticks": owner.ticks, "boot_id": owner.boot}
        spelt = " ".join(_spell(port) for port in ports)
        what = {"state": self.state, "container": container, "address": address, "ports": spelt}
        entry = {"own": 0, "kind": KIND, "what": what}
        return f"{text.dumps({'owner': head})}\n{text.dumps(entry)}\n".encode()

    def _last_granted(self) -> int:
        try:
            return number_of(os.pread(self._lock, 64, 0).partition(b"\n")[0].decode())
        except ValueError:  # first use, or torn by a power cut: begin anew
            return 0


def read(record: Record) -> tuple[Process | None, list[Port]]:
    """Who owns a lease, ``None`` if a power cut tore the file, and the ports it holds."""
    try:
        with open(record.path, encoding="utf-8") as file:
            head, what = (text.loads(line) for line in file.read().splitlines())
        owner = head["owner"]
        ports = [_unspell(word) for word in what["what"]["ports"].split()]
        return Process(owner["pid"], owner["start_ticks"], owner["boot_id"]), ports
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None, []


def _unlink(path: str) -> None:
    """Delete a file that may be gone."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def check_name(container: str) -> None:
    """Refuse what cannot be part of a file name here.

    Raises:
        HostError: it is none of ours.
    """
    plain = container.replace("-", "").replace("_", "").replace(".", "")
    if not (plain.isascii() and plain.isalnum() and len(container) <= _LONGEST_CONTAINER):
        raise HostError(f"{container!r} cannot be a container's id", hint="letters, digits, _ . and - only")


def _spell(port: Port) -> str:
    return f"{port.protocol}/{port.host_ip}/{port.host_port}/{port.container_port}"


def _unspell(word: str) -> Port:
    protocol, host_ip, host_port, container_port = word.split("/")
    return Port(host_ip, int(host_port), int(container_port), protocol)
