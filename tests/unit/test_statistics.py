"""Means and intervals against hand-worked values; what must not be pooled."""

from math import sqrt
from pathlib import Path
from typing import Any

import pytest
from synthetic import BOOTED, MIB, began, store, synthetic_plan

from analysis.measure.pooling import pooling_conflicts
from analysis.measure.statistics import (
    Difference,
    Estimate,
    PolicyDifference,
    Summary,
    boot_mean,
    estimate,
    policy_differences,
    summarise,
)
from analysis.measure.table import tidy
from analysis.plan.design import Cell
from analysis.records.loading import load_run

Records = dict[str, dict[str, Any]]


def test_two_boots_of_two_repetitions_by_hand() -> None:
    # Means 11 and 16 of the boots: mean 13.5, standard deviation 3.535534, t(0.975, 1) = 12.70620.
    found = estimate([[10.0, 12.0], [14.0, 18.0]])
    assert found is not None
    assert (found.n_boots, found.repetitions, found.mean) == (2, 4, 13.5)
    assert found.half_width == pytest.approx(12.706205 * 3.535534 / sqrt(2), rel=1e-6)
    assert found.between_boot_sd == pytest.approx(3.535534, rel=1e-6)
    # Squares 1 + 1 + 4 + 4 over 1 + 1 degrees of freedom.
    assert found.within_boot_sd == pytest.approx(sqrt(5))


def test_four_repetitions_are_not_four_replicates() -> None:
    found = estimate([[10.0, 12.0], [14.0, 18.0]])
    assert found is not None
    # Taken as four boots: standard deviation 3.415650, t(0.975, 3) = 3.182446, six times too narrow.
    assert found.half_width != pytest.approx(3.182446 * 3.415650 / 2, rel=0.5)


def test_mean_interval_and_spread_of_three_boots() -> None:
    # 10, 12, 14: mean 12, standard deviation 2, t(0.975, 2) = 4.30265.
    found = estimate([[10.0], [12.0], [14.0]])
    assert found is not None
    assert (found.n_boots, found.repetitions, found.mean) == (3, 3, 12.0)
    assert found.half_width == pytest.approx(4.302653 * 2 / sqrt(3), rel=1e-6)
    assert found.between_boot_sd == pytest.approx(2)
    assert found.within_boot_sd is None
    # The normal quantile would be far too narrow for three boots.
    assert found.half_width != pytest.approx(1.959964 * 2 / sqrt(3), rel=0.5)


def test_each_boot_counts_the_same_however_often_it_was_repeated() -> None:
    # Means 10 and 20: 15, not the 12.5 of four values; within: squares 2 over 2 degrees of freedom.
    found = estimate([[9.0, 10.0, 11.0], [20.0]])
    assert found is not None
    assert (found.n_boots, found.repetitions, found.mean) == (2, 4, 15.0)
    assert found.within_boot_sd == pytest.approx(1.0)


def test_one_boot_has_no_interval_but_a_spread_within() -> None:
    found = estimate([[7.0, 9.0]])
    assert found is not None
    assert (found.mean, found.half_width, found.between_boot_sd) == (8.0, None, None)
    assert found.within_boot_sd == pytest.approx(sqrt(2))
    assert estimate([[7.0]]) == Estimate(1, 1, 7.0, None, None, None)


def test_an_unknown_value_makes_the_mean_unknown() -> None:
    assert estimate([[1.0], [float("nan")]]) is None
    assert estimate([[1.0, float("nan")]]) is None
    assert estimate([]) is None


@pytest.mark.parametrize(("boots", "conclusive"), [(1, False), (2, False), (3, True), (12, True)])
def test_nothing_is_concluded_from_fewer_than_three_boots(boots: int, conclusive: bool) -> None:
    found = estimate([[float(boot), float(boot)] for boot in range(boots)])
    assert found is not None
    assert found.conclusive is conclusive
    # What it is is shown all the same.
    assert (found.half_width is None) == (boots == 1)


def test_a_mean_over_boots_by_hand() -> None:
    assert boot_mean([1.0, 3.0, 10.0], ["a", "a", "b"]) == 6.0
    assert boot_mean([1.0, None], ["a", "b"]) is None


def summary_of(results: Path, change: Any = None, saved: Any = lambda _cell: 100, **design: Any) -> Summary:
    (found,) = summarise(tidy([load_run(store(results, synthetic_plan(**design), change, saved))]))
    return found


