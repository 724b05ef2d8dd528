"""How near KSM came, over the boots of a treatment: what is averaged, and what is said of it."""

import json
from pathlib import Path
from typing import Any

import pytest
from synthetic import MIB, PAGE, store, synthetic_plan
from synthetic_census import census_record

from analysis.measure.efficiency import CensusMeans, cell_census, census_means, censuses
from analysis.measure.statistics import summarise
from analysis.measure.table import tidy
from analysis.plan.design import Cell
from analysis.records.loading import CellRecords, Run, load_run

# Two guests of 8 pages: 2 zero pages, a content in 4 copies, a content that both have, the rest alone.
PAGES = {"guest01": [0, 1, 1, 1, 2, 3, 4, 5], "guest02": [0, 1, 2, 6, 7, 8, 9, 10]}
# Ideal: 1 of zero, 3 of content 1, 1 of content 2.
IDEAL = 5
UNIT = PAGE / MIB / 2


def merged(saved: int) -> dict[str, int]:
    return {"mapped_pages": saved + 1, "frames": 1, "zero_pages": 0}


def run_with(results: Path, *censuses_of_boots: dict[str, Any] | None) -> Run:
    """Two guests, a boot for each census; None: it has none."""
    plan = synthetic_plan(guests=2, boots=len(censuses_of_boots))
    directory = store(results, plan)
    for path in sorted(directory.rglob("on.json")):
        cell = Cell(**json.loads(path.read_text())["cell"])
        knobs = censuses_of_boots[cell.boot - 1]
        if knobs is not None:
            path.with_name("census.json").write_text(json.dumps(census_record(PAGES, cell=cell, **knobs)))
    return load_run(directory)


def means_of(run: Run) -> CensusMeans:
    found, problems = census_means(run.cells)
    assert found is not None
    assert problems == []
    return found


def test_the_means_are_over_boots_with_ksms_own_memory_beside(results: Path) -> None:
    found = means_of(run_with(results, {"merged": merged(4)}, {"merged": merged(5)}))
    assert (found.counted, found.cells) == (2, 2)
    assert found.efficiency_percent == pytest.approx((80 + 100) / 2)
    assert found.saved == pytest.approx(4.5 * UNIT)
    assert found.ideal == pytest.approx(IDEAL * UNIT)
    assert found.zero + found.within + found.between + found.limited == pytest.approx(found.ideal)
    assert (found.gross, found.ksm_own) == (100.0, 8.0)
    assert "90.0 %, for which it took 8.0 itself" in found.words()


def test_one_old_census_leaves_the_efficiency_unknown_with_the_reason(results: Path) -> None:
    found = means_of(run_with(results, {"merged": merged(4)}, {}))
    assert (found.saved, found.efficiency_percent) == (None, None)
    assert found.ideal == pytest.approx(IDEAL * UNIT)
    assert found.words().endswith(
        "How near KSM came is not known: the census is of a version that did not count merged pages."
    )


def test_cells_without_a_census_are_counted_as_such(results: Path) -> None:
    found = means_of(run_with(results, {"merged": merged(5)}, None, None))
    assert (found.counted, found.cells) == (1, 3)
    assert "(1 of 3 cells)" in found.words()
    assert census_means(run_with(results / "none", None).cells) == (None, [])


def test_a_content_that_nobody_filled_is_named(results: Path) -> None:
    left = [{"copies": 9000, "guests": 2, "kind": "other"}, {"copies": 10**6, "guests": 2, "kind": "zero"}]
    strange = {"merged": merged(5), "largest_contents": left}
    words = means_of(run_with(results, strange, {"merged": merged(5)})).words()
    said = "a content that is neither zero nor filled by the workload stands in 9000 copies in 2 guests"
    assert f"! In 1 of them {said}" in words
    assert "!" not in means_of(run_with(results / "clean", {"merged": merged(5)})).words()


def test_a_damaged_census_is_named_and_the_others_are_averaged(results: Path) -> None:
    run = run_with(results, {"merged": merged(5)}, {"merged": merged(5)})
    path = next(iter(run.cells)).directory / "census.json"
    path.write_text("{")
    again = load_run(run.directory)
    found, problems = census_means(again.cells)
    assert found is not None
    assert (found.counted, len(problems)) == (1, 1)
    assert "census.json" in problems[0]


def test_the_census_of_another_cell_is_not_taken(results: Path) -> None:
    run = run_with(results, {"merged": merged(5)}, None)
    first, second = (one.directory / "census.json" for one in run.cells)
    there, missing = (first, second) if first.exists() else (second, first)
    missing.write_text(there.read_text())
    found, problems = census_means(load_run(run.directory).cells)
    assert found is not None
    assert (found.counted, len(problems)) == (1, 1)


def test_only_what_is_averaged_has_its_census_counted(results: Path) -> None:
    run = run_with(results, {"merged": merged(5)}, {"merged": merged(1)})
    unsettled: list[CellRecords] = [cell for cell in run.cells if cell.cell.boot == 2]
    path = unsettled[0].directory / "merge.json"
    record = json.loads(path.read_text())
    record["observed"].update(converged=False, converged_after_seconds=None)
    path.write_text(json.dumps(record))
    again = load_run(run.directory)
    (found,), problems = censuses(summarise(tidy([again])), [again])
    assert found is not None
    assert (found.efficiency_percent, problems) == (100.0, [])
    assert all(cell_census(cell) is not None for cell in again.cells)
