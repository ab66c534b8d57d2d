"""A libvirtd that ends, dies or hangs under a run: the trial fails, the driver connects anew, the run goes on."""

from __future__ import annotations

import os
import pwd
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from private_libvirtd import PrivateLibvirtd, private_libvirtd
from session_host import SessionHost, session_host
from small_image import PATH
from trials import GOOD, LIMITS, Trials, meanwhile
from ways_in import SshServer, ssh_server

from bench.clean import clean
from bench.driver import Lab, Launch
from bench.errors import DriverUnavailable, HostError
from bench.journal import Journal, read_journal, read_journals
from bench.model import OutcomeKind, Trial
from vms import connection as connection_module
from vms.connection import Connection
from vms.driver import qemu
from vms.process import Hypervisor, find_hypervisors
from vms.removal import remove_domain
from vms.volumes import remove_volume

libvirt = pytest.importorskip("libvirt")
pytestmark = pytest.mark.full  # it waits for time-outs
PAYLOADS = {"good": GOOD, "waiting": "echo isomark ready; read -r x; echo isomark round 0 begin; sleep 1000"}
FOREIGN = "5e1f0000-0000-4000-8000-0000000f0e16"
FOREIGN_XML = f"""
<domain type='qemu'><name>somebody-else-s</name><uuid>{FOREIGN}</uuid><memory unit='MiB'>64</memory>
<os><type arch='x86_64'>hvm</type></os><devices/></domain>
"""


@pytest.fixture(scope="module")
def daemon() -> Iterator[PrivateLibvirtd]:
    with private_libvirtd() as running:
        yield running


@pytest.fixture
def trials(daemon: PrivateLibvirtd, lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Trials]:
    with trials_at(daemon.uri, lab, monkeypatch, tmp_path) as made:
        yield made
    assert daemon.hypervisors() == []


