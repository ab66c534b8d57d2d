"""What umoci makes of an image, we make of it: content, mode, owner, time, attributes, devices and hard links.

umoci 0.4 knows neither zstd nor Docker's media types; there it gets the same tar in a form it knows.
Where it fails or loses something, the test at the end says so and why we do otherwise.
"""

from __future__ import annotations

import gzip
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from handmade import (
    content,
    device,
    extension,
    file,
    fingerprint,
    folder,
    hard_link,
    header,
    image_of_blob,
    image_of_tars,
    pipe,
    records,
    symlink,
    tar,
)

from bench.errors import ImageError
from runtimes.oci.descriptor import DOCKER_CONFIG, DOCKER_MANIFEST, Descriptor, canonical_json
from runtimes.oci.layer import Member
from runtimes.oci.layout import Layout
from runtimes.oci.trees import unpack_image

BUDGET = 2**27
END = bytes(1024)
ROOT = folder(".")
CAP_NET_BIND_SERVICE = bytes.fromhex("0100000200040000000000000000000000000000")
ACL = bytes.fromhex("02000000" "01000600ffffffff" "02000400e8030000" "04000400ffffffff" "10000400ffffffff"
                    "20000000ffffffff")  # fmt: skip
"""user::rw-, user:1000:r--, group::r--, mask::r--, other::--- (acl(5), as the kernel stores it)."""

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="owners and device nodes need root"),
    pytest.mark.skipif(shutil.which("umoci") is None, reason="needs umoci: apt-get install umoci"),
]

