"""The README's chapter on containers, done as it is written: every command, in order, in one shell.

A comment that begins with an arrow says what its line must print.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import skip_or_fail

ROOT = Path(__file__).parent.parent
CHAPTER = "## Containers and images"
COMMAND_SECONDS = 240


def _commands() -> list[tuple[str, str | None]]:
    """Each command of the chapter's indented blocks, and what its comment promises."""
    chapter = (ROOT / "README.md").read_text().partition(CHAPTER)[2].partition("\n## ")[0]
    lines = [line.removeprefix("    ") for line in chapter.splitlines() if line.startswith("    ")]
    split = [re.split(r"\s{2,}# ?", line, maxsplit=1) for line in lines]
    return [(command, comment[0][2:].strip() if comment and comment[0].startswith("->") else None)
            for command, *comment in split]  # fmt: skip


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[dict[str, str]]:
    if os.geteuid() != 0:
        skip_or_fail("container", "the chapter is written for root")
    environment = {
        "PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(tmp_path),
        "ISOMARK_STATE": str(tmp_path / "state"),
    }
    yield environment
    for command in ("isomark container rm --force $(isomark container ps -aq)", "isomark clean"):
        subprocess.run(["bash", "-c", command], env=environment, capture_output=True, check=False)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_container_chapter_works_as_it_is_written(shell: dict[str, str]) -> None:
    commands = _commands()
    assert len(commands) > 15
    for command, promised in commands:
        ended = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command], cwd=ROOT, env=shell, capture_output=True, text=True,
            timeout=COMMAND_SECONDS, check=False,
        )  # fmt: skip
        assert ended.returncode == 0, f"{command}\n{ended.stdout[-2000:]}{ended.stderr[-2000:]}"
        if promised is not None:
            assert promised in ended.stdout, f"{command} printed\n{ended.stdout[-2000:]}"


def test_every_command_of_the_readme_exists() -> None:
    used = set(
        re.findall(r"^ +isomark ((?:image|container) [a-z]+|[a-z]+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    )
    for name in sorted(used):
        ended = subprocess.run(
            [sys.executable, "-m", "bench.cli", *shlex.split(name), "--help"],
            cwd=ROOT,
            capture_output=True,
            check=False,
        )
        assert ended.returncode == 0, name
