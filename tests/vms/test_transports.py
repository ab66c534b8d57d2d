"""Every way to another host's libvirt, with a real server at its end: ssh, certificates, a password, bare TCP."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from session_host import SessionHost, session_host
from small_image import PATH, small_image
from ways_in import PASSWORD, Certificates, SshServer, demand_certificates, demand_login, login_file, ssh_server

from bench.clean import clean
from bench.dialogue import Dialogue
from bench.driver import Lab, Launch
from bench.errors import DriverUnavailable
from bench.journal import Journal, read_journal
from bench.lab import open_lab
from bench.model import Image, Limits
from bench.state import state_directory
from vms.connection import Connection
from vms.driver import LibvirtDriver, qemu

pytestmark = pytest.mark.slow
READY_SECONDS = 120.0
names = itertools.count()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("pki") / "authority")


@pytest.fixture(scope="module")
def host(authority: Certificates) -> Iterator[SessionHost]:
    """A host that wants a certificate at ``tls_uri``."""
    with session_host(prepare=lambda made: demand_certificates(made, authority)) as running:
        yield running


@pytest.fixture(scope="module")
def ssh(host: SessionHost) -> Iterator[SshServer]:
    with ssh_server(host) as server:
        yield server


@pytest.fixture(scope="module")
def guarded() -> Iterator[SessionHost]:
    """A host that wants a name and a password."""
    with session_host("sasl", demand_login) as running:
        yield running


def answers(uri: str) -> bool:
    connection = Connection(uri)
    try:
        return connection.address == uri and bool(connection.versions()[0])
    finally:
        connection.close()


def refusal(uri: str) -> DriverUnavailable:
    connection = Connection(uri)
    with pytest.raises(DriverUnavailable) as caught:
        connection.open()
    connection.close()
    assert "\n" not in caught.value.message
    return caught.value


def test_the_program_ssh_leads_there(ssh: SshServer) -> None:
    assert answers(ssh.uri(ssh.key, ssh.known_hosts))
    assert answers(ssh.uri(ssh.key, ssh.known_hosts) + "&proxy=native")


@pytest.mark.parametrize("library", ["libssh", "libssh2"])
def test_the_ssh_libraries_lead_there(ssh: SshServer, library: str) -> None:
    assert answers(ssh.library_uri(library, ssh.key, ssh.known_hosts))


def test_a_host_whose_key_is_another_is_not_entered(ssh: SshServer) -> None:
    for uri in (
        ssh.uri(ssh.key, ssh.wrongly_known_hosts),
        ssh.uri(ssh.key, ssh.unknown_hosts),
        ssh.library_uri("libssh", ssh.key, ssh.wrongly_known_hosts),
        ssh.library_uri("libssh2", ssh.key, ssh.wrongly_known_hosts),
    ):
        told = refusal(uri)
        assert "host key" in told.message.lower()
        assert "known_hosts" in told.hint


def test_a_key_that_the_host_does_not_know_is_told_with_a_remedy(ssh: SshServer) -> None:
    for uri in (
        ssh.uri(ssh.stranger, ssh.known_hosts),
        ssh.library_uri("libssh", ssh.stranger, ssh.known_hosts),
        ssh.library_uri("libssh2", ssh.stranger, ssh.known_hosts),
    ):
        told = refusal(uri)
        assert "keyfile=" in told.hint
        secret = ssh.stranger.read_text().splitlines()[1]
        assert secret not in told.message + told.hint


def test_certificates_lead_there(host: SessionHost, authority: Certificates) -> None:
    assert answers(f"{host.tls_uri}?pkipath={authority.folder}")


def test_a_certificate_of_another_authority_is_refused(
    host: SessionHost, authority: Certificates, tmp_path: Path
) -> None:
    strange = Certificates(tmp_path / "strange")
    told = refusal(f"{host.tls_uri}?pkipath={strange.folder}")  # the host is none that its authority vouches for
    assert "certificate" in told.message
    assert "pkipath=" in told.hint
    (strange.folder / "cacert.pem").write_bytes((authority.folder / "cacert.pem").read_bytes())
    told = refusal(f"{host.tls_uri}?pkipath={strange.folder}")  # and now the other way round
    assert "pkipath=" in told.hint


def test_a_certificate_for_another_host_is_refused(tmp_path: Path) -> None:
    other = Certificates(tmp_path / "other")
    with session_host(prepare=lambda made: demand_certificates(made, other, "192.0.2.7")) as host:
        told = refusal(f"{host.tls_uri}?pkipath={other.folder}")
    assert "certificate" in told.message
    assert "certificates" in told.hint


def test_no_certificate_at_all_is_told_with_a_remedy(host: SessionHost, tmp_path: Path) -> None:
    assert "pkipath=" in refusal(f"{host.tls_uri}?pkipath={tmp_path}").hint


def test_a_name_and_a_password_lead_there(guarded: SessionHost, tmp_path: Path) -> None:
    assert answers(f"{guarded.uri}?authfile={login_file(tmp_path / 'auth.conf')}")


def test_a_wrong_password_is_told_with_a_remedy_and_never_shown(guarded: SessionHost, tmp_path: Path) -> None:
    told = refusal(f"{guarded.uri}?authfile={login_file(tmp_path / 'auth.conf', 'battery-staple')}")
    assert "authentication failed" in told.message
    assert "auth.conf" in told.hint
    assert "battery-staple" not in told.message + told.hint


def test_a_login_that_nobody_gave_is_told_with_a_remedy(guarded: SessionHost, tmp_path: Path) -> None:
    empty = tmp_path / "auth.conf"
    empty.touch()
    assert "auth.conf" in refusal(f"{guarded.uri}?authfile={empty}").hint


@pytest.mark.parametrize("uri", ["qemu+tcp://fred:{}@127.0.0.1:1/system", "nonsense://fred:{}@host/x?y=1"])
def test_a_password_in_the_uri_is_never_shown(uri: str) -> None:
    uri = uri.format(PASSWORD)
    told = refusal(uri)
    assert PASSWORD not in told.message + told.hint
    assert "fred@" in told.message
    ended = isomark_vm_ls(uri)
    assert PASSWORD not in ended.stdout + ended.stderr


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    state = tmp_path_factory.mktemp("state")
    (state / "kernels").symlink_to(state_directory() / "kernels")
    with open_lab(state) as opened:
        yield opened


@pytest.fixture(params=["ssh", *(pytest.param(way, marks=pytest.mark.full) for way in ("tls", "password"))])
def far(
    request: pytest.FixtureRequest, host: SessionHost, authority: Certificates, guarded: SessionHost, tmp_path: Path
) -> tuple[SessionHost, str]:
    """A host, and a way to it that has a query string."""
    if request.param == "tls":
        return host, f"{host.tls_uri}?pkipath={authority.folder}"
    if request.param == "password":
        return guarded, f"{guarded.uri}?authfile={login_file(tmp_path / 'auth.conf')}"
    server: SshServer = request.getfixturevalue("ssh")
    return host, server.uri(server.key, server.known_hosts)


@pytest.fixture
def driver(far: tuple[SessionHost, str], lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[LibvirtDriver]:
    monkeypatch.setenv("ISOMARK_LIBVIRT_URI", far[1])
    made = qemu(lab)
    made.check()
    yield made
    made.close()


@pytest.fixture
def image(driver: LibvirtDriver, tmp_path: Path) -> Image:
    return driver.build(small_image(tmp_path / "tree"))


def launch(lab: Lab) -> Launch:
    name = f"iso-{lab.journal.owner.id}-w{next(names)}"
    script = "echo isomark ready; read line; echo got $line"
    return Launch(name, ("/bin/sh", "-c", script), PATH, Limits(memory_bytes=256 * 1024**2), None)


def isomark_vm_ls(uri: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "ISOMARK_LIBVIRT_URI": uri, "COLUMNS": "400"}
    command = [sys.executable, "-m", "bench.cli", "vm", "ls"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_a_guest_is_started_there_answers_and_leaves_nothing(
    driver: LibvirtDriver, image: Image, lab: Lab, far: tuple[SessionHost, str]
) -> None:
    host, uri = far
    request = launch(lab)
    with driver.start(image, request) as instance:
        Dialogue(instance, READY_SECONDS).ready()
        journal = read_journal(Path(lab.journal.path))
        assert journal is not None
        assert {entry.what["uri"] for entry in journal.entries if entry.kind in {"domain", "volume"}} == {uri}
        (line,) = [line for line in isomark_vm_ls(uri).stdout.splitlines() if request.name in line]
        assert line.split()[-1] == uri
        instance.send("hello")
        assert "got hello" in [line.text for line in instance.lines(READY_SECONDS)]
    assert not [name for name in host.volumes() if name.startswith("iso-")]
    assert host.hypervisors() == []


def test_what_a_killed_run_left_there_is_cleaned_away(
    driver: LibvirtDriver, image: Image, lab: Lab, far: tuple[SessionHost, str]
) -> None:
    host, _ = far
    journals = Path(lab.journal.path).parent
    pid = os.fork()
    if pid == 0:
        try:
            with Journal(journals) as journal:
                qemu(Lab(lab.state, lab.scratch, journal, None)).start(image, launch(lab))
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    os.waitpid(pid, 0)
    removed = clean(journals)
    assert {"volume", "domain"} <= {one.entry.kind for one in removed}
    assert [one.fault for one in removed if one.fault] == []
    assert not [name for name in host.volumes() if name.startswith("iso-")]
    assert host.hypervisors() == []
