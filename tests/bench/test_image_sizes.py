"""The sizes of images and instances: from the driver to the figure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from conftest import skip_or_fail
from synthetic_result import DRIVERS, synthetic_result

from bench import metrics
from bench.conduct import prepare
from bench.driver import Lab
from bench.drivers import Chosen, load_driver
from bench.errors import DriverUnavailable
from bench.lab import open_lab
from bench.model import OutcomeKind, Sample
from bench.observed import Observed
from bench.setting import Plan
from bench.state import state_directory
from bench.suite import find_suite
from bench.trial import conduct_trial
from bench.workload import find_workload
from runtimes.oci.workload_image import build_workload_image


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with open_lab(state_directory()) as opened:
        yield opened


@pytest.mark.slow
@pytest.mark.parametrize("name", ["native", "container", "qemu"])
def test_a_result_knows_every_size_that_a_driver_has(name: str, lab: Lab) -> None:
    suite = find_suite("quick").narrowed(workloads=["boot"], trials=1)
    workloads = [find_workload(name) for name in find_suite("quick").workloads]
    try:
        driver = load_driver(name, lab)
        driver.check()
    except DriverUnavailable as error:
        skip_or_fail(name, error.message)
    try:
        image = build_workload_image(workloads, lab.state, lab.journal, lambda _: None)
        header = prepare(suite, workloads[:1], Chosen((driver,), ()), image, (), lab.state).header
        plan = Plan(suite.limits, 0, 0, 1.0, 120.0)
        trial = conduct_trial(header.schedule[0], workloads[0], driver, driver.build(image), plan, lab)
    finally:
        driver.close()
    assert trial.outcome.kind is OutcomeKind.OK, trial.outcome
    observed = Observed(replace(synthetic_result(), header=header, trials=(trial,)))
    known = {metric.name: observed.size(name, metric.name).estimate for metric in metrics.IMAGE}
    of_guests = {metrics.IMAGE_VIRTUAL.name, metrics.IMAGE_USED.name}
    assert {metric for metric, estimate in known.items() if estimate is None} == (
        set() if driver.kind == "vm" else of_guests
    )
    values = {metric: estimate.value for metric, estimate in known.items() if estimate is not None}
    assert values[metrics.INSTANCE_DISK.name] < values[metrics.IMAGE_ON_DISK.name]
    if driver.kind == "vm":
        assert values[metrics.IMAGE_USED.name] < values[metrics.IMAGE_ON_DISK.name] < values[metrics.IMAGE_VIRTUAL.name]


def test_the_marginal_cost_is_the_median_over_idle_trials_and_its_ratio_has_an_interval() -> None:
    result = synthetic_result()
    own = {"native": 8192, "container": 16384, "qemu": 4 << 20}

    def with_disk(number: int) -> float:
        return own[result.trials[number].case.driver] + 4096 * (result.trials[number].block % 3)

    trials = tuple(
        replace(trial, samples=(*trial.samples, Sample(metrics.INSTANCE_DISK.name, with_disk(number))))
        if trial.case.workload == "boot"
        else trial
        for number, trial in enumerate(result.trials)
    )
    observed = Observed(replace(result, trials=trials))
    for driver in DRIVERS:
        estimate = observed.size(driver, metrics.INSTANCE_DISK.name).estimate
        assert estimate is not None
        assert (estimate.value, estimate.trials) == (own[driver] + 4096, 5)
    ratio = observed.size_ratio("qemu", "native", metrics.INSTANCE_DISK.name).estimate
    assert ratio is not None
    assert ratio.low is not None
    assert ratio.low < ratio.value == ((4 << 20) + 4096) / (8192 + 4096)


def test_a_size_that_no_trial_sampled_is_missing_with_the_reason() -> None:
    figure = Observed(synthetic_result()).size("qemu", metrics.INSTANCE_DISK.name)
    assert figure.estimate is None
    assert "did not record" in figure.missing
