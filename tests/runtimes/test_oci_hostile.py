"""Layers that mean harm: each ends with an ImageError within five seconds, and nothing around the tree has changed."""

from __future__ import annotations

import gzip
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard
from handmade import (
    config_of,
    content,
    device,
    extension,
    file,
    folder,
    header,
    image_of,
    image_of_blob,
    image_of_tars,
    manifest_of,
    records,
    symlink,
    tar,
)
from hostile_layers import BLOBS, CONTAINED, DAMAGED, ESCAPES, GZIPPED, LAYER_ZSTD, SPARSE
from sentinels import BUDGET, allocated, in_child, placed, refuse, sentinel, unpack

from bench.errors import ImageError
from runtimes.oci.descriptor import CONFIG, INDEX, MANIFEST, Descriptor, canonical_json
from runtimes.oci.layer import store_layer
from runtimes.oci.layout import Layout
from runtimes.oci.stream import LayerStream
from runtimes.oci.unpack import TreeWriter

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(os.geteuid() != 0, reason="as root there is more to break: owners, devices, attributes"),
]


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    """An empty directory amid what must not change."""
    with sentinel(tmp_path / "outside") as where:
        yield where


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "images")


def test_the_hostile_layers_are_many_and_all_different() -> None:
    escapes = {tar(*members) for members in (*ESCAPES.values(), *CONTAINED.values())}
    assert len(escapes) == len(ESCAPES) + len(CONTAINED) >= 80
    assert len({*DAMAGED.values(), *SPARSE.values()}) == len(DAMAGED) + len(SPARSE) >= 80
    assert len(set(BLOBS.values())) == len(BLOBS) >= 30


@pytest.mark.parametrize("name", ESCAPES)
def test_an_escape_is_refused(layout: Layout, tree: Path, name: str) -> None:
    members = [placed(member, tree) for member in ESCAPES[name]]
    assert unpack(layout, image_of_tars(layout, tar(*members)), tree).hint


@pytest.mark.parametrize("name", ESCAPES)
def test_an_escape_in_an_upper_layer_is_refused(layout: Layout, tree: Path, name: str) -> None:
    *below, last = [placed(member, tree) for member in ESCAPES[name]]
    refuse(layout, image_of_tars(layout, tar(*below), tar(last)), tree)


@pytest.mark.parametrize("name", ESCAPES)
def test_an_escape_with_a_layer_for_each_entry_is_refused(layout: Layout, tree: Path, name: str) -> None:
    layers = [tar(placed(member, tree)) for member in ESCAPES[name]]
    refuse(layout, image_of_tars(layout, *layers), tree)


@pytest.mark.parametrize("name", [*DAMAGED, *SPARSE])
def test_a_damaged_tar_is_refused(layout: Layout, tree: Path, name: str) -> None:
    refuse(layout, image_of_tars(layout, {**DAMAGED, **SPARSE}[name]), tree)


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("name", CONTAINED)
def test_what_only_looks_like_an_escape_stays_inside(layout: Layout, tree: Path, name: str, apart: bool) -> None:
    members = [placed(member, tree) for member in CONTAINED[name]]
    layers = [tar(member) for member in members] if apart else [tar(*members)]
    assert unpack(layout, image_of_tars(layout, *layers), tree).error == ""
    assert (tree / "new").read_bytes() == b"x"
    assert not (tree / "new").is_symlink()


@pytest.mark.parametrize("name", BLOBS)
def test_a_blob_that_is_not_what_its_type_says_is_refused(layout: Layout, tree: Path, name: str) -> None:
    blob, media_type = BLOBS[name]
    refuse(layout, image_of_blob(layout, blob, tar(file("a")), media_type), tree)


