"""Ways into another host's libvirt besides bare TCP: ssh, certificates, a login with a password.

Each is a real server on loopback, with keys made for the one test.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import skip_or_fail
from session_host import START_SECONDS, SessionHost, free_port, is_open

from vms.process import find_processes

NAME = "fred"
PASSWORD = "correct-horse-battery"


def demand_login(host: SessionHost) -> None:
    """Let ``NAME`` in with ``PASSWORD`` (SASL), and nobody else."""
    if shutil.which("saslpasswd2", path="/usr/sbin:/usr/bin") is None:
        skip_or_fail("qemu", "saslpasswd2 is not installed (sasl2-bin)")
    folder = host.home / "sasl2"
    folder.mkdir()
    (folder / "libvirt.conf").write_text(f"mech_list: digest-md5\nsasldb_path: {folder}/db\n")
    subprocess.run(["/usr/sbin/saslpasswd2", "-p", "-c", "-f", folder / "db", "-a", "libvirt", NAME],
                   input=PASSWORD.encode(), check=True)  # fmt: skip
    host.environment["SASL_CONF_PATH"] = str(folder)


def login_file(path: Path, password: str = PASSWORD) -> Path:
    """Write an auth.conf of libvirt's to ``path``; return it."""
    path.write_text(f"[credentials-x]\nauthname={NAME}\npassword={password}\n[auth-libvirt-127.0.0.1]\ncredentials=x\n")
    path.chmod(0o600)
    return path


class Certificates:
    """An authority of its own in ``folder``, as /etc/pki/libvirt has it for a client: that is what pkipath= takes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        _openssl("req", "-x509", *_KEY, "-keyout", folder / "cakey.pem", "-out", folder / "cacert.pem",
                 "-subj", "/CN=authority", "-addext", "keyUsage=critical,keyCertSign")  # fmt: skip
        self.issue("client", "clientAuth")

    def issue(self, name: str, usage: str, address: str = "127.0.0.1") -> None:
        """Make NAMEcert.pem and NAMEkey.pem for the host at ``address``."""
        here = self.folder
        extensions = here / f"{name}.ext"
        extensions.write_text(f"subjectAltName=IP:{address}\nextendedKeyUsage={usage}\n")
        _openssl("req", *_KEY, "-keyout", here / f"{name}key.pem", "-out", here / f"{name}.csr", "-subj", f"/CN={name}")
        _openssl("x509", "-req", "-in", here / f"{name}.csr", "-CA", here / "cacert.pem", "-CAkey", here / "cakey.pem",
                 "-CAcreateserial", "-days", "2", "-extfile", extensions, "-out", here / f"{name}cert.pem")  # fmt: skip


def demand_certificates(host: SessionHost, authority: Certificates, address: str = "127.0.0.1") -> None:
    """Let in at ``host.tls_uri`` who has a certificate of ``authority``; the host's own is for ``address``."""
    port = free_port()
    authority.issue("server", "serverAuth", address)
    shutil.copytree(authority.folder, host.home / "pki")
    host.settings |= {"listen_tls": "1", "tls_port": f'"{port}"'}
    host.settings |= {f"{kind}_file": f'"{host.home}/pki/{name}.pem"'
                      for kind, name in (("ca", "cacert"), ("cert", "servercert"), ("key", "serverkey"))}  # fmt: skip
    host.tls_uri = f"qemu+tls://127.0.0.1:{port}/session"


class SshServer:
    """An sshd on loopback that leads root to the user of ``host``, if the key is ``key``."""

    def __init__(self, host: SessionHost, folder: Path) -> None:
        self._host = host
        self._folder = folder
        self.port = free_port()
        for name in ("host", "key", "stranger"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
        self.key, self.stranger = folder / "key", folder / "stranger"
        self.known_hosts = self._known("known", "host.pub")
        self.wrongly_known_hosts = self._known("wrongly-known", "stranger.pub")
        self.unknown_hosts = folder / "unknown"
        self.unknown_hosts.touch()

    def uri(self, key: Path, known_hosts: Path) -> str:
        """For the program ssh, which has no parameter for ``known_hosts`` but a command of ours."""
        command = known_hosts.with_name(f"ssh-{known_hosts.name}")
        command.write_text(
            f"#!/bin/sh\nexec ssh -F none -o BatchMode=yes -o StrictHostKeyChecking=yes -o GlobalKnownHostsFile=none "
            f'-o UserKnownHostsFile={known_hosts} "$@"\n'
        )
        command.chmod(0o755)
        return f"qemu+ssh://root@127.0.0.1:{self.port}/session?keyfile={key}&command={command}"

    def library_uri(self, library: str, key: Path, known_hosts: Path) -> str:
        """For one of libvirt's ssh libraries."""
        where = f"keyfile={key}&known_hosts={known_hosts}&sshauth=privkey"
        return f"qemu+{library}://root@127.0.0.1:{self.port}/session?{where}"

    def clients(self) -> list[int]:
        """The ssh processes that this test's libvirt started to get here."""
        return find_processes(lambda words: words[0] == b"ssh" and os.fsencode(self.key) in words)

    @contextmanager
    def running(self) -> Iterator[SshServer]:
        """Run it for the length of a block."""
        enter = self._folder / "enter"
        environment = " ".join(f"{name}={value}" for name, value in self._host.environment.items())
        enter.write_text(
            "#!/bin/sh\nexec setpriv --reuid=nobody --regid=nogroup --clear-groups "
            f'env -i {environment} sh -c "$SSH_ORIGINAL_COMMAND"\n'
        )
        enter.chmod(0o755)
        config = self._folder / "sshd_config"
        config.write_text(
            f"ListenAddress 127.0.0.1:{self.port}\nHostKey {self._folder}/host\nPidFile none\nUsePAM no\n"
            f"AuthorizedKeysFile {self.key}.pub\nAuthenticationMethods publickey\nPermitRootLogin prohibit-password\n"
            f"StrictModes no\nForceCommand {enter}\n"
        )
        with _privilege_separation(), (self._folder / "log").open("wb") as log:
            daemon = subprocess.Popen(["/usr/sbin/sshd", "-D", "-e", "-f", config], stderr=log)
            try:
                self._await(daemon)
                yield self
            finally:
                daemon.terminate()
                daemon.wait(START_SECONDS)

    def _known(self, name: str, key: str) -> Path:
        path = self._folder / name
        path.write_text(f"[127.0.0.1]:{self.port} {(self._folder / key).read_text()}")
        return path

    def _await(self, daemon: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not is_open(self.port):
            if daemon.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"sshd does not listen: {(self._folder / 'log').read_text()[-500:]}")
            time.sleep(0.05)


@contextmanager
def ssh_server(host: SessionHost) -> Iterator[SshServer]:
    """Run one before ``host``; skips where there is no sshd."""
    if shutil.which("sshd", path="/usr/sbin:/usr/bin") is None:
        skip_or_fail("qemu", "sshd is not installed (openssh-server)")
    folder = Path(tempfile.mkdtemp(prefix="isomark-ssh-"))
    folder.chmod(0o755)
    try:
        with SshServer(host, folder).running() as server:
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _privilege_separation() -> Iterator[None]:
    """The directory that Debian's sshd is built to want; its service would make it."""
    folder = Path("/run/sshd")
    made = not folder.exists()
    folder.mkdir(exist_ok=True)
    try:
        yield
    finally:
        if made:
            folder.rmdir()


_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
