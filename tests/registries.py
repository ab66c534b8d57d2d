"""Real registries for the tests: Debian's docker-registry on loopback, with TLS, passwords or tokens."""

from __future__ import annotations

import base64
import hashlib
import http.client
import http.server
import json
import os
import socket
import ssl
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

USER, PASSWORD = "someone", "se cret:ü"


@dataclass(frozen=True)
class Certificates:
    """An authority and a certificate for loopback, made by openssl."""

    authority: Path
    certificate: Path
    key: Path

    @classmethod
    def make(cls, directory: Path) -> Certificates:
        directory.mkdir(parents=True, exist_ok=True)
        authority, request = directory / "ca.crt", directory / "server.csr"
        names = directory / "names"
        names.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1\nbasicConstraints=CA:FALSE\n")
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        _openssl("req", "-x509", *key, "-keyout", directory / "ca.key", "-out", authority, "-days", "2",
                 "-subj", "/CN=isomark test authority", "-addext", "keyUsage=keyCertSign")  # fmt: skip
        _openssl("req", *key, "-keyout", directory / "server.key", "-out", request, "-subj", "/CN=localhost")
        _openssl("x509", "-req", "-in", request, "-CA", authority, "-CAkey", directory / "ca.key", "-CAcreateserial",
                 "-days", "2", "-extfile", names, "-out", directory / "server.crt")  # fmt: skip
        return cls(authority, directory / "server.crt", directory / "server.key")


@dataclass
class Server:
    """A running registry; ``host`` is ``localhost:port``."""

    host: str
    storage: Path
    log: Path
    certificates: Certificates | None = None
    tokens: TokenServer | None = None
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)


@contextmanager
def registry(
    directory: Path,
    *,
    certificates: Certificates | None = None,
    password: bool = False,
    tokens: TokenServer | None = None,
) -> Iterator[Server]:
    """Run docker-registry with its data below ``directory`` for the length of a block."""
    directory.mkdir(parents=True, exist_ok=True)
    port = free_port()
    config: dict[str, Any] = {
        "version": 0.1,
        "log": {"level": "warn", "accesslog": {"disabled": False}},
        "storage": {"filesystem": {"rootdirectory": str(directory / "data")}, "delete": {"enabled": True}},
        "http": {"addr": f"127.0.0.1:{port}", "secret": "isomark"},
    }
    if certificates:
        config["http"]["tls"] = {"certificate": str(certificates.certificate), "key": str(certificates.key)}
    if password:
        made = subprocess.run(["htpasswd", "-nbB", USER, PASSWORD], capture_output=True, text=True, check=True)
        (directory / "htpasswd").write_text(made.stdout)
        config["auth"] = {"htpasswd": {"realm": "isomark", "path": str(directory / "htpasswd")}}
    if tokens:
        config["auth"] = {"token": tokens.settings()}
    path = directory / "config.json"  # JSON is YAML
    path.write_text(json.dumps(config))
    environment = {"PATH": os.environ["PATH"], "OTEL_TRACES_EXPORTER": "none"}
    log = directory / "log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            ["docker-registry", "serve", str(path)], stdout=output, stderr=output, env=environment
        )
    try:
        wait_for_port(port, process)
        yield Server(f"localhost:{port}", directory / "data", log, certificates, tokens, process)
    finally:
        process.kill()
        process.wait()


