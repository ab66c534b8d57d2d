"""Layers that mean harm, by what they try: members for a tar, whole tars, and whole blobs."""

from __future__ import annotations

import gzip

import zstandard
from handmade import (
    content,
    device,
    extension,
    file,
    folder,
    hard_link,
    header,
    pipe,
    records,
    symlink,
    tar,
)
from sentinels import OUTSIDE

from runtimes.oci.descriptor import CONFIG, INDEX, LAYER_GZIP
from runtimes.oci.layer import Member


def base256(number: int) -> bytes:
    return bytes([0x80]) + number.to_bytes(11, "big")


def pax(record: bytes, name: str = "a") -> bytes:
    return extension(record) + header(name)


ESCAPES: dict[str, list[Member]] = {
    "a name that climbs": [file("../secret")],
    "a name that climbs from within": [folder("a"), file("a/../../secret")],
    "a name that climbs and comes back": [folder("a"), file("a/../b")],
    "a name that is only ..": [folder("..")],
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
    "an attribute with a name that is too long": [file("a", xattrs={"user." + "x" * 300: b"1"})],
    "an attribute without a name": [file("a", xattrs={"user.": b"1"})],
    "a default access list that is none": [folder("a", xattrs={"system.posix_acl_default": b"rubbish"})],
    "a directory that turns into a link while it is written to": [
        folder("d"), file("d/a"), symlink("d", OUTSIDE), file("d/secret")],
    "a directory that turns into a link by its other name": [
        folder("d"), folder("d/e"), symlink("l", "d"), file("d/e/a"), symlink("l/e", OUTSIDE), file("d/e/secret")],
    "a directory that is hidden and turns into a link": [
        folder("d"), folder("d/e"), file("d/e/a"), file(".wh.d", b""), symlink("d/e", OUTSIDE), file("d/e/secret")],
    "a file through a link that was a file": [file("a"), symlink("a", OUTSIDE), file("a/secret")],
    ".. hidden behind a link": [folder("a"), folder("a/b"), symlink("a/b/up", ".."), file("a/b/up/../../../secret")],
    "a hard link through .. behind a link": [folder("a"), symlink("a/up", "../.."), hard_link("b", "a/up/secret")],
    "a link to a link to itself, forty times": [
        *(symlink(f"l{n}", f"l{(n + 1) % 41}/l0") for n in range(41)), file("l0/x")],
    "a link target that is a path of many links": [
        folder("d"), symlink("d/l", "."), symlink("m", "d/" + "l/" * 2000), file("m/" * 30 + "x")],
    "a whiteout with something below it, through a link": [symlink(".wh.a", OUTSIDE), file(".wh.a/secret")],
    "a hard link to what a whiteout hid": [file("a"), file(".wh.a", b""), hard_link("b", ".wh.a")],
    "an attribute that is too large": [file("a", xattrs={"user.big": b"x" * 70_000})],
}  # fmt: skip

CONTAINED: dict[str, list[Member]] = {
    "a link to the host's root": [symlink("a", "/"), file("a/new", b"x")],
    "a link that climbs above the root": [symlink("a", "../../.."), file("a/new", b"x")],
    "a file in place of a link to a secret": [symlink("new", f"{OUTSIDE}/secret"), file("new", b"x")],
    "a file in place of a hard link to a link": [
        symlink("s", f"{OUTSIDE}/secret"), hard_link("new", "s"), file("new", b"x")],
    "a directory in place of a link": [symlink("d", OUTSIDE), folder("d", 0o777), file("d/secret"), file("new", b"x")],
    "a whiteout of a link": [symlink("d", OUTSIDE), file("new", b"x"), file(".wh.d", b"")],
    "a mode for a link": [symlink("s", f"{OUTSIDE}/script"), file("new", b"x")],
    "an absolute name": [file(f"{OUTSIDE}/secret", b"inside"), file("new", b"x")],
    "the root itself, absolute": [folder("/"), file("/new", b"x")],
    "many slashes": [file("//new", b"x"), folder(f"///{OUTSIDE}//below")],
    "an attribute that steers overlayfs": [
        folder("a", xattrs={"user.overlay.opaque": b"y"}),
        file("new", b"x", xattrs={"trusted.overlay.redirect": b"/etc"})],
    "an attribute of a link": [symlink("s", f"{OUTSIDE}/secret", xattrs={"trusted.x": b"1"}), file("new", b"x")],
    "an attribute that only files may have": [
        symlink("s", f"{OUTSIDE}/secret", xattrs={"user.x": b"1"}), device("d"), file("new", b"x")],
    "an attribute of no namespace": [file("new", b"x", xattrs={"nothing": b"1", "made.up": b"2"})],
    "an owner for a link": [symlink("s", f"{OUTSIDE}/secret", uid=12_345, gid=54_321), file("new", b"x")],
    "the opaque marker as a directory": [folder("d"), folder("d/.wh..wh..opq"), file("new", b"x")],
    "the opaque marker with something below it": [file(".wh..wh..opq/secret"), file("new", b"x")],
    "aufs's notes with something below them": [folder(".wh..wh.plnk"), file(".wh..wh.plnk/1.2"), file("new", b"x")],
    "the opaque marker as a link": [folder("d"), symlink("d/.wh..wh..opq", OUTSIDE), file("new", b"x")],
    "a whiteout as a link, a device and a pipe": [
        symlink(".wh.a", OUTSIDE), device(".wh.b"), pipe(".wh.c"), file("new", b"x")],
    "a whiteout of the tree's root by its name": [file(".wh.tree", b""), file("new", b"x")],
    "a file in place of a pipe": [pipe("new"), file("new", b"x")],
    "a file in place of a hard link to a pipe": [pipe("p"), hard_link("new", "p"), file("new", b"x")],
    "a file in place of a device": [device("new", number=(1, 1)), file("new", b"x")],
    "names that terminals and shells take amiss": [
        file("\x1b[2J\n\r\t"), file("$(touch new)"), file("; rm -rf ."), file("-"), file("new", b"x")],
    "a link into /proc that is never followed": [
        symlink("p", "/proc/self/root"), symlink("q", "/proc/1/cwd"), hard_link("h", "p"), file("new", b"x")],
    "a root that nobody may enter": [folder(".", 0), file("new", b"x")],
    "a whiteout of a directory that holds a link": [
        folder("d"), symlink("d/l", OUTSIDE), folder("d/e"), file("new", b"x"), file(".wh.d", b"")],
}  # fmt: skip


