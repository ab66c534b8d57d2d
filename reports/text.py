"""Strings from a result are whatever an instance or a suite's author wrote; here they become harmless to print."""

from __future__ import annotations

import re
from typing import Final

REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"
# what XML 1.0 section 2.2 forbids, the C1 controls, and what reorders text that a reader sees (UAX #9)
_UNPRINTABLE: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
_MARKDOWN: Final = re.compile(r"([\\`*_\[\]#|~$])")
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")


def clean(text: str) -> str:
    """Return ``text`` with every character replaced that a page or a terminal would act upon."""
    return _UNPRINTABLE.sub(REPLACEMENT, text)


def shorten(text: str, length: int) -> str:
    """Return ``text`` in one line of at most ``length`` characters, the lost end marked by an ellipsis."""
    line = " ".join(clean(text).split())
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"


def markdown(text: str) -> str:
    """Return ``text`` as one line that GitHub-flavoured Markdown shows literally, in a table too."""
    line = " ".join(clean(text).split())
    escaped = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKDOWN.sub(r"\\\1", escaped).replace("@", "&#64;").replace("://", ":&#47;&#47;")


def spreadsheet(text: str) -> str:
    """Return ``text`` so that no spreadsheet takes it for a formula (OWASP, CSV injection)."""
    line = clean(text)
    return f"'{line}" if line.startswith(_FORMULA) else line