class TokenServer:
    """The authorization server of distribution's token specification: checks a password, signs a JWT (RS256)."""

    def __init__(self, directory: Path, certificates: Certificates) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._key, self._bundle = directory / "token.key", directory / "token.crt"
        _openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", self._key, "-out", self._bundle,
                 "-days", "2", "-subj", "/CN=isomark tokens")  # fmt: skip
        self.requests: list[tuple[str, dict[str, list[str]], str | None]] = []
        self.refresh_token = "identity-" + base64.b16encode(os.urandom(8)).decode()
        self.lifetime_seconds = 300
        self.anonymous_may_pull = False
        self.has_oauth = True
        self._certificates = certificates
        self.port = free_port()

    def settings(self) -> dict[str, str]:
        return {
            "realm": f"https://localhost:{self.port}/token",
            "service": "isomark tests",
            "issuer": "isomark",
            "rootcertbundle": str(self._bundle),
        }

    def answer(self, scopes: list[str], *, known: bool) -> dict[str, Any]:
        access = []
        for scope in (part for text in scopes for part in text.split()):
            kind, name, actions = scope.split(":")
            allowed = (known or (self.anonymous_may_pull and action == "pull") for action in actions.split(","))
            granted = [action for action, may in zip(actions.split(","), allowed, strict=True) if may]
            access.append({"type": kind, "name": name, "actions": granted})
        now = int(time.time())
        claims = {"iss": "isomark", "sub": USER if known else "", "aud": "isomark tests", "access": access,
                  "exp": now + self.lifetime_seconds, "nbf": now - 10, "iat": now - 10,
                  "jti": os.urandom(8).hex()}  # fmt: skip
        command = ["openssl", "x509", "-in", str(self._bundle), "-outform", "DER"]
        der = subprocess.run(command, capture_output=True, check=True)
        header = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(der.stdout).decode()]}
        body = b".".join(_urlsafe(json.dumps(part).encode()) for part in (header, claims))
        signed = subprocess.run(
            ["openssl", "dgst", "-sha256", "-sign", self._key], input=body, capture_output=True, check=True
        )
        token = (body + b"." + _urlsafe(signed.stdout)).decode()
        return {"token": token, "access_token": token, "expires_in": self.lifetime_seconds}

    @contextmanager
    def running(self) -> Iterator[TokenServer]:
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
                self._answer("GET", query, self.headers.get("Authorization"))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                self._answer("POST", urllib.parse.parse_qs(body), self.headers.get("Authorization"))

            def _answer(self, method: str, query: dict[str, list[str]], authorization: str | None) -> None:
                outer.requests.append((method, query, authorization))
                good = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
                if method == "POST" and not outer.has_oauth:
                    status, known = 404, False
                elif method == "POST":
                    known = query.get("refresh_token") == [outer.refresh_token]
                    status = 200 if known else 401
                else:
                    known = authorization == good
                    status = 200 if known or authorization is None else 401
                answer = outer.answer(query.get("scope", []), known=known) if status == 200 else {}
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        with http_server(Handler, self.port, self._certificates):
            yield self


