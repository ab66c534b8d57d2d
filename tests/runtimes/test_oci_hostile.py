"""Layers that mean harm: each ends with an ImageError, soon, and nothing outside the tree has changed."""

from __future__ import annotations

import gzip
import hashlib
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from handmade import (
    config_of,
    device,
    file,
    fingerprint,
    folder,
    hard_link,
    image_of,
    image_of_blob,
    image_of_tars,
    manifest_of,
    symlink,
    tar,
)

from bench.errors import ImageError
from runtimes.oci.descriptor import CONFIG, INDEX, LAYER_GZIP, MANIFEST, Descriptor, canonical_json
from runtimes.oci.layer import Member, store_layer
from runtimes.oci.layout import Layout
from runtimes.oci.stream import LayerStream
from runtimes.oci.trees import unpack_image
from runtimes.oci.unpack import TreeWriter

BUDGET = 2**24
OUTSIDE = "@OUTSIDE@"
"""Stands for the absolute path of the sentinel directory, in names and link targets."""

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A directory that must not change, with the tree to unpack to beside what an escape would reach."""
    where = tmp_path / "outside"
    (where / "below").mkdir(parents=True)
    (where / "secret").write_text("sentinel")
    (where / "below" / "file").write_text("sentinel")
    (where / "script").write_text("#!/bin/sh\n")
    (where / "script").chmod(0o755)
    before = fingerprint(where)
    yield where
    assert fingerprint(where) == before


def header(name: str = "a", kind: bytes = b"0", link: str = "", **fields: bytes) -> bytes:
    """A ustar header with any field as given, and a checksum that fits."""
    at = {"name": (0, 100), "mode": (100, 8), "uid": (108, 8), "size": (124, 12), "mtime": (136, 12)}
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    for field, value in fields.items():
        start, length = at[field]
        block[start : start + length] = value.ljust(length, b"\0")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def base256(number: int) -> bytes:
    return bytes([0x80]) + number.to_bytes(11, "big")


def pax(record: bytes, name: str = "a") -> bytes:
    return header("x", b"x", size=b"%011o" % len(record)) + record.ljust(512, b"\0") + header(name)


ESCAPES: dict[str, list[Member]] = {
    "a name that climbs": [file("../secret")],
    "a name that climbs from within": [folder("a"), file("a/../../secret")],
    "a name that climbs and comes back": [folder("a"), file("a/../b")],
    "a name that is only ..": [folder("..")],
    "an absolute name": [file(f"{OUTSIDE}/secret")],
    "the root itself, absolute": [folder("/")],
    "a directory that climbs": [folder("../new")],
    "a link to outside, then a file through it": [symlink("a", OUTSIDE), file("a/secret")],
    "a link to outside, then a new file through it": [symlink("a", OUTSIDE), file("a/new")],
    "a link to outside, then a directory through it": [symlink("a", OUTSIDE), folder("a/new")],
    "a link through a link to outside": [symlink("a", OUTSIDE), symlink("b", "a/below"), file("b/file")],
    "a relative link that climbs far": [symlink("a", "../" * 60 + OUTSIDE.lstrip("/")), file("a/secret")],
    "a link to /proc/self/cwd": [folder("d"), symlink("a", "/proc/self/cwd"), file("a/new")],
    "a link to /proc/self/root": [symlink("a", "/proc/self/root"), file(f"a{OUTSIDE}/secret")],
    "a link into /proc/self/fd": [symlink("a", "/proc/self/fd/3"), file("a/new")],
    "links in a circle": [symlink("a", "b"), symlink("b", "a"), file("a/x")],
    "a link to itself": [symlink("a", "a"), file("a/x")],
    "a chain of too many links": [
        *(symlink(f"l{n}", f"l{n + 1}") for n in range(60)), folder("l60"), file("l0/x")],
    "a file as a parent": [file("a"), file("a/b")],
    "a dangling link as a parent": [symlink("a", "none"), file("a/b")],
    ". as a symbolic link": [symlink(".", OUTSIDE)],
    "./ as a symbolic link": [symlink("./", OUTSIDE)],
    ". as a file": [file(".")],
    ". as a hard link": [file("a"), hard_link(".", "a")],
    ". as a device": [device(".")],
    "a hard link that climbs": [hard_link("a", "../secret")],
    "a hard link to an absolute name": [hard_link("a", f"{OUTSIDE}/secret")],
    "a hard link through a link to outside": [symlink("d", OUTSIDE), hard_link("a", "d/secret")],
    "a hard link to a directory": [folder("d"), hard_link("a", "d")],
    "a hard link to the root": [hard_link("a", ".")],
    "a hard link to nothing": [hard_link("a", "none")],
    "a hard link to itself": [hard_link("a", "a")],
    "hard links in a circle": [hard_link("a", "b"), hard_link("b", "a")],
    "a whiteout of the parent": [file(".wh...", b"")],
    "a whiteout of the directory itself": [file(".wh..", b"")],
    "a whiteout of no name": [file(".wh.", b"")],
    "a whiteout that climbs": [file("../.wh.secret", b"")],
    "a whiteout through a link to outside": [symlink("a", OUTSIDE), file("a/.wh.secret", b"")],
    "an opaque marker through a link to outside": [symlink("a", OUTSIDE), file("a/.wh..wh..opq", b"")],
    "a name longer than the host allows": [file("n" * 256)],
    "a path longer than the host allows": [file("/".join(["d" * 200] * 30))],
    "directories nested too deeply": [folder("/".join("d" * 300))],
    "directories nested too deeply through links": [
        folder("/".join("d" * 200)), symlink("l", "/".join("d" * 200)), folder("l/" + "/".join("e" * 100) + "/f/g")],
    "a link target longer than the host allows": [symlink("a", "t" * 5000)],
    "a link without a target": [symlink("a", "")],
    "an attribute that steers overlayfs": [file("a", xattrs={"trusted.overlay.redirect": b"/etc"})],
    "an attribute that steers an unprivileged overlay": [folder("a", xattrs={"user.overlay.opaque": b"y"})],
    "an attribute that is too large": [file("a", xattrs={"user.big": b"x" * 70_000})],
}  # fmt: skip

DAMAGED: dict[str, bytes] = {
    "an empty layer": b"",
    "half a header": header()[:300],
    "a header and nothing": header(size=b"00000001000"),
    "content that is cut": header(size=b"00000001000") + bytes(100),
    "no end": header(),
    "a wrong checksum": header()[:148] + b"0000000\0" + header()[156:] + bytes(1024),
    "a size of 8 GiB": header(size=b"77777777777") + bytes(1024),
    "a size of 2^70": header(size=base256(2**70)) + bytes(1024),
    "a negative size": header(size=b"\xff" * 12) + bytes(1024),
    "a size that is no number": header(size=b"9z") + bytes(1024),
    "a pax size of 2^60": pax(b"29 size=1152921504606846976\n\n") + bytes(1024),
    "an extended header of 1 GiB": header("x", b"x", size=b"10000000000") + bytes(4096),
    "a long name of 1 GiB": header("x", b"L", size=b"10000000000") + bytes(4096),
    "an extended header and nothing": pax(b"11 path=ab\n")[:1024] + bytes(1024),
    "a pax record without length": pax(b"path=a\n") + bytes(1024),
    "a pax record that claims too much": pax(b"99 path=a\n") + bytes(1024),
    "a pax record of length nought": pax(b"0 path=a\n") + bytes(1024),
    "a pax record without value": pax(b"7 path\n") + bytes(1024),
    "a pax name with NUL": pax(b"12 path=a\0b\n") + bytes(1024),
    "a pax name that climbs": pax(b"18 path=../secret\n") + bytes(1024),
    "a pax time that is none": pax(b"15 mtime=never\n") + bytes(1024),
    "a time beyond all clocks": pax(b"22 mtime=999999999999\n") + bytes(1024),
    "an owner beyond all ids": pax(b"18 uid=4294967295\n") + bytes(1024),
    "a negative owner": header(uid=b"\xff" * 8) + bytes(1024),
    "a sparse file": pax(b"22 GNU.sparse.major=1\n") + bytes(1024),
    "an old sparse file": header(kind=b"S") + bytes(1024),
    "a type that nobody knows": header(kind=b"Q") + bytes(1024),
    "a multi-volume part": header(kind=b"M") + bytes(1024),
    "text": b"#!/bin/sh\n" * 200,
}  # fmt: skip


def place(member: Member, outside: Path) -> Member:
    return replace(
        member, path=member.path.replace(OUTSIDE, str(outside)), link=member.link.replace(OUTSIDE, str(outside))
    )


def refuse(layout: Layout, descriptor: Descriptor, outside: Path, budget_bytes: int = BUDGET) -> ImageError:
    target = outside.parent / "tree"
    target.mkdir()
    with pytest.raises(ImageError) as caught:
        unpack_image(layout, descriptor, target, budget_bytes)
    return caught.value


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "images")


@pytest.mark.parametrize("name", ESCAPES)
def test_an_escape_is_refused(layout: Layout, outside: Path, name: str) -> None:
    members = [place(member, outside) for member in ESCAPES[name]]
    error = refuse(layout, image_of_tars(layout, tar(*members)), outside)
    assert error.hint


@pytest.mark.parametrize("name", ESCAPES)
def test_an_escape_in_an_upper_layer_is_refused(layout: Layout, outside: Path, name: str) -> None:
    *below, last = [place(member, outside) for member in ESCAPES[name]]
    refuse(layout, image_of_tars(layout, tar(*below), tar(last)), outside)


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_tar_is_refused(layout: Layout, outside: Path, name: str) -> None:
    refuse(layout, image_of_tars(layout, DAMAGED[name]), outside)


CONTAINED: dict[str, list[Member]] = {
    "a link to the host's root": [symlink("a", "/"), file("a/new", b"x")],
    "a link that climbs above the root": [symlink("a", "../../.."), file("a/new", b"x")],
    "a file in place of a link to a secret": [symlink("new", f"{OUTSIDE}/secret"), file("new", b"x")],
    "a file in place of a hard link to a link": [
        symlink("s", f"{OUTSIDE}/secret"), hard_link("new", "s"), file("new", b"x")],
    "a directory in place of a link": [symlink("d", OUTSIDE), folder("d", 0o777), file("d/secret"), file("new", b"x")],
    "a whiteout of a link": [symlink("d", OUTSIDE), file("new", b"x"), file(".wh.d", b"")],
    "a mode for a link": [symlink("s", f"{OUTSIDE}/script"), file("new", b"x")],
    "a whiteout of a directory that holds a link": [
        folder("d"), symlink("d/l", OUTSIDE), folder("d/e"), file("new", b"x"), file(".wh.d", b"")],
}  # fmt: skip


@pytest.mark.parametrize("name", CONTAINED)
def test_what_only_looks_like_an_escape_stays_inside(layout: Layout, outside: Path, name: str) -> None:
    members = [place(member, outside) for member in CONTAINED[name]]
    target = outside.parent / "tree"
    target.mkdir()
    unpack_image(layout, image_of_tars(layout, *(tar(member) for member in members)), target, BUDGET)
    assert (target / "new").read_bytes() == b"x"
    assert not (target / "new").is_symlink()


def gzip_of_zeros(count: int) -> bytes:
    return gzip.compress(bytes(count), 9)


def test_a_gzip_bomb_stops_at_the_budget(layout: Layout, outside: Path) -> None:
    content = header("bomb", size=b"%011o" % 2**30)
    bomb = gzip.compress(content) + gzip_of_zeros(2**26) * 16
    refuse(layout, image_of_blob(layout, bomb, b""), outside)
    assert sum(path.stat().st_size for path in (outside.parent / "tree").rglob("*")) <= BUDGET


def test_a_bomb_behind_the_end_of_the_tar_stops_at_the_budget(layout: Layout, outside: Path) -> None:
    bomb = gzip.compress(tar(file("a"))) + gzip_of_zeros(2**26)
    assert "allowed" in refuse(layout, image_of_blob(layout, bomb, b""), outside).message


def test_a_zstd_bomb_stops_at_the_budget(layout: Layout, outside: Path) -> None:
    import zstandard

    bomb = zstandard.compress(header("bomb", size=b"%011o" % 2**28) + bytes(2**28))
    media_type = "application/vnd.oci.image.layer.v1.tar+zstd"
    refuse(layout, image_of_blob(layout, bomb, b"", media_type), outside)


def test_many_layers_share_one_budget(layout: Layout, outside: Path) -> None:
    layers = [tar(file(f"f{number}", bytes(2**20))) for number in range(20)]
    assert "allowed" in refuse(layout, image_of_tars(layout, *layers), outside).message


def test_more_entries_than_allowed_are_refused(tmp_path: Path) -> None:
    with TreeWriter(tmp_path, max_entries=10) as writer, pytest.raises(ImageError, match="more entries"):
        writer.apply(LayerStream([tar(*(file(f"f{number}", b"") for number in range(11)))], BUDGET))


def test_whiteouts_repeated_without_end_cost_no_more_than_one(tmp_path: Path) -> None:
    count = 3000
    lower = tar(folder("d"), *(file(f"d/{number}", b"") for number in range(count)))
    again = [file("d/.wh..wh..opq", b"")] * count
    upper = tar(folder("d"), *(file(f"d/new{number}", b"") for number in range(count)), *again)
    with TreeWriter(tmp_path) as writer:
        writer.apply(LayerStream([lower], BUDGET))
        writer.apply(LayerStream([upper], BUDGET))
        writer.finish()
    assert len(list((tmp_path / "d").iterdir())) == count


GZIPPED = gzip.compress(tar(file("a")))
BLOBS: dict[str, tuple[bytes, str]] = {
    "gzip that is cut": (GZIPPED[:-12], LAYER_GZIP),
    "gzip with a wrong checksum": (GZIPPED[:-8] + b"\0\0\0\0" + GZIPPED[-4:], LAYER_GZIP),
    "gzip with rubbish behind it": (GZIPPED + b"rubbish", LAYER_GZIP),
    "gzip with rubbish in it": (GZIPPED[:30] + b"\xff" * 10 + GZIPPED[40:], LAYER_GZIP),
    "plain tar said to be gzip": (tar(file("a")), LAYER_GZIP),
    "gzip said to be plain": (GZIPPED, "application/vnd.oci.image.layer.v1.tar"),
    "gzip said to be zstd": (GZIPPED, "application/vnd.oci.image.layer.v1.tar+zstd"),
    "nothing said to be gzip": (b"", LAYER_GZIP),
    "a layer of unknown type": (GZIPPED, "application/vnd.example.layer"),
    "a foreign layer": (GZIPPED, "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"),
    "a config as a layer": (b"{}", CONFIG),
}


@pytest.mark.parametrize("name", BLOBS)
def test_a_blob_that_is_not_what_its_type_says_is_refused(layout: Layout, outside: Path, name: str) -> None:
    blob, media_type = BLOBS[name]
    refuse(layout, image_of_blob(layout, blob, tar(file("a")), media_type), outside)


def test_a_lying_diff_id_is_refused(layout: Layout, outside: Path) -> None:
    descriptor = image_of_blob(layout, GZIPPED, b"something else")
    assert "unpacks to" in refuse(layout, descriptor, outside).message


def test_a_layer_that_is_not_its_digest_is_refused(layout: Layout, outside: Path) -> None:
    layer = store_layer(layout, [tar(file("a"))])
    other = store_layer(layout, [tar(file("b"))])
    descriptor = image_of(layout, layer)
    layout.path(layer.descriptor).write_bytes(layout.path(other.descriptor).read_bytes())
    assert "not what its name says" in refuse(layout, descriptor, outside).message


@pytest.mark.parametrize("change", [-1, 1, 2**40])
def test_a_layer_of_another_size_is_refused(layout: Layout, outside: Path, change: int) -> None:
    layer = store_layer(layout, [tar(file("a"))])
    lying = replace(layer.descriptor, size=layer.descriptor.size + change)
    refuse(layout, image_of(layout, replace(layer, descriptor=lying)), outside)


def _manifests(layout: Layout) -> dict[str, Callable[[], Descriptor]]:
    layer = store_layer(layout, [tar(file("a"))])
    config = layout.add(CONFIG, canonical_json(config_of([layer.diff_id])))
    good = manifest_of(config, [layer.descriptor])

    def stored(document: object, media_type: str = MANIFEST) -> Callable[[], Descriptor]:
        return lambda: layout.add(media_type, canonical_json(document))

    def configured(document: object) -> Callable[[], Descriptor]:
        return stored({**good, "config": layout.add(CONFIG, canonical_json(document)).to_json()})

    return {
        "an index in place of a manifest": stored({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}, INDEX),
        "a manifest said to be an index": stored(good, INDEX),
        "an index said to be a manifest": stored({**good, "mediaType": INDEX}),
        "manifest and index at once": stored({**good, "manifests": []}),
        "schema version 1": stored({**good, "schemaVersion": 1}),
        "no layers": stored({key: value for key, value in good.items() if key != "layers"}),
        "layers that are no list": stored({**good, "layers": {}}),
        "a layer that is no descriptor": stored({**good, "layers": ["sha256:" + "0" * 64]}),
        "no config": stored({key: value for key, value in good.items() if key != "config"}),
        "a config of unknown type": stored({**good, "config": {**config.to_json(), "mediaType": "application/x"}}),
        "a config that is missing": stored({**good, "config": {**config.to_json(), "digest": "sha256:" + "0" * 64}}),
        "a config without rootfs": configured({}),
        "a config with fewer diff_ids": configured(config_of([])),
        "a config with more diff_ids": configured(config_of([layer.diff_id] * 2)),
        "a diff_id that is none": configured(config_of([None])),
        "a diff_id of the compressed bytes": configured(config_of([layer.descriptor.digest])),
        "a list": stored([]),
    }


@pytest.mark.parametrize("number", range(17))
def test_a_manifest_that_contradicts_itself_is_refused(layout: Layout, outside: Path, number: int) -> None:
    cases = list(_manifests(layout).values())
    assert len(cases) == 17
    refuse(layout, cases[number](), outside)


@pytest.mark.skipif(os.geteuid() != 0, reason="device nodes need root")
def test_device_nodes_are_made_where_named_and_nowhere_else(layout: Layout, outside: Path) -> None:
    target = outside.parent / "tree"
    target.mkdir()
    disk = device("d", stat.S_IFBLK, (8, 0))
    unpack_image(layout, image_of_tars(layout, tar(symlink("d", str(outside / "secret")), disk)), target, BUDGET)
    assert stat.S_ISBLK((target / "d").lstat().st_mode)
    assert stat.S_IMODE((target / "d").lstat().st_mode) == 0o600


def test_no_blob_is_trusted_before_its_last_byte(layout: Layout, outside: Path) -> None:
    """A layer whose tar is good and whose blob goes on: the digest is only known at the end."""
    blob = GZIPPED + gzip.compress(b"")
    descriptor = image_of_blob(layout, blob, tar(file("a")))
    layer_path = layout.root / "blobs" / "sha256" / hashlib.sha256(blob).hexdigest()
    layer_path.write_bytes(blob[:-1] + b"\xff")
    refuse(layout, descriptor, outside)
