"""The same result gives the same bytes: in any process, place, time zone, language and hash seed."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from synthetic_result import synthetic_result
from synthetic_servers import servers_result

from bench.analysis import analyse
from bench.store import ResultWriter, read_result
from reports import html

ROOT = Path(__file__).parent.parent.parent
PROGRAM = """
import hashlib, locale
from synthetic_servers import servers_result
from bench.analysis import analyse
from reports import html, markdown, table
locale.setlocale(locale.LC_ALL, "")
analysis = analyse(servers_result())
tables = (table.samples_csv, table.summary_csv, table.steps_csv, table.footprints_csv)
for render in (html.render, markdown.render, *tables):
    print(hashlib.sha256(render(analysis).encode()).hexdigest())
"""


def _digests(cwd: Path, **environment: str) -> str:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": paths, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_two_processes_in_different_surroundings_render_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_text("font.size: 33\naxes.facecolor: red\n")
    one = _digests(ROOT, PYTHONHASHSEED="1", TZ="UTC", LC_ALL="C")
    other = _digests(tmp_path, PYTHONHASHSEED="4242", TZ="Asia/Seoul", LC_ALL="C.UTF-8", LANG="C.UTF-8")
    assert len(one.split()) == 6
    assert one == other


def test_a_result_written_and_read_again_gives_the_same_report(tmp_path: Path) -> None:
    result = servers_result()
    with ResultWriter.create(tmp_path / "result", result.header) as writer:
        for trial in result.trials:
            writer.append(trial)
    assert html.render(analyse(read_result(tmp_path / "result"))) == html.render(analyse(result))


def test_the_folder_of_a_result_is_nowhere_in_its_report() -> None:
    result = synthetic_result()
    moved = replace(result, folder=Path("/somewhere/else"))
    digests = [hashlib.sha256(html.render(analyse(each)).encode()).digest() for each in (result, moved)]
    assert digests[0] == digests[1]
