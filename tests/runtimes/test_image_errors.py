"""What is said when something about an image is wrong: a reason, and always a remedy."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RAISED = {"UsageError", "HostError", "ImageError", "NoImage", "StoreFull"}
FILES = sorted(
    path
    for pattern in ("runtimes/oci/*.py", "runtimes/build/*.py", "bench/cli/image*.py")
    for path in ROOT.glob(pattern)
)


def without_remedy(source: str) -> list[int]:
    """The lines of ``source`` that make an error without a hint."""
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return [
        call.lineno
        for call in calls
        if isinstance(call.func, ast.Name)
        and call.func.id in RAISED
        and all(word.arg != "hint" for word in call.keywords)
    ]


def test_an_error_without_a_remedy_is_found() -> None:
    source = 'x = ImageError("no")\nraise ImageError("no", hint="try") from UsageError("what")\n'
    assert without_remedy(source) == [1, 2]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_error_about_images_names_its_remedy(path: Path) -> None:
    assert without_remedy(path.read_text()) == []
