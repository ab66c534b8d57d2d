"""Mount targets are found below the root and nowhere else."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from runtimes import mounts


@pytest.fixture
def root(tmp_path: Path) -> int:
    (tmp_path / "root/real/deep").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    fd = os.open(tmp_path / "root", os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def test_a_target_is_found_below_the_root(root: int, tmp_path: Path) -> None:
    with mounts.Target(root, "/real/deep") as target:
        assert os.path.samefile(target.path, tmp_path / "root/real/deep")


def test_dots_do_not_lead_out(root: int, tmp_path: Path) -> None:
    with mounts.Target(root, "/../../../real") as target:
        assert os.path.samefile(target.path, tmp_path / "root/real")
    with pytest.raises(FileNotFoundError):
        mounts.Target(root, "/../outside")


@pytest.mark.parametrize("text", ["/", "..", "real", "../outside", "/proc/self/root", "/proc/self/cwd"])
def test_a_symbolic_link_is_refused_wherever_it_points(root: int, tmp_path: Path, text: str) -> None:
    (tmp_path / "root/link").symlink_to(text)
    for path in ("/link", "/link/deep", "/real/../link"):
        with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is what is looked at
            mounts.Target(root, path)
        assert caught.value.errno == errno.ELOOP


@pytest.mark.parametrize("operation", [["directory", "/link/new", 0o755], ["nodes", "/link", {"null": [1, 3]}],
                                       ["files", "/link", ["x"]], ["links", "/link", {"x": "y"}]])  # fmt: skip
def test_nothing_is_made_through_a_symbolic_link(root: int, tmp_path: Path, operation: list[object]) -> None:
    (tmp_path / "root/link").symlink_to(tmp_path / "outside")
    with pytest.raises(OSError, match=r"symbolic links|Not a directory"):
        mounts.perform(root, operation)
    assert not any((tmp_path / "outside").iterdir())


def test_directories_are_made_with_those_above_them(root: int, tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        mounts.perform(root, ["directory", "/a/b/c", 0o1777])
        mounts.perform(root, ["directory", "/real", 0o700])
    finally:
        os.umask(previous)
    modes = [(tmp_path / "root" / path).stat().st_mode & 0o7777 for path in ("a", "a/b", "a/b/c")]
    assert modes == [0o755, 0o755, 0o1777]
    assert (tmp_path / "root/real").stat().st_mode & 0o7777 != 0o700, "what exists stays as it is"


def test_covering_what_this_kernel_lacks_is_nothing(root: int) -> None:
    mounts.perform(root, ["hide", "/absent"])
    mounts.perform(root, ["protect", "/absent"])
