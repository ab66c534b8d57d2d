from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.clean import clean, remove_directory, remove_process
from bench.errors import HostError
from bench.journal import OWNER_VARIABLE, Journal, Owner, boot_id, read_journals, start_ticks

DEAD = Owner("dead0000", 0, -1, "")


def _dead_journal(directory: Path, *entries: tuple[str, dict[str, str]]) -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / "dead0000.jsonl"
    lines = [json.dumps({"owner": vars(DEAD)})]
    lines += [json.dumps({"own": n, "kind": kind, "what": what}) for n, (kind, what) in enumerate(entries)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_journal_of_which_all_is_gone_leaves_no_file(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal, journal.owning("directory", path="/nowhere"):
        (open_one,) = read_journals(tmp_path)
        assert len(open_one.entries) == 1
    assert list(tmp_path.iterdir()) == []


def test_what_is_still_owned_stays_named_newest_first(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        for number in range(3):
            journal.own("directory", path=str(number))
    (left,) = read_journals(tmp_path)
    assert [entry.what["path"] for entry in left.entries] == ["2", "1", "0"]


def test_this_process_is_alive_and_a_later_one_of_its_pid_is_not_it() -> None:
    ticks = start_ticks(os.getpid())
    assert ticks is not None
    assert Owner("a", os.getpid(), ticks, boot_id()).is_alive()
    assert not Owner("a", os.getpid(), ticks + 1, boot_id()).is_alive()
    assert not Owner("a", os.getpid(), ticks, "another boot").is_alive()


def test_the_living_are_left_alone(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    with Journal(tmp_path / "owned") as journal, journal.owning("directory", path=str(kept)):
        assert clean(tmp_path / "owned") == []
        assert kept.exists()


def test_the_dead_are_cleaned_and_forgotten(tmp_path: Path) -> None:
    left = tmp_path / "left"
    (left / "deep").mkdir(parents=True)
    path = _dead_journal(tmp_path / "owned", ("directory", {"path": str(left)}))
    assert [removal.fault for removal in clean(tmp_path / "owned")] == [""]
    assert not left.exists()
    assert not path.exists()


def test_a_torn_line_is_passed_over(tmp_path: Path) -> None:
    left = tmp_path / "left"
    left.mkdir()
    path = _dead_journal(tmp_path / "owned", ("directory", {"path": str(left)}))
    with path.open("a") as file:
        file.write('{"own": 7, "kind": "dire')
    clean(tmp_path / "owned")
    assert not left.exists()


def test_a_journal_killed_before_its_first_line_is_just_removed(tmp_path: Path) -> None:
    (tmp_path / "0badf00d.jsonl").touch()
    assert clean(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_removed_stays_named(tmp_path: Path) -> None:
    path = _dead_journal(tmp_path, ("wormhole", {"name": "x"}))
    (removal,) = clean(tmp_path)
    assert "wormhole" in removal.fault
    assert path.exists()


def test_what_was_at_a_host_that_is_no_more_is_forgotten_and_nothing_else(tmp_path: Path) -> None:
    nowhere = "qemu+tcp://127.0.0.1:1/system"
    what = {"uri": nowhere, "uuid": "5ced9327-17ac-4d8b-aca1-021d00ff24b9", "name": "iso-1"}
    path = _dead_journal(tmp_path, ("domain", what))
    (kept,) = clean(tmp_path)
    assert f"isomark clean --gone {nowhere}" in kept.fault
    assert clean(tmp_path, gone=["qemu+tcp://127.0.0.1:2/system"])[0].fault
    assert path.exists()
    (forgotten,) = clean(tmp_path, gone=[nowhere])
    assert not forgotten.fault
    assert not path.exists()


def test_a_symbolic_link_is_removed_and_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "precious").touch()
    link = tmp_path / "link"
    link.symlink_to(target)
    remove_directory({"path": str(link)})
    assert not link.is_symlink()
    assert (target / "precious").exists()


def test_processes_are_found_by_their_owner_and_killed() -> None:
    marked = subprocess.Popen(["sleep", "60"], env={**os.environ, OWNER_VARIABLE: "feedbeef"})
    other = subprocess.Popen(["sleep", "60"], env={**os.environ, OWNER_VARIABLE: "feedbeef2"})
    try:
        remove_process({"marker": "feedbeef"})
        assert marked.wait(5) == -signal.SIGKILL
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_killed_owner_counts_as_dead_even_before_it_is_reaped(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from bench.journal import Journal;"
        f"journal = Journal(Path({str(tmp_path)!r})); journal.own('directory', path='/nowhere/at/all');"
        "print('open', flush=True); input()"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    (left,) = read_journals(tmp_path)
    assert left.owner.is_alive()
    child.kill()
    for _ in range(200):
        if not left.owner.is_alive():
            break
        time.sleep(0.01)
    assert not left.owner.is_alive()
    child.communicate()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_journal_that_cannot_be_written_says_what_would_help() -> None:
    with pytest.raises(HostError) as caught:
        Journal(Path("/proc/nowhere"))
    assert "ISOMARK_STATE" in caught.value.hint
