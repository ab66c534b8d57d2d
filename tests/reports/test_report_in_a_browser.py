"""The report in a real browser: nothing is wider than the screen, in light, dark and on paper."""

from __future__ import annotations

import html as escaping
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hostile import hostile_result, hostile_servers
from synthetic_result import synthetic_result
from synthetic_servers import servers_result

from bench.analysis import analyse
from reports import html

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip
# a headless window has a least width, so the page is shown in frames of the widths asked for
FRAMES = """<!doctype html><meta charset=utf-8><body>{frames}<script>
addEventListener("load", () => {{
  document.title = [...document.querySelectorAll("iframe")].map(frame => {{
    const page = frame.contentDocument.documentElement;
    return frame.width + ":" + page.scrollWidth;
  }}).join(" ");
}});
</script>"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt-get install chromium"),
]


def _chromium(folder: Path, *arguments: str) -> str:
    assert CHROMIUM is not None
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


@pytest.mark.parametrize("result", [hostile_result, servers_result, hostile_servers])
def test_no_screen_must_be_scrolled_sideways(result, tmp_path: Path) -> None:
    page = escaping.escape(html.render(analyse(result())))
    frames = "".join(f'<iframe width="{width}" height="900" srcdoc="{page}"></iframe>' for width in (360, 800, 1400))
    (tmp_path / "frames.html").write_text(FRAMES.format(frames=frames))
    dom = _chromium(tmp_path, "--dump-dom", f"file://{tmp_path / 'frames.html'}")
    title = re.search("<title>(.*?)</title>", dom)
    assert title is not None
    found = dict(tuple(map(int, pair.split(":"))) for pair in title[1].split())
    assert list(found) == [360, 800, 1400]
    assert all(content <= width for width, content in found.items()), found


def test_dark_and_light_are_different_pictures_and_both_have_ink(tmp_path: Path) -> None:
    from PIL import Image

    page = tmp_path / "report.html"
    page.write_text(html.render(analyse(synthetic_result())))
    paper = {}
    for name, scheme in (("dark", 0), ("light", 1)):
        shot = tmp_path / f"{name}.png"
        _chromium(
            tmp_path, f"--blink-settings=preferredColorScheme={scheme}", f"--screenshot={shot}",
            "--window-size=800,3000", f"file://{page}",
        )  # fmt: skip
        picture = Image.open(shot).convert("L")
        paper[name] = picture.getpixel((2, 2))
        darkest, lightest = picture.getextrema()
        assert lightest - darkest > 150
    assert paper["dark"] < 60
    assert paper["light"] > 240


def test_it_prints(tmp_path: Path) -> None:
    page, paper = tmp_path / "report.html", tmp_path / "report.pdf"
    page.write_text(html.render(analyse(synthetic_result())))
    _chromium(tmp_path, "--no-pdf-header-footer", f"--print-to-pdf={paper}", f"file://{page}")
    assert paper.read_bytes().startswith(b"%PDF")
