"""What must be equal for two results to be compared, and for one to be continued."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench.conduct import prepare, resume
from bench.drivers import Chosen
from bench.errors import StoreError
from bench.model import Workload, WorkloadImage
from bench.result import Result
from bench.suite import find_suite
from bench.workload import find_workload

IMAGE = WorkloadImage("isomark:1", "sha256:" + "0" * 64, Path("layout"), Path("tree"), 1, 1, 1)
DENSITY = find_workload("density")


@pytest.mark.parametrize(
    "now", [replace(DENSITY, instances=7), replace(DENSITY, load="none"), replace(DENSITY, name="other")]
)
def test_a_result_is_not_continued_with_other_work(now: Workload, tmp_path: Path) -> None:
    suite = replace(find_suite("quick"), workloads=("density",))
    then, again, other = (
        prepare(suite, [workload], Chosen((), ()), IMAGE, [], tmp_path) for workload in (DENSITY, DENSITY, now)
    )
    earlier = Result(tmp_path, then.header, ())
    assert resume(again, earlier).header == then.header
    with pytest.raises(StoreError, match="work: "):
        resume(other, earlier)
