"""Applying layers: what umoci makes of an image, we make of it, to the last xattr."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from handmade import (
    MTIME,
    device,
    file,
    fingerprint,
    folder,
    hard_link,
    image_of_tars,
    symlink,
    tar,
)

from bench.errors import ImageError
from bench.journal import Journal
from runtimes.oci.layer import Member, tar_chunks
from runtimes.oci.layout import Layout
from runtimes.oci.stream import LayerStream
from runtimes.oci.trees import find_tree, publish_tree, unpack_image
from runtimes.oci.unpack import TreeWriter

BUDGET = 2**26
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="owners and device nodes need root")

ROOT = folder(".")
CAP_NET_BIND_SERVICE = bytes.fromhex("0100000200040000000000000000000000000000")
IMAGES: dict[str, list[bytes]] = {
    "one file": [tar(ROOT, folder("etc"), file("etc/passwd", b"root\n", 0o640, uid=1, gid=2))],
    "set-user-ID and sticky": [tar(ROOT, file("su", b"x", 0o4755), folder("tmp", 0o1777), folder("mail", 0o2775))],
    "hard links": [tar(ROOT, file("a", b"one"), hard_link("b", "a"), folder("d"), hard_link("d/c", "a"))],
    "a hard link to a lower layer's file": [tar(ROOT, file("a", b"one")), tar(ROOT, hard_link("b", "a"))],
    "a hard link to a symbolic link": [tar(ROOT, symlink("s", "nowhere"), hard_link("t", "s"))],
    "a hard link through a linked directory": [
        tar(ROOT, folder("usr"), folder("usr/lib"), symlink("lib", "usr/lib"), file("usr/lib/x")),
        tar(ROOT, hard_link("y", "lib/x")),
    ],
    "xattrs": [tar(ROOT, file("a", xattrs={"user.one": b"1\x00\xff", "security.capability": CAP_NET_BIND_SERVICE}))],
    "xattrs on a directory": [tar(ROOT, folder("d", xattrs={"user.d": b"v"}))],
    "devices and pipes": [
        tar(ROOT, device("null"), device("disk", stat.S_IFBLK, (7, 3)), Member("p", stat.S_IFIFO | 0o600, mtime=MTIME))
    ],
    "long names": [tar(ROOT, folder("x" * 120), file("x" * 120 + "/" + "y" * 200), symlink("l", "z" * 300))],
    "names that are not UTF-8": [tar(ROOT, file("caf\udce9"), symlink("s\udcff", "caf\udce9"))],
    "a whiteout of a file": [
        tar(ROOT, folder("d"), file("d/a"), file("d/b")), tar(ROOT, folder("d"), file("d/.wh.a", b""))],
    "a whiteout of a directory": [tar(ROOT, folder("d"), file("d/a"), file("b")), tar(ROOT, file(".wh.d", b""))],
    "a whiteout of nothing": [tar(ROOT, file("a")), tar(ROOT, file(".wh.none", b""))],
    "an opaque directory": [
        tar(ROOT, folder("d"), file("d/a"), folder("d/e"), file("d/e/f")),
        tar(ROOT, folder("d"), file("d/.wh..wh..opq", b""), file("d/new")),
    ],
    "an opaque marker after what it must spare": [
        tar(ROOT, folder("d"), file("d/a")),
        tar(ROOT, folder("d"), file("d/new"), file("d/.wh..wh..opq", b"")),
    ],
    "a file that becomes a directory": [tar(ROOT, file("a")), tar(ROOT, folder("a"), file("a/b"))],
    "a directory that becomes a file": [tar(ROOT, folder("a"), file("a/b")), tar(ROOT, file("a", b"now"))],
    "a directory that becomes a link": [tar(ROOT, folder("a"), file("a/b"), folder("c")), tar(ROOT, symlink("a", "c"))],
    "a link that becomes a directory": [tar(ROOT, folder("c"), symlink("a", "c")), tar(ROOT, folder("a"), file("a/x"))],
    "a link that becomes a file": [tar(ROOT, file("c", b"old"), symlink("a", "c")), tar(ROOT, file("a", b"new"))],
    "writing through a linked directory": [
        tar(ROOT, folder("usr"), folder("usr/bin"), symlink("bin", "usr/bin")),
        tar(ROOT, file("bin/tool", b"#!\n", 0o755)),
    ],
    "writing through a link that is absolute": [
        tar(ROOT, folder("usr"), folder("usr/bin"), symlink("bin", "/usr/bin")),
        tar(ROOT, file("bin/tool")),
    ],
    "writing through a link that climbs": [
        tar(ROOT, folder("a"), folder("a/b"), symlink("a/up", "../../../../a/b"), folder("a/b/c")),
        tar(ROOT, file("a/up/c/x")),
    ],
    "a file replaced in the same layer": [tar(ROOT, file("a", b"1"), file("a", b"2", 0o600))],
    "a directory's new mode": [tar(ROOT, folder("d", 0o755), file("d/a")), tar(ROOT, folder("d", 0o500))],
    "a file added below an untouched directory": [tar(ROOT, folder("d", 0o710), file("d/a")), tar(ROOT, file("d/b"))],
    "a root of its own mode": [tar(folder(".", 0o711), file("a"))],
    "times before 1970": [tar(ROOT, Member("old", stat.S_IFREG | 0o644, b"o", mtime=-1000))],
    "a large file": [tar(ROOT, file("big", os.urandom(3 * 2**20 + 7)))],
}  # fmt: skip


@as_root
@pytest.mark.parametrize("name", IMAGES)
def test_the_result_is_umocis(tmp_path: Path, name: str) -> None:
    layout = Layout(tmp_path / "images")
    descriptor = image_of_tars(layout, *IMAGES[name])
    layout.tag("test", descriptor)
    subprocess.run(
        ["umoci", "unpack", "--image", f"{layout.root}:test", tmp_path / "bundle"], capture_output=True, check=True
    )
    (tmp_path / "ours").mkdir()
    skipped = unpack_image(layout, descriptor, tmp_path / "ours", BUDGET)
    assert (skipped.devices, skipped.xattrs) == (0, 0)
    assert fingerprint(tmp_path / "ours") == fingerprint(tmp_path / "bundle" / "rootfs")


def unpack(tmp_path: Path, *tars: bytes) -> Path:
    layout = Layout(tmp_path / "images")
    target = tmp_path / "tree"
    target.mkdir()
    unpack_image(layout, image_of_tars(layout, *tars), target, BUDGET)
    return target


def test_a_whiteout_spares_what_its_own_layer_made(tmp_path: Path) -> None:
    tree = unpack(
        tmp_path,
        tar(folder("d"), file("d/old"), file("f", b"old")),
        tar(file("d/new"), file("f", b"new"), file(".wh.d", b""), file(".wh.f", b"")),
    )
    assert [path.name for path in (tree / "d").iterdir()] == ["new"]
    assert (tree / "f").read_bytes() == b"new"


def test_a_missing_parent_is_made_the_same_every_time(tmp_path: Path) -> None:
    tree = unpack(tmp_path, tar(file("a/b/c")))
    assert (tree / "a" / "b").stat().st_mtime == 0
    assert stat.S_IMODE((tree / "a").stat().st_mode) == 0o755


def test_notes_that_aufs_keeps_are_passed_over(tmp_path: Path) -> None:
    tree = unpack(tmp_path, tar(file(".wh..wh.plnk", b""), folder(".wh..wh.orph"), file("a")))
    assert [path.name for path in tree.iterdir()] == ["a"]


def test_a_layer_may_be_plain_or_zstd(tmp_path: Path) -> None:
    import zstandard
    from handmade import image_of_blob

    plain = tar(file("a", b"same"))
    layout = Layout(tmp_path / "images")
    for number, (kind, blob) in enumerate((("tar", plain), ("tar+zstd", zstandard.compress(plain)))):
        target = tmp_path / str(number)
        target.mkdir()
        descriptor = image_of_blob(layout, blob, plain, f"application/vnd.oci.image.layer.v1.{kind}")
        unpack_image(layout, descriptor, target, BUDGET)
        assert (target / "a").read_bytes() == b"same"


def test_a_tree_is_published_once_under_its_digest(tmp_path: Path, journal: Journal) -> None:
    layout = Layout(tmp_path / "images")
    data = os.urandom(100_000)
    descriptor = image_of_tars(layout, tar(folder("d"), file("d/a", data), hard_link("d/b", "d/a")))
    assert find_tree(tmp_path / "trees", descriptor.digest) is None
    made = publish_tree(layout, descriptor, tmp_path / "trees", journal, BUDGET)
    assert made == find_tree(tmp_path / "trees", descriptor.digest)
    assert made.path == tmp_path / "trees" / descriptor.hex
    assert made.unpacked_bytes == len(data), "hard links count once"
    assert made.tree_bytes >= len(data)
    assert stat.S_IMODE((tmp_path / "trees").stat().st_mode) == 0o700


def test_a_tree_whose_image_is_bad_is_not_published(tmp_path: Path, journal: Journal) -> None:
    layout = Layout(tmp_path / "images")
    descriptor = image_of_tars(layout, tar(file("a"), file("../b")))
    with pytest.raises(ImageError):
        publish_tree(layout, descriptor, tmp_path / "trees", journal, BUDGET)
    assert list((tmp_path / "trees").iterdir()) == []
    journal.close()
    assert not journal.path.exists(), "nothing is owned any more"


def test_a_tree_that_lost_its_facts_is_made_again(tmp_path: Path, journal: Journal) -> None:
    layout = Layout(tmp_path / "images")
    descriptor = image_of_tars(layout, tar(file("a")))
    made = publish_tree(layout, descriptor, tmp_path / "trees", journal, BUDGET)
    made.path.with_name(f"{descriptor.hex}.json").write_text("{")
    assert find_tree(tmp_path / "trees", descriptor.digest) is None
    assert publish_tree(layout, descriptor, tmp_path / "trees", journal, BUDGET) == made


def _as_nobody(work: Callable[[], dict[str, object]]) -> dict[str, object]:
    """Run ``work`` in a child without privilege and return what it returned."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            os.write(write_end, json.dumps(work()).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        text = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    found: dict[str, object] = json.loads(text)
    return found


@as_root
def test_without_root_devices_are_skipped_and_counted_and_the_rest_is_there() -> None:
    layers = [
        list(tar_chunks([folder("d", 0o500), file("d/a", b"1", 0o400, uid=7), device("d/null"),
                         hard_link("d/zero", "d/null"), file("c", xattrs={"trusted.t": b"1"})])),
        list(tar_chunks([file("d/b"), file("d/.wh.a", b"")])),
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)

        def work() -> dict[str, object]:
            root = Path(name) / "tree"
            root.mkdir()
            with TreeWriter(root) as writer:
                for layer in layers:
                    writer.apply(LayerStream(layer, BUDGET))
                writer.finish()
            return {
                "devices": writer.skipped.devices,
                "xattrs": writer.skipped.xattrs,
                "files": sorted(str(path.relative_to(root)) for path in root.rglob("*")),
                "mode": oct((root / "d").stat().st_mode),
            }

        assert _as_nobody(work) == {"devices": 1, "xattrs": 1, "files": ["c", "d", "d/b"], "mode": "0o40500"}
