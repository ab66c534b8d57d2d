from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bench.model import Case
from bench.schedule import schedule

CASES = [Case(workload, driver) for workload in ("boot", "cpu", "disk") for driver in ("native", "container", "qemu")]
seeds = st.integers(0, 2**32 - 1)


@given(seeds, st.integers(1, 12))
def test_every_block_holds_every_case_exactly_once(seed: int, blocks: int) -> None:
    slots = schedule(CASES, blocks, seed)
    for block in range(blocks):
        assert sorted(slot.case for slot in slots if slot.block == block) == sorted(CASES)


@given(seeds)
def test_the_same_seed_gives_the_same_order(seed: int) -> None:
    assert schedule(CASES, 5, seed) == schedule(list(reversed(CASES)), 5, seed)


@given(seeds)
def test_more_trials_only_append(seed: int) -> None:
    assert schedule(CASES, 7, seed)[: 5 * len(CASES)] == schedule(CASES, 5, seed)


def test_slots_are_numbered_in_the_order_they_run() -> None:
    assert [slot.index for slot in schedule(CASES, 3, 1)] == list(range(27))


def test_no_case_always_runs_first() -> None:
    firsts = {slot.case for slot in schedule(CASES, 200, 7) if slot.index % len(CASES) == 0}
    assert firsts == set(CASES)


def test_blocks_differ_in_their_order() -> None:
    slots = schedule(CASES, 2, 3)
    assert [s.case for s in slots[:9]] != [s.case for s in slots[9:]]
