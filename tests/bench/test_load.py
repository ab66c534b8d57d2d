from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import InstanceError
from bench.load import parse_wrk

REPORT = """\
Running 1s test @ http://127.0.0.1:8080/
  1 threads and 8 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   280.01us  411.31us   7.41ms   95.67%
    Req/Sec    36.26k     3.78k   41.15k    80.00%
  Latency Distribution
     50%  201.00us
     75%  239.00us
     90%  361.00us
     99%    2.19ms
  36082 requests in 1.00s, 35.47MB read
Requests/sec:  36051.53
Transfer/sec:     35.44MB
"""


def test_the_rate_and_the_latencies_are_read_in_seconds() -> None:
    assert parse_wrk(REPORT) == {
        "http_requests_per_second": 36051.53,
        "http_latency_p50_seconds": pytest.approx(201e-6),
        "http_latency_p99_seconds": pytest.approx(2.19e-3),
    }


@pytest.mark.parametrize(
    "line", ["  Socket errors: connect 0, read 8, write 0, timeout 0", "  Non-2xx or 3xx responses: 12"]
)
def test_any_failed_request_fails_the_round(line: str) -> None:
    with pytest.raises(InstanceError, match="met errors"):
        parse_wrk(REPORT.replace("Requests/sec:", f"{line}\nRequests/sec:"))


def test_no_answer_at_all_is_not_a_rate_of_zero() -> None:
    with pytest.raises(InstanceError, match="no answer"):
        parse_wrk(REPORT.replace("36051.53", "0.00"))


@given(st.text())
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(InstanceError):
        parse_wrk(text)
