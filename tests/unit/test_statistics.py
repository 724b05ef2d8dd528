"""Means and intervals against hand-worked values; what must not be pooled."""

from math import sqrt
from pathlib import Path
from typing import Any

import pytest
from synthetic import store, synthetic_plan

from analysis.design import Cell
from analysis.records import load_run
from analysis.statistics import estimate, pooling_conflicts, summarise
from analysis.table import tidy

Records = dict[str, dict[str, Any]]


def test_mean_interval_and_cov_of_three_repetitions() -> None:
    # 10, 12, 14: mean 12, standard deviation 2, t(0.975, 2) = 4.30265.
    found = estimate([10.0, 12.0, 14.0])
    assert found is not None
    assert (found.n, found.mean) == (3, 12.0)
    assert found.half_width == pytest.approx(4.302653 * 2 / sqrt(3), rel=1e-6)
    assert found.cov == pytest.approx(2 / 12)
    # The normal quantile would be far too narrow for three repetitions.
    assert found.half_width != pytest.approx(1.959964 * 2 / sqrt(3), rel=0.5)


def test_one_repetition_has_no_interval() -> None:
    found = estimate([7.0])
    assert found is not None
    assert (found.mean, found.half_width, found.cov) == (7.0, None, None)


def test_an_unknown_value_makes_the_mean_unknown() -> None:
    assert estimate([1.0, float("nan")]) is None
    assert estimate([]) is None


def test_no_cov_about_zero() -> None:
    found = estimate([-1.0, 1.0])
    assert found is not None
    assert found.cov is None


def test_the_difference_from_the_paper_has_our_interval(results: Path) -> None:
    plan = synthetic_plan(repetitions=2)
    run = load_run(store(results, plan, None, lambda cell: 100 + 10 * cell.repetition))
    summary = summarise(tidy([run]))[0]
    ours = summary.estimates["saved_mem_available_mib_per_vm"]
    assert ours is not None
    assert summary.paper is not None
    # 110 and 120 less 8 of rmap_items; t(0.975, 1) = 12.7062, standard deviation 7.07107.
    assert ours.mean == pytest.approx(107)
    assert summary.paper.difference == pytest.approx(107 - 50.6)
    assert summary.paper.half_width == pytest.approx(12.7062 * 7.07107 / sqrt(2), rel=1e-4)


def test_unsettled_repetitions_are_shown_and_not_averaged(results: Path) -> None:
    def change(cell: Cell, records: Records) -> None:
        if cell.repetition == 2:
            records["merge"]["observed"].update(converged=False, converged_after_seconds=None)

    plan = synthetic_plan(repetitions=3)
    run = load_run(store(results, plan, change, lambda cell: 1000 if cell.repetition == 2 else 100))
    summary = summarise(tidy([run]))[0]
    ours = summary.estimates["saved_gross_mib_per_vm"]
    assert ours is not None
    assert (summary.planned, summary.measured, ours.n) == (3, 2, 2)
    assert ours.mean == pytest.approx(100)
    assert [repetition.status for repetition in summary.repetitions] == [
        "complete",
        "unconverged",
        "complete",
    ]
    assert summary.repetitions[1].saved_mem_available_mib_per_vm == pytest.approx(992)


@pytest.mark.parametrize(
    ("place", "value", "conflict"),
    [
        (("kernel_release",), "6.19.0", "kernel_release: 6.18.0-synthetic / 6.19.0"),
        (("qemu_version",), None, "qemu_version: 7.2.0 / absent"),
        (("accelerator",), "kvm", "accelerator: kvm / tcg"),
        (("image_digest",), "sha256:" + "1" * 64, "image_digest: sha256:"),
        (("thp", "enabled"), "always", "thp.enabled: always / madvise"),
        (("ksm_knobs", "pages_to_scan"), 100, "ksm_knobs.pages_to_scan: 100 / 20000"),
        (("ksm_knobs", "smart_scan"), 1, "ksm_knobs.smart_scan: 0 / 1"),
        (("memory_total_bytes",), 1, "memory_total_bytes: 1 / "),
    ],
)
def test_different_provenance_is_not_pooled_saying_in_what(
    results: Path, place: tuple[str, ...], value: Any, conflict: str
) -> None:
    def change(cell: Cell, records: Records) -> None:
        if cell.repetition == 2:
            for kind in ("off", "on"):
                inner = records[kind]["provenance"]
                for name in place[:-1]:
                    inner = inner[name]
                inner[place[-1]] = value

    summary = summarise(tidy([load_run(store(results, synthetic_plan(repetitions=2), change))]))[0]
    assert any(found.startswith(conflict) for found in summary.not_pooled)
    assert len(summary.not_pooled) == 1
    assert all(found is None for found in summary.estimates.values())
    assert summary.paper is None


def test_equal_provenance_is_pooled_across_runs_and_orders(results: Path) -> None:
    runs = [
        load_run(store(results, synthetic_plan(run_id=name, orders=orders)))
        for name, orders in (("a", "off-on"), ("b", "on-off"))
    ]
    table = tidy(runs)
    assert pooling_conflicts(table) == ()
    summary = summarise(table)[0]
    assert (summary.planned, summary.measured) == (2, 2)


def test_a_mix_has_its_own_line_after_the_foci_and_no_figure_of_the_paper(results: Path) -> None:
    runs = [
        load_run(store(results, synthetic_plan(run_id="one", mix="idle=5,random_fill=10"))),
        load_run(store(results, synthetic_plan(run_id="two", mix="idle=6,random_fill=9"))),
        load_run(store(results, synthetic_plan(run_id="foci", focus="3"))),
    ]
    summaries = summarise(tidy(runs))
    assert [(s.focus, s.workload, s.measured) for s in summaries] == [
        (3, "random_fill", 1),
        (0, "idle=5,random_fill=10", 1),
        (0, "idle=6,random_fill=9", 1),
    ]
    assert [s.paper is None for s in summaries] == [False, True, True]
    assert summaries[1].estimates["saved_gross_mib_per_vm"] is not None


def test_hosts_and_sizes_of_guests_are_summarised_apart(results: Path) -> None:
    runs = [
        load_run(store(results, synthetic_plan(run_id="a", hosts=("h1", "h2")))),
        load_run(store(results, synthetic_plan(run_id="b", hosts=("h1",), guests=4))),
    ]
    seen = [(s.hypervisor, s.guests, s.measured) for s in summarise(tidy(runs))]
    assert seen == [("h1", 4, 1), ("h1", 15, 1), ("h2", 15, 1)]