IMAGES: dict[str, list[bytes]] = {
    "one file": [tar(ROOT, folder("etc"), file("etc/passwd", b"root\n", 0o640, uid=1, gid=2))],
    "set-user-ID and sticky": [tar(ROOT, file("su", b"x", 0o4755), folder("tmp", 0o1777), folder("mail", 0o2775))],
    "a file below a directory that gives its group": [
        tar(ROOT, folder("mail", 0o2775, gid=8), file("mail/a"), folder("mail/d"), file("mail/b", gid=9))],
    "set-user-ID of another owner, with a capability": [
        tar(ROOT, file("ping", b"x", 0o4711, uid=70_000, gid=7, xattrs={"security.capability": CAP_NET_BIND_SERVICE}))],
    "modes without any right": [tar(ROOT, folder("d", 0), file("d/a", mode=0), folder("d/e", 0o111), file("d/e/f"))],
    "owners beyond 16 bits": [tar(ROOT, file("a", uid=65_536, gid=100_000), folder("d", uid=2**31 + 5, gid=2**32 - 2),
                                  symlink("s", "a", uid=2**21, gid=2**21 + 1))],
    "hard links": [tar(ROOT, file("a", b"one"), hard_link("b", "a"), folder("d"), hard_link("d/c", "a"))],
    "a chain of hard links": [tar(ROOT, file("a"), hard_link("b", "a"), hard_link("c", "b"), hard_link("d", "./c"))],
    "a hard link to a lower layer's file": [tar(ROOT, file("a", b"one")), tar(ROOT, hard_link("b", "a"))],
    "a hard link whose first name is replaced": [
        tar(ROOT, file("a", b"one"), hard_link("b", "a")), tar(ROOT, file("a", b"two"), hard_link("c", "a"))],
    "a hard link to a symbolic link": [tar(ROOT, symlink("s", "nowhere"), hard_link("t", "s"))],
    "a hard link to a device and to a pipe": [
        tar(ROOT, device("null"), hard_link("null2", "null"), pipe("p"), hard_link("p2", "p"))],
    "a hard link through a linked directory": [
        tar(ROOT, folder("usr"), folder("usr/lib"), symlink("lib", "usr/lib"), file("usr/lib/x")),
        tar(ROOT, hard_link("y", "lib/x")),
    ],
    "a hard link to an absolute name": [tar(ROOT, folder("etc"), file("etc/a"), hard_link("b", "/etc/a"))],
    "absolute names": [tar(folder("/"), folder("/etc"), file("/etc/a", b"inside"), symlink("/etc/b", "/etc/a"))],
    "names with dots and slashes": [
        tar(folder("./"), folder("./a//"), file(".//a/./b"), folder("a/c/."), file("./a/c//d"))],
    "xattrs": [tar(ROOT, file("a", xattrs={"user.one": b"1\x00\xff\n=", "security.capability": CAP_NET_BIND_SERVICE}))],
    "xattrs on a directory": [tar(ROOT, folder("d", xattrs={"user.d": b"v", "trusted.t": b"\x00"}))],
    "xattrs on a symbolic link and a pipe": [
        tar(ROOT, symlink("s", "a", xattrs={"trusted.s": b"1"}), replace(pipe("p"), xattrs={"trusted.p": b"2"}))],
    "a directory whose xattrs an upper layer changes": [
        tar(ROOT, folder("d", xattrs={"user.old": b"1", "user.kept": b"1"})),
        tar(ROOT, folder("d", xattrs={"user.new": b"2", "user.kept": b"2"})),
    ],
    "a directory whose xattrs an upper layer does not have": [
        tar(ROOT, folder("d", xattrs={"user.old": b"1"}), file("d/a", xattrs={"user.a": b"1"})),
        tar(ROOT, folder("d"), file("d/a")),
    ],
    "an access list": [tar(ROOT, file("a", mode=0o640, xattrs={"system.posix_acl_access": ACL}))],
    "a default access list that nothing below inherits": [
        tar(ROOT, folder("d", xattrs={"system.posix_acl_default": ACL}), folder("d/e", 0o700)),
        tar(ROOT, folder("d/e/f"), symlink("d/s", "e")),
    ],
    "what the overlay of the builder's host noted": [
        tar(ROOT, folder("d", xattrs={"trusted.overlay.opaque": b"y", "trusted.overlay.redirect": b"/etc"}))],
    "a label of the builder's host": [tar(ROOT, file("a", xattrs={"security.selinux": b"system_u:object_r:x:s0"}))],
    "devices and pipes": [tar(ROOT, device("null"), device("disk", stat.S_IFBLK, (7, 3)), pipe("p"))],
    "devices of large numbers": [tar(ROOT, device("a", number=(4095, 1_048_575)), device("b", number=(259, 70_000)))],
    "devices that become something else": [
        tar(ROOT, device("a"), pipe("b"), file("c"), symlink("d", "c")),
        tar(ROOT, file("a"), folder("b"), device("c"), pipe("d")),
    ],
    "long names": [tar(ROOT, folder("x" * 120), file("x" * 120 + "/" + "y" * 200), symlink("l", "z" * 300))],
    "the longest name, path and link": [
        tar(ROOT, file("n" * 255), symlink("l", "t" * 4095), *(folder("/".join(["d" * 250] * n)) for n in range(1, 5)),
            file("/".join(["d" * 250] * 4 + ["f"])))],
    "names that are not UTF-8": [tar(ROOT, file("caf\udce9"), symlink("s\udcff", "caf\udce9"))],
    "names of many scripts and signs": [
        tar(ROOT, folder("ünï"), file("ünï/😀"), file("日本"), file("a\nb"), file("\\x"), file("\x01\x7f"), file(" "),
            file("-rf"), file("*"), file("..."), file(".wha"), file("u\u0301"), file("ú"))],
    "a whiteout of a file": [
        tar(ROOT, folder("d"), file("d/a"), file("d/b")), tar(ROOT, folder("d"), file("d/.wh.a", b""))],
    "a whiteout of a directory": [tar(ROOT, folder("d"), file("d/a"), file("b")), tar(ROOT, file(".wh.d", b""))],
    "a whiteout of nothing": [tar(ROOT, file("a")), tar(ROOT, file(".wh.none", b""))],
    "a whiteout of a link keeps what it names": [
        tar(ROOT, folder("d"), file("d/a"), symlink("l", "d")), tar(ROOT, file(".wh.l", b""))],
    "a whiteout below a linked directory": [
        tar(ROOT, folder("d"), file("d/a"), file("d/b"), symlink("l", "d")), tar(ROOT, file("l/.wh.a", b""))],
    "a whiteout and the name again": [
        tar(ROOT, folder("d"), file("d/a"), file("f")),
        tar(ROOT, file(".wh.d", b""), folder("d", 0o700), file("d/b"), file(".wh.f", b""), folder("f")),
    ],
    "a whiteout in one layer, the name in the next, a whiteout again": [
        tar(ROOT, file("a", b"1")), tar(ROOT, file(".wh.a", b"")), tar(ROOT, file("a", b"3")),
        tar(ROOT, file(".wh.a", b"")), tar(ROOT, file("a", b"5")),
    ],
    "an opaque directory": [
        tar(ROOT, folder("d"), file("d/a"), folder("d/e"), file("d/e/f")),
        tar(ROOT, folder("d"), file("d/.wh..wh..opq", b""), file("d/new")),
    ],
    "an opaque root": [tar(ROOT, folder("d"), file("d/a"), file("b")), tar(ROOT, file(".wh..wh..opq", b""), file("c"))],
    "an opaque marker after what it must spare": [
        tar(ROOT, folder("d"), file("d/a")),
        tar(ROOT, folder("d"), file("d/new"), file("d/.wh..wh..opq", b"")),
    ],
    "a file that becomes a directory": [tar(ROOT, file("a")), tar(ROOT, folder("a"), file("a/b"))],
    "a directory that becomes a file": [tar(ROOT, folder("a"), file("a/b")), tar(ROOT, file("a", b"now"))],
    "a directory that becomes a link": [tar(ROOT, folder("a"), file("a/b"), folder("c")), tar(ROOT, symlink("a", "c"))],
    "a link that becomes a directory": [tar(ROOT, folder("c"), symlink("a", "c")), tar(ROOT, folder("a"), file("a/x"))],
    "a link that becomes a file": [tar(ROOT, file("c", b"old"), symlink("a", "c")), tar(ROOT, file("a", b"new"))],
    "a directory, a link and a directory again in one layer": [
        tar(ROOT, folder("d"), file("d/a"), folder("t"), symlink("d", "t"), file("d/b"), folder("d"), file("d/c"))],
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
    "a directory named twice": [tar(ROOT, folder("d", 0o700), file("d/a"), folder("d", 0o750, mtime=5), file("d/b"))],
    "a directory's new mode": [tar(ROOT, folder("d", 0o755), file("d/a")), tar(ROOT, folder("d", 0o500))],
    "a file added below an untouched directory": [tar(ROOT, folder("d", 0o710), file("d/a")), tar(ROOT, file("d/b"))],
    "children before their directory": [tar(ROOT, folder("d"), file("d/a"), folder("d", 0o711, mtime=77))],
    "a root of its own mode": [tar(folder(".", 0o711), file("a"))],
    "a root without an entry": [tar(file("a"))],
    "times before 1970": [tar(ROOT, file("old", mtime=-1000), folder("d", mtime=-1), symlink("s", "x", mtime=-5))],
    "times with nanoseconds": [
        tar(ROOT, file("a", nanoseconds=123_456_789), folder("d", nanoseconds=1), symlink("s", "x", nanoseconds=999),
            file("b", mtime=-2, nanoseconds=500_000_000), file("c", mtime=0, nanoseconds=10))],
    "times after 2038 and after 2106": [tar(ROOT, file("a", mtime=2**31 + 1), file("b", mtime=2**32 + 1))],
    "a large file": [tar(ROOT, file("big", os.urandom(3 * 2**20 + 7)))],
    "files of all sizes about a block": [
        tar(ROOT, *(file(f"f{size}", bytes([7]) * size) for size in (0, 1, 511, 512, 513, 1024, 2**20, 2**20 + 1)))],
    "an empty layer between others": [tar(ROOT, file("a")), END, tar(ROOT, file("b"))],
    "a layer of no bytes": [tar(ROOT, file("a")), b"", tar(ROOT, file("b"))],
    "a tar without an end": [tar(ROOT, file("a"))[:-1024]],
    "a tar with a long end": [tar(ROOT, file("a")) + bytes(20 * 512)],
    "a directory of many": [tar(ROOT, folder("d"), *(file(f"d/{n}", b"") for n in range(3000)))],
    "forty layers": [tar(ROOT, folder("d"), file(f"d/{n}"), file("d/last", b"%d" % n)) for n in range(40)],
    "a header from before POSIX": [
        tar(ROOT)[:-1024] + header("old/", b"\0", magic=b"") + header("old/a", b"\0", magic=b"") + END],
    "a long name split as ustar does": [
        tar(ROOT, folder("p" * 100))[:-1024] + header("n" * 90, magic=b"ustar\x0000", prefix=b"p" * 100) + END],
    "extended headers in all ways": [
        tar(ROOT)[:-1024]
        + extension(records(path="named", mtime="1.5", uid="70000", SCHILY__xattr__user__x="v")) + header("short")
        + extension(records(path="", size="", linkpath="")) + header("kept")
        + extension(b"gnu" + bytes(1), b"L") + header("short")
        + extension(b"t" * 150 + bytes(1), b"K") + extension(b"l" * 150 + bytes(1), b"L") + header("s", b"2", "s")
        + extension(records(size="5")) + header("sized", size=b"00000000000") + content(b"12345")
        + END],
}  # fmt: skip


