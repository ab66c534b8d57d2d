"""Base images, contexts and steps that mean harm: nothing outside is read or written, and nothing hangs."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from building import MTIME, Result, Site, base_members, left_behind, needs_root
from building import site as site  # noqa: PLC0414 - a fixture
from handmade import fingerprint

from bench.errors import ImageError, IsomarkError, UsageError
from runtimes.oci.layer import Member

ROOT = Path(__file__).parents[2]
pytestmark = needs_root


@pytest.fixture
def sentinel(tmp_path: Path) -> Path:
    """A tree that nobody may change."""
    root = tmp_path / "sentinel"
    (root / "dir").mkdir(parents=True)
    (root / "secret").write_text("secret\n")
    return root


def link(path: str, target: str) -> Member:
    return Member(path, stat.S_IFLNK | 0o777, link=target, mtime=MTIME)


def replaced(*members: Member) -> list[Member]:
    names = {member.path for member in members}
    return [*(member for member in base_members() if member.path not in names), *members]


def attempt(site: Site, text: str) -> tuple[IsomarkError | None, Result | None]:
    """What a build that may be refused came to: the fault, or the result."""
    try:
        return None, site.build(text)
    except IsomarkError as error:
        return error, None


def test_links_in_the_base_lead_a_copy_nowhere_outside(site: Site, sentinel: Path) -> None:
    before = fingerprint(sentinel)
    up = "../" * 30
    site.image("evil:1", replaced(
        link("abs", str(sentinel)), link("up", f"{up}{str(sentinel).lstrip('/')}"), link("file", f"{sentinel}/secret"),
        link("proc-link", "/proc/1/root"), link("self", "self"),
    ))  # fmt: skip
    site.write("d/secret", "overwritten")
    site.write("f", "overwritten")
    for line in ("COPY f /abs/secret", "COPY d /abs", "COPY d /up/", "COPY f /file", "COPY f /proc-link/x",
                 "COPY f /self/x", "WORKDIR /abs/new", "WORKDIR /up/new"):  # fmt: skip
        fault, result = attempt(site, f"FROM evil:1\n{line}\n")
        assert fault is None or "in the image" in fault.message
        if result is not None and line == "COPY f /file":
            assert not (result.tree / "file").is_symlink()
        assert fingerprint(sentinel) == before, line
    assert left_behind(site.state) == []


def test_links_in_the_base_show_a_copy_nothing_outside(site: Site, sentinel: Path) -> None:
    links = {
        "abs": f"{sentinel}/secret",
        "up": "../" * 30 + f"{sentinel}/secret",
        "shadow": "/etc/shadow",
        "magic": "/proc/self/root/etc/shadow",
    }
    site.image("evil:1", replaced(*(link(name, target) for name, target in links.items())))
    for name in links:
        for stage in ("evil:1", "s"):
            with pytest.raises(ImageError, match="there is no"):
                site.build(f"FROM evil:1 AS s\nRUN true\nFROM scratch\nCOPY --from={stage} /{name} /x\n")


def test_links_in_the_context_lead_nowhere_outside(site: Site, sentinel: Path) -> None:
    (site.context / "link").symlink_to(sentinel / "secret")
    (site.context / "up").symlink_to("../" * 30 + str(sentinel / "secret").lstrip("/"))
    (site.context / "dirlink").symlink_to(sentinel)
    (site.context / "self").symlink_to("self")
    site.write("inside", "inside\n")
    (site.context / "fair").symlink_to("/inside")
    for name in ("link", "up", "dirlink/secret", "self", "dirlink/*"):
        with pytest.raises(ImageError):
            site.build(f"FROM scratch\nCOPY {name} /x\n")
    tree = site.build("FROM scratch\nCOPY fair /x\nCOPY . /all/\n").tree
    assert (tree / "x").read_text() == "inside\n"
    assert os.readlink(tree / "all/link") == str(sentinel / "secret"), "copied as the link it is"


def test_pipes_and_devices_in_the_context_are_not_waited_for(site: Site) -> None:
    os.mkfifo(site.context / "pipe")
    (site.context / "zero").symlink_to("/dev/zero")
    os.mknod(site.context / "device", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    begin = time.monotonic()
    tree = site.build("FROM scratch\nCOPY . /all/\nCOPY pipe device /two/\nADD pipe /three/\n").tree
    assert stat.S_ISFIFO((tree / "all/pipe").lstat().st_mode)
    assert (tree / "two/device").lstat().st_rdev == os.makedev(1, 5)
    os.mkfifo(site.context / ".dockerignore")
    site.build("FROM scratch\nCOPY pipe /\n")
    assert time.monotonic() - begin < 60


@pytest.mark.parametrize("file", ["passwd", "group"])
@pytest.mark.parametrize("kind", ["pipe", "directory", "link", "huge", "rubbish", "device"])
def test_a_hostile_user_database_is_survived(site: Site, file: str, kind: str) -> None:
    path = f"etc/{file}"
    member = {
        "pipe": Member(path, stat.S_IFIFO | 0o644),
        "directory": Member(path, stat.S_IFDIR | 0o755),
        "link": link(path, "/proc/1/environ"),
        "huge": Member(path, stat.S_IFREG | 0o644, b"x" * 5_000_000),
        "rubbish": Member(path, stat.S_IFREG | 0o644, b"app:x:-1:\xff:\napp\n:::::\n" * 100),
        "device": Member(path, stat.S_IFCHR | 0o644, device=(1, 5)),
    }[kind]
    site.image("evil:1", replaced(member))
    site.write("f")
    begin = time.monotonic()
    for line in ("COPY --chown=app:staff f /x", "USER app:staff\nRUN true", "USER app:staff\nWORKDIR /x"):
        with pytest.raises(IsomarkError):
            site.build(f"FROM evil:1\n{line}\n")
    assert time.monotonic() - begin < 60


@pytest.mark.parametrize("path", ["dev", "proc", "sys", "etc", "dev/pts", "etc/resolv.conf", "etc/hosts"])
@pytest.mark.parametrize("target", ["/", "outside", "../../../..", "self"])
def test_links_where_things_are_mounted_change_nothing_outside(
    site: Site, sentinel: Path, path: str, target: str
) -> None:
    before = fingerprint(sentinel)
    target = {"outside": str(sentinel), "self": path.rpartition("/")[2]}.get(target, target)
    below = [member for member in base_members() if not (path == "etc" and member.path.startswith("etc"))]
    folder = [Member("dev", stat.S_IFDIR | 0o755)] if path == "dev/pts" else []
    site.image("evil:1", [*below, *folder, link(path, target)])
    fault, _ = attempt(site, "FROM evil:1\nRUN echo x > /etc/x; echo y > /dev/y; true\n")
    assert fault is None or fault.message.startswith("Containerfile:2: ")
    assert fingerprint(sentinel) == before
    assert left_behind(site.state) == []


def test_a_step_that_swaps_directories_for_links_gains_nothing(site: Site, sentinel: Path) -> None:
    before = fingerprint(sentinel)
    site.write("f", "x")
    text = (
        f"FROM base:1\nRUN rm -rf /home /usr && ln -s {sentinel} /home && ln -s ../../../../../../{sentinel} /usr\n"
        "COPY f /home/secret\nCOPY f /usr/dir/\n"
    )
    tree = site.build(text).tree
    assert fingerprint(sentinel) == before
    assert (tree / str(sentinel).lstrip("/") / "secret").read_text() == "x", "it went where the image means"


def test_deep_and_wide_trees_end_in_an_error_not_in_a_crash(site: Site) -> None:
    deep = site.context / "deep"
    deep.mkdir()
    fd = os.open(deep, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    with pytest.raises(ImageError, match="nests directories deeper"):
        site.build("FROM scratch\nCOPY deep /x/\n")
    script = "i=0; while [ $i -lt 400 ]; do mkdir d && cd d || exit 1; i=$((i+1)); done"
    with pytest.raises(ImageError, match="deeper than"):
        site.build(f"FROM base:1\nRUN {script}\n")
    assert left_behind(site.state) == []
    subprocess.run(["rm", "-rf", str(deep)], check=True)


def test_names_that_mean_something_in_a_layer_are_refused(site: Site) -> None:
    site.write("d/.wh.passwd")
    with pytest.raises(ImageError, match="means a removal"):
        site.build("FROM base:1\nCOPY d /etc/\n")
    with pytest.raises(ImageError, match="means a removal"):
        site.build("FROM base:1\nRUN touch /etc/.wh..wh..opq\n")


def test_a_step_can_neither_see_nor_end_the_builder(site: Site) -> None:
    site.build(
        "FROM base:1\nRUN ps | wc -l; ls /proc | grep -c '^[0-9]'; kill -9 -1; cat /proc/1/cmdline | head -c 8\n"
    )
    heard = [line.partition("| ")[2] for line in site.said if line.lstrip().startswith("| ")]
    assert int(heard[0]) < 8
    assert int(heard[1]) < 8


def test_null_bytes_and_odd_arguments_are_refused(site: Site) -> None:
    site.write("f")
    for line in ("RUN echo a\0b", "ENV a=b\0c", "COPY f /a\0b", "WORKDIR /a\0b", "COPY f\0g /x", 'RUN ["a\\u0000b"]'):
        with pytest.raises((UsageError, ImageError)):
            site.build(f"FROM base:1\n{line}\n")
    assert left_behind(site.state) == []


def test_overlong_names_and_paths_are_refused(site: Site) -> None:
    site.write("f")
    for line in (f"COPY f /{'n' * 300}", f"WORKDIR /{'d/' * 3000}", f"COPY {'x' * 5000} /y", f"COPY f {'/a' * 2500}"):
        with pytest.raises((UsageError, ImageError)):
            site.build(f"FROM base:1\n{line}\n")


def test_a_bomb_in_an_archive_fills_no_memory(site: Site, tmp_path: Path) -> None:
    (tmp_path / "bomb").mkdir()
    with (tmp_path / "bomb/zeros").open("wb") as file:
        file.truncate(512 * 1024**2)
    subprocess.run(["tar", "-czf", site.context / "bomb.tgz", "-C", tmp_path / "bomb", "zeros"], check=True)
    (site.context / "Containerfile").write_text("FROM scratch\nADD bomb.tgz /x/\n")
    build = [sys.executable, "-m", "bench.cli", "image", "build", "-q", str(site.context)]
    # between the two a small process, because a child's figure begins with the size of who forked it
    program = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    environment = {**os.environ, "ISOMARK_STATE": str(site.state)}
    ended = subprocess.run(
        [sys.executable, "-c", program, *build], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert int(ended.stdout.split()[-1]) < 200 * 1024, "KiB"
