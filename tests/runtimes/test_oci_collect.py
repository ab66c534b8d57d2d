"""Garbage: what nobody needs goes, what anybody needs stays, whoever is killed and whoever works at the same time."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import signal
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from handmade import file, image_of_tars, tar

from bench.errors import ImageError
from bench.journal import Journal
from runtimes.oci import quick
from runtimes.oci.descriptor import CONFIG, Descriptor, canonical_json
from runtimes.oci.images import Images
from runtimes.oci.layer import store_layer

FORK = multiprocessing.get_context("fork")


def make(state: Path, name: str, content: bytes) -> Descriptor:
    """An image in the store, made by somebody who has gone since."""
    images = Images(state)
    descriptor = image_of_tars(images.layout, tar(file("shared", b"in all")), tar(file("own", content)))
    images.layout.tag(name, descriptor)
    return descriptor


def blobs(state: Path) -> set[str]:
    return {path.name for path in (state / "images/blobs").glob("*/*")}


def is_whole(state: Path, descriptor: Descriptor) -> bool:
    """Every blob of an image is there and right."""
    images = Images(state)
    document = images.layout.document(descriptor)
    for value in (document["config"], *document["layers"]):
        for _ in images.layout.chunks(Descriptor.from_json(value)):
            pass
    return True


def test_what_no_name_reaches_is_removed_and_what_others_share_stays(tmp_path: Path, journal: Journal) -> None:
    kept, gone = make(tmp_path, "kept:1", b"a"), make(tmp_path, "gone:1", b"b")
    Images(tmp_path).tree(Images(tmp_path).find("gone:1"), journal)
    tree = Images(tmp_path).tree(Images(tmp_path).find("kept:1"), journal)
    assert len(blobs(tmp_path)) == 7
    Images(tmp_path).remove("gone:1")
    collected = Images(tmp_path).collect(journal)
    assert (collected.blobs, collected.trees) == (3, 1)
    assert is_whole(tmp_path, kept)
    assert gone.hex not in blobs(tmp_path)
    assert sorted(path.name for path in (tmp_path / "trees").iterdir()) == sorted([kept.hex, f"{kept.hex}.json"])
    assert tree.path.is_dir()
    assert Images(tmp_path).collect(journal).blobs == 0


def test_what_a_living_process_wrote_or_found_stays_until_it_is_gone(tmp_path: Path, journal: Journal) -> None:
    make(tmp_path, "gone:1", b"b")
    holder = Images(tmp_path)
    found = holder.find("gone:1")
    written = holder.layout.add(CONFIG, b"{}")
    Images(tmp_path).remove("gone:1")
    assert Images(tmp_path).collect(journal).blobs == 0
    holder.tree(found, journal)
    assert Images(tmp_path).collect(journal).trees == 0
    assert holder.layout.has(written)
    del holder
    collected = Images(tmp_path).collect(journal)
    assert (collected.blobs, collected.trees) == (5, 1)
    assert blobs(tmp_path) == set()


def _hold(state: Path, ready: multiprocessing.synchronize.Event) -> None:
    images = Images(state)
    images.find("held:1")
    ready.set()
    signal.pause()


def test_a_lease_dies_with_its_process(tmp_path: Path, journal: Journal) -> None:
    make(tmp_path, "held:1", b"b")
    ready = FORK.Event()
    holder = FORK.Process(target=_hold, args=(tmp_path, ready))
    holder.start()
    assert ready.wait(20)
    Images(tmp_path).layout.untag("held:1")
    assert Images(tmp_path).collect(journal).blobs == 0
    holder.kill()
    holder.join()
    assert Images(tmp_path).collect(journal).blobs == 4
    assert list((tmp_path / "images/leases").iterdir()) == []


def test_a_forked_child_that_ends_does_not_take_its_parent_s_lease_along(tmp_path: Path, journal: Journal) -> None:
    images = Images(tmp_path)
    descriptor = images.layout.add(CONFIG, b"{}")
    pid = os.fork()
    if pid == 0:
        del images
        os._exit(0)
    os.waitpid(pid, 0)
    assert Images(tmp_path).collect(journal).blobs == 0
    assert images.layout.has(descriptor)


def test_the_image_of_a_container_stays_and_its_removal_names_the_container(tmp_path: Path, journal: Journal) -> None:
    descriptor = make(tmp_path, "used:1", b"b")
    Images(tmp_path).tree(Images(tmp_path).find("used:1"), journal)
    container = tmp_path / "containers/abc"
    container.mkdir(parents=True)
    (container / "config.json").write_text(json.dumps({"manifest": descriptor.digest}))
    (tmp_path / "containers/being-made").mkdir()
    with pytest.raises(ImageError, match="used by container abc") as caught:
        Images(tmp_path).remove("used:1")
    assert caught.value.hint.startswith("isomark container rm abc")
    del caught  # its traceback holds the store open
    Images(tmp_path).tag(Images(tmp_path).find("used:1"), "other:1")
    assert Images(tmp_path).remove("used:1") == ["used:1"]  # it has another name, so nothing is lost
    Images(tmp_path).remove("other:1", force=True)
    assert Images(tmp_path).collect(journal).blobs == 0
    assert is_whole(tmp_path, descriptor)
    assert (tmp_path / "trees" / descriptor.hex).is_dir()
    (container / "config.json").unlink()
    assert Images(tmp_path).collect(journal).blobs == 4


def test_with_a_damaged_container_nothing_is_guessed(tmp_path: Path, journal: Journal) -> None:
    make(tmp_path, "used:1", b"b")
    Images(tmp_path).layout.untag("used:1")
    (tmp_path / "containers/abc").mkdir(parents=True)
    (tmp_path / "containers/abc/config.json").write_text('{"manifest": "sha')
    with pytest.raises(ImageError, match=r"config\.json is damaged"):
        Images(tmp_path).collect(journal)
    assert len(blobs(tmp_path)) == 4


def test_what_the_build_cache_can_give_back_stays(tmp_path: Path, journal: Journal) -> None:
    layout = Images(tmp_path).layout
    layer = store_layer(layout, [tar(file("made"))])
    keys = tmp_path / "build/keys"
    keys.mkdir(parents=True)
    record = {"layer": layer.descriptor.to_json(), "diff_id": layer.diff_id, "created": "2026-01-01T00:00:00Z"}
    (keys / ("a" * 64)).write_bytes(canonical_json(record))
    del layout
    assert Images(tmp_path).collect(journal).blobs == 0
    (keys / ("a" * 64)).unlink()
    assert Images(tmp_path).collect(journal).blobs == 1


def test_who_starts_a_container_is_waited_for(tmp_path: Path) -> None:
    make(tmp_path, "quick:1", b"b")
    Images(tmp_path).layout.untag("quick:1")
    fd = quick.hold(str(tmp_path))

    def collect() -> None:
        with Journal(tmp_path / "owned") as journal:
            Images(tmp_path).collect(journal)

    collector = threading.Thread(target=collect)
    collector.start()
    collector.join(0.5)
    assert collector.is_alive()
    assert len(blobs(tmp_path)) == 4
    os.close(fd)
    collector.join(20)
    assert blobs(tmp_path) == set()


def test_blobs_that_rotted_are_removed_on_demand(tmp_path: Path, journal: Journal) -> None:
    descriptor = make(tmp_path, "rotten:1", b"b")
    images = Images(tmp_path)
    layer = images.find("rotten:1").manifest.layers[1][0]
    content = bytearray(images.layout.path(layer).read_bytes())
    content[10] ^= 1
    images.layout.path(layer).write_bytes(content)
    assert images.collect(journal).blobs == 0
    collected = images.collect(journal, verify=True)
    assert collected.rotten == (layer.digest,)
    assert not images.layout.has(layer)
    assert images.layout.has(descriptor)


def test_cut_off_downloads_are_pruned_unless_they_go_on(tmp_path: Path, journal: Journal) -> None:
    images = Images(tmp_path)
    alive = Descriptor(CONFIG, f"sha256:{'1' * 64}", 100)
    (tmp_path / f"images/partial/sha256-{'0' * 64}").write_bytes(b"as a kill leaves it")
    with ExitStack() as stack:
        stack.enter_context(pytest.raises(ImageError, match="ended after 4 of 100"))
        partial = stack.enter_context(images.layout.fetching(alive))
        assert partial is not None
        partial.write(b"half")
        assert images.collect(journal).blobs == 0
        assert len(list((tmp_path / "images/partial").iterdir())) == 2
        images.collect(journal, partial=True)
        assert [path.name for path in (tmp_path / "images/partial").iterdir()] == [f"sha256-{'1' * 64}"]


def _storm(state: Path, seed: int, seconds: float) -> None:
    """Do at random what commands do, and check what they promise."""
    random.seed(seed)
    until = time.monotonic() + seconds
    with Journal(state / "owned") as journal:
        while time.monotonic() < until:
            name = f"image{random.randrange(4)}:1"
            images = Images(state)
            deed = random.randrange(5)
            try:
                if deed == 0:
                    make(state, name, str(random.randrange(3)).encode())
                elif deed == 1:
                    images.remove(name)
                elif deed == 2:
                    images.collect(journal, partial=True)
                else:
                    found = images.find(name)
                    tree = images.tree(found, journal)
                    assert (tree.path / "shared").read_bytes() == b"in all"
                    assert is_whole(state, found.descriptor)
            except ImageError as error:
                assert error.message.startswith("no image "), error.message  # noqa: PT017 - any other is a loss


def test_many_who_make_remove_collect_and_use_at_once_lose_nothing(tmp_path: Path) -> None:
    Images(tmp_path)
    workers = [FORK.Process(target=_storm, args=(tmp_path, seed, 6.0)) for seed in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 6
    for descriptor in Images(tmp_path).layout.references().values():
        assert is_whole(tmp_path, descriptor)
    with Journal(tmp_path / "owned") as journal:
        Images(tmp_path).collect(journal, partial=True)
    for path in (tmp_path / "images/blobs/sha256").iterdir():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
    assert list((tmp_path / "images/ingest").iterdir()) == []
    assert list((tmp_path / "images/leases").iterdir()) == []


def test_killed_makers_and_collectors_lose_nothing_that_has_a_name(tmp_path: Path) -> None:
    from bench.clean import clean

    kept = make(tmp_path, "kept:1", b"kept")
    random.seed(1)
    for seed in range(12):
        worker = FORK.Process(target=_storm, args=(tmp_path, seed, 30.0))
        worker.start()
        time.sleep(random.uniform(0.05, 0.4))
        worker.kill()
        worker.join()
        assert is_whole(tmp_path, kept)
        for descriptor in Images(tmp_path).layout.references().values():
            assert is_whole(tmp_path, descriptor)
    assert not [removal for removal in clean(tmp_path / "owned") if removal.fault]
    with Journal(tmp_path / "owned") as journal:
        Images(tmp_path).collect(journal, partial=True)
    named = {root.hex for root in Images(tmp_path).layout.roots()}
    left = {path.name.removesuffix(".json") for path in (tmp_path / "trees").iterdir()}
    assert {name for name in left if not name.startswith(".publishing-")} <= named
    assert list((tmp_path / "images/ingest").iterdir()) == []
    assert list((tmp_path / "images/leases").iterdir()) == []