def test_repetitions_of_a_boot_are_one_replicate_in_the_summary(results: Path) -> None:
    found = summary_of(
        results, None, lambda cell: 100 + 10 * cell.boot + 2 * cell.repetition, boots=2, repetitions=2
    )
    ours = found.estimates["gross_mib_per_vm"]
    # 112, 114 and 122, 124: means 113 and 123, standard deviation 7.071068.
    assert ours is not None
    assert (found.planned, found.measured, found.boots) == (4, 4, (2, 2))
    assert (ours.n_boots, ours.repetitions, ours.mean) == (2, 4, pytest.approx(118))
    assert ours.half_width == pytest.approx(12.706205 * 7.071068 / sqrt(2), rel=1e-6)
    assert ours.within_boot_sd == pytest.approx(sqrt(2))


def test_the_difference_from_the_paper_has_our_interval(results: Path) -> None:
    found = summary_of(results, None, lambda cell: 100 + 10 * cell.boot, boots=2)
    ours = found.estimates["mem_available_mib_per_vm"]
    assert ours is not None
    assert found.paper is not None
    # 110 and 120 less 8 of rmap_items; t(0.975, 1) = 12.7062, standard deviation 7.07107.
    assert ours.mean == pytest.approx(107)
    assert found.paper.difference == pytest.approx(107 - 50.6)
    assert found.paper.half_width == pytest.approx(12.7062 * 7.07107 / sqrt(2), rel=1e-4)


@pytest.mark.parametrize(("boots", "apart"), [(1, None), (2, None), (3, True)])
def test_the_paper_is_apart_only_by_an_interval_of_three_boots(
    results: Path, boots: int, apart: bool | None
) -> None:
    found = summary_of(results, None, lambda cell: 100 + cell.boot / 100, boots=boots)
    assert found.paper is not None
    assert found.paper.apart is apart


def test_within_our_interval_the_paper_is_not_apart(results: Path) -> None:
    found = summary_of(results, None, lambda cell: 8 + 50.6 + 10 * (cell.boot - 2), boots=3)
    assert found.paper is not None
    assert found.paper.difference == pytest.approx(0, abs=0.01)
    assert found.paper.apart is False


@pytest.mark.parametrize("design", [{"guests": 14}, {"guest_memory_mib": 640}])
def test_the_papers_figures_stand_beside_its_15_guests_of_512_mb_only(
    results: Path, design: dict[str, int]
) -> None:
    def large(_cell: Cell, records: Records) -> None:
        for kind in ("off", "on"):
            for guest in records[kind]["observed"]["guests"].values():
                guest["mergeable_bytes"] = 640 * MIB

    found = summary_of(results, large, **design)
    assert found.measured == 1
    assert found.paper is None


def test_a_summary_says_what_is_unknown_and_in_how_many_cells_the_host_parts(results: Path) -> None:
    def change(cell: Cell, records: Records) -> None:
        if cell.boot == 1:
            records["on"]["observed"]["host"]["meminfo"]["MemAvailable_bytes"] -= 100 * MIB
        else:
            records["off"]["observed"]["host"]["ksm"]["general_profit"] = None

    found = summary_of(results, change, boots=2)
    assert found.parted == 1
    assert found.unknown == ("general_profit_mib_per_vm: its kernel has no general_profit",)
    assert found.estimates["general_profit_mib_per_vm"] is None
    assert found.estimates["freed_mib_per_vm"] is not None


def test_the_same_checkpoint_in_two_runs_is_one_boot(results: Path) -> None:
    runs = [load_run(store(results, synthetic_plan(run_id=name))) for name in ("a", "b")]
    (found,) = summarise(tidy(runs))
    assert (found.measured, found.boots) == (2, (2,))
    assert found.estimates["gross_mib_per_vm"] == Estimate(1, 2, 100.0, None, None, 0.0)


def test_a_checkpoint_made_anew_is_another_boot(results: Path) -> None:
    def later(_cell: Cell, records: Records) -> None:
        began(records, booted_at="2026-11-24T18:00:00Z")

    runs = [load_run(store(results, synthetic_plan(run_id=n), c)) for n, c in (("a", None), ("b", later))]
    (found,) = summarise(tidy(runs))
    assert found.boots == (1, 1)


def test_boots_without_a_checkpoint_are_told_apart_by_run_and_number(results: Path) -> None:
    def booted(_cell: Cell, records: Records) -> None:
        began(records, **BOOTED)

    runs = [load_run(store(results, synthetic_plan(run_id=n, boots=2), booted)) for n in ("a", "b")]
    (found,) = summarise(tidy(runs))
    assert found.boots == (1, 1, 1, 1)


def test_unsettled_cells_are_shown_and_not_averaged(results: Path) -> None:
    def change(cell: Cell, records: Records) -> None:
        if cell.boot == 2:
            records["merge"]["observed"].update(converged=False, converged_after_seconds=None)

    found = summary_of(results, change, lambda cell: 1000 if cell.boot == 2 else 100, boots=3)
    ours = found.estimates["gross_mib_per_vm"]
    assert ours is not None
    assert (found.planned, found.measured, ours.n_boots) == (3, 2, 2)
    assert ours.mean == pytest.approx(100)
    assert [one.status for one in found.cells] == ["complete", "unconverged", "complete"]
    assert found.cells[1].freed_mib_per_vm == pytest.approx(992)


