"""What all tests share: the default state directory, and turning skips of required drivers into failures."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from bench.driver import Driver, Lab
from bench.errors import DriverUnavailable, HostError, ImageError
from bench.journal import Journal
from bench.lab import open_lab
from bench.model import WorkloadImage
from bench.state import journal_directory, state_directory
from bench.suite import find_suite
from bench.workload import find_workload
from vms.events import LOOP
from vms.kernel import GuestKernel, find_kernel

D = TypeVar("D", bound=Driver)
REQUIRED = frozenset(filter(None, os.environ.get("ISOMARK_REQUIRE", "").split(",")))
"""Drivers that may not skip and labs that may not be left out: what .ci/run promises to have tested."""
LABS = ("xen", "full")
"""Markers of what takes minutes."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A real lab in the default state directory, so that images and kernels are shared between tests."""
    with open_lab(state_directory()) as opened:
        yield opened


@pytest.fixture(scope="module")
def workload_image(lab: Lab) -> WorkloadImage:
    """The image of the suite ``quick``, which script/run has built."""
    from runtimes.oci.workload_image import build_workload_image

    workloads = [find_workload(name) for name in find_suite("quick").workloads]
    return build_workload_image(workloads, lab.state, lab.journal, lambda _: None)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "owned") as opened:
        yield opened


@pytest.fixture(scope="session")
def kernel() -> GuestKernel:
    """The kernel that guests boot."""
    try:
        return find_kernel(state_directory())
    except DriverUnavailable as error:
        skip_or_fail("qemu", error.message)
        raise


@pytest.fixture(scope="module")
def xen_uri() -> Iterator[str]:
    """libvirt's URI of a real, if emulated, Xen that is this module's own (tests/xenlab); for tests marked xen."""
    from xenlab.lab import running_lab

    state = state_directory()
    with Journal(journal_directory(state)) as journal, ExitStack() as stack:
        LOOP.hold()  # once any test has registered it, a connection is only kept alive while it runs
        stack.callback(LOOP.release)
        try:
            running = stack.enter_context(running_lab(state, journal, print))
        except (HostError, ImageError) as error:  # not InstanceError: a Xen that does not start is a fault
            skip_or_fail("xen", f"{error.message} ({error.hint})")
            raise
        yield running.uri


def pytest_configure() -> None:
    """Hear Ctrl-C, and let what is started hear it: a shell's background job ignores it, and so do its children."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is marked as one of ``LABS`` unless ``-m`` names it, or ISOMARK_REQUIRE demands it."""
    unwanted = [name for name in LABS if name not in REQUIRED and name not in config.option.markexpr]
    left_out = [item for item in items if any(item.get_closest_marker(name) for name in unwanted)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@contextmanager
def usable(name: str, make: Callable[[], D]) -> Iterator[D]:
    """The driver that ``make`` makes, closed at the end; skips where it cannot run, unless ``name`` is required."""
    try:
        made = make()
    except DriverUnavailable as error:
        skip_or_fail(name, error.message)
        raise
    try:
        try:
            made.check()
        except DriverUnavailable as error:
            skip_or_fail(name, f"{error.message} ({error.hint})")
            raise
        yield made
    finally:
        made.close()


def skip_or_fail(driver: str, reason: str) -> None:
    """Skip because ``driver`` cannot run here, unless ISOMARK_REQUIRE says that it must."""
    if driver in REQUIRED:
        pytest.fail(f"{driver} is required here and cannot run: {reason}")
    pytest.skip(f"{driver}: {reason}")
