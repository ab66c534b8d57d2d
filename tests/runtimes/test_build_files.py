"""COPY, ADD and WORKDIR: what of the context, of stages and of archives arrives, where, and how it looks."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import http.server
import io
import lzma
import os
import socket
import stat
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest
import zstandard
from building import EPOCH, MTIME, Site, base_members, needs_root
from building import site as site  # noqa: PLC0414 - a fixture

from bench.errors import ImageError, UsageError
from runtimes.oci.layer import Member

pytestmark = needs_root


def looks(path: Path) -> tuple[str, int, int]:
    status = path.lstat()
    return oct(stat.S_IMODE(status.st_mode)), status.st_uid, status.st_gid


def test_a_file_goes_to_a_name_or_into_a_directory(site: Site) -> None:
    site.write("f", "F", 0o751)
    tree = site.build(
        "FROM base:1\nCOPY f /x\nCOPY f /new/dir/\nCOPY f /deep/er/name\nCOPY f /tmp\nWORKDIR /w\nCOPY f .\n"
        "COPY f ./y\nCOPY f ../up"
    ).tree
    for path in ("x", "new/dir/f", "deep/er/name", "tmp/f", "w/f", "w/y", "up"):
        assert (tree / path).read_text() == "F", path
        assert looks(tree / path) == ("0o751", 0, 0), path
    assert looks(tree / "new/dir") == ("0o755", 0, 0)
    assert looks(tree / "tmp") == ("0o1777", 0, 0), "what was there keeps its looks"


def test_a_directory_gives_its_content(site: Site) -> None:
    site.write("d/a", "A")
    site.write("d/sub/b", "B")
    (site.context / "d/sub").chmod(0o710)
    (site.context / "d/empty").mkdir(mode=0o700)
    (site.context / "d/link").symlink_to("a")
    (site.context / "d/dangling").symlink_to("/no/where")
    tree = site.build("FROM scratch\nCOPY d /t\nCOPY d/ /u/v/\nCOPY d /\n").tree
    for root in (tree / "t", tree / "u/v", tree):
        assert (root / "a").read_text() == "A"
        assert (root / "sub/b").read_text() == "B"
        assert looks(root / "sub") == ("0o710", 0, 0)
        assert looks(root / "empty") == ("0o700", 0, 0)
        assert os.readlink(root / "link") == "a"
        assert os.readlink(root / "dangling") == "/no/where"


def test_several_sources_and_wildcards_go_into_a_directory(site: Site) -> None:
    for name in ("a.txt", "b.txt", "c.md", "sub/d.txt", "sub/e.txt", "other/d.txt", "we[i]rd"):
        site.write(name, name)
    tree = site.build(
        "FROM scratch\nCOPY a.txt c.md /1/\nCOPY *.txt /2/\nCOPY */d.t?t /3/\nCOPY sub c.md /4/\nCOPY [a-b].txt /5/\n"
        'COPY we[[]i]rd nope* /6/\nCOPY ["a.txt", "/7/8"]\nCOPY *.md /9\n'
    ).tree
    found = {name: sorted(path.name for path in (tree / name).iterdir()) for name in "123456"}
    assert found == {"1": ["a.txt", "c.md"], "2": ["a.txt", "b.txt"], "3": ["d.txt"], "4": ["c.md", "d.txt", "e.txt"],
                     "5": ["a.txt", "b.txt"], "6": ["we[i]rd"]}  # fmt: skip
    assert (tree / "3/d.txt").read_text() == "sub/d.txt", "the last one of a name wins, in the order of their paths"
    assert (tree / "7/8").read_text() == "a.txt"
    assert (tree / "9").read_text() == "c.md"


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("COPY none /x", "there is no 'none' in the context"),
        ("COPY a b /x", "several sources cannot become the one file /x"),
        ("COPY * /bin/sh", "several sources cannot become"),
        ("COPY n*ne /x", "nothing in the context fits n*ne"),
        ("COPY ../a /x", "'../a' leads outside the context"),
        ("COPY d/../../a /x", "leads outside the context"),
        ("COPY a /etc/passwd/x", "cannot write '/etc/passwd/x' in the image: Not a directory"),
        ("COPY a/x /x", "there is no 'a/x'"),
        ("COPY a[ /x", "malformed"),
        ("COPY --chown=nobody a /x", "the image has no user 'nobody'"),
        ("COPY --chown=app:nogroup a /x", "the image has no group 'nogroup'"),
        ("COPY --chown=: a /x", "':' is no owner"),
        ("COPY --chown=99999999999 a /x", "is no user or group id"),
        ("COPY --chmod=999 a /x", "is not octal"),
        ("COPY --chmod=u+q a /x", "is no mode"),
        ("COPY --from=nowhere a /x", "no image nowhere here"),
        ("ADD --checksum=sha256:0 a /x", "--checksum is for one URL"),
        ("ADD --checksum=md5:x http://127.0.0.1:9/a /x", "is no checksum"),
        ("ADD http://127.0.0.1:9/a /x", "cannot download http://127.0.0.1:9/a"),
        ("WORKDIR /etc/passwd", "cannot write '/etc/passwd' in the image"),
    ],
)
def test_what_cannot_be_copied_is_named_with_its_line(site: Site, line: str, fault: str) -> None:
    for name in ("a", "b", "d/x"):
        site.write(name)
    with pytest.raises((ImageError, UsageError)) as caught:
        site.build(f"FROM base:1\n\n{line}\n")
    assert caught.value.message.startswith("Containerfile:3: ")
    assert fault in caught.value.message
    assert caught.value.hint or "fits" in caught.value.message


def test_a_directory_replaces_no_file_and_a_file_no_directory(site: Site) -> None:
    site.write("d/etc/x")
    site.write("e/bin")
    with pytest.raises(ImageError, match="'/bin' is a directory in the image"):
        site.build("FROM base:1\nCOPY e /\n")
    site.write("g/etc/passwd/x")
    with pytest.raises(ImageError, match=r"Not a directory|File exists"):
        site.build("FROM base:1\nCOPY g /\n")


def test_a_linked_directory_of_the_image_is_written_through_and_a_linked_file_is_replaced(site: Site) -> None:
    site.image("links:1", [
        *base_members(), Member("usr/real", stat.S_IFREG | 0o644, b"old", mtime=MTIME),
        Member("linked", stat.S_IFLNK | 0o777, link="/usr/real", mtime=MTIME),
    ])  # fmt: skip
    site.write("d/lib/new", "N")
    site.write("f", "F")
    tree = site.build("FROM links:1\nCOPY d /\nCOPY f /lib/f\nCOPY f /linked\n").tree
    assert os.readlink(tree / "lib") == "usr/lib"
    assert (tree / "usr/lib/new").read_text() == "N"
    assert (tree / "usr/lib/f").read_text() == "F"
    assert (tree / "linked").read_text() == "F"
    assert not (tree / "linked").is_symlink()
    assert (tree / "usr/real").read_text() == "old"


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("", (0, 0)),
        ("--chown=app", (1000, 1001)),
        ("--chown=app:staff", (1000, 50)),
        ("--chown=7", (7, 7)),
        ("--chown=7:8", (7, 8)),
        ("--chown=app:9", (1000, 9)),
        ("--chown=7:staff", (7, 50)),
    ],
)
def test_owners_are_names_of_the_image_or_numbers(site: Site, option: str, expected: tuple[int, int]) -> None:
    site.write("d/f")
    os.chown(site.context / "d/f", 33, 44)
    (site.context / "d/l").symlink_to("f")
    tree = site.build(f"FROM base:1\nCOPY {option} d /new/dir\n").tree
    for path in ("new", "new/dir", "new/dir/f", "new/dir/l"):
        status = (tree / path).lstat()
        assert (status.st_uid, status.st_gid) == expected, path


@pytest.mark.parametrize(
    ("option", "file", "directory"),
    [
        ("--chmod=604", 0o604, 0o604),
        ("--chmod=4711", 0o4711, 0o4711),
        ("--chmod=u=rwX,go=rX", 0o644, 0o755),
        ("--chmod=a+x", 0o751, 0o751),
        ("--chmod=o-r,g+w,u+s", 0o4660, 0o4770),
        ("--chmod=g=", 0o600, 0o700),
    ],
)
def test_modes_are_octal_or_symbols(site: Site, option: str, file: int, directory: int) -> None:
    site.write("d/f", mode=0o640)
    (site.context / "d/sub").mkdir()
    (site.context / "d/sub").chmod(0o750)
    tree = site.build(f"FROM base:1\nCOPY {option} d /d/\n").tree
    assert stat.S_IMODE((tree / "d/f").stat().st_mode) == file
    assert stat.S_IMODE((tree / "d/sub").stat().st_mode) == directory


def test_times_are_the_sources_but_never_later_than_the_images(site: Site) -> None:
    site.write("d/old")
    site.write("d/new")
    os.utime(site.context / "d/old", (MTIME, MTIME))
    os.utime(site.context / "d", (MTIME, MTIME))
    tree = site.build("FROM scratch\nCOPY d /d\n").tree
    assert (tree / "d/old").stat().st_mtime == MTIME
    assert (tree / "d/new").stat().st_mtime == EPOCH
    assert (tree / "d").stat().st_mtime == MTIME


def test_links_pipes_devices_xattrs_and_odd_names_survive(site: Site) -> None:
    root = site.context / "d"
    site.write("d/file", "x" * 100)
    os.link(root / "file", root / "other-name")
    os.mkfifo(root / "pipe", 0o620)
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.chmod(root / "null", 0o666)
    os.setxattr(root / "file", "user.note", b"\0\xff")
    os.fsencode(root)
    with open(os.fsencode(root) + b"/\xff\xfe name\n", "wb") as file:
        file.write(b"odd")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "socket"))
        result = site.build("FROM scratch\nCOPY d /d\n")
    tree = result.tree / "d"
    assert (tree / "file").stat().st_ino == (tree / "other-name").stat().st_ino
    assert stat.S_ISFIFO((tree / "pipe").lstat().st_mode)
    assert (tree / "null").lstat().st_rdev == os.makedev(1, 3)
    assert os.getxattr(tree / "file", "user.note") == b"\0\xff"
    assert not (tree / "socket").exists()
    with open(os.fsencode(tree) + b"/\xff\xfe name\n", "rb") as file:
        assert file.read() == b"odd"


def test_the_ignore_file_keeps_things_out(site: Site) -> None:
    for name in ("a", "secret", "sub/secret", "sub/b", "logs/x.log", "logs/keep.log", "deep/er/x.o"):
        site.write(name)
    site.write(".dockerignore", "secret\n**/*.o\nlogs/*\n!logs/keep.log\n")
    tree = site.build("FROM scratch\nCOPY . /all/\n").tree / "all"
    found = {str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file()}
    assert found == {"a", "sub/secret", "sub/b", "logs/keep.log", ".dockerignore"}
    for line in ("COPY secret /x", "COPY sub/../secret /x"):
        with pytest.raises(ImageError, match="is left out of the context"):
            site.build(f"FROM scratch\n{line}\n")
    assert site.build("FROM scratch\nCOPY --exclude=sub --exclude=**/*.log . /\n").tree.joinpath("a").exists()
    with pytest.raises(ImageError, match="nothing in the context fits"):
        site.build("FROM scratch\nCOPY secre* /x/\n")


def test_here_documents_become_files(site: Site) -> None:
    tree = site.build(
        "FROM base:1\nENV who=you\nCOPY <<a <<'b' /dir/\n\thello $who \"it's\" \\$x\na\nhello $who\nb\n"
        "COPY --chmod=755 --chown=1:2 <<-EOF /script\n\t#!/bin/sh\n\techo ${who:+yes}\n\tEOF\n"
    ).tree
    assert (tree / "dir/a").read_text() == '\thello you "it\'s" $x\n'
    assert (tree / "dir/b").read_text() == "hello $who\n"
    assert (tree / "script").read_text() == "#!/bin/sh\necho yes\n"
    assert looks(tree / "script") == ("0o755", 1, 2)


def test_stages_and_images_are_sources_that_keep_owners(site: Site) -> None:
    site.write("f")
    text = (
        "FROM base:1 AS one\nCOPY --chown=5:6 f /d/f\nRUN ln -s f /d/l && rm /etc/group\n"
        "FROM scratch AS two\nCOPY --from=one /d /e\nCOPY --from=0 /d/l /followed\nCOPY --from=base:1 /etc/group /g\n"
        "COPY --from=one --chown=7 d/f /h\n"
    )
    tree = site.build(text).tree
    assert looks(tree / "e/f")[1:] == (5, 6)
    assert os.readlink(tree / "e/l") == "f"
    assert (tree / "followed").read_text() == "content\n"
    assert (tree / "g").read_text().startswith("root:x:0:")
    assert looks(tree / "h")[1:] == (7, 7)
    with pytest.raises(ImageError, match="there is no '/etc/group' in the image one"):
        site.build(text + "COPY --from=one /etc/group /x\n")


def test_a_linked_copy_gives_the_same_without_the_image_below(site: Site) -> None:
    site.write("d/f")
    linked = site.build("FROM base:1\nCOPY --link d /d/\n")
    plain = site.build("FROM base:1\nCOPY d /d/\n")
    assert linked.config["rootfs"] == plain.config["rootfs"]
    deep = site.build("FROM base:1\nCOPY --link d /tmp/e/\n")
    assert looks(deep.tree / "tmp")[0] == "0o1777"


def archive(entries: dict[str, bytes | str | None], **more: int) -> bytes:
    """A tar: content, a link's target, or None for a directory."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in entries.items():
            info = tarfile.TarInfo(name)
            info.uid, info.gid, info.mtime, info.mode = 3, 4, MTIME, 0o640
            if content is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o750
            elif isinstance(content, str):
                info.type, info.linkname = (
                    (tarfile.LNKTYPE if content.startswith("=") else tarfile.SYMTYPE),
                    content.strip("="),
                )
            else:
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return data.getvalue()


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "tar": bytes, "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress,
               "zst": zstandard.ZstdCompressor().compress}  # fmt: skip


