"""Which guests stand out: the rule's false alarms on normal values, on ties, and on recorded guests."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from synthetic import MIB, store, synthetic_plan

from analysis.measure.outliers import (
    FALSE_ALARMS,
    LEAST_RANGE_BYTES,
    beyond,
    contributions,
    fence,
)
from analysis.plan.design import Cell
from analysis.records.loading import load_run

Records = dict[str, dict[str, Any]]
CELLS = 20_000

# Falls of PSS in MB as recorded: 15 idle guests with KSM on first, of which seven had more huge pages split.
TWO_GROUPS = (92.2, 92.4, 92.7, 93.0, 93.1, 93.1, 93.1, 93.2, 100.7, 102.1, 102.1, 102.2, 102.3, 102.4, 105.9)
# 15 guests full of random bytes; one gave 14 MB less than any other.
ONE_APART = (36.0, 50.2, 51.2, 54.4, 55.9, 56.3, 57.4, 57.8, 57.8, 58.6, 58.9, 60.2, 60.6, 60.6, 61.0)


def alarms(cells: npt.NDArray[np.float64], least_range: float = 0.0) -> float:
    """Of these cells, the part in which some guest stands out."""
    return float((np.abs(beyond(cells, least_range)).max(axis=-1) > fence(cells.shape[-1])).mean())


def normal(guests: int) -> npt.NDArray[np.float64]:
    return np.random.default_rng(8).standard_normal((CELLS, guests))


@pytest.mark.parametrize("guests", [4, 6, 15, 30])
def test_of_normal_cells_one_in_a_hundred_has_a_false_alarm(guests: int) -> None:
    # Standard error of 20,000 cells: 0.07 %, and as much of the fence.
    assert alarms(normal(guests)) == pytest.approx(FALSE_ALARMS, abs=0.003)


def test_the_usual_fence_would_have_twenty_times_as_many() -> None:
    assert (np.abs(beyond(normal(15), 0.0)).max(axis=-1) > 1.5).mean() > 0.2


@pytest.mark.parametrize("spread_huge_pages", [0.05, 0.25, 0.5, 1.0, 1.5, 2.0])
def test_ties_of_whole_huge_pages_raise_few_alarms(spread_huge_pages: float) -> None:
    tied = np.round(normal(15) * spread_huge_pages) * LEAST_RANGE_BYTES
    assert alarms(tied, LEAST_RANGE_BYTES) < 0.03


def test_without_a_least_range_ties_would_raise_many() -> None:
    tied = np.round(normal(15) * 0.25) * LEAST_RANGE_BYTES
    assert alarms(tied, 1.0) > 0.3


def frame_of(results: Path, falls_mib: tuple[float, ...]) -> pd.DataFrame:
    def change(_cell: Cell, records: Records) -> None:
        guests = records["on"]["observed"]["guests"].values()
        for guest, fall in zip(guests, falls_mib, strict=True):
            guest["smaps_rollup"]["Pss_bytes"] = 482 * MIB - int(fall * MIB)

    plan = synthetic_plan(guests=len(falls_mib))
    return contributions(load_run(store(results, plan, change)).cells[0])


def test_a_group_of_guests_does_not_stand_out(results: Path) -> None:
    assert not frame_of(results, TWO_GROUPS)["stands_out"].any()


def test_a_guest_far_from_all_others_does(results: Path) -> None:
    seen = frame_of(results, ONE_APART)
    assert list(seen.index[seen["stands_out"]]) == ["guest01"]
    # Quartiles 55.15 and 59.55: (55.15 - 36.0) / 4.4 below.
    assert seen.loc["guest01", "beyond"] == pytest.approx(-4.352, abs=0.01)


def test_equal_guests_do_not_stand_out_by_less_than_some_huge_pages(results: Path) -> None:
    assert not frame_of(results, (100.0,) * 14 + (106.0,))["stands_out"].any()
    assert frame_of(results / "more", (100.0,) * 14 + (108.0,))["stands_out"].sum() == 1


@pytest.mark.parametrize("guests", [1, 2, 3])
def test_of_fewer_than_four_none_can_stand_out(results: Path, guests: int) -> None:
    assert not frame_of(results, (0.0, 400.0, 400.0)[:guests])["stands_out"].any()


def test_guests_are_compared_with_those_of_their_own_workload(results: Path) -> None:
    def change(_cell: Cell, records: Records) -> None:
        guests = list(records["on"]["observed"]["guests"].values())
        for place, guest in enumerate(guests):
            guest["smaps_rollup"]["Pss_bytes"] = (482 - (400 if place < 3 else 100)) * MIB

    plan = synthetic_plan(mix="constant_fill=3,idle=12")
    seen = contributions(load_run(store(results, plan, change)).cells[0])
    assert not seen["stands_out"].any()


def test_without_ksm_stat_a_guest_has_no_counts(results: Path) -> None:
    def change(_cell: Cell, records: Records) -> None:
        for guest in records["on"]["observed"]["guests"].values():
            guest["ksm_stat"] = None

    seen = contributions(load_run(store(results, synthetic_plan(guests=2), change)).cells[0])
    assert seen[["merging_pages", "rmap_bytes", "profit_bytes"]].isna().all(axis=None)
