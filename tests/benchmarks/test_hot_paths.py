"""The project's own hot paths, for pytest-benchmark: ``pytest tests/benchmarks --benchmark-only``."""

from __future__ import annotations

import socket
from pathlib import Path, PurePosixPath

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from synthetic_result import synthetic_result

from bench import protocol
from bench.analysis import analyse
from bench.channel import Channel
from bench.journal import Journal
from bench.model import Case, Outcome, OutcomeKind, Sample, Trial
from bench.result import Header
from bench.schedule import schedule
from bench.store import ResultWriter
from bench.suite import find_suite
from reports import html
from vms.domain import Boot, Domain, domain_xml
from vms.qemu import QEMU
from vms.schema import SCHEMA, validate

CASES = [Case(f"workload-{number}", driver) for number in range(5) for driver in ("native", "container", "qemu")]


def test_parse_a_round_line(benchmark: BenchmarkFixture) -> None:
    message = benchmark(protocol.parse, 'isomark round 12 end {"disk_read_per_second": 81234.5, "x_seconds": 0.01}')
    assert isinstance(message, protocol.RoundEnd)


def test_read_a_thousand_console_lines(benchmark: BenchmarkFixture) -> None:
    text = b"[    1.234567] some message of the guest's kernel, as long as they usually are\n" * 1000

    def read() -> int:
        host, guest = socket.socketpair()
        guest.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**20)
        fd = host.detach()
        channel = Channel(fd, fd)
        guest.sendall(text)
        guest.close()
        lines = sum(1 for _ in channel.lines(5))
        channel.close()
        return lines

    assert benchmark(read) == 1000


def test_own_and_release_one_thing(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        benchmark(lambda: journal.gone(journal.own("cgroup", name="isomark/owner/instance")))


def test_schedule_a_hundred_blocks(benchmark: BenchmarkFixture) -> None:
    assert len(benchmark(schedule, CASES, 100, 1)) == 1500


def test_read_a_suite(benchmark: BenchmarkFixture) -> None:
    assert benchmark(find_suite, "quick").name == "quick"


def test_append_a_trial_durably(benchmark: BenchmarkFixture, tmp_path: Path, synthetic_header: Header) -> None:
    samples = tuple(Sample("cpu_events_per_second", 1000.0 + number, number) for number in range(10))
    trial = Trial(0, 0, CASES[0], Outcome(OutcomeKind.OK), "sha256:0", samples=samples)
    with ResultWriter.create(tmp_path / "result", synthetic_header) as writer:
        benchmark(writer.append, trial)


def test_analyse_a_result(benchmark: BenchmarkFixture) -> None:
    result = synthetic_result()
    assert benchmark(analyse, result).drivers


def test_render_the_report(benchmark: BenchmarkFixture) -> None:
    analysis = analyse(synthetic_result())
    assert benchmark.pedantic(html.render, [analysis], rounds=5, warmup_rounds=1).startswith("<!doctype html>")


def test_write_and_validate_a_domain(benchmark: BenchmarkFixture) -> None:
    if not SCHEMA.exists():
        pytest.skip(f"{SCHEMA} is not installed")
    here = PurePosixPath("/s")
    domain = Domain(
        platform=QEMU, name="iso-x-1", uuid="00000000-0000-4000-8000-000000000001", owner="0badcafe", cpus=1,
        memory_bytes=2**29, boot=Boot(here, here), disk=here, backing=here, console=here, nic=None,
    )  # fmt: skip
    benchmark(lambda: validate(domain_xml(domain)))


@pytest.fixture
def synthetic_header() -> Header:
    return synthetic_result().header
