"""The tidy table against sums worked out by hand."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from synthetic import MIB, began, store, synthetic_failure, synthetic_plan

from analysis.measure.saving import OF_HOST, PER_VM, saving
from analysis.measure.table import tidy
from analysis.plan.design import Cell
from analysis.records.loading import load_run
from analysis.report.summary import measured_on

Records = dict[str, dict[str, Any]]


def row(results: Path, change: Any = None, **design: Any) -> pd.Series:
    return tidy([load_run(store(results, synthetic_plan(**design), change))]).iloc[0]


def test_the_row_of_a_cell_has_its_saving_by_the_names_of_the_registry(results: Path) -> None:
    seen = row(results, guests=2)
    run = load_run(results / "synthetic")
    assert {name: seen[name] for name in (*PER_VM, *OF_HOST)} == saving(run.cells[0]).quantities()
    # 200 MiB of gross less 16 of rmap_items, of 24000 MiB of which 16000 were available.
    assert (seen["freed_mib_per_vm"], seen["gross_mib_per_vm"], seen["used_on_mib"]) == (92, 100, 8000 - 184)
    assert seen["unknown"] == ""
    assert pd.isna(seen["parted_mib"])


def test_a_row_tells_by_how_much_the_hosts_memory_freed_parts_from_the_guests(results: Path) -> None:
    def neighbour(_cell: Cell, records: Records) -> None:
        records["on"]["observed"]["host"]["meminfo"]["MemAvailable_bytes"] -= 300 * MIB

    assert row(results, neighbour)["parted_mib"] == -300


def test_a_cell_in_which_the_host_swapped_is_named_and_not_averaged(results: Path) -> None:
    def change(_cell: Cell, records: Records) -> None:
        records["merge"]["observed"]["samples"]["pswpout"][-1] = 7

    seen = row(results, change)
    assert seen["status"] != "complete"
    assert "swapped 0 pages in and 7 out" in seen["problem"]
    assert pd.isna(seen["freed_mib_per_vm"])


def test_the_hosts_swap_is_a_condition_and_what_is_used_of_it_is_stated(results: Path) -> None:
    def change(cell: Cell, records: Records) -> None:
        for record in records.values():
            record["provenance"]["swap_total_bytes"] = 900 * MIB
        memory = records["off"]["observed"]["host"]["meminfo"]
        memory.update(SwapTotal_bytes=900 * MIB, SwapFree_bytes=(900 - 100 * cell.boot) * MIB)

    run = load_run(store(results, synthetic_plan(boots=2), change))
    table = tidy([run])
    assert list(table["status"]) == ["complete"] * 2
    assert list(table["swap_used_bytes"]) == [100 * MIB, 200 * MIB]
    assert set(table["provenance.swap_total_bytes"]) == {900 * MIB}
    told = [line for line in measured_on([run]) if "swap" in line]
    assert told == [
        "swap of 900 MiB, of which 100 to 200 MiB were in use when the cells began; "
        "none was swapped in or out while they were measured"
    ]
    without = load_run(store(results / "none", synthetic_plan()))
    assert not any("swap" in line for line in measured_on([without]))


def test_merging_verification_and_provenance_have_columns(results: Path) -> None:
    seen = row(results, focus="3")
    assert (seen["status"], seen["problem"]) == ("complete", "")
    assert seen["converged_after_seconds"] == 12.0
    assert seen["ksmd_cpu_seconds"] == 6.0
    assert bool(seen["digests_intact"])
    assert seen["provenance.kernel_release"] == "6.18.0-synthetic"
    assert seen["provenance.ksm_knobs.max_page_sharing"] == 256
    assert seen["provenance.thp.enabled"] == "madvise"
    assert "provenance.ksm_knobs.run" not in seen
    assert "provenance.design_digest" not in seen
    assert not any(str(name).startswith("provenance.requested.ksm_knobs") for name in seen.index)


def test_the_advisors_own_setting_is_no_provenance(results: Path) -> None:
    def change(_cell: Cell, records: Records) -> None:
        records["on"]["provenance"]["ksm_knobs"]["advisor_mode"] = "scan-time"

    assert "provenance.ksm_knobs.pages_to_scan" not in row(results, change)


def test_a_missing_counter_stays_unknown(results: Path) -> None:
    def change(_cell: Cell, records: Records) -> None:
        for kind in ("off", "on"):
            records[kind]["observed"]["host"]["ksm"].update(general_profit=None, ksm_zero_pages=None)

    seen = row(results, change)
    assert seen["unknown"] == "general_profit_mib_per_vm: its kernel has no general_profit"
    assert pd.isna(seen["general_profit_mib_per_vm"])
    assert seen["gross_mib_per_vm"] == 100.0


def test_cells_that_were_not_measured_keep_their_row_without_numbers(results: Path) -> None:
    def change(cell: Cell, records: Records) -> None:
        if cell.workload == "idle":
            records["failed"] = synthetic_failure(records)

    table = tidy([load_run(store(results, synthetic_plan(focus="1,2"), change))]).set_index("workload")
    assert dict(table["status"]) == {"idle": "failed", "constant_fill": "complete"}
    assert pd.isna(table.loc["idle", "gross_mib_per_vm"])
    assert table.loc["constant_fill", "gross_mib_per_vm"] == 100.0


def test_a_cell_says_what_was_done_to_it_and_from_what_it_began(results: Path) -> None:
    plan = synthetic_plan(policies="advisor", boots=2, repetitions=2)
    table = tidy([load_run(store(results, plan))]).set_index("cell_id")
    seen = table.loc["idle-advisor-guests15-boot2-rep1"]
    assert (seen["workload"], seen["policy"], seen["guests"]) == ("idle", "advisor", 15)
    assert (seen["boot"], seen["repetition"], seen["guest_memory_bytes"]) == (2, 1, 512 * MIB)
    assert (seen["start_from"], seen["loaded"]) == ("checkpoint", False)
    assert (seen["boot_seconds"], seen["restore_seconds"]) == (200.0, 9.0)
    assert seen["boot_key"] == seen["booted_at"] == "2026-11-23T02:00:00.000000Z"
    assert seen["checkpoint"] == f"sha256:{2:064x}"
    assert table["boot_key"].nunique() == 2
    assert seen["requested.ksm_knobs.advisor_mode"] == "scan-time"
    assert seen["provenance.start.from"] == "checkpoint"
    # Which checkpoint it was is no condition: it is the replicate.
    assert "provenance.start.checkpoint" not in seen


def test_of_a_cell_that_was_not_measured_the_start_is_that_of_its_like(results: Path) -> None:
    def change(cell: Cell, records: Records) -> None:
        began(records, loaded=cell.workload == "random_fill")
        if cell.boot == 2:
            records.clear()

    plan = synthetic_plan(focus="1,3", boots=2)
    table = tidy([load_run(store(results, plan, change))]).set_index(["workload", "boot"])
    assert table.loc[("random_fill", 2), ["start_from", "loaded"]].tolist() == ["checkpoint", True]
    assert table.loc[("idle", 2), ["start_from", "loaded"]].tolist() == ["checkpoint", False]
    assert pd.isna(table.loc[("idle", 2), "restore_seconds"])
    assert table.loc[("idle", 2), "boot_key"] is None or pd.isna(table.loc[("idle", 2), "boot_key"])


def test_a_table_of_nothing_measured_has_the_same_columns(results: Path) -> None:
    table = tidy([load_run(store(results, synthetic_plan(), lambda _cell, records: records.clear()))])
    assert list(table["status"]) == ["missing"]
    assert table["mem_available_mib_per_vm"].isna().all()


def test_unsettled_and_damaged_cells_are_not_complete(results: Path) -> None:
    def change(cell: Cell, records: Records) -> None:
        merge, verify = records["merge"]["observed"], records["verify"]["observed"]
        if cell.boot == 1:
            merge.update(converged=False, converged_after_seconds=None, reason="it oscillated")
        if cell.boot == 2:
            verify["guests"]["guest02"].update(intact=False, digest_after="other")
        if cell.boot == 3:
            merge["samples"]["pages_sharing"][-8:] = [1000 * (1 + n % 2) for n in range(8)]

    table = tidy([load_run(store(results, synthetic_plan(focus="2", boots=4), change))])
    assert list(table["status"]) == ["unconverged", "damaged", "unconverged", "complete"]
    assert table.loc[0, "problem"] == "not converged: it oscillated"
    assert table.loc[1, "problem"] == "the content of guest02 changed while it was merged"
    assert table.loc[2, "converged"]
    assert pd.isna(table.loc[0, "converged_after_seconds"])


def test_the_same_cell_twice_is_refused(results: Path) -> None:
    run = load_run(store(results, synthetic_plan()))
    with pytest.raises(pd.errors.MergeError):
        tidy([run, run])