DAMAGED: dict[str, bytes] = {
    "half a header": header()[:300],
    "a header and nothing": header(size=b"00000001000"),
    "content that is cut": header(size=b"00000001000") + bytes(100),
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
    "a type that nobody knows": header(kind=b"Q") + bytes(1024),
    "a multi-volume part": header(kind=b"M") + bytes(1024),
    "a file after a single block of zeros": tar(file("a"))[:-1024] + bytes(512) + tar(file("b")),
    "rubbish after a single block of zeros": tar(file("a"))[:-1024] + bytes(512) + b"x" * 512,
    "the end cut within a block": tar(file("a"))[:-700],
    "a checksum of another header": header("a")[:148] + header("b")[148:156] + header("a")[156:] + bytes(1024),
    "a checksum without digits": header()[:148] + bytes(8) + header()[156:] + bytes(1024),
    "a checksum in signs and underscores": header()[:148] + b"+1_0000\0" + header()[156:] + bytes(1024),
    "an extended header of negative size": header("x", b"x", size=b"\xff" * 12) + bytes(1024),
    "extended headers without end": extension(records(comment="x")) * 20_000,
    "extended headers that fill memory": b"".join(
        extension(records(**{f"k{n}_{m}": "v" * 200 for m in range(400)})) for n in range(60)),
    "long names without end": extension(b"x" * 400 + bytes(1), b"L") * 20_000,
    "a pax record of half a mebibyte as a name": extension(records(path="p/" * 2**18)) + header() + bytes(1024),
    "a pax link of half a mebibyte": extension(records(linkpath="p" * 2**19)) + header("a", b"2") + bytes(1024),
    "a pax record with a length of a hundred digits": pax(b"1" * 100 + b" path=a\n") + bytes(1024),
    "a pax record with a negative length": pax(b"-9 path=a\n") + bytes(1024),
    "a pax record with a length in signs": pax(b"+9 path=a\n") + bytes(1024),
    "a pax record that ends in its key": pax(b"8 path=a\n") + bytes(1024),
    "a pax record without its newline": pax(b"9 path=abc") + bytes(1024),
    "a pax number in hexadecimal": pax(b"11 uid=0x1\n") + bytes(1024),
    "a pax number with a fraction": pax(b"11 uid=1.5\n") + bytes(1024),
    "a pax time in exponents": pax(b"13 mtime=1e9\n") + bytes(1024),
    "a pax link with NUL": extension(records(linkpath="a\0b")) + header("l", b"2") + bytes(1024),
    "a pax attribute with NUL in its name": extension(records(**{"SCHILY__xattr__user__a\0b": "1"})) + header()
    + bytes(1024),
    "a damaged global header": extension(b"rubbish", b"g") + header() + bytes(1024),
    "a volume's name": header(kind=b"V") + bytes(1024),
    "a directory's dump": header(kind=b"D") + bytes(1024),
    "a gzip in a gzip": gzip.compress(tar(file("a"))),
    "text": b"#!/bin/sh\n" * 200,
}  # fmt: skip


