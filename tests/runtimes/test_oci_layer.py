"""Layers are the same bytes every time, and our reader, tarfile and GNU tar agree on what is in them."""

from __future__ import annotations

import gzip
import io
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest
from handmade import MTIME, device, file, folder, hard_link, symlink, tar
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import ImageError
from runtimes.oci.layer import Member, store_layer, tar_chunks
from runtimes.oci.layout import Layout
from runtimes.oci.stream import LayerStream, decompress
from runtimes.oci.tar import Entry, entries

LONG = "d" * 90 + "/" + "e" * 90 + "/" + "f" * 150


def read_entries(data: bytes, budget_bytes: int = 2**30) -> list[tuple[Entry, bytes]]:
    stream = LayerStream([data], budget_bytes)
    return [(entry, stream.read(entry.size)) for entry in entries(stream)]


def everything() -> list[Member]:
    return [
        folder("d", 0o1777),
        file("d/a", b"x" * 1000, 0o4755, uid=10, gid=2**21 + 5, xattrs={"user.raw": b"\x00\xff=\n", "user.t": b"v"}),
        file("d/empty", b""),
        file(LONG, b"long"),
        file("ünïcode/\udcff", b"bytes"),
        symlink("s", "d/a"),
        symlink("long-link", LONG),
        hard_link("z", "d/a"),
        device("null"),
        Member("pipe", stat.S_IFIFO | 0o600, mtime=MTIME),
        Member("old", stat.S_IFREG | 0o600, b"o", mtime=-5),
    ]


def test_the_same_members_in_any_order_give_the_same_layer(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    first = store_layer(layout, tar_chunks(everything()))
    second = store_layer(layout, tar_chunks(reversed(everything())))
    assert first == second


def test_chunks_of_any_size_give_the_same_diff_id_and_plain_bytes(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    data = b"".join(tar_chunks(everything()))
    layers = [
        store_layer(layout, [data[at : at + size] for at in range(0, len(data), size)]) for size in (1, 700, 10**6)
    ]
    assert len({layer.diff_id for layer in layers}) == 1
    for layer in layers:
        assert gzip.decompress(layout.path(layer.descriptor).read_bytes()) == data


def test_a_gzip_header_carries_neither_time_nor_name(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layer = store_layer(layout, tar_chunks([file("a")]))
    assert layout.path(layer.descriptor).read_bytes()[3:8] == bytes(5)


def test_our_reader_gives_back_what_was_written() -> None:
    members = {member.path: member for member in everything()}
    for entry, content in read_entries(b"".join(tar_chunks(members.values()))):
        member = members.pop(entry.path.rstrip("/"))
        assert content == member.data
        assert (entry.mode, entry.uid, entry.gid) == (stat.S_IMODE(member.mode), member.uid, member.gid)
        assert entry.mtime_ns == member.mtime * 10**9
        assert entry.link == member.link
        assert entry.xattrs == member.xattrs
        assert entry.device == (member.device if entry.kind == "character" else (0, 0))
    assert members == {}


@pytest.mark.parametrize("style", ["gnu", "pax", "ustar", "v7"])
def test_our_reader_agrees_with_gnu_tar(tmp_path: Path, style: str) -> None:
    source = tmp_path / "tree"
    (source / "d").mkdir(parents=True)
    (source / "d" / "file").write_bytes(b"x" * 5000)
    (source / "link").symlink_to("d/file")
    (source / "hard").hardlink_to(source / "d" / "file")
    if style in ("gnu", "pax"):
        (source / ("l" * 150)).write_text("long")
        (source / "t").symlink_to("t" * 150)
    made = subprocess.run(["tar", f"--format={style}", "-C", source, "-c", "."], capture_output=True, check=True).stdout
    ours = [(entry.path.rstrip("/"), entry.kind, entry.mode, entry.size, entry.mtime_ns // 10**9, entry.link)
            for entry, _ in read_entries(made)]  # fmt: skip
    kinds = {tarfile.REGTYPE: "file", tarfile.AREGTYPE: "file", tarfile.DIRTYPE: "directory",
             tarfile.SYMTYPE: "symlink", tarfile.LNKTYPE: "hardlink"}  # fmt: skip
    with tarfile.open(fileobj=io.BytesIO(made)) as theirs:
        assert ours == [(m.name, kinds[m.type], m.mode, m.size, int(m.mtime), m.linkname) for m in theirs]


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_every_compression_is_undone_in_bounded_pieces(compression: str) -> None:
    import zstandard

    plain = bytes(5 * 2**20) + b"end"
    packed = {"none": plain, "gzip": gzip.compress(plain), "zstd": zstandard.compress(plain)}[compression]
    pieces = [packed[at : at + 1000] for at in range(0, len(packed), 1000)]
    undone = list(decompress(pieces, compression))
    assert b"".join(undone) == plain
    assert max(map(len, undone)) <= 2**20


def test_concatenated_gzip_members_and_zstd_frames_are_one_layer() -> None:
    import zstandard

    assert b"".join(decompress([gzip.compress(b"a") + gzip.compress(b"b")], "gzip")) == b"ab"
    assert b"".join(decompress([zstandard.compress(b"a") + zstandard.compress(b"b")], "zstd")) == b"ab"


def read_or_refuse(data: bytes) -> None:
    refusal = None
    try:
        read_entries(data, 2**20)
    except ImageError as error:
        refusal = error
    assert refusal is None or refusal.hint


@given(st.binary(max_size=3000))
def test_no_bytes_make_the_reader_fail_otherwise_than_with_an_image_error(data: bytes) -> None:
    read_or_refuse(data)


@given(st.integers(0, 1535), st.binary(min_size=1, max_size=16))
def test_no_damaged_header_makes_the_reader_fail_otherwise(at: int, damage: bytes) -> None:
    whole = bytearray(tar(file("a", xattrs={"user.x": b"1"}), symlink("b", LONG)))
    whole[at : at + len(damage)] = damage
    for block in range(0, len(whole), 512):  # with a checksum that fits, more of the reader is reached
        header = whole[block : block + 512]
        if header[257:262] == b"ustar":
            header[148:156] = b" " * 8
            whole[block + 148 : block + 156] = b"%06o\0 " % sum(header)
    read_or_refuse(bytes(whole))
