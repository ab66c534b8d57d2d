"""Who may import whom, held over the syntax tree; ARCHITECTURE.md says why."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("bench", "runtimes", "vms", "reports")
SHARED = {"bench.abilities", "bench.channel", "bench.driver", "bench.errors", "bench.journal", "bench.memory",
          "bench.metrics", "bench.model", "bench.network", "bench.protocol", "bench.state", "bench.units"}  # fmt: skip
ALLOWED = {
    "runtimes": SHARED,
    "vms": SHARED,
    "reports": {"bench.analysis", "bench.errors", "bench.memory", "bench.metrics", "bench.model", "bench.units"},
    "bench": {"bench"},
}
ASSEMBLY = "bench.cli"
"""The one place where the rooms are put together."""


def _modules() -> list[tuple[str, Path]]:
    return [
        (".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), path)
        for room in ROOMS
        for path in sorted((ROOT / room).rglob("*.py"))
        if "payload" not in path.parts
    ]


def _imports(path: Path) -> Iterator[str]:
    """Every module of ours that ``path`` imports, at whatever depth in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            assert node.module is not None
            if node.module in ROOMS:
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            else:
                yield node.module


def _is_allowed(room: str, name: str) -> bool:
    own = name.split(".", maxsplit=1)[0] == room
    return own or any(name == allowed or name.startswith(f"{allowed}.") for allowed in ALLOWED[room])


@pytest.mark.parametrize(("module", "path"), _modules(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_module_imports_only_what_its_room_may(module: str, path: Path) -> None:
    if module.startswith(ASSEMBLY):
        return
    room = module.split(".", maxsplit=1)[0]
    ours = [name for name in _imports(path) if name.split(".")[0] in ROOMS]
    assert [name for name in ours if not _is_allowed(room, name)] == []


def test_only_the_command_line_prints_and_exits() -> None:
    offenders = [
        f"{module}:{node.lineno}"
        for module, path in _modules()
        # the sandbox is a program of its own: it ends by exiting
        if not module.startswith(ASSEMBLY) and module != "runtimes.sandbox"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"print", "sys.exit", "exit", "quit"}
    ]
    assert offenders == []


def test_every_module_says_what_it_is_for() -> None:
    assert [module for module, path in _modules() if not ast.get_docstring(ast.parse(path.read_text()))] == []
