"""Import and export: what skopeo writes is read, what we write it reads, and hostile archives get nothing."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard
from handmade import device, file, fingerprint, folder, hard_link, image_of_tars, symlink, tar

from bench.errors import HostError, ImageError, UsageError
from bench.journal import Journal, read_journals
from runtimes.oci.descriptor import DOCKER_INDEX, INDEX, MANIFEST, REFERENCE_NAME, Descriptor, canonical_json
from runtimes.oci.exporting import export
from runtimes.oci.images import Images
from runtimes.oci.importing import Importer
from runtimes.oci.platform import Platform

TREE = tar(
    folder("etc"),
    file("etc/a", b"one"),
    symlink("link", "etc/a"),
    hard_link("hard", "etc/a"),
    file("suid", mode=0o4755),
)


@pytest.fixture
def images(tmp_path: Path) -> Images:
    return Images(tmp_path / "state")


@pytest.fixture
def elsewhere(tmp_path: Path) -> Images:
    return Images(tmp_path / "elsewhere")


@pytest.fixture
def image(images: Images) -> Descriptor:
    descriptor = image_of_tars(images.layout, TREE, tar(file("etc/a", b"two"), file("big", os.urandom(2**20))))
    images.layout.tag("team/app:1", descriptor)
    return descriptor


def take(images: Images, source: Path | io.BytesIO, name: str | None = None, **more: Any) -> list[str]:
    return [stored.reference for stored in Importer(images, Platform.here(), **more).take(source, name)]


def nothing_is_named(images: Images) -> bool:
    blobs = list((images.layout.root / "blobs").glob("*/*"))
    assert all(hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name for blob in blobs)
    assert list((images.layout.root / "ingest").iterdir()) == []
    return not images.layout.references()


@pytest.mark.parametrize("form", ["oci", "oci-dir", "docker"])
def test_what_is_exported_comes_back_the_same(
    images: Images, elsewhere: Images, image: Descriptor, journal: Journal, tmp_path: Path, form: str
) -> None:
    stored = images.find("team/app:1")
    images.tag(stored, "second:2")
    target = tmp_path / "archive"
    export(images, [stored, images.find("second:2")], target, form, journal)
    assert sorted(take(elsewhere, target)) == ["second:2", "team/app:1"]
    back = elsewhere.find("team/app:1")
    assert back.id == stored.id == elsewhere.find("second:2").id
    if form != "docker":
        assert back.descriptor.digest == image.digest
    mine = fingerprint(images.tree(stored, journal).path)
    assert fingerprint(elsewhere.tree(back, journal).path) == mine


@pytest.mark.parametrize("form", ["oci", "docker"])
def test_the_same_image_gives_the_same_bytes(
    images: Images, image: Descriptor, journal: Journal, tmp_path: Path, form: str
) -> None:
    outputs = [io.BytesIO(), io.BytesIO()]
    for output in outputs:
        export(images, [images.find("team/app:1")], output, form, journal)
    assert outputs[0].getvalue() == outputs[1].getvalue()


@pytest.mark.parametrize(
    ("form", "transport"), [("oci", "oci-archive"), ("oci-dir", "oci"), ("docker", "docker-archive")]
)
def test_skopeo_reads_what_we_write(
    images: Images, image: Descriptor, journal: Journal, tmp_path: Path, form: str, transport: str
) -> None:
    export(images, [images.find("team/app:1")], tmp_path / "archive", form, journal)
    source = f"{transport}:{tmp_path}/archive:team/app:1"
    config = subprocess.run(["skopeo", "inspect", "--raw", "--config", source], capture_output=True, check=True).stdout
    assert f"sha256:{hashlib.sha256(config).hexdigest()}" == images.find("team/app:1").id
    subprocess.run(["skopeo", "copy", source, f"oci:{tmp_path}/copy:1"], check=True, capture_output=True)
    unpack = ["umoci", "unpack", "--image", f"{tmp_path}/copy:1", str(tmp_path / "bundle")]
    subprocess.run(unpack, check=True, capture_output=True)
    theirs = fingerprint(tmp_path / "bundle/rootfs")
    ours = fingerprint(images.tree(images.find("team/app:1"), journal).path)
    assert {**theirs, ".": None} == {**ours, ".": None}  # umoci dates the root directory today
    if form != "docker":
        index = json.loads((tmp_path / "copy/index.json").read_text())
        assert index["manifests"][0]["digest"] == image.digest


@pytest.mark.parametrize("transport", ["oci-archive", "oci", "docker-archive"])
def test_we_read_what_skopeo_writes(
    images: Images, elsewhere: Images, image: Descriptor, journal: Journal, tmp_path: Path, transport: str
) -> None:
    subprocess.run(
        ["skopeo", "copy", f"oci:{images.layout.root}:team/app:1", f"{transport}:{tmp_path}/archive:team/app:1"],
        check=True, capture_output=True,
    )  # fmt: skip
    assert take(elsewhere, tmp_path / "archive") == ["team/app:1"]
    back = elsewhere.find("team/app:1")
    assert back.id == images.find("team/app:1").id
    assert fingerprint(elsewhere.tree(back, journal).path) == fingerprint(
        images.tree(images.find("team/app:1"), journal).path
    )


COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    "none": bytes,
    "gzip": gzip.compress,
    "zstd": lambda data: zstandard.ZstdCompressor().compress(data),
    "xz": lzma.compress,
    "bzip2": bz2.compress,
}


@pytest.mark.parametrize("compression", COMPRESSED)
@pytest.mark.parametrize("streamed", [True, False])
def test_a_root_file_system_becomes_an_image(
    images: Images, journal: Journal, tmp_path: Path, compression: str, streamed: bool
) -> None:
    data = COMPRESSED[compression](TREE)
    (tmp_path / "fs.tar").write_bytes(data)
    source = io.BufferedReader(io.BytesIO(data)) if streamed else tmp_path / "fs.tar"
    assert take(images, source, "mine") == ["mine:latest"]  # type: ignore[arg-type]
    stored = images.find("mine")
    assert Platform.of(stored.config).architecture == Platform.here().architecture
    assert (images.tree(stored, journal).path / "etc/a").read_text() == "one"
    assert nothing_left(images)


def nothing_left(images: Images) -> bool:
    return not list((images.layout.root / "ingest").iterdir())


def test_an_archive_without_a_name_needs_one_and_many_images_cannot_share_one(
    images: Images, elsewhere: Images, image: Descriptor, journal: Journal, tmp_path: Path
) -> None:
    other = image_of_tars(images.layout, tar(file("other")))
    images.layout.tag("other:1", other)
    export(images, [images.find("team/app:1"), images.find("other:1")], tmp_path / "two", "oci", journal)
    with pytest.raises(UsageError, match="holds 2 images: team/app:1, other:1"):
        take(elsewhere, tmp_path / "two", "one:1")
    subprocess.run(
        ["skopeo", "copy", f"oci:{images.layout.root}:team/app:1", f"oci-archive:{tmp_path}/tagged:latest"],
        check=True, capture_output=True,
    )  # fmt: skip
    with pytest.raises(UsageError, match="no full name"):
        take(elsewhere, tmp_path / "tagged")
    (tmp_path / "fs.tar").write_bytes(TREE)
    with pytest.raises(UsageError, match="has no name"):
        take(elsewhere, tmp_path / "fs.tar")
    with pytest.raises(UsageError, match="names a digest"):
        take(elsewhere, tmp_path / "fs.tar", f"a@{image.digest}")
    assert nothing_is_named(elsewhere)
    assert take(elsewhere, tmp_path / "tagged", "one:1") == ["one:1"]


def test_of_an_index_that_is_not_whole_the_image_for_this_host_is_taken(
    images: Images, elsewhere: Images, image: Descriptor, journal: Journal, tmp_path: Path
) -> None:
    here = {"os": "linux", "architecture": Platform.here().architecture}
    mine = Descriptor(MANIFEST, image.digest, image.size, {}, here)
    absent = Descriptor(MANIFEST, "sha256:" + "0" * 64, 10, {}, {"os": "linux", "architecture": "mips"})
    document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [absent.to_json(), mine.to_json()]}
    images.layout.tag("multi:1", images.layout.add(INDEX, canonical_json(document)))
    export(images, [images.find("multi:1")], tmp_path / "archive", "oci", journal)
    assert take(elsewhere, tmp_path / "archive") == ["multi:1"]
    assert elsewhere.find("multi:1").root.digest == image.digest


def test_an_export_that_fails_leaves_nothing(
    images: Images, image: Descriptor, journal: Journal, tmp_path: Path
) -> None:
    stored = images.find("team/app:1")
    images.layout.path(stored.manifest.layers[1][0]).write_bytes(b"rotten")
    for form in ("oci", "oci-dir", "docker"):
        with pytest.raises(ImageError):
            export(
                images, [stored], tmp_path / "out" / "archive" if form == "" else tmp_path / "archive", form, journal
            )
    assert [path.name for path in tmp_path.iterdir() if "archive" in path.name] == []
    with pytest.raises(HostError, match="cannot write"):
        export(images, [stored], tmp_path / "missing/archive", "oci", journal)
    with pytest.raises(UsageError, match="no format"):
        export(images, [stored], tmp_path / "archive", "zip", journal)
    with pytest.raises(UsageError, match="is a directory"):
        export(images, [stored], tmp_path, "oci", journal)
    with pytest.raises(UsageError, match="exists"):
        export(images, [stored], tmp_path, "oci-dir", journal)
    assert [left.entries for left in read_journals(tmp_path / "owned")] == [()]


# --- hostile ones ---------------------------------------------------------------------------------------------------


def archive_of(files: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as writer:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            writer.addfile(info, io.BytesIO(data))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            writer.addfile(info)
    return output.getvalue()


def sha(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def layout_files(**changes: Any) -> dict[str, bytes]:
    """A small image as an OCI layout, with something changed before the digests are taken."""
    layer = gzip.compress(TREE, mtime=0)
    config = json.dumps(
        {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [sha(TREE)]}}
    ).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": sha(config), "size": len(config)},
        "layers": [
            {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": sha(layer), "size": len(layer)}
        ],
        **changes.get("manifest", {}),
    }
    document = json.dumps(manifest).encode()
    entry = {
        "mediaType": MANIFEST, "digest": sha(document), "size": len(document), "annotations": {REFERENCE_NAME: "a/b:1"},
        **changes.get("entry", {}),
    }  # fmt: skip
    return {
        "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
        "index.json": json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode(),
        f"blobs/sha256/{sha(document)[7:]}": document,
        f"blobs/sha256/{sha(config)[7:]}": config,
        f"blobs/sha256/{sha(layer)[7:]}": layer,
    }


def docker_files(diff_id: str = sha(TREE), **changes: Any) -> dict[str, bytes]:
    config = json.dumps(
        {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [diff_id]}}
    ).encode()
    listed = {"Config": "c.json", "RepoTags": ["a/b:1"], "Layers": ["l/layer.tar"], **changes}
    return {"manifest.json": json.dumps([listed]).encode(), "c.json": config, "l/layer.tar": TREE}


def without(files: dict[str, bytes], number: int) -> dict[str, bytes]:
    return {name: data for at, (name, data) in enumerate(files.items()) if at != number}


def flipped(files: dict[str, bytes], number: int) -> dict[str, bytes]:
    return {
        name: data[:-20] + bytes([data[-20] ^ 1]) + data[-19:] if at == number else data
        for at, (name, data) in enumerate(files.items())
    }


BAD = {
    "empty file": b"",
    "noise": os.urandom(5000),
    "gzip of noise": gzip.compress(os.urandom(5000)),
    "zeros": bytes(10240),
    "cut gzip": gzip.compress(TREE)[:-20],
    "cut xz": lzma.compress(TREE)[:-20],
    "cut zstd": zstandard.ZstdCompressor().compress(TREE)[:-10],
    "cut tar": archive_of(layout_files())[:2700],
    "no manifest": archive_of(without(layout_files(), 2)),
    "no config": archive_of(without(layout_files(), 3)),
    "no layer": archive_of(without(layout_files(), 4)),
    "another manifest": archive_of(flipped(layout_files(), 2)),
    "another config": archive_of(flipped(layout_files(), 3)),
    "another layer": archive_of(flipped(layout_files(), 4)),
    "index.json is no JSON": archive_of({**layout_files(), "index.json": b"{"}),
    "index.json lists nothing": archive_of({**layout_files(), "index.json": b'{"manifests": []}'}),
    "index.json is deep": archive_of({**layout_files(), "index.json": b"[" * 100_000}),
    "index.json is huge": archive_of({**layout_files(), "index.json": b" " * (5 * 2**20) + b"{}"}),
    "manifest said to be an index": archive_of(layout_files(entry={"mediaType": INDEX})),
    "manifest said to be Docker's index": archive_of(layout_files(entry={"mediaType": DOCKER_INDEX})),
    "manifest and index at once": archive_of(layout_files(manifest={"manifests": []})),
    "schema 1": archive_of(layout_files(manifest={"schemaVersion": 1})),
    "lying size": archive_of(layout_files(entry={"size": 1})),
    "digest that leads outside": archive_of(layout_files(entry={"digest": "sha256:../../../etc/passwd"})),
    "name that is none": archive_of(layout_files(entry={"annotations": {REFERENCE_NAME: "../../etc/passwd:1"}})),
    "wrong diff_id": archive_of(docker_files(sha(b"else"))),
    "diff_id that is no text": archive_of(docker_files([1])),  # type: ignore[arg-type]
    "no such layer": archive_of(docker_files(Layers=["missing"])),
    "layer outside": archive_of(docker_files(Layers=["../../../../../../etc/passwd"])),
    "config outside": archive_of(docker_files(Config="/etc/passwd")),
    "fewer layers": archive_of(docker_files(Layers=[])),
    "layers that are no list": archive_of(docker_files(Layers=1)),
    "manifest.json of nothing": archive_of({**docker_files(), "manifest.json": b"[]"}),
    "manifest.json is an object": archive_of({**docker_files(), "manifest.json": b"{}"}),
    "name that is a command": archive_of(docker_files(RepoTags=["$(reboot)"])),
    "links in a circle": archive_of(without(docker_files(), 2), {"l/layer.tar": "../m", "m": "l/layer.tar"}),
    "link outside": archive_of(without(docker_files(), 2), {"l/layer.tar": "../../../../etc/passwd"}),
    "layer of bzip2": archive_of({**docker_files(), "l/layer.tar": bz2.compress(TREE)}),
    "layer that is no gzip inside": archive_of({**docker_files(), "l/layer.tar": b"\x1f\x8b" + bytes(100)}),
}


@pytest.mark.parametrize("name", BAD)
def test_a_hostile_archive_is_refused_and_nothing_gets_a_name(elsewhere: Images, tmp_path: Path, name: str) -> None:
    (tmp_path / "archive").write_bytes(BAD[name])
    with pytest.raises((ImageError, UsageError)) as caught:
        take(elsewhere, tmp_path / "archive", None if name.startswith("name") else "mine:1")
    assert caught.value.message
    assert nothing_is_named(elsewhere)


def test_the_good_ones_of_these_are_good(elsewhere: Images, tmp_path: Path) -> None:
    (tmp_path / "layout").write_bytes(archive_of(layout_files()))
    (tmp_path / "docker").write_bytes(archive_of(docker_files()))
    linked = without(docker_files(), 2)
    (tmp_path / "linked").write_bytes(archive_of({**linked, "m": TREE}, {"l/layer.tar": "../m"}))
    for name in ("layout", "docker", "linked"):
        assert take(elsewhere, tmp_path / name) == ["a/b:1"]


@pytest.mark.parametrize("compression", ["gzip", "zstd", "xz", "bzip2"])
def test_a_bomb_stops_within_its_budget(elsewhere: Images, tmp_path: Path, compression: str) -> None:
    bomb = COMPRESSED[compression](tar(file("zeros", bytes(64 * 2**20))))
    (tmp_path / "bomb").write_bytes(bomb)
    with pytest.raises(ImageError, match=r"more than the 8\.00 MiB allowed"):
        take(elsewhere, tmp_path / "bomb", "mine:1", budget_bytes=8 * 2**20)
    inner = docker_files(sha(bomb))
    (tmp_path / "inner").write_bytes(archive_of({**inner, "l/layer.tar": COMPRESSED["gzip"](bytes(64 * 2**20))}))
    with pytest.raises(ImageError, match="more than"):
        take(elsewhere, tmp_path / "inner", budget_bytes=8 * 2**20)
    assert nothing_is_named(elsewhere)


def test_links_and_pipes_in_a_directory_are_not_followed(elsewhere: Images, tmp_path: Path) -> None:
    def written(name: str) -> Iterator[tuple[Path, Path]]:
        root = tmp_path / name
        for path, data in layout_files().items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(data)
        yield root, next(path for path in (root / "blobs/sha256").iterdir() if path.read_bytes()[:2] == b"\x1f\x8b")

    for root, layer in written("links"):
        (tmp_path / "moved").write_bytes(layer.read_bytes())
        layer.unlink()
        layer.symlink_to(tmp_path / "moved")
        with pytest.raises(ImageError, match="cannot read"):
            take(elsewhere, root)
    for root, layer in written("pipes"):
        layer.unlink()
        os.mkfifo(layer)
        with pytest.raises(ImageError, match="no regular file"):
            take(elsewhere, root)
    with pytest.raises(ImageError, match="no OCI image layout"):
        take(elsewhere, tmp_path, "a:1")
    with pytest.raises(UsageError, match="cannot read"):
        take(elsewhere, tmp_path / "missing")
    assert nothing_is_named(elsewhere)


@pytest.mark.skipif(os.geteuid() != 0, reason="device nodes need root")
def test_a_root_file_system_with_devices_becomes_one_with_devices(
    images: Images, journal: Journal, tmp_path: Path
) -> None:
    (tmp_path / "fs.tar").write_bytes(tar(folder("dev"), device("dev/null")))
    take(images, tmp_path / "fs.tar", "mine")
    assert (images.tree(images.find("mine"), journal).path / "dev/null").is_char_device()
