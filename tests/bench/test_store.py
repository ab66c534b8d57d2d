from __future__ import annotations

import dataclasses
import errno
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.errors import StoreError
from bench.model import Case, Event, Limits, Metric, Outcome, OutcomeKind, Sample, Trial
from bench.result import AbsentDriver, DriverRecord, Header, Notice, WorkloadRecord
from bench.schedule import schedule
from bench.store import HEADER, TRIALS, ResultWriter, done_slots, read_result

METRIC = Metric("cpu_events_per_second", "Events", "events/s", "higher", "Events in a round, by its own clock.")
CASES = [Case("cpu", "native"), Case("cpu", "qemu")]
HEADER_VALUE = Header(
    result_id="00ff", created_at="2026-01-01T00:00:00+00:00", isomark_version="0.1.0", suite_name="mine",
    suite_title="Mine", suite_source="", seed=1, limits=Limits(), trials_per_case=2, rounds=1, warmup_rounds=1,
    round_seconds=1.0, workloads=(WorkloadRecord("cpu", "CPU", "", "payload", (METRIC,)),),
    drivers=(DriverRecord("native", "process", False, {"engine": "none"}, "tree", 1, 2, None),
             DriverRecord("qemu", "vm", True, {"engine": "QEMU"}, "disk", None, 2, 3, {"disk": "sha256:0"})),
    absent=(AbsentDriver("kvm", "no guest boots", "use qemu"),), schedule=schedule(CASES, 2, 1), image_reference="i",
    image_digest="sha256:1", image_compressed_bytes=1, image_unpacked_bytes=2, image_packages={"fio": "3"},
    identity={"cpu": "x"}, conditions={"load": "0"}, notices=(Notice("host", "note", "virtual", "bare metal"),),
)  # fmt: skip

texts = st.text(st.characters(codec="utf-8"), max_size=40)
floats = st.floats(allow_nan=False, allow_infinity=False)
trials = st.builds(
    Trial,
    index=st.integers(0, 3),
    block=st.integers(0, 1),
    case=st.sampled_from(CASES),
    outcome=st.builds(Outcome, st.sampled_from(OutcomeKind), texts, texts, st.lists(texts, max_size=3).map(tuple)),
    image_digest=texts,
    events=st.lists(st.builds(Event, st.sampled_from(["spawned", "ready"]), floats), max_size=3).map(tuple),
    samples=st.lists(st.builds(Sample, texts, floats, st.none() | st.integers(0, 9)), max_size=4).map(tuple),
    started_at=texts,
    wall_seconds=st.none() | floats,
)


def _trial(index: int, kind: OutcomeKind = OutcomeKind.OK) -> Trial:
    return Trial(index, 0, CASES[0], Outcome(kind), "sha256:1", samples=(Sample(METRIC.name, 1.5, 0),))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "result"


def test_a_result_comes_back_as_it_was_written(folder: Path) -> None:
    with ResultWriter.create(folder, HEADER_VALUE) as writer:
        for index in range(3):
            writer.append(_trial(index))
    result = read_result(folder)
    assert result.header == HEADER_VALUE
    assert result.trials == tuple(_trial(index) for index in range(3))
    assert not result.complete


@settings(max_examples=50)
@given(st.lists(trials, max_size=4, unique_by=lambda trial: trial.index))
def test_any_trial_survives_the_disk(tmp_path_factory: pytest.TempPathFactory, written: list[Trial]) -> None:
    folder = tmp_path_factory.mktemp("store") / "result"
    with ResultWriter.create(folder, HEADER_VALUE) as writer:
        for trial in written:
            writer.append(trial)
    assert list(read_result(folder).trials) == written


@given(st.integers(0, 400))
def test_a_result_cut_anywhere_keeps_its_whole_trials(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    folder = tmp_path_factory.mktemp("store") / "result"
    with ResultWriter.create(folder, HEADER_VALUE) as writer:
        writer.append(_trial(0))
        writer.append(_trial(1))
    size = (folder / TRIALS).stat().st_size
    os.truncate(folder / TRIALS, max(0, size - cut))
    kept = len(read_result(folder).trials)
    with ResultWriter.reopen(folder) as writer:
        writer.append(_trial(3))
    assert [trial.index for trial in read_result(folder).trials] == [*range(kept), 3]
    assert kept == 2 if cut == 0 else kept < 2


def test_an_aborted_trial_is_taken_again_and_the_later_record_counts(folder: Path) -> None:
    with ResultWriter.create(folder, HEADER_VALUE) as writer:
        writer.append(_trial(0, OutcomeKind.ABORTED))
        assert done_slots(read_result(folder)) == set()
        writer.append(_trial(0))
    result = read_result(folder)
    assert done_slots(result) == {0}
    assert [trial.outcome.kind for trial in result.trials] == [OutcomeKind.OK]


def test_a_failed_trial_is_an_outcome_and_not_taken_again(folder: Path) -> None:
    with ResultWriter.create(folder, HEADER_VALUE) as writer:
        writer.append(_trial(2, OutcomeKind.FAILED))
    assert done_slots(read_result(folder)) == {2}


def test_two_runs_cannot_write_to_one_result(folder: Path) -> None:
    with ResultWriter.create(folder, HEADER_VALUE), pytest.raises(StoreError, match="another run"):
        ResultWriter.reopen(folder)


def test_a_folder_with_something_in_it_is_not_taken(folder: Path) -> None:
    folder.mkdir()
    (folder / "precious").touch()
    with pytest.raises(StoreError, match="not empty"):
        ResultWriter.create(folder, HEADER_VALUE)


def test_no_space_is_told_and_leaves_what_was_there_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ResultWriter.create(folder, HEADER_VALUE) as writer:
        writer.append(_trial(0))

        def full(fd: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(StoreError, match="No space left") as caught:
                writer.append(_trial(1))
        assert "--resume" in caught.value.hint
    assert [trial.index for trial in read_result(folder).trials] == [0]


def test_a_full_device_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ResultWriter.create(folder, HEADER_VALUE) as writer:
        full = os.open("/dev/full", os.O_WRONLY)
        own, writer._fd = writer._fd, full
        monkeypatch.setattr(os, "ftruncate", lambda fd, size: None)  # a device cannot be cut
        with pytest.raises(StoreError, match="No space left"):
            writer.append(_trial(0))
        writer._fd = own
        os.close(full)


@pytest.mark.parametrize("damage", [b"", b"{}", b"[]", b"not json", b'{"seed": "x"}'])
def test_a_damaged_header_is_a_store_error(folder: Path, damage: bytes) -> None:
    with ResultWriter.create(folder, HEADER_VALUE):
        pass
    (folder / HEADER).write_bytes(damage)
    with pytest.raises(StoreError):
        read_result(folder)


def test_a_damaged_trial_in_the_middle_is_a_store_error_and_not_passed_over(folder: Path) -> None:
    with ResultWriter.create(folder, HEADER_VALUE) as writer:
        writer.append(_trial(0))
    with (folder / TRIALS).open("ab") as file:
        file.write(b"{}\n")
    with pytest.raises(StoreError):
        read_result(folder)


def test_no_folder_is_a_store_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"header\.json is missing"):
        read_result(tmp_path / "none")


def test_every_field_of_the_header_has_a_value_here() -> None:
    assert all(getattr(HEADER_VALUE, field.name) is not None for field in dataclasses.fields(Header))
