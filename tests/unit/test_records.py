"""Reading results: what is found, what is complete, what is refused and why."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from synthetic import BOOTED, began, store, synthetic_failure, synthetic_plan

from analysis.plan.design import Cell
from analysis.records.loading import CellRecords, Run, find_run, find_runs, load_run, load_runs
from analysis.records.reading import RecordError


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def by_workload(run: Run) -> dict[str, CellRecords]:
    return {records.cell.workload: records for records in run.cells}


def test_complete_failed_and_missing_cells_are_told_apart(results: Path) -> None:
    def change(cell: Cell, records: dict[str, dict[str, Any]]) -> None:
        if cell.workload == "constant_fill":
            records["failed"] = synthetic_failure(records)
            del records["on"], records["verify"]
        if cell.workload == "random_fill":
            records.clear()

    cells = by_workload(load_run(store(results, synthetic_plan(focus="all"), change)))
    idle, failed, missing = (cells[name] for name in ("idle", "constant_fill", "random_fill"))
    assert [cell.status for cell in (idle, failed, missing)] == ["complete", "failed", "missing"]
    assert failed.problem == "failed in merge, task 'Sample while KSM merges': guest03 died"
    assert missing.problem == "not measured: no off, merge, on, verify records"
    assert idle.page_size_bytes == 4096


def broken(run: Path, kind: str) -> Path:
    return run / "host1" / "idle-ksm-guests15-boot1-rep1" / f"{kind}.json"


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
    cells = by_workload(load_run(run))
    assert (cells["idle"].status, cells["constant_fill"].status) == ("invalid", "complete")
    assert cells["idle"].problem.startswith(problem)


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
            "merge.json breaks the schema at $.observed.samples: its columns are of different lengths",
        ),
        (
            "on",
            ("provenance", "ksm_knobs", "sleep_millisecs"),
            5,
            "merge and on were measured with different ksm_knobs.sleep_millisecs",
        ),
        (
            "verify",
            ("provenance", "start", "checkpoint"),
            "sha256:other",
            "its records began from different starts",
        ),
        (
            "off",
            ("requested", "guest_reserve_bytes"),
            1,
            "its records were asked for with different values",
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


def test_records_of_another_policy_than_the_cells_are_refused(results: Path) -> None:
    def change(_cell: Cell, records: dict[str, dict[str, Any]]) -> None:
        for record in records.values():
            record["requested"] = {**record["requested"], "policy": "advisor"}

    cell = load_run(store(results, synthetic_plan(), change)).cells[0]
    assert (cell.status, cell.problem) == ("invalid", "its records are of the policy advisor")


def test_the_knobs_before_a_policy_is_set_do_not_matter(results: Path) -> None:
    def change(_cell: Cell, records: dict[str, dict[str, Any]]) -> None:
        records["off"]["provenance"]["ksm_knobs"].update(run=2, pages_to_scan=100, advisor_mode="scan-time")

    assert load_run(store(results, synthetic_plan(), change)).cells[0].status == "complete"


@pytest.mark.parametrize(
    ("knobs", "service", "changed", "status"),
    [
        ({"advisor_mode": "scan-time"}, "", "pages_to_scan", "complete"),
        ({"advisor_mode": "scan-time"}, "", "sleep_millisecs", "invalid"),
        ({}, "", "pages_to_scan", "invalid"),
        ({}, "ksmtuned", "sleep_millisecs", "complete"),
        ({}, "ksmtuned", "max_page_sharing", "invalid"),
        ({}, "ksm-pacer", "pages_to_scan", "complete"),
        ({}, "ksm-pacer", "smart_scan", "invalid"),
    ],
)
def test_what_a_tuner_sets_by_itself_may_change_while_ksm_merges(
    results: Path, knobs: dict[str, str], service: str, changed: str, status: str
) -> None:
    def change(_cell: Cell, records: dict[str, dict[str, Any]]) -> None:
        for record in records.values():
            asked = {**record["requested"]["ksm_knobs"], **knobs}
            record["requested"] = {**record["requested"], "service": service, "ksm_knobs": asked}
            record["provenance"]["ksm_knobs"].update(knobs)
        records["on"]["provenance"]["ksm_knobs"][changed] = 7
        records["on"]["observed"]["tuners"] = [service] if service else []

    assert load_run(store(results, synthetic_plan(), change)).cells[0].status == status


def test_the_physical_boot_is_known_by_its_time_or_else_by_its_number_in_the_run(results: Path) -> None:
    restored = load_run(store(results, synthetic_plan(run_id="a"))).cells[0]
    assert restored.boot_key == "2026-11-23T01:00:00.000000Z"

    def proof(_cell: Cell, records: dict[str, dict[str, Any]]) -> None:
        began(records, **{**BOOTED, "booted_at": "2026-11-23T01:00:00.000000Z"})

    # Measured in the processes that booted, before their checkpoint was restored: the same boot.
    assert (
        load_run(store(results, synthetic_plan(run_id="proof"), proof)).cells[0].boot_key == restored.boot_key
    )

    def booted(_cell: Cell, records: dict[str, dict[str, Any]]) -> None:
        began(records, **BOOTED)

    first, second = load_run(store(results, synthetic_plan(run_id="b", boots=2), booted)).cells
    assert (first.boot_key, second.boot_key) == ("b boot 1", "b boot 2")


def test_a_lost_guest_is_noticed(results: Path) -> None:
    def change(_cell: Cell, records: dict[str, dict[str, Any]]) -> None:
        del records["on"]["observed"]["guests"]["guest15"]

    assert load_run(store(results, synthetic_plan(), change)).cells[0].problem == "on saw 14 guests of 15"


def test_runs_are_found_oldest_first_and_the_reference_is_never_taken_for_them(results: Path) -> None:
    store(results / "reference", synthetic_plan(run_id="published"))
    with pytest.raises(RecordError, match="make experiment FOCUS=3"):
        find_runs(results)
    assert [run.name for run in find_runs(results / "reference").directories] == ["published"]
    store(results, synthetic_plan(run_id="b-first"))
    store(results, synthetic_plan(run_id="a-second"))
    (results / "not-a-run").mkdir()
    assert [run.name for run in find_runs(results).directories] == ["b-first", "a-second"]
    assert find_run(results, "published") == results / "reference" / "published"
    assert find_runs(results / "a-second").directories == (results / "a-second",)


def test_an_unknown_run_is_refused_naming_those_that_exist(results: Path) -> None:
    store(results, synthetic_plan(run_id="here"))
    with pytest.raises(RecordError, match=r"run 'there' is not under .*: there are here\."):
        find_run(results, "there")


Place = tuple[str | int, ...]


def changed(*changes: tuple[str, Place, Any]) -> Any:
    """A change for ``store``: values at places in records, by kind."""

    def change(_cell: Cell, records: dict[str, dict[str, Any]]) -> None:
        for kind, (*way, last), value in changes:
            inner: Any = records[kind]
            for name in way:
                inner = inner[name]
            inner[last] = value

    return change


VERDICT = ("observed", "guests", "guest03")
CHANGED = {"seconds": 8.2, "knob": "sleep_millisecs", "before": "10", "after": "200"}
OTHER = {"pid": 77, "command": "qemu-system-x86", "merging_pages": 12}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            ("verify", (*VERDICT, "digest_after"), "e"),
            "verify calls guest03 intact, and its digests are different",
        ),
        (
            ("verify", (*VERDICT, "digest_after"), ""),
            "verify calls guest03 intact, and its digests are empty",
        ),
        (("verify", (*VERDICT, "intact"), False), "verify calls guest03 damaged, and its digests are equal"),
        (
            ("off", ("observed", "workload", "guest03", "digest"), "other"),
            "verify compared guest03 with another digest than that of what it filled",
        ),
        (
            ("off", ("observed", "host", "ksm", "pages_sharing"), 7),
            "KSM had 7 pages merged already in the off record",
        ),
        (
            ("off", ("observed", "host", "ksm", "ksm_zero_pages"), 9),
            "KSM had 9 pages merged already in the off record",
        ),
        (("off", ("observed", "host", "ksm", "run"), 1), "KSM was running in the off record"),
        (
            ("merge", ("observed", "samples", "pswpout", -1), 5),
            "the host swapped 0 pages in and 5 out while it was measured",
        ),
        # Between the last sample and the record
        (
            ("on", ("observed", "host", "vmstat", "pswpin"), 4),
            "the host swapped 4 pages in and 0 out while it was measured",
        ),
        (
            ("off", ("observed", "guests", "guest03", "smaps_rollup", "Swap_bytes"), 4096),
            "memory of guest03 was swapped out in the off record",
        ),
        (
            ("on", ("observed", "other_mergeable"), [OTHER]),
            "12 pages of processes that are no guests were merged in the on record: qemu-system-x86 (77)",
        ),
        (
            ("merge", ("observed", "knob_changes"), [CHANGED]),
            "somebody changed sleep_millisecs from 10 to 200 8 s after KSM was switched on",
        ),
        (
            (
                "merge",
                ("observed", "knob_changes"),
                [{**CHANGED, "knob": "run", "before": "1", "after": "0"}],
            ),
            "somebody changed run from 1 to 0 8 s after KSM was switched on",
        ),
    ],
)
def test_what_no_record_can_tell_alone_is_noticed(
    results: Path, change: tuple[str, Place, Any], problem: str
) -> None:
    run = load_run(store(results, synthetic_plan(focus=2), changed(change)))
    (cell,) = run.cells
    assert (cell.status, cell.problem) == ("invalid", problem)
    assert run.problems == (f"host1/{cell.cell.cell_id}: {problem}",)


def test_a_knob_that_somebody_changed_is_named_before_what_it_made_different(results: Path) -> None:
    def change(_cell: Cell, records: dict[str, dict[str, Any]]) -> None:
        records["merge"]["observed"]["knob_changes"] = [CHANGED]
        records["on"]["provenance"]["ksm_knobs"]["sleep_millisecs"] = 200

    cell = load_run(store(results, synthetic_plan(focus=2), change)).cells[0]
    assert cell.problem == "somebody changed sleep_millisecs from 10 to 200 8 s after KSM was switched on"


def test_a_guest_whose_memory_was_not_verified_is_noticed(results: Path) -> None:
    def change(_cell: Cell, records: dict[str, dict[str, Any]]) -> None:
        del records["verify"]["observed"]["guests"]["guest03"]

    cell = load_run(store(results, synthetic_plan(focus=2), change)).cells[0]
    assert cell.problem == "the memory of guest03 was loaded and not verified"


@pytest.mark.parametrize(
    "change",
    [
        ("on", ("observed", "other_mergeable"), [{**OTHER, "merging_pages": 0}]),
        ("off", ("observed", "host", "ksm", "run"), 2),
    ],
)
def test_what_looks_like_it_and_is_nothing_wrong_is_let_pass(
    results: Path, change: tuple[str, Place, Any]
) -> None:
    assert load_run(store(results, synthetic_plan(focus=2), changed(change))).cells[0].status == "complete"


def test_what_the_host_swapped_before_a_cell_is_let_pass(results: Path) -> None:
    before = [
        ("merge", ("observed", "samples", "pswpout"), [5] * 13),
        *((kind, ("observed", "host", "vmstat", "pswpout"), 5) for kind in ("off", "on")),
    ]
    assert load_run(store(results, synthetic_plan(), changed(*before))).cells[0].status == "complete"


@pytest.mark.parametrize(
    ("where", "value", "problem"),
    [
        (
            ("ksm_knobs", "sleep_millisecs"),
            20,
            "somebody changed sleep_millisecs from 10 to 20 before the merge",
        ),
        (("thp", "enabled"), "never", "somebody changed huge pages from madvise to never before the merge"),
    ],
)
def test_a_setting_that_is_not_what_was_asked_for_is_noticed(
    results: Path, where: Place, value: Any, problem: str
) -> None:
    asked = [(kind, ("requested", "thp_enabled"), "madvise") for kind in ("off", "merge", "on", "verify")]
    for changes, status in (((), "complete"), (("off", "merge", "on"), "invalid")):
        other = [(kind, ("provenance", *where), value) for kind in changes]
        run = load_run(store(results / status, synthetic_plan(focus=2), changed(*asked, *other)))
        assert run.cells[0].status == status
        assert run.cells[0].problem == (f"{problem} record" if changes else "")


def test_what_an_advisor_or_a_service_sets_is_nobodys_change(results: Path) -> None:
    pages = {**CHANGED, "knob": "pages_to_scan"}
    changes = ("merge", ("observed", "knob_changes"), [pages])
    served = [
        (kind, ("requested", "service"), "ksmtuned.service") for kind in ("off", "merge", "on", "verify")
    ]
    runs = ("on", ("observed", "tuners"), ["ksmtuned"])
    stopped = {**pages, "knob": "run", "before": "1", "after": "0"}
    advised = [(k, ("provenance", "ksm_knobs", "advisor_mode"), "scan-time") for k in ("off", "merge", "on")]
    asked = [
        (kind, ("requested", "ksm_knobs"), {"advisor_mode": "scan-time"})
        for kind in ("off", "merge", "on", "verify")
    ]
    for name, given, status in (
        ("plain", [changes], "invalid"),
        ("advisor", [changes, *advised, *asked], "complete"),
        ("service", [("merge", ("observed", "knob_changes"), [pages, stopped]), *served, runs], "complete"),
    ):
        run = load_run(store(results / name, synthetic_plan(focus=2), changed(*given)))
        assert (name, run.cells[0].status, run.cells[0].problem[:16]) == (
            name,
            status,
            "somebody changed" if status == "invalid" else "",
        )


def test_a_cell_whose_daemon_had_ended_is_named_and_nobody_but_the_protocol_stops_ksm(results: Path) -> None:
    kinds = ("off", "merge", "on", "verify")
    served = [(kind, ("requested", "service"), "ksm-pacer") for kind in kinds]
    tuned = [(kind, ("requested", "service"), "ksmtuned.service") for kind in kinds]
    runs = ("on", ("observed", "tuners"), ["ksm-pacer"])
    stopped = (
        "merge",
        ("observed", "knob_changes"),
        [{**CHANGED, "knob": "run", "before": "1", "after": "0"}],
    )
    for name, given, problem in (
        ("runs", [*served, runs], ""),
        ("ended", served, "ksm-pacer had ended by itself when the on record was taken"),
        ("tuned", tuned, "ksmtuned had ended by itself when the on record was taken"),
        ("stopped", [*served, runs, stopped], "somebody changed run from 1 to 0"),
    ):
        (cell,) = load_run(store(results / name, synthetic_plan(focus=2), changed(*given))).cells
        assert (name, cell.problem.startswith(problem), bool(cell.problem)) == (name, True, bool(problem))


def test_damaged_memory_is_a_result_and_no_contradiction(results: Path) -> None:
    damage = (("verify", (*VERDICT, "intact"), False), ("verify", (*VERDICT, "digest_after"), "e"))
    (cell,) = load_run(store(results, synthetic_plan(focus=2), changed(*damage))).cells
    assert (cell.status, cell.verify.observed.guests["guest03"].intact) == ("complete", False)


def test_a_record_that_a_cell_has_not_is_asked_for_in_vain(results: Path) -> None:
    run = store(results, synthetic_plan())
    broken(run, "on").unlink()
    (cell,) = load_run(run).cells
    assert cell.off.kind == "off"
    assert (cell.failed, cell.census, cell.after) == (None, None, None)
    with pytest.raises(RecordError, match="has no on record that can be used"):
        _ = cell.on


def test_a_plan_without_cells_is_named_and_the_other_runs_are_found(results: Path) -> None:
    store(results, synthetic_plan(run_id="good"))
    run = store(results, synthetic_plan(run_id="empty"))
    edit(run / "plan.json", cells=[])
    found = find_runs(results)
    assert [directory.name for directory in found.directories] == ["good"]
    (problem,) = found.problems
    assert problem.startswith(f"{run}: plan.json breaks the schema at $.cells: ")
    with pytest.raises(RecordError, match=r"plan\.json"):
        load_run(run)


def test_a_file_of_another_version_is_named_with_what_can_be_done(results: Path) -> None:
    run = store(results, synthetic_plan(run_id="now"))
    later = store(results, synthetic_plan(run_id="later"))
    edit(later / "plan.json", schema_version=9, surprise=1)
    edit(broken(run, "on"), schema_version=1)
    said = (
        "is of schema version {}, and this testbed knows 2 alone: read it with the one that wrote it".format
    )
    assert find_runs(results).problems == (f"{later}: plan.json {said(9)}.",)
    assert load_run(run).cells[0].problem == f"on.json {said(1)}"


def test_results_of_which_no_run_can_be_read_say_why(results: Path) -> None:
    run = store(results, synthetic_plan())
    (run / "plan.json").write_text("{")
    with pytest.raises(RecordError, match=r"holds no run that can be read: .*plan\.json cannot be read"):
        find_runs(results)


def test_a_copied_run_is_left_out_and_named(results: Path) -> None:
    run = store(results, synthetic_plan(run_id="once"))
    copy = results / "a-copy"
    shutil.copytree(run, copy)
    found = find_runs(results)
    assert found.directories == (run,)
    assert found.problems == (f"{copy} holds the run once, as {run} does: a copy is left out.",)


def test_a_copied_run_under_another_name_is_left_out_and_named(results: Path) -> None:
    run = store(results, synthetic_plan(run_id="once"))
    copy = results / "twice"
    shutil.copytree(run, copy)
    for path in copy.rglob("*.json"):
        edit(path, run_id="twice")
    other = store(results, synthetic_plan(run_id="other"))
    loaded = load_runs(find_runs(results).directories)
    assert [one.directory for one in loaded.runs] == [run, other]
    assert loaded.problems == (
        f"{copy} has records that were taken at the same moment as those of {run}: a copy is left out.",
    )


def test_cells_copied_from_another_run_are_invalid(results: Path) -> None:
    run = store(results, synthetic_plan(run_id="once"))
    later = store(results, synthetic_plan(run_id="later"))
    shutil.copy(broken(run, "on"), broken(later, "on"))
    assert load_run(later).cells[0].problem == "on.json is the record of another cell or run"