BOMB = header("bomb", size=b"%011o" % 2**30)
ZEROS = bytes(2**26)
BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "gzip": (lambda: gzip.compress(BOMB) + gzip.compress(ZEROS, 9) * 16, "gzip"),
    "gzip, behind the end of the tar": (lambda: gzip.compress(tar(file("a"))) + gzip.compress(ZEROS, 9), "gzip"),
    "gzip, in one member": (lambda: gzip.compress(BOMB + ZEROS * 4, 9), "gzip"),
    "gzip, of small files": (lambda: gzip.compress(b"".join(header(f"{n}") for n in range(10_000)), 9), "gzip"),
    "gzip, of empty directories": (
        lambda: gzip.compress(b"".join(header(f"{n}", b"5") for n in range(10_000)), 9), "gzip"),
    "zstd": (lambda: zstandard.compress(BOMB + ZEROS * 4), "zstd"),
    "zstd, of many frames": (lambda: zstandard.compress(BOMB) + zstandard.compress(ZEROS) * 16, "zstd"),
    "zstd, behind the end of the tar": (lambda: zstandard.compress(tar(file("a")) + ZEROS), "zstd"),
    "zstd, with the largest window": (lambda: zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(window_log=27)).compress(BOMB + ZEROS * 4), "zstd"),
    "no compression, and holes": (lambda: extension(records(
        GNU__sparse__major="1", GNU__sparse__minor="0", GNU__sparse__realsize=str(2**20)))
        .join([b"", *[header("a", size=b"00000001000") + content(b"0\n")] * 40]), "none"),
}  # fmt: skip
MEDIA_TYPES = {"gzip": "+gzip", "zstd": "+zstd", "none": ""}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_stops_within_its_budget(layout: Layout, tree: Path, name: str) -> None:
    make, compression = BOMBS[name]
    media_type = f"application/vnd.oci.image.layer.v1.tar{MEDIA_TYPES[compression]}"
    descriptor = image_of_blob(layout, make(), b"", media_type)
    budget_bytes = 2**22 if "of" in name else BUDGET  # thousands of files take time, honest ones too
    assert "allowed" in refuse(layout, descriptor, tree, budget_bytes)


def test_many_layers_share_one_budget(layout: Layout, tree: Path) -> None:
    layers = [tar(file(f"f{number}", bytes(2**20))) for number in range(20)]
    assert "allowed" in refuse(layout, image_of_tars(layout, *layers), tree)