@pytest.mark.parametrize("kind", COMPRESSORS)
def test_add_unpacks_local_archives_whatever_they_are_called(site: Site, kind: str) -> None:
    data = archive(
        {"d": None, "d/f": b"F", "/abs": b"A", "./dot": b"D", "l": "d/f", "hard": "=d/f", "big": bytes(3 * 1024**2)}
    )
    packed = COMPRESSORS[kind](data)
    site.write("blob", packed)
    tree = site.build("FROM base:1\nADD blob /t/\nADD blob /lib\nCOPY blob /plain\n").tree
    for root in (tree / "t", tree / "usr/lib"):
        assert (root / "d/f").read_bytes() == b"F"
        assert looks(root / "d/f") == ("0o640", 3, 4)
        assert looks(root / "d") == ("0o750", 3, 4)
        assert (root / "d").stat().st_mtime == MTIME
        assert (root / "abs").read_bytes() == b"A"
        assert (root / "dot").read_bytes() == b"D"
        assert os.readlink(root / "l") == "d/f"
        assert (root / "hard").stat().st_ino == (root / "d/f").stat().st_ino
        assert (root / "big").stat().st_size == 3 * 1024**2
    assert (tree / "plain").read_bytes() == packed


def test_add_leaves_alone_what_is_no_archive(site: Site) -> None:
    site.write("page.gz", gzip.compress(b"not a tar " * 200))
    site.write("empty", b"")
    site.write("short", b"\x1f\x8b")
    tree = site.build("FROM scratch\nADD page.gz empty /t/\n").tree
    assert gzip.decompress((tree / "t/page.gz").read_bytes()).startswith(b"not a tar")
    assert (tree / "t/empty").read_bytes() == b""