@contextmanager
def trials_at(uri: str, lab: Lab, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[Trials]:
    monkeypatch.setenv("ISOMARK_LIBVIRT_URI", uri)
    driver = qemu(lab)
    driver.check()
    made = Trials(driver, lab, PAYLOADS, folder)
    try:
        yield made
    finally:
        made.close()
        driver.close()


def failure(trial: Trial) -> str:
    """All that a failed trial says."""
    assert trial.outcome.kind is OutcomeKind.FAILED
    assert trial.samples == ()
    return "\n".join([trial.outcome.reason, trial.outcome.hint, *trial.outcome.tail])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_libvirtd_restarted_in_a_trial_fails_that_trial_alone(
    number: signal.Signals, trials: Trials, daemon: PrivateLibvirtd, lab: Lab
) -> None:
    def restart() -> None:
        daemon.stop(number)
        daemon.start()

    with meanwhile(lambda: bool(daemon.hypervisors()), restart):
        trial = trials.conduct("waiting", timeout_seconds=15.0)
    assert failure(trial)
    assert daemon.hypervisors() == []
    assert list(lab.scratch.iterdir()) == []
    assert trials.conduct("good").outcome.kind is OutcomeKind.OK


def test_a_libvirtd_that_is_gone_fails_the_trial_and_one_that_is_back_serves_the_next(
    trials: Trials, daemon: PrivateLibvirtd, lab: Lab
) -> None:
    assert trials.conduct("good").outcome.kind is OutcomeKind.OK
    daemon.stop(signal.SIGKILL)
    try:
        told = failure(trials.conduct("good"))
        assert "does not answer" in told
        assert list(lab.scratch.iterdir()) == []
    finally:
        daemon.start()
    assert trials.conduct("good").outcome.kind is OutcomeKind.OK


def test_a_libvirtd_that_hangs_fails_the_trial_in_bounded_time(
    trials: Trials, daemon: PrivateLibvirtd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "CONNECT_SECONDS", 5.0)
    assert trials.conduct("good").outcome.kind is OutcomeKind.OK
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        told = failure(trials.conduct("good"))
        assert "keepalive" in told or "nothing heard" in told
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    time.sleep(connection_module.RETURN_SECONDS)
    assert trials.conduct("good").outcome.kind is OutcomeKind.OK


def test_cleaning_without_a_libvirtd_touches_nobody_else_s_process(daemon: PrivateLibvirtd) -> None:
    connection = Connection(daemon.uri)
    connection.open().createXML(FOREIGN_XML, libvirt.VIR_DOMAIN_START_PAUSED)
    forged = {"uri": daemon.uri, "uuid": FOREIGN, "name": "iso-0badcafe-0"}
    with pytest.raises(HostError, match="not started by isomark"):
        remove_domain(forged)
    (pid,) = find_hypervisors(FOREIGN)
    with Hypervisor(pid) as foreign:
        daemon.stop(signal.SIGKILL)
        try:
            remove_domain(forged)
            assert not foreign.wait(0.5)
        finally:
            foreign.kill()
            daemon.start()
            connection.close()


def test_cleaning_without_a_libvirtd_kills_what_a_dead_run_left(
    trials: Trials, daemon: PrivateLibvirtd, lab: Lab
) -> None:
    pid = os.fork()
    if pid == 0:  # a run that is killed, and its libvirtd with it
        try:
            with Journal(Path(lab.journal.path).parent) as journal:
                mine = Lab(lab.state, lab.scratch, journal, None)
                command = ("/isomark/waiting/run",)
                request = Launch(f"iso-{journal.owner.id}-d", command, PATH, LIMITS, None)
                qemu(mine).start(trials.image, request)
                os.kill(daemon.pid, signal.SIGKILL)
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    os.waitpid(pid, 0)
    daemon.stop(signal.SIGKILL)
    try:
        assert len(daemon.hypervisors()) == 1
        dead = [left for left in read_journals(Path(lab.journal.path).parent) if left.owner.pid == pid]
        (entry,) = [entry for left in dead for entry in left.entries if entry.kind == "domain"]
        remove_domain(entry.what)
        assert daemon.hypervisors() == []
    finally:
        daemon.start()
        clean(Path(lab.journal.path).parent)


@pytest.mark.parametrize("setting", [{"unix_sock_rw_perms": "0700"}, {"auth_unix_rw": "polkit"}])
def test_a_libvirtd_that_is_not_open_to_a_user_tells_what_would_help(setting: dict[str, str]) -> None:
    with private_libvirtd(setting) as guarded:
        told = _refusal_of_nobody(guarded.uri)
    assert "does not answer" in told
    assert "a member of its group" in told


def _refusal_of_nobody(uri: str) -> str:
    """What an ordinary user is told at ``uri``."""
    nobody = pwd.getpwnam("nobody")
    Connection(uri).close()  # imports what that user might not be able to read
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(nobody.pw_gid)
            os.setuid(nobody.pw_uid)
            Connection(uri).open()
        except DriverUnavailable as error:
            os.write(write, f"{error.message}\n{error.hint}".encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as said:
        told = said.read()
    os.waitpid(pid, 0)
    return told


@pytest.fixture(scope="module")
def far() -> Iterator[SessionHost]:
    with session_host() as host:
        yield host


@pytest.fixture(scope="module")
def ssh(far: SessionHost) -> Iterator[SshServer]:
    with ssh_server(far) as server:
        yield server


@pytest.mark.parametrize("lines", [slice(None), slice(-1, None)], ids=["all", "the console's"])
def test_a_cut_line_to_another_host_fails_the_trial_and_the_next_one_passes(
    lines: slice, far: SessionHost, ssh: SshServer, lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def cut() -> None:
        for pid in sorted(ssh.clients())[lines]:  # by age
            os.kill(pid, signal.SIGKILL)

    with trials_at(ssh.uri(ssh.key, ssh.known_hosts), lab, monkeypatch, tmp_path) as trials:
        with meanwhile(lambda: bool(far.hypervisors()), cut):
            trial = trials.conduct("waiting")
        assert "was lost" in failure(trial)
        assert far.hypervisors() == []
        assert not [name for name in far.volumes() if name.startswith("iso-")]
        assert trials.conduct("good").outcome.kind is OutcomeKind.OK


def test_a_host_that_falls_silent_fails_the_trial_and_is_tidied_up_when_it_speaks_again(
    far: SessionHost, lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(connection_module, "CONNECT_SECONDS", 3.0)
    monkeypatch.setattr(connection_module, "_KEEPALIVE_SECONDS", 1)
    with Relay(far.port) as relay:
        uri = f"qemu+tcp://127.0.0.1:{relay.port}/session"
        with trials_at(uri, lab, monkeypatch, tmp_path) as trials:
            with meanwhile(lambda: bool(far.hypervisors()), relay.fall_silent):
                trial = trials.conduct("waiting")
            told = failure(trial)
            assert "was lost" in told or "does not answer" in told
            relay.speak()
            time.sleep(connection_module.RETURN_SECONDS)
            assert trials.conduct("good").outcome.kind is OutcomeKind.OK
            journal = read_journal(Path(lab.journal.path))
            assert journal is not None
            left = [entry for entry in journal.entries if entry.what.get("uri") == uri]
            assert {entry.kind for entry in left} == {"domain", "volume"}
            for entry in left:
                {"domain": remove_domain, "volume": remove_volume}[entry.kind](entry.what)
                lab.journal.gone(entry)
        assert far.hypervisors() == []
        assert not [name for name in far.volumes() if name.startswith("iso-")]


class Relay:
    """The way to loopback's TCP ``target``, which may fall silent without an end, as a broken network does."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._lines: list[tuple[socket.socket, socket.socket]] = []
        self._ends: list[socket.socket] = []
        self._silent = False
        self._over = False

    def fall_silent(self) -> None:
        """Carry nothing more of the present connections, and nothing of new ones."""
        self._silent = True
        self._lines.clear()

    def speak(self) -> None:
        """Carry new connections again."""
        self._silent = False

    def __enter__(self) -> Relay:
        self._thread = threading.Thread(target=self._carry)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._thread.join()
        for end in (self._listener, *self._ends):
            end.close()

    def _carry(self) -> None:
        while not self._over:
            ways = {source: sink for line in self._lines for source, sink in (line, line[::-1])}
            readable, _, _ = select.select([self._listener, *ways], [], [], 0.05)
            for source in readable:
                if source is self._listener:
                    self._accept()
                elif not self._silent:
                    self._pass_on(source, ways[source])

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        self._ends.append(near)
        if not self._silent:
            there = socket.create_connection(("127.0.0.1", self._target))
            self._ends.append(there)
            self._lines.append((near, there))

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            data = source.recv(1 << 16)
            sink.sendall(data)
        except OSError:
            data = b""
        if not data:
            self._lines = [line for line in self._lines if source not in line]
            for end in (source, sink):
                end.close()