def test_a_file_with_holes_takes_of_the_budget_what_reading_it_gives(layout: Layout, tree: Path) -> None:
    fields = {"GNU__sparse__major": "1", "GNU__sparse__minor": "0", "GNU__sparse__realsize": str(BUDGET // 2)}
    one, two = (
        extension(records(**fields)) + header(name, size=b"00000001000") + content(b"0\n") for name in ("a", "b")
    )
    assert unpack(layout, image_of_tars(layout, one), tree).error == ""
    assert (tree / "a").stat().st_size == BUDGET // 2
    assert allocated(tree) == 0
    assert "allowed" in refuse(layout, image_of_tars(layout, one, two), tree)


def test_more_entries_than_allowed_are_refused(tmp_path: Path) -> None:
    with TreeWriter(tmp_path, max_entries=10) as writer, pytest.raises(ImageError, match="more entries"):
        writer.apply(LayerStream([tar(*(file(f"f{number}", b"") for number in range(11)))], BUDGET))


def test_whiteouts_repeated_without_end_cost_no_more_than_one(tmp_path: Path) -> None:
    count = 3000
    lower = tar(folder("d"), *(file(f"d/{number}", b"") for number in range(count)))
    again = [file("d/.wh..wh..opq", b"")] * count
    upper = tar(folder("d"), *(file(f"d/new{number}", b"") for number in range(count)), *again)

    def work() -> None:
        with TreeWriter(tmp_path) as writer:
            writer.apply(LayerStream([lower], BUDGET))
            writer.apply(LayerStream([upper], BUDGET))
            writer.finish()

    assert in_child(work).error == ""
    assert len(list((tmp_path / "d").iterdir())) == count


def test_a_lying_diff_id_is_refused(layout: Layout, tree: Path) -> None:
    descriptor = image_of_blob(layout, GZIPPED, b"something else")
    assert "unpacks to" in refuse(layout, descriptor, tree)


def test_a_cut_zstd_layer_is_refused(layout: Layout, tree: Path) -> None:
    plain = tar(file("a", os.urandom(2**20)), file("b", os.urandom(2**20)))
    blob = zstandard.compress(plain)
    end = 2**20 + 512  # of the first file: a good tar as far as it goes
    cut = zstandard.compress(plain[:end])
    assert "unpacks to" in refuse(layout, image_of_blob(layout, cut, plain, LAYER_ZSTD), tree)
    (tree / "a").unlink()
    assert refuse(layout, image_of_blob(layout, blob[:-7], plain, LAYER_ZSTD), tree)


def test_a_layer_that_is_not_its_digest_is_refused(layout: Layout, tree: Path) -> None:
    layer = store_layer(layout, [tar(file("a"))])
    other = store_layer(layout, [tar(file("b"))])
    descriptor = image_of(layout, layer)
    layout.path(layer.descriptor).write_bytes(layout.path(other.descriptor).read_bytes())
    assert "not what its name says" in refuse(layout, descriptor, tree)


@pytest.mark.parametrize("change", [-1, 1, 2**40])
def test_a_layer_of_another_size_is_refused(layout: Layout, tree: Path, change: int) -> None:
    layer = store_layer(layout, [tar(file("a"))])
    lying = replace(layer.descriptor, size=layer.descriptor.size + change)
    refuse(layout, image_of(layout, replace(layer, descriptor=lying)), tree)


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
def test_a_manifest_that_contradicts_itself_is_refused(layout: Layout, tree: Path, number: int) -> None:
    cases = list(_manifests(layout).values())
    assert len(cases) == 17
    refuse(layout, cases[number](), tree)


def test_device_nodes_are_made_where_named_and_nowhere_else(layout: Layout, tree: Path) -> None:
    disk = device("d", stat.S_IFBLK, (8, 0))
    secret = str(tree.parent.parent / "secret")
    assert unpack(layout, image_of_tars(layout, tar(symlink("d", secret), disk)), tree).error == ""
    assert stat.S_ISBLK((tree / "d").lstat().st_mode)
    assert stat.S_IMODE((tree / "d").lstat().st_mode) == 0o600


def test_no_blob_is_trusted_before_its_last_byte(layout: Layout, tree: Path) -> None:
    """A layer whose tar is good and whose blob goes on: the digest is only known at the end."""
    blob = GZIPPED + gzip.compress(b"")
    descriptor = image_of_blob(layout, blob, tar(file("a")))
    layer_path = layout.root / "blobs" / "sha256" / hashlib.sha256(blob).hexdigest()
    layer_path.write_bytes(blob[:-1] + b"\xff")
    refuse(layout, descriptor, tree)


def test_the_sentinel_sees_what_an_escape_would_change(tmp_path: Path) -> None:
    """Each of these is something a broken unpacker did once; a sentinel that is blind to one shows nothing."""
    escapes: list[Callable[[Path], object]] = [
        lambda where: (where / "secret").write_text("sentinel secreT"),
        lambda where: os.utime(where / "below/file", ns=(1, 1)),
        lambda where: (where / "below/file").touch(),
        lambda where: os.chown(where / "to-tree", 1, 1, follow_symlinks=False),
        lambda where: (where / "script").chmod(0o4755),
        lambda where: (where / "jail/tree/link").hardlink_to(where / "secret"),
        lambda where: os.setxattr(where / "below", "user.x", b"1"),
        lambda where: (where / "new").touch(),
        lambda where: (where / "jail/beside/file").unlink(),
        lambda where: (where / "jail/tree").rename(where / "jail/moved"),
    ]
    for number, escape in enumerate(escapes):
        with pytest.raises(AssertionError), sentinel(tmp_path / str(number)):
            escape(tmp_path / str(number))


def test_the_child_that_unpacks_is_killed_if_it_hangs() -> None:
    with pytest.raises(AssertionError, match="SIGKILL"):
        in_child(lambda: time.sleep(60), wall_seconds=0.2)
    with pytest.raises(AssertionError, match="SIGXCPU"):
        in_child(lambda: all(iter(int, 1)) or any(iter(int, 1)), cpu_seconds=1)
    with pytest.raises(AssertionError, match="crashed"):
        in_child(lambda: 1 / 0)
