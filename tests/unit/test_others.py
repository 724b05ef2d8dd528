"""Cells with others beside them: what is allowed, what is marked, and what the reader is told."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from synthetic import MIB, store, synthetic_plan

from analysis.__main__ import main
from analysis.measure.others import Others, marks, others
from analysis.measure.pooling import largest_set, pooling_conflicts
from analysis.measure.table import tidy
from analysis.plan.design import Cell
from analysis.records.loading import CellRecords, load_run

Records = dict[str, dict[str, Any]]
Change = Callable[[Cell, Records], None]
PAGES_IN_A_MIB = 256


def other(pid: int, command: str, mib: int, merged_mib: int, zero_mib: int = 0) -> dict[str, Any]:
    return {
        "pid": pid,
        "command": command,
        "mergeable_bytes": mib * MIB,
        "merging_pages": merged_mib * PAGES_IN_A_MIB,
        "zero_pages": zero_mib * PAGES_IN_A_MIB,
    }


def beside(
    off: list[dict[str, Any]], on: list[dict[str, Any]], shared_mib: int = 0, sharing_mib: int = 0
) -> Change:
    """Others in both arms, and what KSM's counters have of them; each arm's page counters rise alike."""

    def change(_cell: Cell, records: Records) -> None:
        for kind, found in (("off", off), ("on", on)):
            seen = records[kind]["observed"]
            seen["other_mergeable"] = found
            seen["host"]["ksm"]["pages_shared"] += shared_mib * PAGES_IN_A_MIB
            seen["host"]["ksm"]["pages_sharing"] += sharing_mib * PAGES_IN_A_MIB

    return change


def the_cell(results: Path, change: Change, **design: Any) -> CellRecords:
    return load_run(store(results, synthetic_plan(**design), change)).cells[0]


def test_pages_of_others_in_the_off_record_are_a_baseline_where_others_are_allowed(results: Path) -> None:
    # 10 MiB kept and 90 more that share them are 100 MiB of merged pages in processes.
    theirs = [other(77, "qemu-system-x86", 2048, 70), other(78, "postgres", 64, 30)]
    grown = [other(77, "qemu-system-x86", 2048, 75), other(78, "postgres", 64, 30)]
    cell = the_cell(results, beside(theirs, grown, 10, 90), others="allow")
    assert (cell.status, cell.problem) == ("complete", "")
    assert others(cell) == Others(("qemu-system-x86 (77)", "postgres (78)"), 2112 * MIB, 100 * MIB, 105 * MIB)
    assert marks(cell) == {"others": "present"}
    # The 90 MiB are taken off: gross is of what came after.
    row = tidy([load_run(results / "synthetic")]).iloc[0]
    assert row["gross_mib_per_vm"] == pytest.approx(100)


def test_zero_pages_of_others_are_in_the_baseline_too(results: Path) -> None:
    def change(cell: Cell, records: Records) -> None:
        theirs = [other(77, "qemu", 64, 0, zero_mib=3)]
        beside(theirs, theirs)(cell, records)
        for kind in ("off", "on"):
            records[kind]["observed"]["host"]["ksm"]["ksm_zero_pages"] = 3 * PAGES_IN_A_MIB

    assert the_cell(results, change, others="allow").status == "complete"


def test_pages_that_no_other_process_holds_are_no_baseline(results: Path) -> None:
    theirs = [other(77, "qemu-system-x86", 2048, 99)]
    cell = the_cell(results, beside(theirs, theirs, 10, 90), others="allow")
    assert cell.status == "invalid"
    assert cell.problem == "KSM had 256 pages merged already in the off record that no other process holds"


def test_where_others_are_refused_none_may_have_pages_merged(results: Path) -> None:
    theirs = [other(77, "qemu-system-x86", 2048, 100)]
    assert the_cell(results, beside(theirs, theirs, 10, 90)).status == "invalid"
    late = the_cell(results / "late", beside([], [other(77, "qemu-system-x86", 2048, 1)]))
    assert late.problem.startswith("256 pages of processes that are no guests were merged in the on record")


def test_who_offers_memory_and_has_none_merged_marks_the_cell_and_old_records_are_as_they_were(
    results: Path,
) -> None:
    assert marks(the_cell(results, beside([], [other(77, "qemu", 1, 0)]))) == {"others": "present"}
    old = {"pid": 77, "command": "python3", "merging_pages": 0}
    assert marks(the_cell(results / "old", beside([], [old]))) == {}
    assert marks(the_cell(results / "none", beside([], []))) == {}


def ksm_before(run: int, merged_pages: int) -> Change:
    def change(_cell: Cell, records: Records) -> None:
        for record in records.values():
            record["provenance"]["ksm_before"] = {"run": run, "merged_pages": merged_pages}

    return change


@pytest.mark.parametrize(("run", "merged_pages", "used"), [(0, 0, False), (1, 0, True), (0, 7, True)])
def test_a_ksm_that_was_in_use_before_marks_the_cell(
    results: Path, run: int, merged_pages: int, used: bool
) -> None:
    cell = the_cell(results, ksm_before(run, merged_pages))
    assert marks(cell) == ({"ksm_before": "in use"} if used else {})


def ran(*names: str, service: str = "") -> Change:
    def change(_cell: Cell, records: Records) -> None:
        records["on"]["observed"]["tuners"] = list(names)
        for record in records.values():
            record["requested"]["service"] = service

    return change


def test_a_tuner_that_is_not_the_policys_marks_the_cell(results: Path) -> None:
    assert marks(the_cell(results, ran("ksmtuned"))) == {"tuners": "ksmtuned"}
    own = ran("ksmtuned", "momd", service="ksmtuned.service")
    assert marks(the_cell(results / "own", own)) == {"tuners": "momd"}


def test_marked_cells_are_not_pooled_with_others_and_the_table_of_unmarked_ones_is_as_before(
    results: Path,
) -> None:
    plain = load_run(store(results, synthetic_plan("plain", boots=3)))
    marked = load_run(store(results, synthetic_plan("marked"), beside([], [other(77, "qemu", 1, 0)])))
    assert not [
        name for name in tidy([plain]).columns if name.endswith((".others", ".tuners", ".ksm_before"))
    ]
    table = tidy([plain, marked])
    assert pooling_conflicts(table) == ("others: absent / present",)
    found = largest_set(table)
    assert set(found.table["run_id"]) == {"plain"}
    assert [(one.run_id, one.differing) for one in found.left_out] == [
        ("marked", ("others: present / absent",))
    ]
    assert pooling_conflicts(tidy([marked])) == ()


@pytest.mark.parametrize("command", ["summarize", "explain"])
def test_the_reader_is_told_of_others_with_their_sizes(
    results: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    theirs = [other(77, "qemu-system-x86", 2048, 100)]

    def change(cell: Cell, records: Records) -> None:
        beside(theirs, [other(77, "qemu-system-x86", 2048, 140 + cell.boot)], 10, 90)(cell, records)
        ksm_before(1, 25600)(cell, records)
        ran("momd")(cell, records)

    store(results, synthetic_plan(boots=2, others="allow"), change)
    assert main([command, "--results", str(results)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert (
        "! 1 idle, ksm: in 2 of 2 cells processes that are no guests offered KSM up to 2048 MiB: "
        "qemu-system-x86 (77). Of it 100 MiB were merged with KSM off, which gross and profit leave out, and "
        "141 to 142 MiB under the policy"
    ) in text
    assert "! 1 idle, ksm: in 2 of 2 cells a tuner that is not the policy's ran (momd)." in text
    assert "! 1 idle, ksm: in 2 of 2 cells KSM was in use before the run began." in text
    assert main([command, "--results", str(results), "--json"]) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert sum("processes that are no guests" in note for note in notes) == 1


def test_an_unmarked_cell_says_nothing_of_others(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store(results, synthetic_plan(boots=3), ksm_before(0, 0))
    assert main(["summarize", "--results", str(results)]) == 0
    text = capsys.readouterr().out
    assert "no guests" not in text and "in use" not in text and "tuner" not in text
