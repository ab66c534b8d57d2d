from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bench.errors import SuiteError, UsageError
from bench.workload import BUILT_IN, find_workload, load_workload, workload_names


@pytest.mark.parametrize("name", ["boot", "cpu", "memory", "disk", "http"])
def test_every_shipped_workload_is_well_formed(name: str) -> None:
    workload = find_workload(name)
    assert workload.command == (f"/isomark/{name}/run",)
    assert workload.load == "none" or workload.metrics


def test_the_shipped_workloads_are_found() -> None:
    assert {"boot", "cpu", "disk", "http", "memory"} <= set(workload_names())


def test_an_unknown_workload_offers_the_nearest_name() -> None:
    with pytest.raises(UsageError) as caught:
        find_workload("cpuu")
    assert caught.value.hint == "did you mean 'cpu'?"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BUILT_IN / "cpu", tmp_path / "cpu"))


def test_a_metric_without_its_unit_is_refused_with_its_line(folder: Path) -> None:
    path = folder / "workload.toml"
    path.write_text(path.read_text().replace('"cpu_events_per_second"', '"cpu_events"'))
    with pytest.raises(SuiteError, match=r"line \d+: metrics.0.name: .*ends in its unit"):
        load_workload(folder)


def test_a_metric_that_isomark_measures_itself_is_refused(folder: Path) -> None:
    path = folder / "workload.toml"
    path.write_text(path.read_text().replace('"cpu_events_per_second"', '"boot_seconds"'))
    with pytest.raises(SuiteError, match=r"line \d+: metrics.0.name: .*measures itself"):
        load_workload(folder)


def test_a_payload_that_cannot_be_executed_is_refused(folder: Path) -> None:
    (folder / "payload" / "run").unlink()
    with pytest.raises(SuiteError, match="not executable"):
        load_workload(folder)


def test_a_folder_of_another_name_is_refused(folder: Path) -> None:
    other = folder.rename(folder.parent / "other")
    with pytest.raises(SuiteError, match="not the folder's name"):
        load_workload(other)


def test_a_workload_may_start_the_payload_of_another() -> None:
    minimum, http = find_workload("minimum"), find_workload("http")
    assert (minimum.name, minimum.load, minimum.metrics) == ("minimum", "minimum", ())
    assert minimum.command == http.command
    assert (minimum.packages, minimum.port, minimum.folder) == (http.packages, http.port, http.folder)


@pytest.mark.parametrize(
    ("payload", "error", "match"),
    [
        ('payload = "httpp"', UsageError, "httpp"),
        ('payload = "minimum"', SuiteError, "minimum has none of its own"),
        ('payload = "boot"', SuiteError, "boot has no port"),
        ('payload = "http"\nport = 80', SuiteError, "packages and port are those of"),
        ("", SuiteError, "load = 'minimum' needs a port"),
    ],
)
def test_a_payload_that_cannot_be_borrowed_is_refused(
    payload: str, error: type[UsageError], match: str, tmp_path: Path
) -> None:
    folder = tmp_path / "least"
    folder.mkdir()
    (folder / "workload.toml").write_text(
        f'name = "least"\ntitle = "x"\ndescription = ""\nload = "minimum"\n{payload}\n'
    )
    with pytest.raises(error, match=match):
        load_workload(folder)


def test_a_density_workload_says_how_many_it_starts(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(BUILT_IN / "density", tmp_path / "density"))
    assert load_workload(copy).instances == 5
    path = copy / "workload.toml"
    path.write_text(path.read_text().replace("instances = 5\n", ""))
    with pytest.raises(SuiteError, match="needs the number of instances"):
        load_workload(copy)


def test_only_a_density_workload_counts_instances(folder: Path) -> None:
    path = folder / "workload.toml"
    path.write_text(path.read_text().replace('load = "payload"', 'load = "payload"\ninstances = 3'))
    with pytest.raises(SuiteError, match="no other has one"):
        load_workload(folder)
