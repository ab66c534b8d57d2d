"""Patterns for paths mean what Go's filepath.Match and moby's patternmatcher make of them."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.errors import UsageError
from runtimes.build import glob
from runtimes.build.glob import BadPattern
from runtimes.build.ignore import Ignore, find_ignore


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("abc", "abc", True),
        ("*", "abc", True),
        ("*c", "abc", True),
        ("a*", "a", True),
        ("a*", "ab/c", False),
        ("a*/b", "abc/b", True),
        ("a*/b", "a/c/b", False),
        ("a*b*c*d*e*/f", "axbxcxdxe/f", True),
        ("a*b*c*d*e*/f", "axbxcxdxexxx/fff", False),
        ("a*b?c*x", "abxbbxdbxebxczzx", True),
        ("ab[c]", "abc", True),
        ("ab[b-d]", "abc", True),
        ("ab[e-g]", "abc", False),
        ("ab[^c]", "abc", False),
        ("ab[^e-g]", "abc", True),
        ("a\\*b", "a*b", True),
        ("a\\*b", "ab", False),
        ("a?b", "a☺b", True),
        ("a[^a]b", "a☺b", True),
        ("a???b", "a☺b", False),
        ("[a-ζ]*", "α", True),
        ("*[a-ζ]", "A", False),
        ("a?b", "a/b", False),
        ("a*b", "a/b", False),
        ("[\\]a]", "]", True),
        ("[\\-x]", "-", True),
        ("[]a]", "]", None),
        ("[-]", "-", None),
        ("[x-]", "x", None),
        ("[-x]", "x", None),
        ("\\", "a", None),
        ("[", "a", None),
        ("[^", "a", None),
        ("[^bc", "a", None),
        ("a[", "ab", None),
    ],
)  # fmt: skip
def test_go_path_patterns(pattern: str, text: str, expected: bool | None) -> None:
    if expected is None:
        with pytest.raises(BadPattern):
            glob.path_tokens(pattern)
    else:
        assert glob.matches(glob.path_tokens(pattern), text) is expected


@given(st.text(alphabet="ab*?/"), st.text(alphabet="ab/"))
@settings(max_examples=500)
def test_the_matcher_agrees_with_regular_expressions(pattern: str, text: str) -> None:
    translated = {"*": "[^/]*", "?": "[^/]"}
    expression = re.compile("".join(translated.get(char, char) for char in pattern))
    assert glob.matches(glob.path_tokens(pattern), text) is (expression.fullmatch(text) is not None)


@given(st.text(alphabet="ab[]^-\\*?x", max_size=12), st.text(alphabet="ab]-^\\", max_size=6))
def test_any_pattern_is_read_or_refused(pattern: str, text: str) -> None:
    with contextlib.suppress(BadPattern):
        glob.matches(glob.path_tokens(pattern), text)


# patterns, then paths that are left out, then paths that are not
DOCUMENTED = [
    (["*/temp*"], ["somedir/temporary.txt", "somedir/temp"], ["temp", "a/b/temp"]),
    (["*/*/temp*"], ["somedir/subdir/temporary.txt"], ["somedir/temp"]),
    (["temp?"], ["tempa", "tempb", "tempa/x"], ["temp", "tempab"]),
    (["**/*.go"], ["a.go", "a/b/c.go"], ["a.goo", "a/b/c.c"]),
    (["*.md", "!README.md"], ["a.md"], ["README.md", "a/b.md"]),
    (["*.md", "!README*.md", "README-secret.md"], ["x.md", "README-secret.md"], ["README.md", "README-x.md"]),
    (["*.md", "README-secret.md", "!README*.md"], ["x.md"], ["README-secret.md", "README.md"]),
    (["# comment", "", "  ", "a"], ["a", "a/b"], ["# comment", "b"]),
    (["/a/b"], ["a/b", "a/b/c"], ["b", "x/a/b"]),
    (["a/"], ["a", "a/b"], ["ab"]),
    (["./a/../b"], ["b"], ["a"]),
    (["**"], ["a", "a/b", ".x"], []),
    (["**", "!keep"], ["a", "x/keep"], ["keep", "keep/below"]),
    (["dir/**"], ["dir/x", "dir/x/y"], ["dir", "dirx"]),
    (["**/node_modules"], ["node_modules", "a/node_modules", "a/b/node_modules/x"], ["xnode_modules"]),
    (["a/**/z"], ["a/z", "a/b/z", "a/b/c/z"], ["a/b/zz", "z"]),
    (["dir", "!dir/keep"], ["dir", "dir/x"], ["dir/keep"]),
    (["**/.git*"], [".git", "a/.gitignore"], ["git"]),
    (["! spaced"], [], ["spaced"]),
    (["a[b-d]"], ["ab", "ac"], ["ae", "a"]),
    (["docs/**/*.txt", "!docs/keep/**"], ["docs/a.txt", "docs/x/y.txt"], ["docs/keep/a.txt", "docs/a.md"]),
]  # fmt: skip


@pytest.mark.parametrize(("patterns", "hidden", "seen"), DOCUMENTED, ids=lambda value: str(value)[:40])
def test_the_ignore_file_leaves_out_what_docker_documents(
    patterns: list[str], hidden: list[str], seen: list[str]
) -> None:
    ignore = Ignore(patterns)
    assert [path for path in hidden if not ignore.hides(path)] == []
    assert [path for path in seen if ignore.hides(path)] == []
    assert not ignore.hides("."), "the context itself always stays"


@pytest.mark.parametrize("pattern", ["!", "a[", "x/[^", "\\"])
def test_a_malformed_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(UsageError):
        Ignore([pattern])


def test_the_file_of_the_containerfile_comes_before_the_contexts(tmp_path: Path) -> None:
    (tmp_path / ".dockerignore").write_text("general\n")
    assert find_ignore(tmp_path, None) == ("general",)
    assert find_ignore(tmp_path, tmp_path / "other.Containerfile") == ("general",)
    (tmp_path / "other.Containerfile.dockerignore").write_text("\ufeffspecial\n")
    assert find_ignore(tmp_path, tmp_path / "other.Containerfile") == ("special",)
    assert find_ignore(tmp_path / "none", None) == ()
