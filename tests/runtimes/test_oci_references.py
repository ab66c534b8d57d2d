"""References as Docker writes them, platforms, and the quick look-up agreeing with the slow one."""

from __future__ import annotations

import os
import string
import subprocess
import sys
from pathlib import Path

import pytest
from handmade import file, image_of_tars, tar
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.errors import ImageError, UsageError
from bench.journal import Journal
from runtimes.oci import quick
from runtimes.oci.descriptor import MANIFEST, Descriptor
from runtimes.oci.images import Images
from runtimes.oci.platform import Platform, select
from runtimes.oci.reference import Reference

SHA = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "registry", "repository", "tag", "digest", "familiar"),
    [
        ("nginx", "docker.io", "library/nginx", "latest", None, "nginx:latest"),
        ("nginx:1.25-alpine", "docker.io", "library/nginx", "1.25-alpine", None, "nginx:1.25-alpine"),
        ("library/nginx", "docker.io", "library/nginx", "latest", None, "nginx:latest"),
        ("docker.io/nginx", "docker.io", "library/nginx", "latest", None, "nginx:latest"),
        ("index.docker.io/library/nginx:1", "docker.io", "library/nginx", "1", None, "nginx:1"),
        ("team/app", "docker.io", "team/app", "latest", None, "team/app:latest"),
        ("library/a/b", "docker.io", "library/a/b", "latest", None, "library/a/b:latest"),
        ("localhost/app", "localhost", "app", "latest", None, "localhost/app:latest"),
        ("localhost:5000/app:1", "localhost:5000", "app", "1", None, "localhost:5000/app:1"),
        ("127.0.0.1:5000/a/b/c", "127.0.0.1:5000", "a/b/c", "latest", None, "127.0.0.1:5000/a/b/c:latest"),
        ("[::1]:5000/app", "[::1]:5000", "app", "latest", None, "[::1]:5000/app:latest"),
        ("registry.example/app", "registry.example", "app", "latest", None, "registry.example/app:latest"),
        ("Host/app", "Host", "app", "latest", None, "Host/app:latest"),
        (f"nginx@{SHA}", "docker.io", "library/nginx", None, SHA, f"nginx@{SHA}"),
        (f"nginx:1@{SHA}", "docker.io", "library/nginx", None, SHA, f"nginx@{SHA}"),
        ("a--b/c__d.e_f", "docker.io", "a--b/c__d.e_f", "latest", None, "a--b/c__d.e_f:latest"),
    ],
)
def test_a_reference_means_what_docker_takes_it_for(
    text: str, registry: str, repository: str, tag: str | None, digest: str | None, familiar: str
) -> None:
    found = Reference.parse(text)
    assert (found.registry, found.repository, found.tag, found.digest) == (registry, repository, tag, digest)
    assert found.familiar == familiar
    assert Reference.parse(familiar) == found


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it has no name"),
        (":1", "it has no name"),
        ("App", "'App' has capital letters"),
        ("team/App", "'App' has capital letters"),
        ("team//app", "'' is not letters"),
        ("../etc/passwd", "'..' is not a host name"),
        ("team/../app", "'..' is not letters"),
        ("app:", "the tag ''"),
        ("app:a b", "the tag 'a b'"),
        ("app:" + "x" * 129, "1 to 128"),
        ("a" * 64, "an image's id"),
        ("app@sha256:short", "neither a sha256"),
        ("app@md5:" + "a" * 32, "neither a sha256"),
        ("app@", "neither a sha256"),
        ("localhost:port/app", "host name with an optional port"),
        ("-x.y/app", "host name"),
        ("a_b.c/app", "host name"),
        ("x/" + "a" * 300, "longer than 255"),
        ("app\n", "is not letters"),
        ("app:1\n", "the tag"),
        ("https://example.com/app", "host name"),
    ],
)
def test_what_is_no_reference_is_refused_and_the_part_named(text: str, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        Reference.parse(text)
    assert reason in caught.value.message
    assert caught.value.hint


@given(st.text(alphabet=string.ascii_letters + string.digits + ".:/@-_[]\n \0é", max_size=80))
def test_any_text_is_a_reference_that_reads_the_same_again_or_a_usage_error(text: str) -> None:
    try:
        found = Reference.parse(text)
    except UsageError:
        return
    assert Reference.parse(found.familiar) == found
    assert Reference.parse(str(found)) == found


def entry(**platform: object) -> Descriptor:
    digest = f"sha256:{abs(hash(tuple(sorted(platform.items())))):064x}"[:71]
    return Descriptor(MANIFEST, digest, 1, {}, platform)


AMD = entry(os="linux", architecture="amd64")
AMD3 = entry(os="linux", architecture="amd64", variant="v3")
ARM5 = entry(os="linux", architecture="arm", variant="v5")
ARM6 = entry(os="linux", architecture="arm", variant="v6")
ARM7 = entry(os="linux", architecture="arm", variant="v7")
ARM64 = entry(os="linux", architecture="arm64", variant="v8")
WINDOWS = entry(os="windows", architecture="amd64")
ATTESTATION = entry(os="unknown", architecture="unknown")


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        ("linux/amd64", AMD),
        ("amd64", AMD),
        ("x86_64", AMD),
        ("linux/amd64/v3", AMD3),
        ("linux/amd64/v4", AMD3),
        ("linux/amd64/v2", AMD),
        ("linux/arm/v7", ARM7),
        ("arm", ARM7),
        ("linux/arm/v6", ARM6),
        ("linux/arm64", ARM64),
        ("aarch64", ARM64),
        ("windows/amd64", WINDOWS),
    ],
)
def test_an_index_gives_the_image_that_runs_best(wanted: str, chosen: Descriptor) -> None:
    entries = [ATTESTATION, AMD3, WINDOWS, ARM5, ARM7, ARM6, ARM64, AMD]
    assert select(entries, Platform.parse(wanted), "x") is chosen


