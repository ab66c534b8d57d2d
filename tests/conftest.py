"""What all tests share: the default state directory, and turning skips of required drivers into failures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.driver import Lab
from bench.errors import DriverUnavailable
from bench.journal import Journal
from bench.lab import open_lab
from bench.state import state_directory
from vms.kernel import GuestKernel, find_kernel

REQUIRED = frozenset(filter(None, os.environ.get("ISOMARK_REQUIRE", "").split(",")))
"""Drivers that may not skip: what .ci/run promises to have tested."""


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A real lab in the default state directory, so that images and kernels are shared between tests."""
    with open_lab(state_directory()) as opened:
        yield opened


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


def skip_or_fail(driver: str, reason: str) -> None:
    """Skip because ``driver`` cannot run here, unless ISOMARK_REQUIRE says that it must."""
    if driver in REQUIRED:
        pytest.fail(f"{driver} is required here and cannot run: {reason}")
    pytest.skip(f"{driver}: {reason}")
