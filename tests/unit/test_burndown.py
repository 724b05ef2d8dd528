"""The burndown and the convergence judged again, on series that rise, fall, oscillate and creep."""

from pathlib import Path
from typing import Any

import pytest
from synthetic import PAGE, store, synthetic_plan, synthetic_samples

from analysis.measure.burndown import Burndown, burndown, near_final, seconds_to
from analysis.measure.table import tidy
from analysis.plan.design import Cell
from analysis.records.loading import load_run

Records = dict[str, dict[str, Any]]


def merge_of(
    results: Path, saved: list[int], scans: list[int], *, converged: bool = True, **knobs: int
) -> Burndown:
    def change(_cell: Cell, records: Records) -> None:
        records["merge"]["observed"]["samples"] = synthetic_samples(saved, scans)
        records["merge"]["observed"]["converged"] = converged
        records["merge"]["provenance"]["ksm_knobs"].update(knobs)

    return burndown(load_run(store(results, synthetic_plan(), change)).cells[0])


def test_times_and_scans_of_a_series_worked_out_by_hand(results: Path) -> None:
    saved = [0, 400, 500, 890, 900, 990, 1000, 1000, 1000, 1000]
    found = merge_of(results, saved, [5, 5, 6, 6, 7, 7, 8, 9, 10, 11])
    assert found.scans == (0, 0, 1, 1, 2, 2, 3, 4, 5, 6)
    assert found.final_bytes == 1000 * PAGE
    assert found.seconds_to == {50: 2.0, 90: 4.0, 99: 5.0}
    assert (found.near_final_seconds, found.near_final_scans) == (5.0, 2)
    assert found.by_scan[:3] == ((0, 0.0, 0), (1, 2.0, 500 * PAGE), (2, 4.0, 900 * PAGE))
    # Three scans are done at second 6, but only at 8 are two whole scans flat.
    assert found.settled_seconds == 8.0
    assert found.settled


@pytest.mark.parametrize(
    ("name", "saved"),
    [
        ("slow", [1000 + 10 * n for n in range(40)]),
        ("oscillating", [1000 + 100 * (n % 2) for n in range(40)]),
        ("falling", [5000 - 50 * n for n in range(40)]),
    ],
)
def test_series_that_move_never_settle(results: Path, name: str, saved: list[int]) -> None:
    found = merge_of(results, saved, list(range(40)))
    assert found.settled_seconds is None, name
    assert "limit 0.5 %" in found.reason
    assert found.recorded_settled
    assert not found.settled


def test_the_flat_companion_of_those_series_settles(results: Path) -> None:
    assert merge_of(results, [1000] * 40, list(range(40))).settled_seconds == 3.0


def test_smart_scan_asks_for_more_scans(results: Path) -> None:
    assert merge_of(results, [1000] * 40, list(range(40)), smart_scan=1).settled_seconds == 10.0


def test_a_record_that_says_unsettled_stays_so(results: Path) -> None:
    found = merge_of(results, [1000] * 40, list(range(40)), converged=False)
    assert found.settled_seconds is not None
    assert not found.settled


def test_a_record_that_claims_more_than_its_samples_is_not_averaged(results: Path) -> None:
    def change(_cell: Cell, records: Records) -> None:
        records["merge"]["observed"]["samples"] = synthetic_samples(
            [100 * n for n in range(20)], list(range(20))
        )

    table = tidy([load_run(store(results, synthetic_plan(), change))])
    assert list(table["status"]) == ["unconverged"]


@pytest.mark.parametrize(
    ("column", "first", "each_scan", "said"),
    [
        # 1 % of the saving with each scan
        ("guests_anon_pages", 400_000, 1000, "what the guests have fell by 2.00 % of them"),
        # A huge page with each scan
        ("pages_volatile", 200_000, 512, "the volatile pages, which are more, by 1024 pages"),
    ],
)
def test_a_record_that_claims_to_have_settled_while_memory_was_freed_is_not_averaged(
    results: Path, column: str, first: int, each_scan: int, said: str
) -> None:
    scans = list(range(8))

    def change(cell: Cell, records: Records) -> None:
        samples = synthetic_samples([100_000] * len(scans), scans)
        # In boot 1 to the end, in boot 2 none after the third scan
        last = scans[-1] if cell.boot == 1 else 3
        samples[column] = [first - each_scan * min(scan, last) for scan in scans]
        records["merge"]["observed"]["samples"] = samples

    table = tidy([load_run(store(results, synthetic_plan(boots=2), change))])
    assert dict(zip(table["boot"], table["status"], strict=True)) == {1: "unconverged", 2: "complete"}
    assert said in table.set_index("boot")["problem"][1]


def test_what_others_had_merged_before_is_no_saving_of_the_guests(results: Path) -> None:
    """50,000 pages of others: 90 % of the guests' 1000 are there after 2 s, and they still rise."""
    saved = [0, 400, 900, 910, 920, 1000, 1000, 1000]

    def change(_cell: Cell, records: Records) -> None:
        for record in records.values():
            record["requested"]["others"] = "allow"
        records["off"]["observed"]["host"]["ksm"]["pages_sharing"] = 50_000
        samples = synthetic_samples([50_000 + pages for pages in saved], list(range(len(saved))))
        records["merge"]["observed"]["samples"] = samples

    found = burndown(load_run(store(results, synthetic_plan(), change)).cells[0])
    assert found.saved_bytes == tuple(pages * PAGE for pages in saved)
    assert found.seconds_to[90] == 2
    assert found.settled_seconds == 7


def test_nothing_saved_has_no_times() -> None:
    assert seconds_to([0.0, 1.0], [0, 0], 50) is None
    assert near_final([0, 0]) == 0


def test_near_final_counts_a_late_excursion() -> None:
    assert near_final([0, 1000, 1000, 900, 1000]) == 4
    assert near_final([0, 1000, 1000, 995, 1000]) == 1