@pytest.mark.parametrize(
    "entries",
    [
        {"../out": b"x"},
        {"d/../../out": b"x"},
        {"/".join(["d"] * 400): b"x"},
        {"l": "=../../etc/shadow"},
        {"l": "=nothing"},
        {"l": "/", "l/d": None, "l/d/../../out": b"x"},
    ],
)
def test_add_refuses_archives_that_lead_outside(site: Site, entries: dict[str, bytes | str | None]) -> None:
    site.write("evil.tar", archive(entries))
    with pytest.raises(ImageError):
        site.build("FROM base:1\nADD evil.tar /t/\n")


def test_links_in_archives_end_inside_the_image(site: Site, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    site.write("evil.tar", archive({"l": str(tmp_path / "outside"), "l/x": b"x", "m": "/", "m/y": b"y"}))
    tree = site.build("FROM base:1\nADD evil.tar /t/\n").tree
    assert (tree / str(tmp_path / "outside" / "x").lstrip("/")).read_bytes() == b"x"
    site.write("fair.tar", archive({"m": "/etc", "m/y": b"y"}))
    tree = site.build("FROM base:1\nADD fair.tar /t/\n").tree
    assert (tree / "etc/y").read_bytes() == b"y"
    assert list((tmp_path / "outside").iterdir()) == []
    assert not Path("/etc/y").exists()


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz", "zst"])
def test_a_damaged_archive_is_refused(site: Site, kind: str) -> None:
    whole = COMPRESSORS[kind](archive({"f": os.urandom(3_000_000)}))
    site.write("cut", whole[: len(whole) // 2])
    with pytest.raises(ImageError):
        site.build("FROM base:1\nADD cut /t/\n")


class _Web(http.server.BaseHTTPRequestHandler):
    files: ClassVar = {"/f.txt": b"hello", "/a.tar": archive({"x": b"x"})}

    def do_GET(self) -> None:
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/f.txt")
            self.end_headers()
            return
        data = self.files.get(self.path)
        self.send_response(200 if data is not None else 404)
        self.send_header("Last-Modified", "Sun, 13 Sep 2020 12:26:40 GMT")
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()
        self.wfile.write(data or b"")

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def web() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Web) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_add_downloads_and_does_not_unpack(site: Site, web: str) -> None:
    tree = site.build(
        f"FROM scratch\nADD {web}/f.txt /d/\nADD {web}/a.tar /d/b\nADD {web}/moved {web}/f.txt /e/\n"
    ).tree
    assert (tree / "d/f.txt").read_bytes() == b"hello"
    assert looks(tree / "d/f.txt") == ("0o600", 0, 0)
    assert (tree / "d/f.txt").stat().st_mtime == MTIME
    assert (tree / "d/b").read_bytes() == _Web.files["/a.tar"]
    assert (tree / "e/moved").read_bytes() == b"hello"


def test_a_download_must_be_what_its_checksum_says(site: Site, web: str) -> None:
    right = hashlib.sha256(b"hello").hexdigest()
    result = site.build(f"FROM scratch\nADD --checksum=sha256:{right} --chmod=644 {web}/f.txt /f\n")
    assert looks(result.tree / "f")[0] == "0o644"
    with pytest.raises(ImageError, match="not what --checksum says"):
        site.build(f"FROM scratch\nADD --checksum=sha256:{'0' * 64} {web}/f.txt /f\n")
    with pytest.raises(ImageError, match="answers 404"):
        site.build(f"FROM scratch\nADD {web}/none /f\n")
    with pytest.raises(UsageError, match="does not say what its file is called"):
        site.build(f"FROM scratch\nADD {web}/ /f/\n")


def test_a_download_known_by_its_checksum_is_cached_without_the_server(site: Site, web: str) -> None:
    line = f"ADD --checksum=sha256:{hashlib.sha256(b'hello').hexdigest()} {web}/f.txt /f\n"
    site.build(f"FROM scratch\n{line}")
    _Web.files = {**_Web.files}
    gone = _Web.files.pop("/f.txt")
    try:
        assert site.build(f"FROM scratch\n{line}").cached == 1
    finally:
        _Web.files["/f.txt"] = gone


def test_workdir_makes_directories_for_the_user(site: Site) -> None:
    tree = site.build("FROM base:1\nUSER app:staff\nWORKDIR /a/b\nUSER 0\nWORKDIR /c\nWORKDIR /tmp\n").tree
    assert looks(tree / "a/b") == ("0o755", 1000, 50)
    assert looks(tree / "c") == ("0o755", 0, 0)
    assert looks(tree / "tmp") == ("0o1777", 0, 0)


def test_umoci_unpacks_what_was_built(site: Site, tmp_path: Path) -> None:
    site.write("d/f")
    site.build(
        "FROM base:1\nCOPY d /d\nRUN rm /etc/group && echo x > /etc/passwd && mkdir /n && ln -s f /n/l\n", tags=["u:1"]
    )
    command = ["umoci", "unpack", "--image", f"{site.layout.root}:u:1", str(tmp_path / "bundle")]
    subprocess.run(command, check=True, capture_output=True)
    root = tmp_path / "bundle/rootfs"
    assert (root / "d/f").read_text() == "content\n"
    assert not (root / "etc/group").exists()
    assert (root / "etc/passwd").read_text() == "x\n"
    assert os.readlink(root / "n/l") == "f"
