from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import protocol


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("isomark init", protocol.Init()),
        ("isomark loader", protocol.Step("loader")),
        ("isomark unit dev-vda3.device", protocol.Step("dev-vda3.device")),
        ("isomark ready", protocol.Ready()),
        ("isomark round 3 begin", protocol.RoundBegin(3)),
        ('isomark round 3 end {"x_per_second": 1.5}', protocol.RoundEnd(3, {"x_per_second": 1.5})),
        ('isomark metric {"x_bytes": 7}', protocol.Figures({"x_bytes": 7.0})),
        ("isomark pong ab12", protocol.Pong("ab12")),
        ("isomark error no space", protocol.PayloadError("no space")),
        ("isomark exit 0", protocol.Exit(0)),
    ],
)
def test_each_word_is_understood(text: str, message: protocol.Message) -> None:
    assert protocol.parse(text) == message


@pytest.mark.parametrize(
    "text", ["", "ready", " isomark ready", "[    0.1] isomark ready", "isomarkready", "ISOMARK ready"]
)
def test_anything_else_is_noise(text: str) -> None:
    assert protocol.parse(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "isomark dance",
        "isomark round x begin",
        "isomark round ٣ begin",
        "isomark round 1 middle",
        "isomark round 1 end",
        "isomark round 1 end {}",
        'isomark round 1 end {"x_bytes": "7"}',
        'isomark round 1 end {"x_bytes": true}',
        'isomark round 1 end {"x_bytes": NaN}',
        'isomark round 1 end {"x_bytes": Infinity}',
        'isomark round 1 end {"x_bytes": 1' + "0" * 400 + "}",
        'isomark metric {"../x": 1}',
        "isomark metric " + "[" * 100_000,
        "isomark exit",
        "isomark exit -1",
        "isomark loader of what",
        "isomark unit",
        "isomark unit ../x y",
    ],
)
def test_a_line_that_breaks_the_protocol_is_malformed_and_never_a_figure(text: str) -> None:
    assert isinstance(protocol.parse(text), protocol.Malformed)


@given(st.text())
def test_no_line_whatever_raises(text: str) -> None:
    protocol.parse(text)
    protocol.parse(protocol.PREFIX + text)
    protocol.is_kernel_line(text)


@given(
    st.dictionaries(
        st.from_regex(r"[a-z][a-z0-9_]{0,63}", fullmatch=True),
        st.floats(allow_nan=False, allow_infinity=False),
        min_size=1,
        max_size=64,
    )
)
def test_figures_come_back_as_they_were_sent(figures: dict[str, float]) -> None:
    assert protocol.parse(f"isomark round 0 end {json.dumps(figures)}") == protocol.RoundEnd(0, figures)


def test_kernel_lines_are_told_from_others() -> None:
    assert protocol.is_kernel_line("[    0.000000] Linux version 6.1.0")
    assert protocol.is_kernel_line("[12345.678901] reboot: Power down")
    assert not protocol.is_kernel_line("[exited with status 3]")
