"""Quotes, escapes and variables of a Containerfile, as BuildKit's documentation and shell tests have them."""

from __future__ import annotations

import contextlib
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.errors import UsageError
from runtimes.build.words import Reading, expand, split

VARIABLES = {
    "PWD": "/home",
    "EMPTY": "",
    "foo": "abcabc",
    "path": "/a/b/c.tar.gz",
    "star": "a*b",
    "uni": "한글",
    "sp": "x y",
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("hello", "hello"),
        ("he'll'o", "hello"),
        ("he'll\\'o", "hell\\o"),
        ("he\\'llo", "he'llo"),
        ("'he\\'o", "he\\o"),
        ('"he\\"llo"', 'he"llo'),
        ('"he\\zllo"', "he\\zllo"),
        ("he\\llo", "hello"),
        ("hel\\\\lo", "hel\\lo"),
        ("$PWD", "/home"),
        ("${PWD}x", "/homex"),
        ("'$PWD'", "$PWD"),
        ('"$PWD"', "/home"),
        ("\\$PWD", "$PWD"),
        ('"\\$PWD"', "$PWD"),
        ("$", "$"),
        ("a$", "a$"),
        ("$unset", ""),
        ("$PWD$EMPTY.", "/home."),
        ("${unset:-w}", "w"),
        ("${EMPTY:-w}", "w"),
        ("${EMPTY-w}", ""),
        ("${unset-w}", "w"),
        ("${PWD:-w}", "/home"),
        ("${PWD:+w}", "w"),
        ("${EMPTY:+w}", ""),
        ("${EMPTY+w}", "w"),
        ("${unset+w}", ""),
        ("${unset:-${PWD}}", "/home"),
        ("${unset:-${EMPTY:-$PWD}/x}", "/home/x"),
        ("${unset:-'}'}", "}"),
        ('${unset:-"}"}', "}"),
        ("${PWD:?told}", "/home"),
        ("${unset:?told}", None),
        ("${EMPTY:?}", None),
        ("${EMPTY?}", ""),
        ("${foo#a}", "bcabc"),
        ("${foo#*c}", "abc"),
        ("${foo##*c}", ""),
        ("${foo##*b}", "c"),
        ("${foo%c}", "abcab"),
        ("${foo%b*}", "abca"),
        ("${foo%%b*}", "a"),
        ("${foo%%x*}", "abcabc"),
        ("${path##*/}", "c.tar.gz"),
        ("${path%%.*}", "/a/b/c"),
        ("${path%.*}", "/a/b/c.tar"),
        ("${star#a\\*}", "b"),
        ("${star%\\*b}", "a"),
        ("${foo/b/-}", "a-cabc"),
        ("${foo//b/-}", "a-ca-c"),
        ("${foo/x/-}", "abcabc"),
        ("${foo//?c/-}", "a-a-"),
        ("${foo/a*c/-}", "-"),
        ("${path//\\//:}", ":a:b:c.tar.gz"),
        ("${uni#한}", "글"),
        ("${}", None),
        ("${", None),
        ("${PWD", None),
        ("${:}", None),
        ("${PWD:x}", None),
        ("${PWD!x}", None),
        ("${foo#a\\q}", None),
        ("'open", None),
        ('"open', None),
        ("trailing\\", "trailing"),
        ("$1$22x$@$", "x$"),
        ("${PWD//}", None),
    ],
)  # fmt: skip
def test_a_word_becomes(text: str, expected: str | None) -> None:
    if expected is None:
        with pytest.raises(UsageError):
            expand(text, VARIABLES)
    else:
        assert expand(text, VARIABLES) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a b", ["a", "b"]),
        ("  a\t b  ", ["a", "b"]),
        ("'a b' c", ["a b", "c"]),
        ("$sp", ["x", "y"]),
        ('"$sp"', ["x y"]),
        ("a\\ b", ["a b"]),
        ("80 $EMPTY 90", ["80", "90"]),
    ],
)
def test_words_are_split_after_variables_were_replaced(text: str, expected: list[str]) -> None:
    assert split(text, VARIABLES) == expected


def test_the_escape_character_can_be_another() -> None:
    assert expand("`$PWD C:\\dir", VARIABLES, Reading("`")) == "$PWD C:\\dir"


def test_in_a_document_only_variables_and_escapes_mean_something() -> None:
    text = 'it\'s "$PWD" \\$PWD'
    assert expand(text, VARIABLES, Reading(quotes_mean_nothing=True)) == 'it\'s "/home" $PWD'


def test_a_demanded_variable_is_named_with_the_option_that_gives_it() -> None:
    with pytest.raises(UsageError, match="VERSION: which one") as caught:
        expand("${VERSION:?which one}", {})
    assert "--build-arg VERSION" in caught.value.hint


@given(st.text(alphabet="ab$ {}'\"\\:-+?#%/*x_1\n<"), st.sampled_from(["\\", "`"]), st.booleans(), st.booleans())
@settings(max_examples=1500, deadline=None)
def test_any_text_is_read_or_refused(text: str, escape: str, raw: bool, unset: bool) -> None:
    with contextlib.suppress(UsageError):
        assert isinstance(expand(text, VARIABLES, Reading(escape, raw, raw, unset)), str)


@given(st.text(alphabet="abc\\d é", max_size=20))
def test_a_single_quoted_text_is_itself(text: str) -> None:
    assert expand(f"'{text}'", {}) == text


def test_no_pattern_makes_matching_slow() -> None:
    text = "a" * 2000
    begin = time.monotonic()
    assert expand("${v%%" + "*a" * 40 + "b}", {"v": text}) == text
    assert expand("${v//" + "*a" * 10 + "b/x}", {"v": text[:300]}) == text[:300]
    assert time.monotonic() - begin < 30, "a backtracking matcher would not end"


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(UsageError, match="nested deeper"):
        expand("${x:-" * 5000 + "}" * 5000, {})