def unpack_by_umoci(layout: Layout, descriptor: Descriptor, bundle: Path) -> Path:
    layout.tag("umoci", descriptor)
    done = subprocess.run(
        ["umoci", "unpack", "--image", f"{layout.root}:umoci", bundle], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return bundle / "rootfs"


def unpack_by_us(layout: Layout, descriptor: Descriptor, target: Path) -> Path:
    target.mkdir()
    unpack_image(layout, descriptor, target, BUDGET)
    return target


@pytest.mark.parametrize("name", IMAGES)
def test_the_result_is_umocis(tmp_path: Path, name: str) -> None:
    layout = Layout(tmp_path / "images")
    descriptor = image_of_tars(layout, *IMAGES[name])
    ours = unpack_by_us(layout, descriptor, tmp_path / "ours")
    theirs = fingerprint(unpack_by_umoci(layout, descriptor, tmp_path / "bundle"))
    assert fingerprint(ours) == theirs


def test_the_images_are_not_all_alike(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "images")
    assert len({image_of_tars(layout, *tars).digest for tars in IMAGES.values()}) == len(IMAGES) >= 60


TREE = tar(
    ROOT, folder("d", 0o2750, gid=5), file("d/a", os.urandom(70_000), xattrs={"user.x": b"1"}), symlink("s", "d")
)


def zstd(data: bytes) -> bytes:
    import zstandard

    return zstandard.compress(data)


def gzip_members(data: bytes) -> bytes:
    return b"".join(gzip.compress(data[at : at + 10_000]) for at in range(0, len(data), 10_000))


OCI, DOCKER = "application/vnd.oci.image.layer.v1.tar", "application/vnd.docker.image.rootfs.diff.tar"
FORMS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "OCI, plain": (OCI, bytes),
    "OCI, gzip": (f"{OCI}+gzip", gzip.compress),
    "OCI, gzip of many members": (f"{OCI}+gzip", gzip_members),
    "OCI, zstd": (f"{OCI}+zstd", zstd),
    "OCI, zstd of several frames, one to be skipped": (
        f"{OCI}+zstd", lambda data: zstd(data[:9000]) + b"P*M\x18\4\0\0\0skip" + zstd(data[9000:])),
    "Docker, plain": (DOCKER, bytes),
    "Docker, gzip": (f"{DOCKER}.gzip", gzip.compress),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_a_layer_gives_what_umoci_makes_of_it(tmp_path: Path, name: str) -> None:
    layout = Layout(tmp_path / "images")
    media_type, pack = FORMS[name]
    descriptor = image_of_blob(layout, pack(TREE), TREE, media_type)
    if media_type.startswith(DOCKER):
        document = layout.document(descriptor)
        document |= {"mediaType": DOCKER_MANIFEST, "config": {**document["config"], "mediaType": DOCKER_CONFIG}}
        descriptor = layout.add(DOCKER_MANIFEST, canonical_json(document))
    ours = fingerprint(unpack_by_us(layout, descriptor, tmp_path / "ours"))
    known = descriptor if media_type in (OCI, f"{OCI}+gzip") else image_of_tars(layout, TREE)
    assert ours == fingerprint(unpack_by_umoci(layout, known, tmp_path / "bundle"))


def make_holes(path: Path, pattern: Sequence[tuple[int, int]], size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)
        for at, length in pattern:
            file.seek(at)
            file.write(os.urandom(length))


def stored_parts(path: Path) -> list[tuple[int, int]]:
    """Begin and end of what is no hole; st_blocks differs by whether ext4 has placed the blocks yet."""
    parts: list[tuple[int, int]] = []
    at = 0
    with path.open("rb") as file:
        while True:
            try:
                begin = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:  # ENXIO: only a hole follows
                return parts
            at = os.lseek(file.fileno(), begin, os.SEEK_HOLE)
            parts.append((begin, at))


HOLES: dict[str, tuple[Sequence[tuple[int, int]], int]] = {
    "holes between": ([(2**20, 5000), (3 * 2**20, 10)], 5 * 2**20),
    "a hole at the start": ([(2**22, 4096)], 2**22 + 4096),
    "only a hole": ([], 2**22 + 1),
    "more parts than a header holds": ([(n * 2**17, 4096) for n in range(60)], 60 * 2**17 + 3),
}


@pytest.mark.parametrize("holes", HOLES)
@pytest.mark.parametrize("style", ["gnu", "0.0", "0.1", "1.0"])
def test_sparse_files_have_the_same_bytes_and_keep_their_holes(tmp_path: Path, style: str, holes: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    make_holes(source / "sparse", *HOLES[holes])
    make_holes(source / ("long-name-" * 20), *HOLES[holes])
    (source / "after").write_text("what follows is not disturbed")
    options = ["--format=gnu"] if style == "gnu" else ["--format=pax", f"--sparse-version={style}"]
    made = subprocess.run(
        ["tar", "--sparse", *options, "--create", "--mtime=@1600000000", "--directory", source, "."],
        check=True, capture_output=True,
    ).stdout  # fmt: skip
    assert len(made) < 2**20, "or tar stored no holes, and this test shows nothing"
    layout = Layout(tmp_path / "images")
    descriptor = image_of_tars(layout, made)
    ours = unpack_by_us(layout, descriptor, tmp_path / "ours")
    if style == "gnu":  # umoci fails: it does not know the type S that Go's reader hands on
        theirs = tmp_path / "theirs"
        theirs.mkdir()
        subprocess.run(["tar", "--extract", "--same-permissions", "--directory", theirs], input=made, check=True)
    else:
        theirs = unpack_by_umoci(layout, descriptor, tmp_path / "bundle")
    assert fingerprint(ours) == fingerprint(theirs)
    for name in ("sparse", "long-name-" * 20):
        assert stored_parts(ours / name) == stored_parts(source / name)


@pytest.mark.parametrize("style", ["gnu", "pax", "ustar", "v7"])
def test_what_gnu_tar_writes_gives_what_umoci_makes_of_it(tmp_path: Path, style: str) -> None:
    source = tmp_path / "source"
    (source / "d/e").mkdir(parents=True)
    (source / "d/a").write_bytes(os.urandom(5000))
    (source / "d/b").hardlink_to(source / "d/a")
    (source / "s").symlink_to("d/a")
    if style != "v7":
        os.mkfifo(source / "p")
        os.mknod(source / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        (source / "d/e" / ("n" * 90)).mkdir()
    if style in ("gnu", "pax"):
        os.chown(source / "d/a", 2**31 + 7, 2**22)
        (source / "d" / ("l" * 240)).symlink_to("t" * 240)
        os.utime(source / "d/e", ns=(0, -1_500_000_000))
    if style == "pax":
        os.setxattr(source / "d/a", "user.x", b"1")
    extra = ["--xattrs", "--xattrs-include=*"] if style == "pax" else []
    made = subprocess.run(
        ["tar", f"--format={style}", *extra, "--create", "--directory", source, "."], check=True, capture_output=True
    ).stdout
    layout = Layout(tmp_path / "images")
    descriptor = image_of_tars(layout, made)
    ours = unpack_by_us(layout, descriptor, tmp_path / "ours")
    assert fingerprint(ours) == fingerprint(unpack_by_umoci(layout, descriptor, tmp_path / "bundle"))


OTHERWISE: dict[str, tuple[list[bytes], str]] = {
    "a directory and its whiteout after it": (
        [
            tar(ROOT, folder("d"), folder("d/e"), file("d/e/old"), file("a", b"old")),
            tar(
                ROOT,
                folder("d"),
                folder("d/e"),
                file("d/e/f"),
                file("a", b"new"),
                file(".wh.d", b""),
                file(".wh.a", b""),
            ),
        ],
        "umoci leaves the directories that it took something out of with the time of the day",
    ),
    "a global extended header": (
        [extension(records(comment="from git archive"), b"g") + tar(file("a"))],
        "umoci fails; Docker and containerd pass over it, and so do we",
    ),
    "a contiguous file": ([header("a", b"7") + END], "umoci fails; POSIX says to treat it as a regular file"),
    "a hard link to itself, which is there already": (
        [tar(file("a")), tar(hard_link("a", "a"))],
        "umoci removes the file and then finds nothing to link; GNU tar keeps it, and so do we",
    ),
    "a name of a file that was a directory's": (
        [tar(ROOT, folder("d", 0o711), folder("d/e")), tar(ROOT, file(".wh..wh..opq", b""), file("d/e/f"))],
        "umoci makes parents that the layer does not name with the time of the day; ours are always the same",
    ),
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_where_umoci_fails_or_differs_from_day_to_day_we_do_not(tmp_path: Path, name: str) -> None:
    layout = Layout(tmp_path / "images")
    tars, _reason = OTHERWISE[name]
    descriptor = image_of_tars(layout, *tars)
    ours = fingerprint(unpack_by_us(layout, descriptor, tmp_path / "ours"))
    try:
        theirs = fingerprint(unpack_by_umoci(layout, descriptor, tmp_path / "bundle"))
    except AssertionError as error:
        theirs = {"failed": (str(error),)}
    assert theirs != ours, "umoci has come round: move this to the images above"
    assert ours == fingerprint(unpack_by_us(layout, descriptor, tmp_path / "again"))
    assert any(path in ours for path in ("a", "d/e/f"))


def test_an_attribute_without_value_is_kept_and_umoci_loses_it(tmp_path: Path) -> None:
    """To Go's archive/tar an empty pax value deletes the record (POSIX.1-2017, pax); for an attribute it is a value."""
    layout = Layout(tmp_path / "images")
    descriptor = image_of_tars(layout, tar(ROOT, file("a", xattrs={"user.empty": b""})))
    assert os.getxattr(unpack_by_us(layout, descriptor, tmp_path / "ours") / "a", "user.empty") == b""
    assert os.listxattr(unpack_by_umoci(layout, descriptor, tmp_path / "bundle") / "a") == []


@pytest.mark.parametrize("member", [file("../a"), file("d/../a"), hard_link("b", "../a")])
def test_a_name_that_climbs_is_refused_where_umoci_cuts_it_at_the_root(tmp_path: Path, member: Member) -> None:
    """No builder writes it, and Docker refuses those that lead outside."""
    layout = Layout(tmp_path / "images")
    descriptor = image_of_tars(layout, tar(ROOT, file("a"), folder("d"), member))
    unpack_by_umoci(layout, descriptor, tmp_path / "bundle")
    with pytest.raises(ImageError, match="leads outside"):
        unpack_by_us(layout, descriptor, tmp_path / "ours")


def test_an_attribute_that_steers_an_unprivileged_overlay_is_left_out_and_umoci_sets_it(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "images")
    descriptor = image_of_tars(layout, tar(ROOT, folder("d", xattrs={"user.overlay.opaque": b"y", "user.x": b"1"})))
    theirs = unpack_by_umoci(layout, descriptor, tmp_path / "bundle")
    ours = unpack_by_us(layout, descriptor, tmp_path / "ours")
    assert sorted(os.listxattr(theirs / "d")) == ["user.overlay.opaque", "user.x"]
    assert os.listxattr(ours / "d") == ["user.x"]


def test_gzip_may_be_padded_with_nul_as_gzip_itself_allows(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "images")
    padded = gzip.compress(TREE) + bytes(1000)
    assert subprocess.run(["gzip", "-dc"], input=padded, check=True, capture_output=True).stdout == TREE
    descriptor = image_of_blob(layout, padded, TREE)
    with pytest.raises(AssertionError, match="invalid header"):
        unpack_by_umoci(layout, descriptor, tmp_path / "bundle")
    assert (unpack_by_us(layout, descriptor, tmp_path / "ours") / "d/a").exists()
