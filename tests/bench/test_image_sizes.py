"""The sizes of images and instances: from the driver to the figure."""

from __future__ import annotations

from dataclasses import replace

import pytest
from conftest import usable
from synthetic_result import DRIVERS, synthetic_result

from bench import metrics
from bench.conduct import prepare
from bench.driver import Lab
from bench.drivers import Chosen, load_driver
from bench.model import OutcomeKind, Sample, WorkloadImage
from bench.observed import Observed
from bench.setting import Plan
from bench.suite import find_suite
from bench.trial import conduct_trial
from bench.workload import find_workload


@pytest.mark.slow
@pytest.mark.parametrize("name", ["native", "container", "qemu"])
def test_a_result_knows_every_size_that_a_driver_has(name: str, workload_image: WorkloadImage, lab: Lab) -> None:
    suite = find_suite("quick").narrowed(workloads=["boot"], trials=1)
    boot = find_workload("boot")
    with usable(name, lambda: load_driver(name, lab)) as driver:
        header = prepare(suite, [boot], Chosen((driver,), ()), workload_image, (), lab.state).header
        plan = Plan(suite.limits, 0, 0, 1.0, 120.0)
        trial = conduct_trial(header.schedule[0], boot, driver, driver.build(workload_image), plan, lab)
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
