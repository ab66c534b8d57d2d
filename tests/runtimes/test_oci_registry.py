"""Pull and push against a real docker-registry: TLS, passwords, tokens, and everything that goes wrong on the way."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import registries
from handmade import file, fingerprint, folder, image_of_tars, symlink, tar
from hypothesis import given
from hypothesis import strategies as st
from registries import PASSWORD, USER, Certificates, Proxy, Server, TokenServer, auths, docker_config

from bench.errors import HostError, ImageError, UsageError
from bench.journal import Journal
from runtimes.oci.auth import parse_challenges
from runtimes.oci.credentials import Credentials, find_credentials
from runtimes.oci.descriptor import DOCKER_MANIFEST, INDEX, MANIFEST, Descriptor, canonical_json
from runtimes.oci.endpoint import Endpoint
from runtimes.oci.images import Images
from runtimes.oci.platform import Platform
from runtimes.oci.pull import Pull, Pulled
from runtimes.oci.push import Push, Pushed
from runtimes.oci.reference import Reference
from runtimes.oci.registry import Repository
from runtimes.oci.session import Patience, Session
from runtimes.oci.transfer import Silent

BIG = os.urandom(3 * 2**20)
PATIENCE = Patience(connect_seconds=5, silence_seconds=0.5, tries=4, first_pause_seconds=0.01, longest_pause_seconds=3)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates.make(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with registries.registry(tmp_path_factory.mktemp("plain")) as server:
        yield server


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("guarded")
    with registries.registry(directory, certificates=certificates, password=True) as server:
        yield server


@pytest.fixture(scope="module")
def tokened(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("tokened")
    tokens = TokenServer(directory / "tokens", certificates)
    with tokens.running(), registries.registry(directory, certificates=certificates, tokens=tokens) as server:
        yield server


@pytest.fixture
def proxy(plain: Server) -> Iterator[Proxy]:
    with Proxy(plain.host).running() as running:
        yield running


@pytest.fixture
def images(tmp_path: Path) -> Images:
    return Images(tmp_path / "state")


@pytest.fixture
def elsewhere(tmp_path: Path) -> Images:
    return Images(tmp_path / "elsewhere")


@pytest.fixture
def image(images: Images) -> Descriptor:
    descriptor = image_of_tars(
        images.layout,
        tar(folder("etc"), file("etc/a", b"one"), symlink("link", "etc/a"), file("gone")),
        tar(file("etc/a", b"two"), file(".wh.gone", b""), file("big", BIG)),
    )
    images.layout.tag("test:1", descriptor)
    return descriptor


def session(host: str, certificates: Certificates | None = None, **more: Any) -> Session:
    endpoint = Endpoint(host, plain=certificates is None, ca_file=certificates.authority if certificates else None)
    return Session(endpoint, find_credentials(host), more.get("patience", PATIENCE))


def push(images: Images, host: str, name: str, certificates: Certificates | None = None, **more: Any) -> Pushed:
    with session(host, certificates) as opened:
        pushing = Push(images, opened, Silent(), 4, **more)
        return pushing.run(images.find("test:1"), Reference.parse(f"{host}/{name}"))


def pull(
    images: Images, host: str, name: str, certificates: Certificates | None = None, journal: Journal | None = None
) -> Pulled:
    with session(host, certificates) as opened:
        pulling = Pull(images, opened, Silent(), 4)
        return pulling.run(Reference.parse(f"{host}/{name}"), Platform.here(), journal)


def nothing_is_visible(images: Images) -> bool:
    """No name, and no blob that is not what its name says."""
    blobs = list((images.layout.root / "blobs/sha256").iterdir())
    assert all(hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name for blob in blobs)
    assert not [path for path in images.trees.glob("*") if not path.name.startswith(".publishing")]
    return not images.layout.references()


def layers_of(images: Images) -> list[Descriptor]:
    return [layer for layer, _ in images.find("test:1").manifest.layers]


def skopeo(*arguments: str, tls: Certificates | None = None, **more: Any) -> str:
    command = ["skopeo", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, **more)
    assert ended.returncode == 0, ended.stderr
    said: str = ended.stdout
    return said


@pytest.fixture
def certificate_directory(tmp_path: Path, certificates: Certificates) -> Path:
    """As skopeo wants it."""
    (tmp_path / "certs").mkdir()
    (tmp_path / "certs/ca.crt").write_bytes(certificates.authority.read_bytes())
    return tmp_path / "certs"


# --- with the peers -------------------------------------------------------------------------------------------------


def test_what_we_push_is_what_skopeo_and_umoci_read(
    images: Images, image: Descriptor, guarded: Server, certificates: Certificates, certificate_directory: Path,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, journal: Journal,
) -> None:  # fmt: skip
    monkeypatch.setenv("DOCKER_CONFIG", str(docker_config(tmp_path / "docker", **auths(guarded.host))))
    pushed = push(images, guarded.host, "team/app:1", certificates)
    assert pushed.digest == image.digest
    source = ["--src-cert-dir", str(certificate_directory), "--src-creds", f"{USER}:{PASSWORD}"]
    skopeo("copy", *source, f"docker://{guarded.host}/team/app:1", f"oci:{tmp_path}/copy:1")
    index = json.loads((tmp_path / "copy/index.json").read_text())
    assert index["manifests"][0]["digest"] == image.digest
    subprocess.run(
        ["umoci", "unpack", "--image", f"{tmp_path}/copy:1", str(tmp_path / "bundle")], check=True, capture_output=True
    )
    ours = fingerprint(images.tree(images.find("test:1"), journal).path)
    theirs = fingerprint(tmp_path / "bundle/rootfs")
    assert {**ours, ".": None} == {**theirs, ".": None}  # umoci dates the root directory today


def test_what_skopeo_pushes_is_what_we_pull(
    images: Images, elsewhere: Images, image: Descriptor, guarded: Server, certificates: Certificates,
    certificate_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, journal: Journal,
) -> None:  # fmt: skip
    monkeypatch.setenv("DOCKER_CONFIG", str(docker_config(tmp_path / "docker", **auths(guarded.host))))
    target = ["--dest-cert-dir", str(certificate_directory), "--dest-creds", f"{USER}:{PASSWORD}"]
    skopeo("copy", *target, f"oci:{images.layout.root}:test:1", f"docker://{guarded.host}/by/skopeo:1")
    pulled = pull(elsewhere, guarded.host, "by/skopeo:1", certificates, journal)
    assert pulled.digest == pulled.stored.descriptor.digest == image.digest
    assert pulled.stored.reference == f"{guarded.host}/by/skopeo:1"
    mine = fingerprint(images.tree(images.find("test:1"), journal).path)
    assert fingerprint(elsewhere.tree(pulled.stored, journal).path) == mine
    again = pull(elsewhere, guarded.host, f"by/skopeo@{image.digest}", certificates)
    assert again.fresh_bytes == 0
    assert again.stored.reference == f"{guarded.host}/by/skopeo@{image.digest}"


def test_docker_s_own_manifests_go_both_ways(
    images: Images, elsewhere: Images, image: Descriptor, plain: Server, tmp_path: Path
) -> None:
    skopeo("copy", "--dest-tls-verify=false", "--format", "v2s2", f"oci:{images.layout.root}:test:1",
           f"docker://{plain.host}/v2s2:1")  # fmt: skip
    pulled = pull(elsewhere, plain.host, "v2s2:1")
    assert pulled.stored.descriptor.media_type == DOCKER_MANIFEST
    elsewhere.layout.tag("test:1", pulled.stored.descriptor)
    assert push(elsewhere, plain.host, "v2s2-again:1").digest == pulled.digest
    raw = skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{plain.host}/v2s2-again:1")
    assert f"sha256:{hashlib.sha256(raw.encode()).hexdigest()}" == pulled.digest


def index_of(images: Images, host_s: Descriptor, other: Descriptor) -> Descriptor:
    here = Platform.here()
    entries = [
        {**other.to_json(), "platform": {"os": "linux", "architecture": "mips"}},
        {**host_s.to_json(), "platform": {"os": "linux", "architecture": here.architecture}},
    ]
    document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}
    return images.layout.add(INDEX, canonical_json(document))


def test_of_an_index_the_image_for_this_host_is_pulled_and_the_whole_of_it_on_demand(
    images: Images, elsewhere: Images, image: Descriptor, plain: Server, tmp_path: Path
) -> None:
    other = image_of_tars(images.layout, tar(file("for-mips")))
    index = index_of(images, image, other)
    images.layout.tag("test:1", index)
    assert push(images, plain.host, "multi:1").digest == index.digest
    raw = skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{plain.host}/multi:1")
    assert json.loads(raw)["manifests"][0]["digest"] == other.digest
    pulled = pull(elsewhere, plain.host, "multi:1")
    assert (pulled.digest, pulled.stored.descriptor.digest) == (index.digest, image.digest)
    assert not elsewhere.layout.has(other)
    by_digest = pull(elsewhere, plain.host, f"multi@{index.digest}")
    assert by_digest.stored.descriptor.digest == image.digest
    with session(plain.host) as opened:
        reference = Reference.parse(f"{plain.host}/multi:1")
        mips = Pull(elsewhere, opened, Silent(), 4).run(reference, Platform.parse("linux/mips"), None)
        assert mips.stored.descriptor.digest == other.digest
        with pytest.raises(ImageError, match="offers linux/"):
            Pull(elsewhere, opened, Silent(), 4).run(reference, Platform.parse("plan9/mips"), None)
        whole = Pull(elsewhere, opened, Silent(), 4).run_all(reference)
    assert whole.stored.root.digest == index.digest
    elsewhere.layout.tag("test:1", whole.stored.root)
    assert push(elsewhere, plain.host, "multi-again:1").digest == index.digest


def test_a_part_of_an_index_cannot_be_pushed_as_a_whole(
    images: Images, elsewhere: Images, image: Descriptor, plain: Server
) -> None:
    index = index_of(images, image, Descriptor(MANIFEST, "sha256:" + "1" * 64, 10))
    images.layout.tag("test:1", index)
    with pytest.raises(ImageError, match="not all of them are here") as caught:
        push(images, plain.host, "part:1")
    assert "--platform all" in caught.value.hint


# --- uploads --------------------------------------------------------------------------------------------------------


def test_nothing_is_sent_twice_and_a_neighbour_s_blobs_are_mounted(
    images: Images, image: Descriptor, proxy: Proxy
) -> None:
    first = push(images, proxy.host, "first/app:1")
    assert first.sent_bytes > len(BIG)
    proxy.seen.clear()
    assert push(images, proxy.host, "first/app:1").sent_bytes == 0
    assert [method for method, _, _ in proxy.seen if method != "HEAD"] == []
    images.layout.tag(f"{proxy.host}/first/app:1", image)
    assert push(images, proxy.host, "second/app:1").sent_bytes == 0
    mounts = [path for method, path, _ in proxy.seen if method == "POST"]
    assert len(mounts) == 3
    assert all("?mount=sha256:" in path and "&from=first/app" in path for path in mounts)


def test_large_blobs_go_in_chunks_and_small_ones_in_one_piece(
    images: Images, elsewhere: Images, image: Descriptor, proxy: Proxy
) -> None:
    push(images, proxy.host, "chunked/app:1", chunk_bytes=2**20)
    patches = [headers["Content-Range"] for method, _, headers in proxy.seen if method == "PATCH"]
    assert patches[:2] == ["0-1048575", "1048576-2097151"]
    assert len(patches) == 4
    assert pull(elsewhere, proxy.host, "chunked/app:1").digest == image.digest


@pytest.mark.parametrize("fault", ["drop", "status 500", "status 429 Retry-After=0"])
@pytest.mark.parametrize("chunk_bytes", [2**20, 2**30])
def test_an_upload_goes_on_after_a_fault(
    images: Images, elsewhere: Images, image: Descriptor, proxy: Proxy, fault: str, chunk_bytes: int
) -> None:
    failed: set[str] = set()

    def once(method: str, path: str, times: int) -> str | None:
        if method in ("PATCH", "PUT", "POST") and method not in failed:
            failed.add(method)
            return fault
        return None

    proxy.fault = once
    name = f"faulty/{fault.split('=', maxsplit=1)[0].replace(' ', '').lower()}{chunk_bytes}"
    assert push(images, proxy.host, f"{name}:1", chunk_bytes=chunk_bytes).digest == image.digest
    assert failed >= {"POST", "PUT"}
    proxy.fault = lambda method, path, times: None
    assert pull(elsewhere, proxy.host, f"{name}:1").digest == image.digest


def test_a_registry_that_knows_no_chunks_gets_the_whole(
    images: Images, elsewhere: Images, image: Descriptor, proxy: Proxy
) -> None:
    proxy.fault = lambda method, path, times: "status 405" if method == "PATCH" else None
    assert push(images, proxy.host, "whole/app:1", chunk_bytes=2**20).digest == image.digest
    assert pull(elsewhere, proxy.host, "whole/app:1").digest == image.digest


def test_a_blob_that_rotted_here_is_not_pushed(images: Images, image: Descriptor, plain: Server) -> None:
    big = layers_of(images)[1]
    content = bytearray(images.layout.path(big).read_bytes())
    content[-1] ^= 1
    images.layout.path(big).write_bytes(content)
    with pytest.raises(ImageError, match="not what its name says"):
        push(images, plain.host, "rotten/app:1")
    with session(plain.host) as opened:
        assert not Repository(opened, "rotten/app").has_manifest("1", image.digest)


def test_an_upload_that_always_fails_ends(images: Images, image: Descriptor, proxy: Proxy) -> None:
    proxy.fault = lambda method, path, times: "status 503" if method == "PUT" else None
    with pytest.raises(ImageError, match="HTTP 503"):
        push(images, proxy.host, "never/app:1")


def test_a_referrer_is_found_by_the_tag_schema_where_the_registry_knows_no_referrers(
    images: Images, image: Descriptor, plain: Server
) -> None:
    push(images, plain.host, "subject/app:1")
    document = images.layout.document(image)
    document["subject"] = {"mediaType": MANIFEST, "digest": image.digest, "size": image.size}
    referrer = images.layout.add(MANIFEST, canonical_json(document))
    images.layout.tag("test:1", referrer)
    push(images, plain.host, "subject/app:signature")
    push(images, plain.host, "subject/app:signature")
    with session(plain.host) as opened:
        found = Repository(opened, "subject/app").referrers(image.digest)
        assert [entry.digest for entry in found] == [referrer.digest]
        assert Repository(opened, "subject/app").referrers("sha256:" + "0" * 64) == []


def test_a_sha512_blob_is_verified_pushed_and_pulled(
    images: Images, elsewhere: Images, image: Descriptor, plain: Server
) -> None:
    document = images.layout.document(image)
    config = images.layout.raw(Descriptor.from_json(document["config"]))
    digest = f"sha512:{hashlib.sha512(config).hexdigest()}"
    images.layout.put(Descriptor("", digest, len(config)), config)
    with pytest.raises(ImageError, match="digest is another"):
        images.layout.put(Descriptor("", "sha512:" + "0" * 128, len(config)), config)
    document["config"]["digest"] = digest
    images.layout.tag("test:1", images.layout.add(MANIFEST, canonical_json(document)))
    assert images.find("test:1").id == digest
    push(images, plain.host, "sha512/app:1")
    assert pull(elsewhere, plain.host, "sha512/app:1").stored.id == digest
    assert elsewhere.layout.path(Descriptor("", digest, 0)).parent.name == "sha512"


# --- who we are -----------------------------------------------------------------------------------------------------


def test_without_credentials_a_guarded_registry_says_how_to_get_in(
    images: Images, image: Descriptor, guarded: Server, certificates: Certificates, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for content in ({}, auths(guarded.host, "wrong")):
        monkeypatch.setenv("DOCKER_CONFIG", str(docker_config(tmp_path / "docker", **content)))
        with pytest.raises(ImageError, match="not allowed") as caught:
            push(images, guarded.host, "secret/app:1", certificates)
        assert "docker login" in caught.value.hint


def test_tokens_are_fetched_for_what_is_done_kept_and_renewed(
    images: Images, elsewhere: Images, image: Descriptor, tokened: Server, certificates: Certificates, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    assert tokened.tokens is not None
    monkeypatch.setenv("DOCKER_CONFIG", str(docker_config(tmp_path / "docker", **auths(tokened.host))))
    tokened.tokens.requests.clear()
    push(images, tokened.host, "team/token:1", certificates)
    scopes = [query["scope"] for _, query, _ in tokened.tokens.requests]
    assert scopes == [["repository:team/token:pull,push"]]
    monkeypatch.setattr(tokened.tokens, "lifetime_seconds", 1)
    with session(tokened.host, certificates) as opened:
        tokened.tokens.requests.clear()
        repository = Repository(opened, "team/token")
        repository.document("1")
        time_over = len(tokened.tokens.requests)
        monkeypatch.setattr("runtimes.oci.auth.time.monotonic", lambda: 10.0**9)
        repository.document("1")
        assert len(tokened.tokens.requests) == time_over + 1


def test_a_token_that_the_registry_takes_no_more_is_renewed_once(
    images: Images, image: Descriptor, tokened: Server, certificates: Certificates, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    assert tokened.tokens is not None
    monkeypatch.setenv("DOCKER_CONFIG", str(docker_config(tmp_path / "docker", **auths(tokened.host))))
    push(images, tokened.host, "team/renewed:1", certificates)
    with session(tokened.host, certificates) as opened:
        repository = Repository(opened, "team/renewed")
        repository.document("1")
        authenticator = opened._authenticator
        scope = frozenset(repository.pulling)
        authenticator._tokens[scope] = type(authenticator._tokens[scope])("stale.token.value", 10.0**12)
        tokened.tokens.requests.clear()
        assert repository.document("1").descriptor.digest == image.digest
        assert len(tokened.tokens.requests) == 1


@pytest.mark.parametrize("has_oauth", [True, False])
def test_an_identity_token_is_used_where_the_server_knows_it(
    images: Images, image: Descriptor, tokened: Server, certificates: Certificates, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, has_oauth: bool,
) -> None:  # fmt: skip
    assert tokened.tokens is not None
    monkeypatch.setattr(tokened.tokens, "has_oauth", has_oauth)
    entry = {"identitytoken": tokened.tokens.refresh_token, **auths(tokened.host)["auths"][tokened.host]}
    monkeypatch.setenv("DOCKER_CONFIG", str(docker_config(tmp_path / "docker", auths={tokened.host: entry})))
    tokened.tokens.requests.clear()
    push(images, tokened.host, f"team/identity{has_oauth:d}:1", certificates)
    methods = [method for method, _, _ in tokened.tokens.requests]
    assert methods == (["POST"] if has_oauth else ["POST", "GET"])


def test_an_anonymous_pull_gets_a_token_of_its_own(
    images: Images, elsewhere: Images, image: Descriptor, tokened: Server, certificates: Certificates, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    assert tokened.tokens is not None
    monkeypatch.setenv("DOCKER_CONFIG", str(docker_config(tmp_path / "docker", **auths(tokened.host))))
    push(images, tokened.host, "team/public:1", certificates)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "nothing"))
    monkeypatch.setattr(tokened.tokens, "anonymous_may_pull", True)
    assert pull(elsewhere, tokened.host, "team/public:1", certificates).digest == image.digest
    with pytest.raises(ImageError, match="not allowed"):
        push(images, tokened.host, "team/public:2", certificates)


def helper(directory: Path, name: str, script: str) -> None:
    directory.mkdir(exist_ok=True)
    path = directory / f"docker-credential-{name}"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_credential_helpers_are_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = json.dumps({"ServerURL": "x", "Username": "u", "Secret": "s"})
    helper(tmp_path / "bin", "good", f"test $1 = get || exit 1; cat >{tmp_path}/asked; echo '{secret}'")
    helper(tmp_path / "bin", "none", "echo credentials not found in native keychain; exit 1")
    helper(tmp_path / "bin", "token", """echo '{"Username":"<token>","Secret":"t"}'""")
    helper(tmp_path / "bin", "broken", "echo locked; exit 1")
    helper(tmp_path / "bin", "odd", "echo hello")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")

    def configured(**content: Any) -> None:
        monkeypatch.setenv("DOCKER_CONFIG", str(docker_config(tmp_path / "docker", **content)))

    configured(credHelpers={"a.example": "good"}, credsStore="none")
    assert find_credentials("a.example") == Credentials("u", "s")
    assert (tmp_path / "asked").read_text() == "a.example"
    assert find_credentials("b.example") is None
    configured(credsStore="good")
    assert find_credentials("docker.io") == Credentials("u", "s")
    assert (tmp_path / "asked").read_text() == "https://index.docker.io/v1/"
    configured(credsStore="token")
    assert find_credentials("a.example") == Credentials(identity_token="t")
    configured(credsStore="none", **auths("a.example"))
    assert find_credentials("a.example") == Credentials(USER, PASSWORD)
    for name, said in (("broken", "locked"), ("odd", "something else"), ("missing", "not installed")):
        configured(credsStore=name)
        with pytest.raises(HostError, match=said):
            find_credentials("a.example")
    configured(credsStore="../evil")
    with pytest.raises(UsageError, match="not the name"):
        find_credentials("a.example")


@pytest.mark.parametrize(
    "key", ["docker.io", "index.docker.io", "https://index.docker.io/v1/", "https://registry-1.docker.io/v2/"]
)
def test_docker_hub_is_known_by_all_its_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(docker_config(tmp_path, **auths(key))))
    assert find_credentials("docker.io") == Credentials(USER, PASSWORD)
    assert find_credentials("other.example") is None


@pytest.mark.parametrize(
    "text",
    ["[]", "nonsense", '{"auths": []}', '{"auths": {"a.example": {"auth": "!"}}}', '{"credHelpers": 1}',
     '{"auths": {"a.example": {"auth": "bm9jb2xvbg=="}}}'],
)  # fmt: skip
def test_a_malformed_configuration_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with pytest.raises(UsageError, match=r"config\.json is malformed"):
        find_credentials("a.example")


def test_secrets_are_not_in_what_is_printed_of_credentials() -> None:
    assert "hush" not in repr(Credentials("u", "hush", "hush", "hush"))


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ('Bearer realm="https://a/t",service="s",scope="r:x:pull,push"',
         [("bearer", {"realm": "https://a/t", "service": "s", "scope": "r:x:pull,push"})]),
        ('Basic realm="a \\"quoted\\" one"', [("basic", {"realm": 'a "quoted" one'})]),
        ('Basic realm=x, Bearer realm="y" , service=z', [("basic", {"realm": "x"}),
                                                         ("bearer", {"realm": "y", "service": "z"})]),
        ("Negotiate", [("negotiate", {})]),
        ("", []),
        ('"', []),
    ],
)  # fmt: skip
def test_challenges_are_read_as_rfc_9110_writes_them(header: str, found: list[tuple[str, dict[str, str]]]) -> None:
    assert [(one.scheme, dict(one.parameters)) for one in parse_challenges(header)] == found


@given(st.text(alphabet='Basic Bearer realm=",\\ \t', max_size=60))
def test_no_challenge_is_too_odd_to_be_read(header: str) -> None:
    assert all(one.scheme for one in parse_challenges(header))


# --- whom we believe ------------------------------------------------------------------------------------------------


def test_an_unknown_authority_is_refused_with_the_remedy(images: Images, guarded: Server) -> None:
    with (
        Session(Endpoint(guarded.host), patience=PATIENCE) as opened,
        pytest.raises(ImageError, match="not trusted") as caught,
    ):
        Repository(opened, "a").document("1")
    assert "--ca-file" in caught.value.hint


def test_plain_http_is_for_loopback_and_only_when_asked_for(plain: Server) -> None:
    with pytest.raises(UsageError, match="only for registries on this host"):
        Endpoint("registry.example:5000", plain=True)
    with (
        Session(Endpoint(plain.host), patience=PATIENCE) as opened,
        pytest.raises(ImageError, match="does not speak TLS") as caught,
    ):
        Repository(opened, "a").document("1")
    assert caught.value.hint == "--insecure"


def test_docker_s_certificate_directory_is_read(
    guarded: Server, certificates: Certificates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    directory = tmp_path / ".docker/certs.d" / guarded.host
    directory.mkdir(parents=True)
    (directory / "ca.crt").write_bytes(certificates.authority.read_bytes())
    credentials = Credentials(USER, PASSWORD)
    with Session(Endpoint(guarded.host), credentials, PATIENCE) as opened, pytest.raises(ImageError, match="not there"):
        Repository(opened, "missing").document("1")
    (directory / "ca.crt").write_text("nonsense")
    with pytest.raises(UsageError, match="cannot use the certificates"):
        Endpoint(guarded.host).ssl_context()


def test_an_absent_host_is_an_error_at_once() -> None:
    with (
        Session(Endpoint("no-such-host.invalid")) as opened,
        pytest.raises(ImageError, match="cannot be reached") as caught,
    ):
        Repository(opened, "a").document("1")
    assert caught.value.hint


# --- faults on the way down -----------------------------------------------------------------------------------------


@pytest.fixture
def pushed(images: Images, image: Descriptor, plain: Server) -> Descriptor:
    push(images, plain.host, "faults/app:1")
    return layers_of(images)[1]


def on_blob(blob: Descriptor, fault: str, times_wrong: int) -> Any:
    def fault_of(method: str, path: str, times: int) -> str | None:
        return fault if method == "GET" and path.endswith(blob.digest) and times < times_wrong else None

    return fault_of


@pytest.mark.parametrize("fault", ["flip", "short length", "long length", "endless", "status 404", "status 403"])
def test_a_blob_that_is_not_right_is_refused_and_never_visible(
    elsewhere: Images, pushed: Descriptor, proxy: Proxy, journal: Journal, fault: str
) -> None:
    proxy.fault = on_blob(pushed, fault, 10**9)
    with pytest.raises(ImageError):
        pull(elsewhere, proxy.host, "faults/app:1", journal=journal)
    assert nothing_is_visible(elsewhere)
    assert not elsewhere.layout.has(pushed)
    asked = sum(path.endswith(pushed.digest) for _, path, _ in proxy.seen)
    assert asked == 1  # none of these gets better by asking again
    proxy.fault = lambda method, path, times: None
    assert elsewhere.layout.has(pull(elsewhere, proxy.host, "faults/app:1", journal=journal).stored.descriptor)


@pytest.mark.parametrize("fault", ["truncate", "end early", "stall", "drop", "status 503", "status 429 Retry-After=1"])
@pytest.mark.parametrize("unpacking", [True, False])
def test_a_download_goes_on_after_a_fault(
    elsewhere: Images, pushed: Descriptor, proxy: Proxy, journal: Journal, fault: str, unpacking: bool
) -> None:
    proxy.fault = on_blob(pushed, fault, 2)
    pulled = pull(elsewhere, proxy.host, "faults/app:1", journal=journal if unpacking else None)
    assert (elsewhere.tree(pulled.stored, journal).path / "big").read_bytes() == BIG
    if fault in ("truncate", "end early", "stall"):
        ranges = [headers.get("Range") for _, path, headers in proxy.seen if path.endswith(pushed.digest)]
        half = pushed.size // 2
        assert ranges == [None, f"bytes={half}-", f"bytes={half + (pushed.size - half) // 2}-"]


@pytest.mark.parametrize("unpacking", [True, False])
def test_where_range_is_unknown_the_download_starts_over(
    elsewhere: Images, pushed: Descriptor, proxy: Proxy, journal: Journal, unpacking: bool
) -> None:
    proxy.fault = lambda method, path, times: (
        None if not path.endswith(pushed.digest) else "truncate" if times == 0 else "no range"
    )
    pulled = pull(elsewhere, proxy.host, "faults/app:1", journal=journal if unpacking else None)
    assert (elsewhere.tree(pulled.stored, journal).path / "big").read_bytes() == BIG


def test_what_was_put_together_wrong_is_fetched_once_more(
    elsewhere: Images, pushed: Descriptor, proxy: Proxy, journal: Journal
) -> None:
    partial = elsewhere.layout.root / "partial" / f"sha256-{pushed.hex}"
    partial.write_bytes(b"left by a power cut" * 1000)
    pulled = pull(elsewhere, proxy.host, "faults/app:1", journal=journal)
    assert (elsewhere.tree(pulled.stored, journal).path / "big").read_bytes() == BIG
    ranges = [headers.get("Range") for _, path, headers in proxy.seen if path.endswith(pushed.digest)]
    assert ranges == ["bytes=19000-", None]


@pytest.mark.parametrize("fault", ["a few bytes", "drop", "status 500", "other range"])
def test_a_download_that_always_fails_ends(elsewhere: Images, pushed: Descriptor, proxy: Proxy, fault: str) -> None:
    proxy.fault = on_blob(
        pushed, "truncate" if fault == "other range" else fault, 1 if fault == "other range" else 10**9
    )
    if fault == "other range":
        first = proxy.fault
        proxy.fault = lambda method, path, times: (
            first(method, path, times) or ("other range" if path.endswith(pushed.digest) else None)
        )
    with pytest.raises(ImageError) as caught:
        pull(elsewhere, proxy.host, "faults/app:1")
    assert "\x1b" not in caught.value.message
    assert nothing_is_visible(elsewhere)


def test_a_registry_that_asks_to_come_back_in_hours_is_reported(
    elsewhere: Images, pushed: Descriptor, proxy: Proxy
) -> None:
    proxy.fault = on_blob(pushed, "status 429 Retry-After=7200", 10**9)
    with pytest.raises(ImageError, match="come back in 7200 s"):
        pull(elsewhere, proxy.host, "faults/app:1")


def test_blobs_may_be_elsewhere_and_that_place_sees_no_authorization(
    images: Images, elsewhere: Images, image: Descriptor, guarded: Server, certificates: Certificates, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, plain: Server,
) -> None:  # fmt: skip
    push(images, plain.host, "faults/app:1")
    big = layers_of(images)[1]
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    with ExitStack() as stack:
        storage = stack.enter_context(Proxy(plain.host).running(certificates))
        front = stack.enter_context(Proxy(plain.host).running(certificates))
        docker_config(tmp_path / "docker", **auths(front.host))
        wanted = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()

        def fault(method: str, path: str, times: int) -> str | None:
            if front.seen[-1][2].get("Authorization") != wanted:
                return 'status 401 WWW-Authenticate=Basic realm="x"'
            return "redirect" if path.endswith(big.digest) else None

        front.fault = fault
        front.redirect_to = f"https://{storage.host}PATH"
        with session(front.host, certificates) as opened:
            reference = Reference.parse(f"{front.host}/faults/app:1")
            # one at a time, so that the fault knows whose headers it sees
            Pull(elsewhere, opened, Silent(), 1).run(reference, Platform.here(), None)
        assert [path for _, path, _ in storage.seen] == [f"/v2/faults/app/blobs/{big.digest}"]
        assert "Authorization" not in storage.seen[0][2]
        front.redirect_to = "http://localhost:1PATH"
        with pytest.raises(ImageError, match="not https"):
            pull(Images(tmp_path / "third"), front.host, "faults/app:1", certificates)


def test_a_redirect_in_a_circle_ends(elsewhere: Images, pushed: Descriptor, proxy: Proxy) -> None:
    proxy.fault = on_blob(pushed, "redirect", 10**9)
    proxy.redirect_to = f"http://{proxy.host}PATH"
    with pytest.raises(ImageError, match="without end"):
        pull(elsewhere, proxy.host, "faults/app:1")


@pytest.mark.parametrize("fault", ["flip", "other type", "other digest", "huge document", "status 404", "truncate"])
def test_a_manifest_that_is_not_right_is_refused(
    elsewhere: Images, image: Descriptor, pushed: Descriptor, proxy: Proxy, fault: str
) -> None:
    proxy.fault = lambda method, path, times: fault if "/manifests/" in path else None
    for name in ("faults/app:1", f"faults/app@{image.digest}"):
        if fault == "other digest" and "@" in name:
            continue  # nobody asks the registry what was asked for
        with pytest.raises(ImageError):
            pull(elsewhere, proxy.host, name)
    assert nothing_is_visible(elsewhere)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schemaVersion": 1}, "schema 1"),
        ({"manifests": []}, "at once"),
        ({"mediaType": INDEX}, "offered as"),
        ({"config": {"mediaType": "application/vnd.cncf.helm.config.v1+json"}}, "no container image"),
        ({"layers": 1}, "no image manifest"),
        (
            {"layers": [{"mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"}]},
            "may not be distributed",
        ),
        ({"layers": [{"mediaType": "application/x-evil"}]}, "no container image"),
        ({"layers": "repeat"}, "1002 layers"),
    ],
)
def test_media_types_that_do_not_fit_are_refused(
    images: Images, elsewhere: Images, image: Descriptor, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    document = images.layout.document(image)
    for key, value in change.items():
        if value == "repeat":
            document[key] = document[key] * 501
        elif isinstance(value, dict):
            document[key] = {**document[key], **value}
        elif isinstance(value, list) and value:
            document[key] = [{**document[key][0], **value[0]}]
        else:
            document[key] = value
    data = canonical_json(document)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", MANIFEST)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    port = registries.free_port()
    with registries.http_server(Handler, port, None), pytest.raises(ImageError, match=said):
        pull(elsewhere, f"localhost:{port}", "odd/app:1")
    assert nothing_is_visible(elsewhere)


@pytest.mark.parametrize(
    ("challenge", "said"),
    [
        ('Bearer realm="http://example.org/token",service="x"', "not https"),
        ('Bearer realm="file:///etc/passwd"', "not https"),
        ('Bearer service="x"', "not https"),
        ("Negotiate", "wants authentication by negotiate"),
        ("", "wants authentication by nothing"),
    ],
)
def test_a_challenge_that_would_leak_or_that_is_unknown_is_refused(
    elsewhere: Images, proxy: Proxy, challenge: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(docker_config(tmp_path / "docker", **auths(proxy.host))))
    proxy.fault = lambda method, path, times: f"status 401 WWW-Authenticate={challenge}"
    with pytest.raises(ImageError, match=said):
        pull(elsewhere, proxy.host, "a:1")


def test_the_store_is_private_to_nobody_and_a_pulled_tree_to_its_owner(
    elsewhere: Images, pushed: Descriptor, proxy: Proxy, journal: Journal
) -> None:
    pulled = pull(elsewhere, proxy.host, "faults/app:1", journal=journal)
    assert stat.S_IMODE(elsewhere.layout.path(pushed).stat().st_mode) == 0o644
    assert stat.S_IMODE(elsewhere.trees.stat().st_mode) == 0o700
    assert elsewhere.tree(pulled.stored, journal).path.parent == elsewhere.trees