def sized(size: int, name: str = "a", kind: bytes = b"0", **more: bytes) -> bytes:
    return header(name, kind, size=b"%011o" % size, **more)


def old_map(*numbers: int) -> bytes:
    return b"".join(b"%011o\0" % number for number in numbers)


def map_1(text: bytes, stored: int, real: int, **more: str) -> bytes:
    """A sparse file of version 1.0 with ``text`` as its map."""
    fields = {"GNU__sparse__major": "1", "GNU__sparse__minor": "0", "GNU__sparse__realsize": str(real), **more}
    whole = content(text)
    return extension(records(**fields)) + sized(len(whole) + stored) + whole + content(bytes(stored))


def map_0(stored: int, **fields: str) -> bytes:
    """A sparse file of version 0.1, or 0.0 where the fields say so."""
    named = {f"GNU__sparse__{key}": value for key, value in fields.items()}
    return extension(records(**named)) + sized(stored) + content(bytes(stored))


def old(numbers: bytes, stored: int, real: int, more: bytes = b"") -> bytes:
    return sized(stored, kind=b"S", old_map=numbers, old_more=more, old_size=b"%011o" % real) + content(bytes(stored))


SPARSE: dict[str, bytes] = {
    "an old sparse file without a map, that stores something": old(b"", 5, 10),
    "an old map beyond the real size": old(old_map(100, 5), 5, 50),
    "an old map that overlaps": old(old_map(0, 10, 5, 10), 20, 50),
    "an old map that goes backwards": old(old_map(20, 5, 0, 5), 10, 50),
    "an old map that stores less than it says": old(old_map(0, 500), 5, 1000),
    "an old map that stores more than it says": old(old_map(0, 5), 500, 1000),
    "an old map of numbers that are none": old(b"rubbish", 5, 10),
    "an old map of negative numbers": old(b"\xff" * 12 + b"00000000005\0", 5, 10),
    "an old sparse file of 2^60 bytes": sized(0, kind=b"S", old_size=base256(2**60)),
    "an old sparse file of negative size": sized(0, kind=b"S", old_size=b"\xff" * 12),
    "an old map that goes on without end": sized(0, kind=b"S", old_more=b"1", old_size=b"00000000001")
    + (bytes(504) + b"1" + bytes(7)) * 5000,
    "an old map that is cut": sized(0, kind=b"S", old_more=b"1", old_size=b"00000000001"),
    "a map of version 1.0 beyond the real size": map_1(b"1\n100\n5\n", 5, 50),
    "a map of version 1.0 that overlaps": map_1(b"2\n0\n10\n5\n10\n", 20, 50),
    "a map of version 1.0 with a million entries": map_1(b"1000000\n" + b"0\n0\n" * 1_000_000, 0, 50),
    "a map of version 1.0 that claims a million entries": map_1(b"1000000\n0\n0\n", 0, 50),
    "a map of version 1.0 that claims 2^62 entries": map_1(b"4611686018427387904\n0\n0\n", 0, 50),
    "a map of version 1.0 that is no text": map_1(bytes(512), 5, 50),
    "a map of version 1.0 without a line": map_1(b"1" * 600, 5, 50),
    "a map of version 1.0 with signs": map_1(b"1\n-5\n5\n", 5, 50),
    "a map of version 1.0 in a file without content": extension(
        records(GNU__sparse__major="1", GNU__sparse__minor="0", GNU__sparse__realsize="9")) + sized(0),
    "a map of version 1.0 without a real size": extension(
        records(GNU__sparse__major="1", GNU__sparse__minor="0")) + sized(512) + content(b"0\n"),
    "a sparse file of 2^62 bytes": map_1(b"0\n", 0, 2**62),
    "a sparse file of more bytes than numbers hold": map_1(b"0\n", 0, 10**30),
    "a sparse file just beyond the budget": map_1(b"0\n", 0, 2**24 + 1),
    "a sparse file whose name climbs": map_1(b"0\n", 0, 5, GNU__sparse__name="../secret"),
    "a sparse file whose name has NUL": map_1(b"0\n", 0, 5, GNU__sparse__name="a\0b"),
    "a sparse file of an unknown version": map_1(b"0\n", 0, 5, GNU__sparse__minor="7"),
    "a version without a map": extension(records(GNU__sparse__size="5")) + sized(5) + content(b"12345"),
    "a map of version 0.1 beyond the real size": map_0(5, size="50", numblocks="1", map="100,5"),
    "a map of version 0.1 that overlaps": map_0(20, size="50", numblocks="2", map="0,10,5,10"),
    "a map of version 0.1 with half an entry": map_0(5, size="50", map="0,5,6"),
    "a map of version 0.1 of another length than it says": map_0(5, size="50", numblocks="9", map="0,5"),
    "a map of version 0.1 that is none": map_0(5, size="50", numblocks="1", map="zero,five"),
    "a map of version 0.0 with two offsets": extension(
        records(GNU__sparse__size="50", GNU__sparse__offset="0") + records(GNU__sparse__offset="1")
        + records(GNU__sparse__numbytes="5")) + sized(5) + content(bytes(5)),
    "a map of version 0.0 with commas": extension(
        records(GNU__sparse__size="50", GNU__sparse__offset="0,5,9", GNU__sparse__numbytes="5"))
    + sized(5) + content(bytes(5)),
}  # fmt: skip

