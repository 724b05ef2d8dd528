"""What a settled saving became, on series worked out by hand."""

import json
from pathlib import Path

import pytest
from synthetic import PAGE, store, synthetic_plan, synthetic_samples

from analysis.measure.follow import Followed, follow_words, followed
from analysis.records.loading import CellRecords, load_run


def cell_followed(results: Path, settled: int, after: list[int] | None) -> CellRecords:
    directory = store(
        results,
        synthetic_plan(),
        lambda _cell, records: records["merge"]["observed"].update(
            samples=synthetic_samples([0, settled, settled, settled], [0, 1, 2, 3])
        ),
    )
    cell = load_run(directory).cells[0]
    if after is not None:
        record = json.loads((cell.directory / "merge.json").read_text())
        record["kind"] = "after"
        samples = synthetic_samples(after, list(range(len(after))))
        record["observed"] |= {"samples": samples, "duration_seconds": float(len(after) - 1)}
        (cell.directory / "after.json").write_text(json.dumps(record))
    return load_run(directory).cells[0]


def test_the_last_value_and_the_one_farthest_away_are_told(results: Path) -> None:
    found = followed(cell_followed(results, 1000, [1000, 950, 1000, 1004]))
    assert found == Followed(3.0, 1000 * PAGE, 1004 * PAGE, 950 * PAGE, 1004 * PAGE)
    assert found.final_percent == pytest.approx(100 * 4 / 1004)
    assert found.apart_percent == pytest.approx(100 * 50 / 950)
    assert not found.held


@pytest.mark.parametrize(
    ("last", "held"), [(1000, True), (1010, True), (991, True), (1011, False), (989, False)]
)
def test_within_one_percent_of_what_it_became_is_held(results: Path, last: int, held: bool) -> None:
    found = followed(cell_followed(results, 1000, [1000, last]))
    assert found is not None
    assert found.held is held


def test_what_moved_is_said_and_marked(results: Path) -> None:
    assert follow_words([cell_followed(results, 1000, [1000, 1005, 1002])]) == (
        "Followed for 2 s after that (1 cell), the gross saving ended +0.20 % from what was taken as settled "
        "and was at most 0.50 % away from it."
    )


def test_a_plateau_that_was_false_is_marked(results: Path) -> None:
    assert follow_words([cell_followed(results, 1000, [1000, 1100])]) == (
        "! Followed for 1 s after that (1 cell), the gross saving ended +9.09 % from what was taken as "
        "settled and was at most 9.09 % away from it: more than 1 % in 1 of them."
    )


def test_a_cell_that_was_not_followed_says_nothing(results: Path) -> None:
    cell = cell_followed(results, 1000, None)
    assert followed(cell) is None
    assert follow_words([cell]) == ""


def test_a_saving_of_nothing_stays_nothing(results: Path) -> None:
    found = followed(cell_followed(results, 0, [0, 0]))
    assert found is not None
    assert found.held