class Proxy:
    """Stands before a registry that has no TLS, and makes faults: ``fault`` maps a request to what goes wrong.

    It is called with the method, the path and how often that path was asked before, and returns the name of a
    fault or ``None``. ``seen`` has every request with its headers.
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.fault: Callable[[str, str, int], str | None] = lambda method, path, times: None
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        self.redirect_to = ""
        self.bytes_per_second: float | None = None
        self.served: dict[str, int] = {}
        self._lock = threading.Lock()
        self.port = free_port()
        self.host = f"localhost:{self.port}"

    def note(self, method: str, path: str, headers: dict[str, str]) -> int:
        with self._lock:
            self.seen.append((method, path, headers))
            return sum(1 for one in self.seen if one[:2] == (method, path)) - 1

    @contextmanager
    def running(self, certificates: Certificates | None = None) -> Iterator[Proxy]:
        outer = self

        class Handler(_Faulty):
            proxy = outer

        with http_server(Handler, self.port, certificates):
            yield self


class _Faulty(http.server.BaseHTTPRequestHandler):
    proxy: Proxy
    protocol_version = "HTTP/1.1"

    def _any(self) -> None:
        times = self.proxy.note(self.command, self.path, dict(self.headers))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) if not self._is_chunked() else b""
        fault = self.proxy.fault(self.command, self.path, times)
        if fault == "drop":
            self.close_connection = True
            return
        if fault and fault.startswith("status "):
            _, status, *extra = fault.split(" ", 2)
            self._answer(
                int(status), dict(one.split("=", 1) for one in extra), b'{"errors":[{"message":"no\\u001b[31m"}]}'
            )
            return
        if fault == "redirect":
            self._answer(307, {"Location": self.proxy.redirect_to.replace("PATH", self.path)}, b"")
            return
        connection = http.client.HTTPConnection(self.proxy.upstream.replace("localhost", "127.0.0.1"), timeout=20)
        kept = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")}
        if fault == "no range":
            kept.pop("Range", None)
        connection.request(self.command, self.path, body or None, {**kept, "Host": self.headers["Host"]})
        response = connection.getresponse()
        data = response.read()
        headers = {name: value for name, value in response.getheaders()
                   if name.lower() not in ("content-length", "connection", "transfer-encoding")}  # fmt: skip
        connection.close()
        if self.command == "HEAD":
            self._answer(response.status, {**headers, "Content-Length": response.headers["Content-Length"] or "0"}, b"")
            return
        self._spoil(fault, response.status, headers, data)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _any  # noqa: N815 - http.server's names

    def _is_chunked(self) -> bool:
        return "chunked" in self.headers.get("Transfer-Encoding", "")

    def _spoil(self, fault: str | None, status: int, headers: dict[str, str], data: bytes) -> None:
        """Answer with what is wrong about ``data`` or ``headers``."""
        half = len(data) // 2
        if fault == "flip":
            data = data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :]
        elif fault == "huge document":
            data = b" " * (5 * 2**20) + data
        headers |= {
            "other range": {"Content-Range": "bytes 1-2/3"},
            "other type": {"Content-Type": "application/vnd.oci.image.index.v1+json"},
            "other digest": {"Docker-Content-Digest": "sha256:" + "0" * 64},
        }.get(fault or "", {})
        if fault == "endless":
            self._answer(status, {**headers, "Transfer-Encoding": "chunked"}, b"", length=False)
            for _ in range(10_000):
                self.wfile.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")
            return
        claimed = {"short length": half, "long length": len(data) + 1}.get(fault or "", len(data))
        sent = {"truncate": half, "end early": half, "stall": half, "short length": half, "a few bytes": 10}
        if fault == "end early":
            self._answer(status, {**headers, "Connection": "close"}, data[:half], length=False)
        else:
            self._answer(status, {**headers, "Content-Length": str(claimed)}, data[: sent.get(fault or "")])
        if fault == "stall":
            time.sleep(1.5)
        self.close_connection |= fault in ("truncate", "a few bytes", "end early", "stall", "long length")

    def _answer(self, status: int, headers: dict[str, str], data: bytes, *, length: bool = True) -> None:
        self.send_response(status)
        if length and not any(name.lower() == "content-length" for name in headers):
            headers = {**headers, "Content-Length": str(len(data))}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self._write(data)

    def _write(self, data: bytes) -> None:
        rate = self.proxy.bytes_per_second
        step = len(data) if rate is None else 64 * 1024
        for at in range(0, len(data), step or 1):
            piece = data[at : at + step]
            self.wfile.write(piece)
            self.proxy.served[self.path] = self.proxy.served.get(self.path, 0) + len(piece)
            if rate is not None:
                time.sleep(len(piece) / rate)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def http_server(
    handler: type[http.server.BaseHTTPRequestHandler], port: int, certificates: Certificates | None
) -> Iterator[http.server.ThreadingHTTPServer]:
    """Serve on loopback from a thread."""

    class Quiet(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass  # clients hang up: that is what some tests are about

    server = Quiet(("127.0.0.1", port), handler)
    if certificates:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates.certificate, certificates.key)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and process.poll() is None:
        with ExitStack() as stack:
            probe = stack.enter_context(socket.socket())
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise AssertionError("docker-registry does not start")


def docker_config(directory: Path, **content: Any) -> Path:
    """A directory for ``DOCKER_CONFIG``."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(content))
    return directory


def auths(host: str, password: str = PASSWORD) -> dict[str, Any]:
    return {"auths": {host: {"auth": base64.b64encode(f"{USER}:{password}".encode()).decode()}}}


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


def _urlsafe(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
