"""The store: content addressed, verified on reading, whole after a kill, safe under parallel use."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from handmade import file, image_of_tars, tar

from bench.errors import ImageError
from runtimes import libc
from runtimes.oci.descriptor import CONFIG, Descriptor
from runtimes.oci.layer import store_layer
from runtimes.oci.layout import Layout


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "images")


def read(layout: Layout, descriptor: Descriptor) -> bytes:
    return b"".join(layout.chunks(descriptor))


def test_a_blob_comes_back_under_its_digest(layout: Layout) -> None:
    descriptor = layout.add(CONFIG, b'{"a": 1}')
    assert read(layout, descriptor) == b'{"a": 1}'
    assert layout.document(descriptor) == {"a": 1}
    assert layout.has(descriptor)


def test_a_blob_that_rotted_is_refused_when_read(layout: Layout) -> None:
    descriptor = layout.add(CONFIG, b'{"a": 1}')
    layout.path(descriptor).write_bytes(b'{"a": 2}')
    with pytest.raises(ImageError, match="not what its name says"):
        layout.document(descriptor)


@pytest.mark.parametrize("content", [b"", b'{"a": 1}more', b'{"a":'])
def test_a_blob_of_another_size_is_refused(layout: Layout, content: bytes) -> None:
    descriptor = layout.add(CONFIG, b'{"a": 1}')
    layout.path(descriptor).write_bytes(content)
    assert not layout.has(descriptor)
    with pytest.raises(ImageError):
        layout.document(descriptor)


def test_a_missing_blob_is_an_error_that_names_it(layout: Layout) -> None:
    descriptor = layout.add(CONFIG, b"{}")
    layout.path(descriptor).unlink()
    with pytest.raises(ImageError, match=descriptor.digest):
        layout.document(descriptor)


def test_a_document_that_claims_to_be_huge_is_not_read(layout: Layout) -> None:
    with pytest.raises(ImageError, match="more than any should have"):
        layout.document(Descriptor(CONFIG, "sha256:" + "0" * 64, 2**40))


@pytest.mark.parametrize("content", [b"[]", b"nonsense", b"\xff", b"[" * 100_000, b"1"])
def test_a_document_that_is_no_object_is_refused(layout: Layout, content: bytes) -> None:
    with pytest.raises(ImageError):
        layout.document(layout.add(CONFIG, content))


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"mediaType": "x", "digest": "sha256:../../etc/passwd", "size": 1},
        {"mediaType": "x", "digest": "sha256:" + "A" * 64, "size": 1},
        {"mediaType": "x", "digest": "md5:" + "0" * 32, "size": 1},
        {"mediaType": "x", "digest": "sha256:" + "0" * 64, "size": -1},
        {"mediaType": "x", "digest": "sha256:" + "0" * 64, "size": True},
        {"mediaType": "x", "digest": "sha256:" + "0" * 64, "size": "1"},
        {"mediaType": 1, "digest": "sha256:" + "0" * 64, "size": 1},
        {"mediaType": "x", "digest": "sha256:" + "0" * 64, "size": 1, "annotations": [1]},
    ],
)
def test_a_descriptor_that_is_none_is_refused(value: object) -> None:
    with pytest.raises(ImageError):
        Descriptor.from_json(value)


def test_a_tag_moves(layout: Layout) -> None:
    first, second = layout.add(CONFIG, b"1"), layout.add(CONFIG, b"2")
    layout.tag("a:1", first)
    layout.tag("b:1", first)
    layout.tag("a:1", second)
    assert {name: entry.digest for name, entry in layout.references().items()} == {
        "a:1": second.digest,
        "b:1": first.digest,
    }
    assert layout.resolve("c:1") is None


def test_a_writer_that_fails_leaves_nothing(layout: Layout) -> None:
    def tar_that_breaks() -> Iterator[bytes]:
        yield b"half"
        raise RuntimeError

    with pytest.raises(RuntimeError):
        store_layer(layout, tar_that_breaks())
    assert list(layout.root.glob("ingest/*")) == []
    assert list(layout.root.glob("blobs/sha256/*")) == []


def _write_until_killed(root: Path, started: multiprocessing.synchronize.Event) -> None:
    with Layout(root).writing() as blob:
        blob.write(b"half")
        started.set()
        signal.pause()


def test_what_a_killed_writer_left_goes_with_the_next_one_and_a_live_one_is_spared(layout: Layout) -> None:
    fork = multiprocessing.get_context("fork")
    writers = []
    for _ in range(2):
        started = fork.Event()
        writer = fork.Process(target=_write_until_killed, args=(layout.root, started))
        writer.start()
        assert started.wait(20)
        writers.append(writer)
    dead, alive = writers
    assert len(list(layout.root.glob("ingest/*"))) == 2
    dead.kill()
    dead.join()
    layout.add(CONFIG, b"{}")
    assert len(list(layout.root.glob("ingest/*"))) == 1
    alive.kill()
    alive.join()


def _tag_many(root: Path, worker: int) -> None:
    layout = Layout(root)
    for number in range(20):
        layout.tag(f"w{worker}:{number}", layout.add(CONFIG, json.dumps([worker, number % 3]).encode()))


def test_many_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=_tag_many, args=(tmp_path / "images", worker)) for worker in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    layout = Layout(tmp_path / "images")
    assert len(layout.references()) == 6 * 20
    for descriptor in layout.references().values():
        read(layout, descriptor)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    Layout(tmp_path / "images")
    (tmp_path / "images" / "oci-layout").write_text('{"imageLayoutVersion": "2.0.0"}')
    with pytest.raises(ImageError, match="not an OCI image layout"):
        Layout(tmp_path / "images")


@pytest.mark.parametrize("name", ["oci-layout", "index.json"])
@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_store_without_an_index_that_can_be_read_says_what_would_help(
    tmp_path: Path, name: str, content: str
) -> None:
    Layout(tmp_path / "images")
    (tmp_path / "images" / name).write_text(content)
    with pytest.raises(ImageError) as caught:
        Layout(tmp_path / "images").references()
    assert "move it away" in caught.value.hint or "ISOMARK_STATE" in caught.value.hint


def test_a_store_that_cannot_be_made_says_what_would_help() -> None:
    with pytest.raises(ImageError) as caught:
        Layout(Path("/proc/isomark"))
    assert "ISOMARK_STATE" in caught.value.hint


def _fill(root: Path) -> None:
    """In a mount namespace of its own: write more than a file system of 1 MiB takes."""
    libc.unshare(libc.CLONE_NEWNS)
    libc.mount(None, "/", None, libc.MS_REC | libc.MS_PRIVATE)
    libc.mount("tmpfs", str(root), "tmpfs", 0, "size=1m")
    layout = Layout(root / "images")
    with pytest.raises(ImageError, match="No space left") as caught:
        layout.add(CONFIG, bytes(2 * 2**20))
    assert "free some disk space" in caught.value.hint
    assert list(layout.root.glob("ingest/*")) == []
    assert list(layout.root.glob("blobs/sha256/*")) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="a small file system needs root")
def test_a_full_disk_is_an_error_with_its_remedy_and_leaves_nothing(tmp_path: Path) -> None:
    child = multiprocessing.get_context("fork").Process(target=_fill, args=(tmp_path,))
    child.start()
    child.join()
    assert child.exitcode == 0


def test_skopeo_and_umoci_read_the_store(layout: Layout, tmp_path: Path) -> None:
    descriptor = image_of_tars(layout, tar(file("a/b")))
    layout.tag("isomark/test:1", descriptor)
    inspected = subprocess.run(
        ["skopeo", "inspect", f"oci:{layout.root}:isomark/test:1"], capture_output=True, text=True, check=True
    )
    assert json.loads(inspected.stdout)["Digest"] == descriptor.digest
    listed = subprocess.run(["umoci", "ls", "--layout", str(layout.root)], capture_output=True, text=True, check=True)
    assert listed.stdout.split() == ["isomark/test:1"]
