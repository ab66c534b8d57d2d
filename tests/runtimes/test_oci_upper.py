"""What a container changed, kept as a layer: unpacked again, it gives what the container saw."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from handmade import fingerprint

from bench.errors import ImageError
from runtimes import libc
from runtimes.oci.layer import FileContent, Layer, Member, store_layer, tar_chunks
from runtimes.oci.layout import Layout
from runtimes.oci.stream import LayerStream, decompress
from runtimes.oci.tar import entries
from runtimes.oci.unpack import TreeWriter
from runtimes.oci.upper import store_upper, upper_members

BUDGET = 2**28
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting an overlay needs root")
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")


@contextmanager
def overlay(directory: Path, lower: Path, options: str = "redirect_dir=off,metacopy=off") -> Iterator[Path]:
    """A mounted overlay; its upper directory is ``directory/upper``."""
    for name in ("upper", "work", "merged"):
        (directory / name).mkdir()
    data = f"lowerdir={lower},upperdir={directory}/upper,workdir={directory}/work,{options}"
    libc.mount("overlay", str(directory / "merged"), "overlay", 0, data)
    try:
        yield directory / "merged"
    finally:
        libc.umount2(str(directory / "merged"), 0)


def make_lower(root: Path) -> Path:
    """A tree with something for every kind of change to change."""
    for name in ("etc", "gone/deep", "opaque/old", "becomes-file", "kept/below", "renamed"):
        (root / name).mkdir(parents=True)
    for name in ("etc/passwd", "gone/deep/a", "opaque/old/a", "becomes-file/a", "kept/below/a", "renamed/a",
                 "becomes-directory", "removed", "chmodded", "linked", "attributed", "becomes-link"):  # fmt: skip
        (root / name).write_text(f"lower {name}\n")
    (root / "both-names").hardlink_to(root / "linked")
    return root


def change(merged: Path) -> None:
    """What a container might do."""
    (merged / "etc/passwd").write_text("changed\n")
    shutil.rmtree(merged / "gone")
    shutil.rmtree(merged / "opaque")
    (merged / "opaque").mkdir(mode=0o700)
    (merged / "opaque/!new").write_text("new")
    shutil.rmtree(merged / "becomes-file")
    (merged / "becomes-file").write_text("now a file")
    (merged / "becomes-directory").unlink()
    (merged / "becomes-directory").mkdir()
    (merged / "becomes-directory/a").write_text("below")
    (merged / "becomes-link").unlink()
    (merged / "becomes-link").symlink_to("etc/passwd")
    (merged / "removed").unlink()
    (merged / "chmodded").chmod(0o4711)
    os.chown(merged / "chmodded", 70_000, 3)
    (merged / "chmodded").chmod(0o4711)
    shutil.copytree(merged / "renamed", merged / "renamed-to")  # what mv does where rename(2) gives EXDEV
    shutil.rmtree(merged / "renamed")
    (merged / "big").write_bytes(os.urandom(3 * 2**20 + 17))
    (merged / "big-too").hardlink_to(merged / "big")
    (merged / "dangling").symlink_to("nowhere")
    os.link(merged / "dangling", merged / "dangling-too", follow_symlinks=False)
    (merged / "caf\udce9").write_bytes(b"not UTF-8")
    os.mkfifo(merged / "pipe")
    os.mknod(merged / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.setxattr(merged / "attributed", "user.note", b"\x00\xff")
    os.setxattr(merged / "attributed", "security.capability", CAPABILITY)
    os.setxattr(merged / "kept", "trusted.mine", b"of a directory")
    os.utime(merged / "etc/passwd", ns=(1, 1_234_567_890_123_456_789))
    os.utime(merged / "pipe", ns=(1, -1_500_000_001))


def apply(target: Path, layout: Layout, layer: Layer) -> Path:
    with TreeWriter(target) as writer:
        writer.apply(LayerStream(decompress(layout.chunks(layer.descriptor), "gzip"), BUDGET))
        writer.finish()
    return target


def seen(root: Path) -> dict[str, tuple[object, ...]]:
    found = fingerprint(root)
    del found["."]  # the root of a tree belongs to whoever made the tree
    return found


@as_root
def test_a_layer_of_the_changes_gives_what_the_container_saw(tmp_path: Path) -> None:
    lower = make_lower(tmp_path / "lower")
    layout = Layout(tmp_path / "images")
    with overlay(tmp_path, lower) as merged:
        change(merged)
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(merged / "etc/s"))
        wanted = seen(merged)
        layer, counts = store_upper(layout, tmp_path / "upper")
    again = tmp_path / "again"
    subprocess.run(["cp", "-a", lower, again], check=True)
    found = seen(apply(again, layout, layer))
    assert counts.sockets == 1
    del wanted["etc/s"]
    assert found == wanted


@as_root
def test_the_same_changes_give_the_same_layer(tmp_path: Path) -> None:
    lower = make_lower(tmp_path / "lower")
    layout = Layout(tmp_path / "images")
    digests = set()
    for number in range(2):
        where = tmp_path / str(number)
        where.mkdir()
        with overlay(where, lower) as merged:
            for name in ("c", "a", "b")[:: 1 if number else -1]:
                (merged / name).write_text(name)
            (merged / "removed").unlink()
        digests.add(store_upper(layout, where / "upper", newest_seconds=1_600_000_000)[0].diff_id)
    assert len(digests) == 1


@as_root
def test_times_are_kept_to_the_nanosecond_unless_they_are_cut(tmp_path: Path) -> None:
    (tmp_path / "old").touch()
    os.utime(tmp_path / "old", ns=(0, 5_000_000_007))
    (tmp_path / "new").touch()
    kept = {member.path: (member.mtime, member.nanoseconds) for member in upper_members(tmp_path)}
    cut = {member.path: (member.mtime, member.nanoseconds) for member in upper_members(tmp_path, newest_seconds=9)}
    assert kept["old"] == cut["old"] == (5, 7)
    assert kept["new"] == divmod((tmp_path / "new").stat().st_mtime_ns, 10**9)
    assert cut["new"] == (9, 0)


@as_root
def test_no_attribute_of_the_overlay_itself_is_kept(tmp_path: Path) -> None:
    lower = make_lower(tmp_path / "lower")
    with overlay(tmp_path, lower) as merged:
        change(merged)
    assert any("trusted.overlay.origin" in os.listxattr(path) for path in (tmp_path / "upper").iterdir()
               if path.is_file() and not path.is_symlink()), "or this test shows nothing"  # fmt: skip
    names = {name for member in upper_members(tmp_path / "upper") for name in member.xattrs}
    assert names == {"user.note", "security.capability", "trusted.mine"}


@as_root
@pytest.mark.parametrize("option", ["redirect_dir=on", "metacopy=on"])
def test_changes_that_only_refer_to_a_lower_layer_are_refused(tmp_path: Path, option: str) -> None:
    lower = make_lower(tmp_path / "lower")
    with overlay(tmp_path, lower, option) as merged:
        (merged / "renamed").rename(merged / "elsewhere")
        (merged / "chmodded").chmod(0o600)
    with pytest.raises(ImageError, match="reference into a lower layer"):
        list(upper_members(tmp_path / "upper"))


def test_a_whiteout_comes_before_its_siblings() -> None:
    members = [Member("d", stat.S_IFDIR | 0o755), *(Member(f"d/{name}", stat.S_IFREG) for name in ("!", ".wh.b", "a"))]
    stream = LayerStream(tar_chunks(members), BUDGET)
    assert [entry.path.rstrip("/") for entry in entries(stream)] == ["d", "d/.wh.b", "d/!", "d/a"]


def test_a_file_that_shrinks_or_goes_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    layout = Layout(tmp_path / "images")
    for size, path in ((6, "file"), (1, "none")):
        member = Member("file", stat.S_IFREG | 0o644, FileContent(tmp_path, path, size))
        with pytest.raises(ImageError) as caught:
            store_layer(layout, tar_chunks([member]))
        assert caught.value.hint


def test_a_file_that_grows_is_kept_as_it_was_found(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert b"".join(FileContent(tmp_path, "file", 3).chunks()) == b"123"


@pytest.mark.parametrize("way", ["link/secret", "secret-link", "pipe"])
def test_what_became_a_link_or_a_pipe_is_not_followed(tmp_path: Path, way: str) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_text("secret")
    (tmp_path / "upper").mkdir()
    (tmp_path / "upper/link").symlink_to(tmp_path / "outside")
    (tmp_path / "upper/secret-link").symlink_to(tmp_path / "outside/secret")
    os.mkfifo(tmp_path / "upper/pipe")
    with pytest.raises(ImageError):
        list(FileContent(tmp_path / "upper", way, 6).chunks())


def test_a_name_that_would_be_a_whiteout_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".wh.etc").touch()
    with pytest.raises(ImageError, match="means a removal"):
        list(upper_members(tmp_path))


def test_directories_nested_without_end_are_refused(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["d"] * 300)
    deep.mkdir(parents=True)
    with pytest.raises(ImageError, match="deeper"):
        list(upper_members(tmp_path))


def test_a_directory_that_is_not_there_is_an_image_error(tmp_path: Path) -> None:
    with pytest.raises(ImageError) as caught:
        list(upper_members(tmp_path / "none"))
    assert caught.value.hint
