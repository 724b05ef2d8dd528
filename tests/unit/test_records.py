"""Reading results: what is found, what is complete, what is refused and why."""

import json
from pathlib import Path
from typing import Any

import pytest
from synthetic import store, synthetic_failure, synthetic_plan

from analysis.design import Cell
from analysis.records import RecordError, find_run, find_runs, load_run


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_complete_failed_and_missing_cells_are_told_apart(results: Path) -> None:
    def change(cell: Cell, records: dict[str, dict[str, Any]]) -> None:
        if cell.focus == 2:
            records["failed"] = synthetic_failure(records)
            del records["on"], records["verify"]
        if cell.focus == 3:
            records.clear()

    run = load_run(store(results, synthetic_plan(focus="all"), change))
    assert [cell.status for cell in run.cells] == ["complete", "failed", "missing"]
    assert run.cells[1].problem == "failed in merge, task 'Sample while KSM merges': guest03 died"
    assert run.cells[2].problem == "not measured: no off, merge, on, verify records"
    assert run.cells[0].page_size_bytes == 4096


def broken(run: Path, kind: str) -> Path:
    return run / "host1" / "focus1-idle-guests15-rep1" / f"{kind}.json"


def test_a_record_against_the_schema_is_named_with_the_place(results: Path) -> None:
    run = store(results, synthetic_plan())
    path = broken(run, "on")
    record = json.loads(path.read_text())
    record["observed"]["host"]["ksm"]["pages_sharing"] = None
    path.write_text(json.dumps(record))
    cell = load_run(run).cells[0]
    assert cell.status == "invalid"
    assert cell.problem.startswith("on.json breaks the schema at $.observed.host.ksm.pages_sharing")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "off.json cannot be read"),
        ("{", "off.json cannot be read"),
        ("[]", "off.json breaks the schema at $"),
    ],
)
def test_a_damaged_record_makes_its_cell_invalid_only(results: Path, text: str, problem: str) -> None:
    run = store(results, synthetic_plan(focus="1,2"))
    broken(run, "off").write_text(text)
    first, second = load_run(run).cells
    assert (first.status, second.status) == ("invalid", "complete")
    assert first.problem.startswith(problem)


def test_a_record_of_another_cell_or_kind_is_refused(results: Path) -> None:
    run = store(results, synthetic_plan())
    edit(broken(run, "off"), run_id="other")
    assert load_run(run).cells[0].problem == "off.json is the record of another cell or run"
    broken(run, "off").write_text(broken(run, "on").read_text())
    assert load_run(run).cells[0].problem == "off.json holds a record of kind on"


@pytest.mark.parametrize(
    ("kind", "place", "value", "problem"),
    [
        ("on", ("observed", "guests", "guest03", "pid"), 9, "off and on saw different processes for guest03"),
        ("on", ("provenance", "thp", "enabled"), "always", "off and on were measured with different thp"),
        (
            "merge",
            ("observed", "samples", "pswpin"),
            [0],
            "the columns of the merge samples are empty or of different lengths",
        ),
    ],
)
def test_arms_that_do_not_belong_together_are_refused(
    results: Path, kind: str, place: tuple[str, ...], value: Any, problem: str
) -> None:
    def change(_cell: Cell, records: dict[str, dict[str, Any]]) -> None:
        *way, last = place
        inner: dict[str, Any] = records[kind]
        for name in way:
            inner = inner[name]
        inner[last] = value

    cell = load_run(store(results, synthetic_plan(), change)).cells[0]
    assert (cell.status, cell.problem) == ("invalid", problem)


def test_a_lost_guest_is_noticed(results: Path) -> None:
    def change(_cell: Cell, records: dict[str, dict[str, Any]]) -> None:
        del records["on"]["observed"]["guests"]["guest15"]

    assert load_run(store(results, synthetic_plan(), change)).cells[0].problem == "on saw 14 guests of 15"


def test_runs_are_found_oldest_first_and_the_reference_is_never_taken_for_them(results: Path) -> None:
    store(results / "reference", synthetic_plan(run_id="published"))
    with pytest.raises(RecordError, match="make experiment FOCUS=3"):
        find_runs(results)
    assert [run.name for run in find_runs(results / "reference")] == ["published"]
    store(results, synthetic_plan(run_id="b-first"))
    store(results, synthetic_plan(run_id="a-second"))
    (results / "not-a-run").mkdir()
    assert [run.name for run in find_runs(results)] == ["b-first", "a-second"]
    assert find_run(results, "published") == results / "reference" / "published"
    assert find_runs(results / "a-second") == [results / "a-second"]


def test_an_unknown_run_is_refused_naming_those_that_exist(results: Path) -> None:
    store(results, synthetic_plan(run_id="here"))
    with pytest.raises(RecordError, match=r"run 'there' is not under .*: there are here\."):
        find_run(results, "there")