@pytest.mark.parametrize(
    ("place", "value", "conflict"),
    [
        (("kernel_release",), "6.19.0", "kernel_release: 6.18.0-synthetic / 6.19.0"),
        (("qemu_version",), None, "qemu_version: 7.2.0 / absent"),
        (("accelerator",), "kvm", "accelerator: kvm / tcg"),
        (("image_digest",), "sha256:" + "1" * 64, "image_digest: sha256:"),
        (("thp", "enabled"), "always", "thp.enabled: always / madvise"),
        # Knobs that nobody asked for: what was asked for and is not so makes a cell invalid.
        (("ksm_knobs", "merge_across_nodes"), 0, "ksm_knobs.merge_across_nodes: 0 / absent"),
        (("ksm_knobs", "advisor_max_cpu"), 5, "ksm_knobs.advisor_max_cpu: 5 / absent"),
        (("memory_total_bytes",), 1, "memory_total_bytes: 1 / "),
    ],
)
def test_different_provenance_is_not_pooled_saying_in_what(
    results: Path, place: tuple[str, ...], value: Any, conflict: str
) -> None:
    def change(cell: Cell, records: Records) -> None:
        if cell.boot == 2:
            for kind in ("off", "merge", "on"):
                inner = records[kind]["provenance"]
                for name in place[:-1]:
                    inner = inner[name]
                inner[place[-1]] = value

    summary = summary_of(results, change, boots=2)
    assert any(found.startswith(conflict) for found in summary.not_pooled)
    assert len(summary.not_pooled) == 1
    assert all(found is None for found in summary.estimates.values())
    assert summary.paper is None


def test_knobs_that_were_asked_for_differently_are_not_pooled(results: Path) -> None:
    runs = [
        load_run(store(results, synthetic_plan(run_id=name, ksm_knobs={"pages_to_scan": pages})))
        for name, pages in (("a", 20000), ("b", 100))
    ]
    (found,) = summarise(tidy(runs))
    # Once, though it was both asked for and read back.
    assert found.not_pooled == ("ksm_knobs.pages_to_scan: 100 / 20000",)


def test_equal_provenance_is_pooled_across_runs(results: Path) -> None:
    table = tidy([load_run(store(results, synthetic_plan(run_id=name))) for name in ("a", "b")])
    assert pooling_conflicts(table) == ()
    (found,) = summarise(table)
    assert (found.planned, found.measured) == (2, 2)


@pytest.mark.parametrize(
    ("start", "variant"),
    [
        (BOOTED, "ksm"),
        ({"loaded": True}, "ksm, loaded"),
    ],
)
def test_other_treatments_are_a_line_of_their_own(results: Path, start: dict[str, Any], variant: str) -> None:
    def otherwise(_cell: Cell, records: Records) -> None:
        began(records, **start)

    runs = [load_run(store(results, synthetic_plan(run_id="a")))]
    runs += [load_run(store(results, synthetic_plan(run_id="b"), otherwise, lambda _cell: 300))]
    found = {(one.variant, one.start_from): one for one in summarise(tidy(runs))}
    assert len(found) == 2
    restored = found["ksm", "checkpoint"].estimates["gross_mib_per_vm"]
    other = found[variant, start.get("from", "checkpoint")].estimates["gross_mib_per_vm"]
    assert restored is not None
    assert other is not None
    assert (restored.mean, other.mean) == (100, 300)


def test_a_cell_that_was_not_measured_stands_in_the_line_of_those_like_it(results: Path) -> None:
    def change(cell: Cell, records: Records) -> None:
        began(records, **BOOTED)
        if cell.boot == 2:
            records.clear()

    found = summary_of(results, change, boots=2)
    assert (found.start_from, found.planned, found.measured) == ("boot", 2, 1)


def test_policies_are_lines_of_their_own_the_default_first(results: Path) -> None:
    plan = synthetic_plan(policies="smart_scan,ksm,advisor", workloads="random_fill,idle")
    found = summarise(tidy([load_run(store(results, plan))]))
    assert [(one.workload, one.policy) for one in found] == [
        (workload, policy)
        for workload in ("idle", "random_fill")
        for policy in ("ksm", "advisor", "smart_scan")
    ]


SAVED = {("ksm", 1): 100.0, ("ksm", 2): 120.0, ("advisor", 1): 101.0, ("advisor", 2): 123.0}


def compared(results: Path, change: Any = None, **design: Any) -> list[PolicyDifference]:
    plan = synthetic_plan(**{"policies": "ksm,advisor", "boots": 2, **design})
    run = store(results, plan, change, lambda cell: SAVED[cell.policy, cell.boot] + cell.repetition)
    return policy_differences(tidy([load_run(run)]))


