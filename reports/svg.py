"""matplotlib's SVG made fit for a page: colours that follow the page's theme, unique ids, a title, nothing foreign.

Charts are drawn in stand-in colours (``INK`` …), which become CSS variables here, so that one picture
serves light, dark and print.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from reports.text import clean

if TYPE_CHECKING:
    from lxml.etree import _Element
    from matplotlib.figure import Figure

INK: Final = "#000001"
MUTED: Final = "#000002"
LINE: Final = "#000003"
PAPER: Final = "#000004"
DRIVERS: Final = tuple(f"#00010{place}" for place in range(10))
PHASES: Final = tuple(f"#00020{place}" for place in range(3))

_VARIABLES: Final = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    PAPER: "var(--paper)",
    **{colour: f"var(--driver-{place})" for place, colour in enumerate(DRIVERS)},
    **{colour: f"var(--phase-{place})" for place, colour in enumerate(PHASES)},
}
_COLOUR: Final = re.compile("|".join(_VARIABLES))
_FONT: Final = re.compile(r"font-family:[^;]*;?\s*")
_REFERENCE: Final = re.compile(r"url\(#([^)]+)\)")
_SVG: Final = "{http://www.w3.org/2000/svg}"
_XLINK: Final = "{http://www.w3.org/1999/xlink}href"


@contextmanager
def drawing() -> Iterator[None]:
    """Give matplotlib its own defaults and ours, whatever matplotlibrc or style the host has."""
    import matplotlib as mpl

    with mpl.rc_context(), warnings.catch_warnings():
        # the browser's fonts have the glyphs that the one used for measuring lacks
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        mpl.rcdefaults()
        mpl.rcParams.update(
            {
                "font.family": ["DejaVu Sans"],
                "svg.fonttype": "none",
                "svg.hashsalt": "isomark",
                "text.parse_math": False,
                "path.simplify": False,
            }
        )
        yield


def to_svg(figure: Figure, slug: str, title: str, description: str) -> str:
    """Return ``figure`` as an ``<svg>`` element whose ids all begin with ``slug``."""
    from lxml import etree

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    parser = etree.XMLParser(remove_comments=True, remove_blank_text=True, no_network=True, resolve_entities=False)
    root = etree.fromstring(buffer.getvalue().encode(), parser)
    for foreign in [*root.iter(f"{_SVG}metadata"), *root.iter(f"{_SVG}style")]:
        _remove(foreign)
    for element in root.iter():
        _retouch(element, slug)
    for name in ("width", "height", "version"):
        del root.attrib[name]
    root.set("role", "img")
    root.set("aria-labelledby", f"{slug}-title {slug}-desc")
    root.set("class", "chart")
    for place, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = etree.Element(f"{_SVG}{tag}", id=f"{slug}-{tag}")
        element.text = clean(text)
        root.insert(place, element)
    # HTML knows SVG's namespace by itself
    return re.sub(r' xmlns(:\w+)?="[^"]*"', "", etree.tostring(root, encoding="unicode"), count=2)


def _remove(element: _Element) -> None:
    parent = element.getparent()
    if parent is not None:
        parent.remove(element)


def _retouch(element: _Element, slug: str) -> None:
    if name := element.get("id"):
        element.set("id", f"{slug}-{name}")
    if target := element.get(_XLINK):
        del element.attrib[_XLINK]
        element.set("href", f"#{slug}-{target.removeprefix('#')}")
    if clip := element.get("clip-path"):
        element.set("clip-path", _REFERENCE.sub(rf"url(#{slug}-\1)", clip))
    if style := element.get("style"):
        themed = _COLOUR.sub(lambda match: _VARIABLES[match[0]], _FONT.sub("", style))
        element.set("style", themed)
