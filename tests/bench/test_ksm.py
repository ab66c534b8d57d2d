"""Kernel same-page merging: switched on where it may be, and put back whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import ksm
from bench.clean import clean
from bench.errors import HostError
from bench.journal import Journal, read_journals
from bench.memory import read_memory

OFF = {"run": "0", "pages_to_scan": "100", "sleep_millisecs": "20", "advisor_mode": "[none] scan-time",
       "pages_shared": "0", "pages_sharing": "0", "full_scans": "0", "pages_scanned": "0",
       "general_profit": "0"}  # fmt: skip
PAGES = 2048
OFFER = f"""
import mmap, random, sys
pages = b"".join(random.Random(place).randbytes(mmap.PAGESIZE) for place in range({PAGES}))
memory = mmap.mmap(-1, len(pages), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(12)  # MADV_MERGEABLE
memory.write(pages)
del pages
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A directory like the kernel's, which takes every setting and scans nothing."""
    directory = tmp_path / "ksm"
    directory.mkdir()
    for name, text in OFF.items():
        (directory / name).write_text(f"{text}\n")
    return directory


@pytest.fixture
def twins() -> Iterator[list[int]]:
    """Two processes that offer the same pages for merging."""
    started = [
        subprocess.Popen([sys.executable, "-c", OFFER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
    yield [process.pid for process in started]
    for process in started:
        process.communicate()


def settings(directory: Path) -> dict[str, str]:
    return {name: ksm._read(directory, name) for name in ("run", "pages_to_scan", "sleep_millisecs", "advisor_mode")}


@pytest.mark.slow
def test_the_kernel_merges_what_two_processes_have_alike_and_is_put_back(journal: Journal, twins: list[int]) -> None:
    if reason := ksm.why_untouched():
        pytest.skip(reason)
    before = settings(ksm.DIRECTORY)
    apart = sum(read_memory([pid], None).pss_bytes or 0 for pid in twins)
    with ksm.merging(journal):
        assert ksm.await_scans() == ""
        merged = sum(read_memory([pid], None).pss_bytes or 0 for pid in twins)
        counters = ksm.read_counters()
    saved = PAGES * os.sysconf("SC_PAGE_SIZE")
    assert apart - merged == pytest.approx(saved, rel=0.2)
    assert counters is not None
    assert counters.sharing_bytes >= 0.8 * saved
    assert settings(ksm.DIRECTORY) == before
    assert ksm._number(ksm.DIRECTORY, "pages_shared") == 0
    assert sum(read_memory([pid], None).pss_bytes or 0 for pid in twins) == pytest.approx(apart, rel=0.1)


def test_what_was_there_stands_in_the_journal_while_it_is_changed(journal: Journal, copy: Path) -> None:
    before = settings(copy)
    with ksm.merging(journal, copy):
        [left] = read_journals(journal.path.parent)
        [entry] = left.entries
        assert (entry.kind, dict(entry.what)) == ("ksm", {"directory": str(copy), **before})
        assert settings(copy)["run"] == "1"
        assert int(settings(copy)["pages_to_scan"]) > int(before["pages_to_scan"])
    assert settings(copy) == before
    [left] = read_journals(journal.path.parent)
    assert left.entries == ()


def test_an_advisor_is_silenced_and_comes_back(journal: Journal, copy: Path) -> None:
    (copy / "advisor_mode").write_text("none [scan-time]\n")
    with ksm.merging(journal, copy):
        assert settings(copy)["advisor_mode"] == "none"
    assert settings(copy)["advisor_mode"] == "scan-time"


def test_an_older_kernel_without_advisor_and_profit_will_do(journal: Journal, copy: Path) -> None:
    (copy / "advisor_mode").unlink()
    (copy / "general_profit").unlink()
    with ksm.merging(journal, copy):
        assert ksm.read_counters(copy) == ksm.Counters(0, 0, None)
    assert not (copy / "advisor_mode").exists()
    assert (copy / "run").read_text() == "0"


def test_an_interrupt_puts_it_back(journal: Journal, copy: Path) -> None:
    before = settings(copy)
    with pytest.raises(KeyboardInterrupt), ksm.merging(journal, copy):
        signal.raise_signal(signal.SIGINT)
    assert settings(copy) == before


def test_after_kill_9_clean_puts_it_back(tmp_path: Path, copy: Path) -> None:
    before = settings(copy)
    script = f"""
        import signal, sys
        from pathlib import Path
        from bench import ksm
        from bench.journal import Journal
        with Journal(Path({str(tmp_path / "owned")!r})) as journal, ksm.merging(journal, Path({str(copy)!r})):
            print("on", flush=True)
            sys.stdin.read()
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == b"on\n"
        assert clean(tmp_path / "owned") == []  # its owner lives
        assert settings(copy)["run"] == "1"
        run.kill()
    [removal] = clean(tmp_path / "owned")
    assert (removal.entry.kind, removal.fault) == ("ksm", "")
    assert settings(copy) == before
    ksm.put_back(removal.entry.what)
    assert settings(copy) == before


def test_what_others_have_set_since_is_theirs(journal: Journal, copy: Path) -> None:
    with ksm.merging(journal, copy):
        (copy / "pages_to_scan").write_text("300")
    assert settings(copy) == {**settings(copy), "pages_to_scan": "300", "run": "1", "sleep_millisecs": "20"}


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [("run", "1", "KSM runs already"), ("pages_shared", "7", "stopped with pages merged")],
)
def test_somebody_elses_ksm_is_not_touched(name: str, value: str, reason: str, copy: Path) -> None:
    (copy / name).write_text(value)
    assert reason in ksm.why_untouched(copy)


def test_ksm_that_is_off_may_be_switched_on(copy: Path) -> None:
    assert ksm.why_untouched(copy) == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_read_only_sysfs_is_a_reason(copy: Path, journal: Journal) -> None:
    subprocess.run(["mount", "--bind", str(copy), str(copy)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(copy)], check=True)
        assert "read-only" in ksm.why_untouched(copy)
        with pytest.raises(HostError, match="Read-only file system"), ksm.merging(journal, copy):
            pytest.fail("it was let in")
    finally:
        subprocess.run(["umount", str(copy)], check=True)


def test_a_kernel_without_ksm_is_a_reason(tmp_path: Path) -> None:
    assert "CONFIG_KSM" in ksm.why_untouched(tmp_path / "none")
    assert ksm.read_counters(tmp_path / "none") is None


def test_nothing_to_merge_is_noticed_before_the_time_is_up(copy: Path) -> None:
    assert "no process offers its memory" in ksm.await_scans(copy)


def test_before_linux_6_6_only_finished_scans_and_the_deadline_count(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ksm, "_IDLE_SECONDS", 0.0)
    (copy / "pages_scanned").unlink()
    assert "not passed over all mergeable memory within 0.5 s" in ksm.await_scans(copy, 0.5)
    later = threading.Timer(0.3, (copy / "full_scans").write_text, [str(ksm.SCANS)])
    later.start()
    assert ksm.await_scans(copy) == ""
    later.join()


def test_a_scan_that_does_not_end_is_given_up(copy: Path) -> None:
    assert "not passed over all mergeable memory within 0.3 s" in ksm.await_scans(copy, 0.3)