def test_a_difference_between_policies_is_paired_by_boot(results: Path) -> None:
    (found,) = compared(results, repetitions=2)
    assert (found.policy, found.baseline, found.n_boots) == ("advisor", "ksm", 2)
    gross = found.differences["gross_mib_per_vm"]
    assert gross is not None
    # 1 in the first boot, 3 in the second: mean 2, standard deviation 1.414214.
    assert gross.mean == pytest.approx(2)
    assert gross.half_width == pytest.approx(12.706205 * 1.414214 / sqrt(2), rel=1e-6)
    # The boots themselves lie 20 apart: unpaired, the interval would be ten times as wide.
    assert gross.half_width < 12.706205 * 20 / sqrt(2) / sqrt(2)


def test_boots_that_one_of_the_policies_lacks_are_no_pair(results: Path) -> None:
    def change(cell: Cell, records: Records) -> None:
        if (cell.policy, cell.boot) == ("ksm", 2):
            records.clear()

    (found,) = compared(results, change)
    assert found.n_boots == 1
    assert found.differences["gross_mib_per_vm"] == Difference(1.0, None)


def test_without_a_common_checkpoint_there_is_no_comparison(results: Path) -> None:
    def apart(cell: Cell, records: Records) -> None:
        began(records, checkpoint=f"sha256:{cell.policy}{cell.boot}")

    assert compared(results / "apart", apart) == []
    assert compared(results / "booted", lambda _cell, records: began(records, **BOOTED)) == []
    # Loaded before the checkpoint in one and after it in the other: another start.
    assert compared(results / "loaded", lambda c, r: began(r, loaded=c.policy == "ksm")) == []


def test_policies_under_other_conditions_are_not_compared_saying_in_what(results: Path) -> None:
    def change(cell: Cell, records: Records) -> None:
        if cell.policy == "advisor":
            for record in records.values():
                record["provenance"]["kernel_release"] = "6.19.0"

    (found,) = compared(results, change)
    assert found.not_compared == ("kernel_release: 6.18.0-synthetic / 6.19.0",)
    assert set(found.differences.values()) == {None}


def test_huge_pages_count_unless_a_policy_asks_for_them(results: Path) -> None:
    def always(cell: Cell, records: Records) -> None:
        if cell.policy == "advisor":
            for record in records.values():
                record["provenance"]["thp"] = {**record["provenance"]["thp"], "enabled": "always"}

    def asked(cell: Cell, records: Records) -> None:
        always(cell, records)
        if cell.policy == "advisor":
            for record in records.values():
                record["requested"]["thp_enabled"] = "always"

    (unasked,) = compared(results / "unasked", always)
    assert unasked.not_compared == ("thp.enabled: always / madvise",)
    (found,) = compared(results / "asked", asked)
    assert found.not_compared == ()
    assert found.differences["gross_mib_per_vm"] is not None


def test_an_unknown_measure_has_no_difference(results: Path) -> None:
    def change(cell: Cell, records: Records) -> None:
        if (cell.policy, cell.boot, cell.repetition) == ("ksm", 1, 1):
            records["on"]["observed"]["host"]["ksm"]["general_profit"] = None

    (found,) = compared(results, change, repetitions=2)
    assert found.differences["general_profit_mib_per_vm"] is None
    assert found.differences["gross_mib_per_vm"] is not None


def test_a_mix_has_its_own_line_after_the_foci_and_no_figure_of_the_paper(results: Path) -> None:
    runs = [
        load_run(store(results, synthetic_plan(run_id="one", mix="idle=5,random_fill=10"))),
        load_run(store(results, synthetic_plan(run_id="two", mix="idle=6,random_fill=9"))),
        load_run(store(results, synthetic_plan(run_id="foci", focus="3"))),
    ]
    summaries = summarise(tidy(runs))
    assert [(s.workload, s.measured) for s in summaries] == [
        ("random_fill", 1),
        ("idle=5,random_fill=10", 1),
        ("idle=6,random_fill=9", 1),
    ]
    assert [s.paper is None for s in summaries] == [False, True, True]
    assert summaries[1].estimates["gross_mib_per_vm"] is not None


def test_hosts_and_sizes_of_guests_are_summarised_apart(results: Path) -> None:
    runs = [
        load_run(store(results, synthetic_plan(run_id="a", hosts=("h1", "h2")))),
        load_run(store(results, synthetic_plan(run_id="b", hosts=("h1",), guests=4))),
    ]
    seen = [(s.hypervisor, s.guests, s.measured) for s in summarise(tidy(runs))]
    assert seen == [("h1", 4, 1), ("h1", 15, 1), ("h2", 15, 1)]