def test_an_index_without_our_platform_says_what_it_offers() -> None:
    with pytest.raises(ImageError, match=r"offers linux/arm64/v8, windows/amd64$"):
        select([ATTESTATION, WINDOWS, ARM64], Platform.parse("linux/riscv64"), "x")


@pytest.mark.parametrize("text", ["", "linux/", "a/b/c/d", "linux/amd 64", "linux/../x"])
def test_what_is_no_platform_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Platform.parse(text)


def test_this_host_has_a_platform() -> None:
    here = Platform.here()
    assert select([ATTESTATION, ARM64 if here.architecture == "amd64" else AMD, entry(**vars(here))], here, "x")


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.mark.parametrize(
    ("stored", "asked"),
    [
        (
            "nginx:latest",
            ["nginx", "nginx:latest", "docker.io/nginx", "docker.io/library/nginx", "index.docker.io/nginx"],
        ),
        ("team/app:1", ["team/app:1", "docker.io/team/app:1"]),
        ("localhost:5000/app:latest", ["localhost:5000/app"]),
        (f"nginx@{SHA}", [f"nginx@{SHA}", f"library/nginx@{SHA}"]),
    ],
)
def test_the_quick_look_up_finds_what_the_slow_one_finds(
    state: Path, journal: Journal, stored: str, asked: list[str]
) -> None:
    images = Images(state)
    descriptor = image_of_tars(images.layout, tar(file("a", b"x")))
    images.layout.tag(stored, descriptor)
    found = images.find(stored)
    assert quick.lookup(str(state), "not-there") is None
    tree = images.tree(found, journal)
    fd = quick.hold(str(state))
    for text in asked:
        assert images.find(text).descriptor.digest == descriptor.digest
        got = quick.lookup(str(state), text)
        assert got is not None, text
        assert got[:2] == (descriptor.digest, str(tree.path))
        assert got[2] == {key: value for key, value in found.config.items() if key not in ("history", "rootfs")}
    os.close(fd)


def test_the_quick_look_up_of_an_image_that_was_not_unpacked_leaves_it_to_the_slow_one(tmp_path: Path) -> None:
    assert quick.lookup(str(tmp_path), "a") is None
    images = Images(tmp_path)
    images.layout.tag("a:latest", image_of_tars(images.layout, tar(file("a"))))
    assert quick.lookup(str(tmp_path), "a") is None
    (tmp_path / "images/index.json").write_text('{"manifests": [')
    assert quick.lookup(str(tmp_path), "a") is None


def test_the_quick_look_up_imports_nothing_heavy() -> None:
    heavy = "{'re', 'json', 'typing', 'pathlib', 'dataclasses', 'enum', 'hashlib', 'contextlib', 'subprocess'}"
    code = f"import sys; import runtimes.oci.quick; print(sorted({heavy} & set(sys.modules)))"
    # -S: what site imports for an editable install is not ours
    ended = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert ended.stdout.strip() == "[]"


PARTS = ["docker.io", "index.docker.io", "library", "localhost", "localhost:5000", "a", "b.c", "H", "a:1", "", "a@x"]


@settings(max_examples=500)
@given(st.lists(st.sampled_from(PARTS), min_size=1, max_size=5).map("/".join))
def test_the_quick_name_is_never_that_of_another_image(text: str) -> None:
    found = quick._familiar(text)
    try:
        familiar = Reference.parse(text).familiar
    except UsageError:
        return
    # the store only has familiar names: one that is not familiar finds nothing, and the slow way is taken
    assert found == familiar or Reference.parse(found).familiar != found


def test_a_repository_of_docker_hub_that_looks_like_a_host_stays_there() -> None:
    found = Reference.parse("docker.io/localhost/app")
    assert (found.registry, found.repository) == ("docker.io", "localhost/app")
    assert found.familiar == "docker.io/localhost/app:latest" == quick._familiar("docker.io/localhost/app")
