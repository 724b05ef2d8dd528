"""The explanation of a run: one screen, each figure from the records, outliers by name."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from synthetic import MIB, PAGE, store, synthetic_failure, synthetic_plan
from synthetic_census import census_record

from analysis.commands.explain import explain_run, explanation_text
from analysis.measure.efficiency import CensusMeans
from analysis.measure.outliers import contributions, outliers, robust_z
from analysis.plan.design import Cell, cell_directory
from analysis.records.loading import load_run

Records = dict[str, dict[str, Any]]


def test_robust_z_against_a_hand_worked_case() -> None:
    # Median 3, deviations 2 1 0 1 97, MAD 1.
    seen = robust_z(pd.Series([1.0, 2.0, 3.0, 4.0, 100.0]))
    assert list(seen) == pytest.approx([-1.349, -0.6745, 0, 0.6745, 0.6745 * 97])


def test_robust_z_where_most_values_are_equal() -> None:
    # MAD 0; mean absolute deviation 10 / 5 = 2.
    assert robust_z(pd.Series([5.0, 5.0, 5.0, 5.0, 15.0])).iloc[4] == pytest.approx(10 / (1.253314 * 2))
    assert list(robust_z(pd.Series([5.0, 5.0]))) == [0, 0]


def drop(results: Path, mib: dict[int, float]) -> pd.DataFrame:
    def change(_cell: Cell, records: Records) -> None:
        for number, more in mib.items():
            smaps = records["on"]["observed"]["guests"][f"guest{number:02d}"]["smaps_rollup"]
            smaps["Pss_bytes"] -= int(more * MIB)

    return contributions(load_run(store(results, synthetic_plan(), change)).cells[0])


def test_contributions_by_guest(results: Path) -> None:
    frame = drop(results, {2: 5})
    assert len(frame) == 15
    assert frame.loc["guest02", "pss_drop_bytes"] == 105 * MIB
    assert frame.loc["guest01", "pss_drop_bytes"] == 100 * MIB
    assert frame.loc["guest01", "merging_pages"] == 25600
    assert frame.loc["guest01", "rmap_items"] == 131072


def test_an_outlier_is_named(results: Path) -> None:
    assert list(outliers(drop(results, {n: n % 3 / 10 for n in range(1, 15)} | {7: -30})).index) == [
        "guest07"
    ]


def test_guests_alike_have_no_outlier(results: Path) -> None:
    assert outliers(drop(results, {n: n % 3 / 10 for n in range(1, 15)})).empty


def test_a_tiny_deviation_from_equal_guests_is_no_outlier(results: Path) -> None:
    assert outliers(drop(results, {7: 0.5})).empty


def test_costs_that_the_kernel_does_not_tell_stay_unknown(results: Path) -> None:
    def change(_cell: Cell, records: Records) -> None:
        for guest in records["on"]["observed"]["guests"].values():
            guest["ksm_stat"] = None

    frame = contributions(load_run(store(results, synthetic_plan(), change)).cells[0])
    assert frame["merging_pages"].isna().all()


def text(results: Path, change: Any = None, **design: Any) -> str:
    run = load_run(store(results, synthetic_plan(**design), change))
    return explanation_text(run, explain_run(run))


def test_one_screen_with_the_measures_the_ledger_and_the_burndown(results: Path) -> None:
    found = text(results, focus="all", boots=2)
    assert len(found.splitlines()) <= 60
    assert max(map(len, found.splitlines())) <= 110
    rows = {line[:50].strip(): line[50:].split() for line in found.splitlines()}
    assert rows["(b) gross counters"] == ["100.0"] * 3
    assert rows["KSM's rmap_items"] == ["-8.0"] * 3
    assert rows["(a) MemAvailable"] == ["92.0"] * 3
    assert rows["the paper"] == ["50.6", "440.3", "31.6"]
    assert rows["(a) less the paper"] == ["+41.4", "-348.3", "+60.4"]
    assert rows["50 % of the final saving, after seconds"] == ["3.0"] * 3
    assert "guest memory swapped out" not in rows
    flowing = " ".join(found.split())
    assert "The unexplained rest is +0.0 % of the change, within 5 %." in flowing
    assert "max_page_sharing 256 at most 374.5" in flowing
    assert "none stands out" in flowing


def test_the_items_are_means_over_boots_as_the_measures_are(results: Path) -> None:
    def change(cell: Cell, records: Records) -> None:
        if (cell.boot, cell.repetition) == (2, 2):
            records.clear()

    run = store(
        results,
        synthetic_plan(boots=2, repetitions=2),
        change,
        lambda cell: {1: 100, 2: 110}[cell.boot] + 2 * cell.repetition,
    )
    loaded = load_run(run)
    found = explanation_text(loaded, explain_run(loaded))
    rows = {line[:50].strip(): line[50:].split() for line in found.splitlines()}
    # 103 and 112, and not the 106 of three cells; the items lead from it to (a).
    assert rows["(b) gross counters"] == ["107.5"]
    assert rows["(a) MemAvailable"] == ["99.5"]
    flowing = " ".join(found.split())
    assert (
        "(±57.2, 95 % over 2 boots, CoV 6.4 %; standard deviation within a boot 1.4, boots x "
        "repetitions 2x1-2)" in flowing
    )
    assert "KSM's counters account for 107.5" in flowing


def test_each_policy_is_a_block_of_its_own_that_names_it(results: Path) -> None:
    found = text(results, policies="ksm,advisor", focus="1,2")
    places = [line for line in found.splitlines() if line.startswith("host1: ")]
    assert places == [
        f"host1: 15 guests of 512 MB, restored from a checkpoint; {policy}" for policy in ("ksm", "advisor")
    ]
    assert "1 idle, advisor: the host used 6620 MiB" in " ".join(found.split())
    assert max(map(len, found.splitlines())) <= 110


def test_more_workloads_than_fit_side_by_side_go_below(results: Path) -> None:
    plans = [
        synthetic_plan(run_id="foci", focus="all"),
        synthetic_plan(run_id="mix", mix="idle=5,random_fill=10"),
    ]
    foci, mix = (load_run(store(results, plan)) for plan in plans)
    run = replace(foci, cells=(*foci.cells, *mix.cells))
    found = explanation_text(foci, explain_run(run))
    assert max(map(len, found.splitlines())) <= 110
    assert sum(line.startswith("host1: ") for line in found.splitlines()) == 2


def test_a_mix_is_explained_without_the_paper_and_its_guests_by_workload(results: Path) -> None:
    mib = {"constant_fill": 400, "idle": 100, "random_fill": 40}

    def change(_cell: Cell, records: Records) -> None:
        for number in range(1, 16):
            smaps = records["on"]["observed"]["guests"][f"guest{number:02d}"]["smaps_rollup"]
            workload = list(mib)[(number - 1) // 5]
            smaps["Pss_bytes"] = (482 - mib[workload] - (number == 8) * 30) * MIB

    found = text(results, change, mix="constant_fill=5,idle=5,random_fill=5")
    assert max(map(len, found.splitlines())) <= 110
    assert "the paper" not in found
    flowing = " ".join(found.split())
    assert "Mix: constant_fill=5,idle=5,random_fill=5, ksm: the host used 6620 MiB" in flowing
    assert (
        "Each guest gave by PSS 400.0 to 400.0 MB (constant_fill), 100.0 to 130.0 MB (idle), 40.0 to 40.0 MB "
        "(random_fill); guest08 in boot 1 repetition 1 (130.0, z +" in flowing
    )
    assert "stands out" in flowing


def counted(results: Path, focus: str = "1,2", boots: int = 2) -> str:
    """The explanation of cells with a census of 15 guests; what it should say is worked out in the tests."""
    plan = synthetic_plan(focus=focus, boots=boots)
    run = store(results, plan)
    for cell in plan.cells:
        if (cell.workload, cell.boot) == ("constant_fill", 2):
            continue
        # Of 25600 pages: 2560 of zeros, 5120 of one content, 12800 that every guest has, 5120 of its own.
        guests = {
            f"guest{n:02d}": [0] * 2560
            + [10] * 5120
            + list(range(1000, 13800))
            + list(range(100_000 * n, 100_000 * n + 5120))
            for n in range(1, 16)
        }
        # 100 MiB a guest by the on record (synthetic_records); at the census of focus 2, 300 pages less.
        saved = int(100 * MIB / PAGE) * 15 - (300 * 15 if cell.workload == "constant_fill" else 0)
        record = census_record(guests, cell=cell, pages_sharing=saved)
        (cell_directory(run, cell) / "census.json").write_text(json.dumps(record))
    loaded = load_run(run)
    return explanation_text(loaded, explain_run(loaded))


def test_a_census_is_shown_with_the_efficiency_of_its_moment(results: Path) -> None:
    found = counted(results)
    assert max(map(len, found.splitlines())) <= 110
    rows = {line[:50].strip(): line[50:].split() for line in found.splitlines()}
    # MB/VM of 15 guests, 4 KiB pages: one zero page stays; of 15 x 5120 equal pages one for each 256 stays.
    zero = (15 * 2560 - 1) / 15 / 256
    limited = (-(-15 * 2560 // 256) - 1 + -(-15 * 5120 // 256) - 1) / 15 / 256
    within, between = 5119 / 256, (14 * 12801) / 15 / 256
    ideal = zero + within + between - limited
    for name, value in {
        "zero pages that can go": zero,
        "duplicates within a guest (I)": within,
        "duplicates between guests (D)": between,
        "kept by max_page_sharing": -limited,
        "ideal saving": ideal,
    }.items():
        assert [float(cell) for cell in rows[name]] == pytest.approx([value] * 2, abs=0.051), name
    # At the census of focus 2 300 pages less were saved, 1.17 MiB.
    efficiency = [float(cell) for cell in rows["KSM's efficiency: gross then / ideal, %"]]
    assert efficiency == pytest.approx([100 * saved / ideal for saved in (100, 100 - 300 / 256)], abs=0.051)
    flowing = " ".join(found.split())
    assert f"By the page census a perfect KSM would save {ideal:.1f} of 100.0 MB/VM: {zero:.1f} in" in flowing
    assert f"less {limited:.1f} that max_page_sharing 256 keeps." in flowing
    assert "By the page census (1 of 2 cells) a perfect KSM" in flowing
    assert "KSM's counters had 98.8 at that moment" in flowing
    # More than a perfect KSM could: it is said how that can be.
    assert flowing.count("stays counted until ksmd comes by again") == 2


def test_with_a_census_of_every_focus_it_is_still_one_screen(results: Path) -> None:
    assert len(counted(results, focus="all").splitlines()) <= 60


def test_a_run_without_a_census_says_nothing_of_one(results: Path) -> None:
    assert "census" not in text(results)


def test_a_census_of_another_cell_or_a_damaged_one_is_named_and_not_used(results: Path) -> None:
    plan = synthetic_plan(focus="1,2")
    run = store(results, plan)
    second, first = sorted(plan.cells, key=lambda cell: cell.workload)
    other = json.dumps(census_record({"guest01": [1, 1]}, cell=first))
    (cell_directory(run, first) / "census.json").write_text("{")
    (cell_directory(run, second) / "census.json").write_text(other)
    loaded = load_run(run)
    found = " ".join(explanation_text(loaded, explain_run(loaded)).split())
    assert "census.json cannot be read" in found
    assert f"! {cell_directory(run, second)}/census.json is the census of another cell or run." in found
    assert "perfect KSM" not in found
    # The cells themselves are explained all the same.
    assert "2 constant fill, ksm: the host used" in found


def test_what_ksm_saved_may_be_unknown() -> None:
    means = CensusMeans(1, 1, 256, 100.0, 1.0, 2.0, 3.0, 0.0, 6.0, None, None, None)
    assert means.words().endswith("How near KSM came is not known.")
    assert "less 0.0 that" in means.words()


def test_a_large_rest_is_said_with_its_size(results: Path) -> None:
    def change(_cell: Cell, records: Records) -> None:
        memory = records["on"]["observed"]["host"]["meminfo"]
        memory["MemFree_bytes"] += 200 * MIB
        memory["MemAvailable_bytes"] += 200 * MIB

    found = " ".join(text(results, change).split())
    assert (
        "! The unexplained rest is above 5 % of the host's change in 1 of 1 cells, at most +200 MiB" in found
    )


def test_what_was_left_out_is_said(results: Path) -> None:
    def change(cell: Cell, records: Records) -> None:
        if cell.workload == "constant_fill":
            records["failed"] = synthetic_failure(records)

    found = " ".join(text(results, change, focus="1,2").split())
    assert (
        "! 2 constant fill, ksm, boot 1 repetition 1: failed, left out of the mean: failed in merge" in found
    )
    assert "1 idle, ksm: the host used" in found


def test_a_run_without_a_usable_cell_explains_nothing(results: Path) -> None:
    run = load_run(store(results, synthetic_plan(), lambda _cell, records: records.clear()))
    assert explain_run(run) == []
