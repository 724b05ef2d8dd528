"""What a policy does when guests leave, come back and diverge, on series worked out by hand."""

import json
from math import isnan
from pathlib import Path
from typing import Any

import pytest
from synthetic import MIB, PAGE, store, synthetic_plan, synthetic_samples

from analysis.__main__ import main
from analysis.measure.churn import ARRIVED, ARRIVED_LOST, CHURNED, churned
from analysis.records.loading import CellRecords, load_run
from analysis.records.reading import RecordError

GUESTS = 2


def cell_with(results: Path, **series: list[int]) -> CellRecords:
    """A cell with these series of pages saved, a second from each to the next, in which ksmd takes 0.25 s."""
    directory = store(results, synthetic_plan(guests=GUESTS))
    cell = load_run(directory).cells[0]
    for kind, pages in series.items():
        record = json.loads((cell.directory / "merge.json").read_text())
        record["kind"] = kind
        samples = synthetic_samples(pages, list(range(len(pages))))
        samples["ksmd_cpu_seconds"] = [5 + 0.25 * second for second in range(len(pages))]
        record["observed"] |= {"samples": samples, "duration_seconds": float(len(pages) - 1)}
        (cell.directory / f"{kind}.json").write_text(json.dumps(record))
    return load_run(directory).cells[0]


def test_guests_that_came_back_are_told_by_how_soon_the_best_saving_is_there_and_what_was_lost(
    results: Path,
) -> None:
    # By hand, of 1000 pages: 90 % after 2 s; lost are three trapezia of a second
    cell = cell_with(results, leave=[500, 500, 500], arrive=[0, 400, 900, 1000], diverge=[800, 700])
    found = churned(cell, 1000 * PAGE)
    assert set(found) == set(CHURNED)
    assert found[ARRIVED] == 2
    lost_pages = (1000 + 600) / 2 + (600 + 100) / 2 + 100 / 2
    assert found[ARRIVED_LOST] == pytest.approx(lost_pages * PAGE / (GUESTS * MIB))
    for kind in ("leave", "arrive", "diverge"):
        assert found[f"{kind}_ksmd_percent"] == pytest.approx(25)


def test_what_was_not_watched_or_never_reached_is_not_told(results: Path) -> None:
    cell = cell_with(results, arrive=[0, 400, 800])
    found = churned(cell, 1000 * PAGE)
    assert isnan(found[ARRIVED]) and found[ARRIVED_LOST] > 0
    assert isnan(found["leave_ksmd_percent"]) and isnan(found["diverge_ksmd_percent"])
    # Without the best policy's saving nothing is lost against it.
    assert isnan(churned(cell, None)[ARRIVED_LOST])


@pytest.mark.parametrize("watched", [True, False])
def test_policies_shows_it_where_it_was_measured(
    results: Path, capsys: pytest.CaptureFixture[str], watched: bool
) -> None:
    series = {"leave": [500, 500], "arrive": [0, 1], "diverge": [800, 700]} if watched else {}
    cell_with(results, **series)
    assert main(["policies", "--results", str(results)]) == 0
    title = "When half of the guests left, when they came back, when one diverged"
    said = capsys.readouterr().out
    assert (title in said) is watched
    assert ("not in each boot" in said) is watched


def test_a_series_of_another_cell_is_refused(results: Path) -> None:
    cell = cell_with(results, arrive=[0, 1000])
    path = cell.directory / "arrive.json"
    record = json.loads(path.read_text())
    record["cell"]["boot"] = 7
    path.write_text(json.dumps(record))
    with pytest.raises(RecordError, match=r"arrive\.json"):
        _ = load_run(cell.directory.parents[1]).cells[0].churn


STOPPED = {"seconds": 3.0, "knob": "run", "before": "1", "after": "0"}


@pytest.mark.parametrize(
    ("service", "kind", "seen", "problem"),
    [
        (
            "",
            "arrive",
            {"knob_changes": [STOPPED]},
            "somebody changed run from 1 to 0 3 s after arrive began",
        ),
        ("", "after", {"knob_changes": [STOPPED]}, "somebody changed run from 1 to 0 3 s after after began"),
        ("ksmtuned.service", "after", {"knob_changes": [STOPPED], "tuners": ["ksmtuned"]}, ""),
        ("ksm-pacer", "leave", {"tuners": ["ksm-pacer"]}, ""),
        ("ksm-pacer", "leave", {"tuners": []}, "ksm-pacer had ended by itself when the series leave ended"),
        # Records made before do not say.
        ("ksm-pacer", "leave", {}, ""),
        ("", "leave", {"samples": {}}, "leave.json"),
    ],
)
def test_a_cell_whose_later_series_were_disturbed_is_named_and_left_out(
    results: Path, service: str, kind: str, seen: dict[str, Any], problem: str
) -> None:
    cell = cell_with(results, **{kind: [500, 500]})
    for path in cell.directory.glob("*.json"):
        record = json.loads(path.read_text())
        record["requested"]["service"] = service
        if path.stem == "on":
            record["observed"]["tuners"] = [service.removesuffix(".service")] if service else []
        if path.stem == kind:
            record["observed"] |= seen
        path.write_text(json.dumps(record))
    cell = load_run(cell.directory.parents[1]).cells[0]
    assert problem in cell.problem
    assert (cell.status, bool(cell.problem)) == (("invalid", True) if problem else ("complete", False))
