"""Layers from a generator: whatever they say, all around the tree stays as it was; they end well or as ImageError."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from handmade import MTIME, content, device, extension, file, folder, hard_link, header, pipe, records, symlink, tar
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sentinels import OUTSIDE, placed, sentinel

from bench.errors import ImageError
from runtimes.oci.layer import Member
from runtimes.oci.stream import LayerStream
from runtimes.oci.unpack import TreeWriter

BUDGET = 2**22
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="as root there is more to break")
fuzzed = settings(
    max_examples=int(os.environ.get("ISOMARK_FUZZ", "300")),
    deadline=timedelta(seconds=5),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@contextmanager
def guarded() -> Iterator[Path]:
    where = Path(tempfile.mkdtemp())
    try:
        with sentinel(where / "outside") as tree:
            yield tree
    finally:
        shutil.rmtree(where)


def apply(tree: Path, layers: list[bytes]) -> str:
    """Apply ``layers``; return the hint if they were refused, or nothing."""
    hint = ""
    try:
        with TreeWriter(tree) as writer:
            for layer in layers:
                stream = LayerStream([layer[at : at + 4096] for at in range(0, len(layer), 4096)], BUDGET)
                writer.apply(stream)
                stream.finish()
            writer.finish()
    except ImageError as error:
        hint = error.hint or pytest.fail("refused without a hint")
    return hint


parts = st.sampled_from(
    ["a", "b", "c", "d", "..", ".", "", ".wh.a", ".wh.b", ".wh..wh..opq", ".wh..wh.x", "\udcff", "n" * 255]
)
paths = st.one_of(
    st.lists(parts, min_size=1, max_size=4).map("/".join),
    st.sampled_from(["/", ".", "/a", f"{OUTSIDE}/secret", f"a{OUTSIDE}/secret", "a/secret", "a/jail/secret", "tree"]),
)
targets = st.one_of(
    paths,
    st.sampled_from(
        [OUTSIDE, f"{OUTSIDE}/secret", "/", "..", "../..", "../../..", "/proc/self/root", "/proc/self/cwd",
         "/proc/self/fd/3", "../../secret", "a", "./a/.."]
    ),
)  # fmt: skip
xattrs = st.dictionaries(
    st.sampled_from(["user.x", "trusted.x", "trusted.overlay.opaque", "security.capability", "system.posix_acl_default",
                     "system.posix_acl_access", "none", "user."]), st.binary(max_size=30), max_size=2)  # fmt: skip
members = st.one_of(
    st.builds(file, paths, st.binary(max_size=20), st.integers(0, 0o7777), xattrs=xattrs),
    st.builds(folder, paths, st.integers(0, 0o7777), xattrs=xattrs),
    st.builds(symlink, paths, targets),
    st.builds(symlink, paths, targets),
    st.builds(hard_link, paths, targets),
    st.builds(device, paths, st.sampled_from([stat.S_IFCHR, stat.S_IFBLK])),
    st.builds(pipe, paths),
)
layers = st.lists(st.lists(members, max_size=12), min_size=1, max_size=3)


@fuzzed
@given(layers)
def test_no_sequence_of_entries_changes_anything_outside(wanted: list[list[Member]]) -> None:
    with guarded() as tree:
        apply(tree, [tar(*(placed(member, tree) for member in layer)) for layer in wanted])


def seeds() -> bytes:
    """One tar with everything that the reader knows."""
    sparse = records(
        GNU__sparse__major="1", GNU__sparse__minor="0", GNU__sparse__realsize="9000", GNU__sparse__name="s1"
    )
    return (
        tar(folder("d", 0o1777), file("d/a", b"x" * 700, 0o4755, xattrs={"user.x": b"1"}), symlink("s", "d/a"),
            hard_link("h", "d/a"), device("null"), pipe("p"), file("d/.wh.b", b""), file("l" * 130, nanoseconds=7),
            Member("old", stat.S_IFREG | 0o600, b"o", mtime=-5, uid=2**22))[:-1024]
        + extension(b"n" * 150 + bytes(1), b"L") + extension(b"t" * 150 + bytes(1), b"K") + header("short", b"2", "t")
        + extension(sparse) + header("x", size=b"%011o" % 1024) + content(b"1\n4096\n512\n") + bytes(512)
        + extension(records(GNU__sparse__size="9000", GNU__sparse__numblocks="1", GNU__sparse__map="0,5"))
        + header("s2", size=b"00000000005") + content(b"12345")
        + header("s3", b"S", size=b"00000000005", old_map=b"00000010000\0" + b"00000000005\0", old_size=b"00000040000")
        + content(b"12345")
        + extension(records(comment="x"), b"g")
        + bytes(1024)
    )  # fmt: skip


SEED = seeds()
BLOCKS = [SEED[at : at + 512] for at in range(0, len(SEED), 512)]


def mended(data: bytes) -> bytes:
    """``data`` with a checksum that fits wherever a header may be: more of the reader is reached."""
    whole = bytearray(data)
    for at in range(0, len(whole) - 511, 512):
        if whole[at + 257 : at + 262] == b"ustar":
            whole[at + 148 : at + 156] = b" " * 8
            whole[at + 148 : at + 156] = b"%06o\0 " % sum(whole[at : at + 512])
    return bytes(whole)


def test_the_seed_itself_is_good() -> None:
    with guarded() as tree:
        assert apply(tree, [SEED]) == ""
        assert sorted(path.name for path in tree.iterdir()) == sorted(
            ["d", "s", "h", "null", "p", "l" * 130, "old", "n" * 150, "s1", "s2", "s3"]
        )
        assert (tree / "s1").stat().st_size == (tree / "s2").stat().st_size == 9000
        assert (tree / "s3").read_bytes()[4096:4101] == b"12345"
        assert (tree / "h").stat().st_nlink == 2
        assert (tree / "s").lstat().st_mtime == MTIME


@fuzzed
@example([(4433, b"\x80")])  # a device number beyond the kernel's
@given(st.lists(st.tuples(st.integers(0, len(SEED) - 1), st.binary(min_size=1, max_size=16)), min_size=1, max_size=6))
def test_no_damaged_bytes_change_anything_outside(damages: list[tuple[int, bytes]]) -> None:
    damaged = bytearray(SEED)
    for at, damage in damages:
        damaged[at : at + len(damage)] = damage
    with guarded() as tree:
        apply(tree, [mended(bytes(damaged))])


@fuzzed
@given(st.lists(st.sampled_from(BLOCKS), max_size=40), st.integers(0, 511))
def test_no_order_of_blocks_changes_anything_outside(blocks: list[bytes], cut: int) -> None:
    with guarded() as tree:
        apply(tree, [b"".join(blocks)[: 512 * len(blocks) - cut]])


def sparse_file(numbers: list[int], size: int, data: bytes, style: str) -> bytes:
    """A tar with the sparse file ``a``, its map as given."""
    if style == "old":
        packed = [b"%011o\0" % number if 0 <= number < 8**11 else b"\xff" * 12 for number in numbers]
        old_size = b"%011o" % size if size >= 0 else b"\xff" * 12
        one = header("a", b"S", size=b"%011o" % len(data), old_map=b"".join(packed)[:96], old_size=old_size)
        return one + content(data) + bytes(1024)
    if style == "1.0":
        text = content("\n".join(map(str, [len(numbers) // 2, *numbers, ""])).encode())
        fields = records(GNU__sparse__major="1", GNU__sparse__minor="0", GNU__sparse__realsize=str(size))
        return (
            extension(fields)
            + header("a", size=b"%011o" % (len(text) + len(data)))
            + text
            + content(data)
            + bytes(1024)
        )
    fields = records(GNU__sparse__size=str(size))
    if style == "0.1":
        fields += records(GNU__sparse__map=",".join(map(str, numbers)))
    else:
        for at, number in enumerate(numbers):
            fields += records(**{f"GNU__sparse__{'numbytes' if at % 2 else 'offset'}": str(number)})
    return extension(fields) + header("a", size=b"%011o" % len(data)) + content(data) + bytes(1024)


def meant(numbers: list[int], size: int, data: bytes) -> bytes | None:
    """The file that a map means; None if it contradicts itself."""
    made, at, end = bytearray(max(size, 0)), 0, 0
    for offset, length in zip(numbers[::2], numbers[1::2], strict=False):
        if offset < end or length < 0 or offset + length > size:
            return None
        end = offset + length
        made[offset:end] = data[at : at + length]
        at += length
    return bytes(made) if at == len(data) and size >= 0 and len(numbers) % 2 == 0 else None


extents = st.lists(st.tuples(st.integers(0, 600), st.integers(0, 600)), max_size=4).map(
    lambda gaps: [number for at, (_, length) in enumerate(gaps)
                  for number in (sum(map(sum, gaps[:at])) + gaps[at][0], length)])  # fmt: skip
wild = st.lists(st.integers(-5, 9000) | st.just(2**63) | st.just(10**18), max_size=8)


@fuzzed
@given(extents | wild, st.integers(-1, 9000), st.sampled_from(["1.0", "0.1", "0.0", "old"]), st.booleans())
def test_a_sparse_file_is_what_its_map_means_or_refused(numbers: list[int], size: int, style: str, fits: bool) -> None:
    if len(numbers) % 2 and style in ("1.0", "old"):  # these write pairs
        numbers = [*numbers, 0]
    data = os.urandom(min(max(sum(numbers[1::2]), 0), 2**15) if fits else 5)
    wanted = meant(numbers, size, data)
    if style == "0.0" and not numbers and not data:
        wanted = None  # nothing is left that speaks of a map
    with guarded() as tree:
        refused = apply(tree, [sparse_file(numbers, size, data, style)])
        assert bool(refused) == (wanted is None)
        if wanted is not None:
            assert (tree / "a").read_bytes() == wanted