GZIPPED = gzip.compress(tar(file("a")))
ZSTD = zstandard.ZstdCompressor(write_checksum=True, write_content_size=False).compress(tar(file("a")))
LAYER_PLAIN = "application/vnd.oci.image.layer.v1.tar"
LAYER_ZSTD = f"{LAYER_PLAIN}+zstd"
BLOBS: dict[str, tuple[bytes, str]] = {
    "gzip that is cut": (GZIPPED[:-12], LAYER_GZIP),
    "gzip with a wrong checksum": (GZIPPED[:-8] + b"\0\0\0\0" + GZIPPED[-4:], LAYER_GZIP),
    "gzip with rubbish behind it": (GZIPPED + b"rubbish", LAYER_GZIP),
    "gzip with rubbish in it": (GZIPPED[:30] + b"\xff" * 10 + GZIPPED[40:], LAYER_GZIP),
    "plain tar said to be gzip": (tar(file("a")), LAYER_GZIP),
    "gzip said to be plain": (GZIPPED, LAYER_PLAIN),
    "gzip said to be zstd": (GZIPPED, LAYER_ZSTD),
    "nothing said to be gzip": (b"", LAYER_GZIP),
    "a layer of unknown type": (GZIPPED, "application/vnd.example.layer"),
    "a foreign layer": (GZIPPED, "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"),
    "a config as a layer": (b"{}", CONFIG),
    "gzip of another method": (GZIPPED[:2] + b"\x07" + GZIPPED[3:], LAYER_GZIP),
    "gzip with a name that never ends": (GZIPPED[:3] + b"\x08" + GZIPPED[4:10] + b"n" * 2**22, LAYER_GZIP),
    "gzip with an extra field beyond its end": (GZIPPED[:3] + b"\x04" + GZIPPED[4:10] + b"\xff\xff", LAYER_GZIP),
    "gzip with a wrong length": (GZIPPED[:-4] + b"\0\0\0\1", LAYER_GZIP),
    "gzip of an unfinished block": (GZIPPED[:20], LAYER_GZIP),
    "gzip members that hold nothing, without end": (gzip.compress(b"") * 500_000, LAYER_GZIP),
    "gzip members that hold one byte each": (GZIPPED + gzip.compress(b"\0", mtime=0) * 200_000, LAYER_GZIP),
    "gzip that begins with padding": (bytes(100) + GZIPPED, LAYER_GZIP),
    "gzip with rubbish behind its padding": (GZIPPED + bytes(100) + b"rubbish", LAYER_GZIP),
    "half of gzip's mark": (GZIPPED[:1], LAYER_GZIP),
    "zstd that is cut": (ZSTD[:-5], LAYER_ZSTD),
    "zstd with a wrong checksum": (ZSTD[:-4] + b"\0\0\0\0", LAYER_ZSTD),
    "zstd with rubbish behind it": (ZSTD + b"rubbish", LAYER_ZSTD),
    "zstd that wants a window of 2 GiB": (ZSTD[:4] + b"\x00\xa8" + ZSTD[6:], LAYER_ZSTD),
    "zstd that wants a dictionary": (ZSTD[:4] + b"\x23\x07" + ZSTD[5:], LAYER_ZSTD),
    "zstd frames to be skipped, without end": (b"P*M\x18\0\0\0\0" * 2**20, LAYER_ZSTD),
    "a zstd frame to be skipped that claims 4 GiB": (b"P*M\x18\xff\xff\xff\xff" + ZSTD, LAYER_ZSTD),
    "zstd frames that hold nothing, without end": (zstandard.compress(b"") * 300_000, LAYER_ZSTD),
    "zstd said to be gzip": (ZSTD, LAYER_GZIP),
    "zstd said to be plain": (ZSTD, LAYER_PLAIN),
    "nothing said to be zstd": (b"", LAYER_ZSTD),
    "an xz layer": (b"\xfd7zXZ\0" + bytes(100), LAYER_PLAIN),
    "an index as a layer": (b"{}", INDEX),
    "an encrypted layer": (GZIPPED, "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"),
}  # fmt: skip
