"""The largest set of cells that belong together, and what is left out of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from synthetic import BOOTED, began, store, synthetic_failure, synthetic_plan

from analysis.measure.pooling import LeftOut, largest_set, pooling_conflicts
from analysis.measure.statistics import summarise
from analysis.measure.table import tidy
from analysis.plan.design import Cell
from analysis.records.loading import load_run

Records = dict[str, dict[str, Any]]
Change = Callable[[Cell, Records], None]


def table_of(results: Path, runs: dict[str, tuple[dict[str, Any], Change | None]]) -> pd.DataFrame:
    return tidy(
        [
            load_run(store(results, synthetic_plan(run_id=name, **design), change))
            for name, (design, change) in runs.items()
        ]
    )


def provenance(**changes: Any) -> Change:
    def change(_cell: Cell, records: Records) -> None:
        for record in records.values():
            record["provenance"].update(changes)

    return change


def thp_asked(_cell: Cell, records: Records) -> None:
    for record in records.values():
        record["provenance"]["thp"] = {**record["provenance"]["thp"], "enabled": "always"}
        record["requested"]["thp_enabled"] = "always"


def test_the_most_cells_of_one_kernel_are_kept_and_the_others_named(results: Path) -> None:
    table = table_of(
        results,
        {
            "a": ({"boots": 2}, None),
            "b": ({"boots": 4}, provenance(kernel_release="6.19.0")),
            "c": ({"focus": "2"}, None),
        },
    )
    found = largest_set(table)
    assert set(found.table["run_id"]) == {"b"}
    conflict = ("kernel_release: 6.18.0-synthetic / 6.19.0",)
    assert found.left_out == (LeftOut("a", "host1", 2, conflict), LeftOut("c", "host1", 1, conflict))
    assert all(not summary.not_pooled for summary in summarise(found.table))


def test_of_two_sets_as_large_the_later_is_kept(results: Path) -> None:
    table = table_of(results, {"old": ({}, None), "new": ({}, provenance(qemu_version="8.0"))})
    assert set(largest_set(table).table["run_id"]) == {"new"}


def test_a_cell_that_may_not_be_averaged_has_no_vote(results: Path) -> None:
    def unsettled(cell: Cell, records: Records) -> None:
        provenance(kernel_release="6.19.0")(cell, records)
        records["merge"]["observed"].update(converged=False, converged_after_seconds=None)

    table = table_of(results, {"a": ({}, None), "b": ({"boots": 3}, unsettled)})
    found = largest_set(table)
    assert set(found.table["run_id"]) == {"a"}
    assert [one.cells for one in found.left_out] == [3]


def test_what_is_told_apart_belongs_together(results: Path) -> None:
    table = table_of(
        results,
        {
            "a": ({"focus": "1,2", "policies": "ksm,advisor,smart_scan"}, None),
            "b": ({"guests": 4}, lambda _cell, records: began(records, **BOOTED)),
        },
    )
    found = largest_set(table)
    assert (len(found.table), found.left_out) == (7, ())


def test_of_a_policy_the_most_cells_with_the_same_knobs_are_kept(results: Path) -> None:
    table = table_of(
        results,
        {
            "a": ({"boots": 2, "policies": "ksm,advisor"}, None),
            "b": ({"ksm_knobs": {"pages_to_scan": 100, "sleep_millisecs": 10, "smart_scan": 0}}, None),
        },
    )
    found = largest_set(table)
    assert set(found.table["run_id"]) == {"a"}
    assert found.left_out == (LeftOut("b", "host1", 1, ("ksm_knobs.pages_to_scan: 100 / 20000",)),)


def test_huge_pages_that_were_asked_for_are_of_the_policy(results: Path) -> None:
    table = table_of(results, {"a": ({"boots": 2}, None), "b": ({"policies": "advisor"}, thp_asked)})
    assert largest_set(table).left_out == ()
    same = table_of(results / "same", {"a": ({"boots": 2}, None), "b": ({}, thp_asked)})
    (gone,) = largest_set(same).left_out
    assert (gone.run_id, gone.differing) == (
        "b",
        ("requested.thp_enabled: always / keep", "thp.enabled: always / madvise"),
    )


def test_each_hypervisor_has_a_set_of_its_own(results: Path) -> None:
    def change(cell: Cell, records: Records) -> None:
        if cell.hypervisor == "host2":
            provenance(memory_total_bytes=1 << 40)(cell, records)

    table = table_of(results, {"a": ({"hosts": ("host1", "host2")}, change)})
    assert largest_set(table).left_out == ()


def test_cells_that_were_not_measured_stay_unless_their_run_was_left_out(results: Path) -> None:
    def failed(cell: Cell, records: Records) -> None:
        if cell.boot == 2:
            records["failed"] = synthetic_failure(records)

    def other(cell: Cell, records: Records) -> None:
        provenance(kernel_release="6.19.0")(cell, records)
        failed(cell, records)

    runs: dict[str, tuple[dict[str, Any], Change | None]] = {
        "a": ({"boots": 3}, failed),
        "b": ({"boots": 2}, other),
        "c": ({}, lambda _cell, records: records.clear()),
    }
    kept = largest_set(table_of(results, runs)).table
    assert list(zip(kept["run_id"], kept["status"], strict=True)) == [
        ("a", "complete"),
        ("a", "failed"),
        ("a", "complete"),
        ("c", "missing"),
    ]


def test_a_forecast_may_differ_in_workload_and_guests_alone(results: Path) -> None:
    apart = ("workload", "guests")
    table = table_of(
        results,
        {
            "a": ({"guests": "2,4", "focus": "1,3"}, None),
            "b": ({"guests": 6}, lambda _cell, records: began(records, **BOOTED)),
            "c": ({"policies": "advisor", "guests": 8}, None),
        },
    )
    found = largest_set(table, apart)
    assert set(found.table["run_id"]) == {"a"}
    assert [one.run_id for one in found.left_out] == ["b", "c"]
    assert found.left_out[0].differing == ("start.from: boot / checkpoint",)
    assert "ksm_knobs.advisor_mode: scan-time / none" in found.left_out[1].differing
    assert pooling_conflicts(found.table) == ()


def test_where_nothing_was_measured_everything_stays(results: Path) -> None:
    table = table_of(results, {"a": ({"boots": 2}, lambda _cell, records: records.clear())})
    assert len(largest_set(table).table) == 2
