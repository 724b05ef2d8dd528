"""The summary: its table, its notes, JSON, CSV and Parquet, and which runs it covers."""

import io
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from reported import report_page
from synthetic import BOOTED, began, store, synthetic_failure, synthetic_plan
from synthetic_census import census_record

from analysis.__main__ import main
from analysis.plan.design import MIB, Cell, cell_directory
from analysis.report.summary import asked_knobs

Records = dict[str, dict[str, Any]]

SAVED = {"idle": 60, "constant_fill": 430, "random_fill": 40}


@pytest.fixture
def summarize(results: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*words: str, code: int = 0) -> str:
        capsys.readouterr()
        assert main(["summarize", "--results", str(results), *words]) == code
        return capsys.readouterr().out

    return call


def flowing(text: str) -> str:
    return " ".join(text.split())


def rows(text: str, label: str) -> list[list[str]]:
    """The cells of each line that begins with a label: of the saved, then of what was used and spent."""
    lines = [line for line in text.splitlines() if line.startswith(f"{label}  ")]
    return [re.split(r"  +", line)[1:] for line in lines]


def test_the_tables_of_three_foci(results: Path, summarize: Any) -> None:
    plan = synthetic_plan(focus="all", boots=3)
    store(results, plan, None, lambda cell: SAVED[cell.workload] + cell.boot)
    text = summarize()
    # Gross and PSS 62, 432 and 42 on average; 8 less by the others, KSM's own memory; 15 guests of 8000 MiB.
    # t(0.975, 2) x 1 / sqrt(3) = 2.48.
    assert rows(text, "1 idle") == [
        ["ksm", "3x1", "54.0 ± 2.5", "54.0 ± 2.5", "50.6", "54.0 ± 2.5", "62.0 ± 2.5", "62.0 ± 2.5"],
        ["ksm", "3x1", "8000 ± 0", "7190 ± 37", "8.0 ± 0.0", "54.0 ± 2.5", "12.0 ± 0.0", "6.0 ± 0.0"],
    ]
    assert rows(text, "2 constant fill")[0][2:5] == ["424.0 ± 2.5", "424.0 ± 2.5", "440.3"]
    assert rows(text, "3 random fill")[0][4] == "31.6"
    assert "host1: 15 guests of 512 MB, restored from a checkpoint" in text
    assert "guests booted 2026-11-23T01:00:00Z in 200 s, 2026-11-23T02:00:00Z in 200 s" in flowing(text)
    assert "Fewer than 3 boots" not in text
    assert "MB and MiB both mean 2^20 bytes" in flowing(text)


def test_the_paper_stands_beside_its_own_guests_only(results: Path, summarize: Any) -> None:
    store(results, synthetic_plan(guests=4))
    assert "the paper\n" not in summarize()
    (summary,) = json.loads(summarize("--json"))["summaries"]
    assert summary["paper"] is None


def test_boots_and_repetitions_are_shown_apart(results: Path, summarize: Any) -> None:
    def change(cell: Cell, records: Records) -> None:
        if (cell.boot, cell.repetition) == (2, 2):
            records.clear()

    saved = {1: 100, 2: 110}
    plan = synthetic_plan(boots=2, repetitions=2)
    store(results, plan, change, lambda cell: saved[cell.boot] + 2 * cell.repetition)
    text = summarize()
    # Boots' means 103 and 112: mean 107.5, standard deviation 6.36; within: 102 and 104 about 103.
    # t(0.975, 1) x 6.36 / sqrt(2) = 57.2.
    assert rows(text, "1 idle")[0][:5] == ["ksm", "2x1-2/4", "99.5 ± 57.2", "99.5 ± 57.2", "50.6"]
    assert rows(text, "1 idle")[0][5:] == ["99.5 ± 57.2", "107.5 ± 57.2", "107.5 ± 57.2"]
    # Used on: 6575 and 6440 MiB, in each boot 15 times the spread of MemAvailable.
    assert rows(text, "1 idle")[1][2:4] == ["8000 ± 0", "6508 ± 858"]
    saved_lines, used_lines = (
        [flowing(line) for line in text.splitlines() if line.strip().startswith(name)]
        for name in ("sd between", "sd within")
    )
    assert saved_lines == ["sd between 6.4 6.4 6.4 6.4 6.4", "sd between 0 95 0.0 6.4 0.0 0.0"]
    assert used_lines == ["sd within 1.4 1.4 1.4 1.4 1.4", "sd within 0 21 0.0 1.4 0.0 0.0"]
    assert "sd within: standard deviation of the repetitions within a boot" in flowing(text)


def test_of_too_few_boots_nothing_is_concluded(results: Path, summarize: Any) -> None:
    store(results, synthetic_plan(boots=2), None, lambda cell: 100 + cell.boot)
    text = flowing(summarize())
    assert "Fewer than 3 boots: 1 idle, ksm (2 boots)." in text
    assert "nothing follows from it" in text


def test_one_boot_shows_the_spread_of_its_repetitions_and_no_interval(results: Path, summarize: Any) -> None:
    store(results, synthetic_plan(repetitions=2), None, lambda cell: 100 + 2 * cell.repetition)
    text = summarize()
    assert rows(text, "1 idle")[0][:3] == ["ksm", "1x2", "95.0"]
    assert "1 idle, ksm (1 boot). One boot has no interval" in flowing(text)
    assert "±" not in text.replace("mean of the boots ± half", "")
    assert any(flowing(line).startswith("sd within 1.4 1.4") for line in text.splitlines())


def test_policies_are_rows_and_their_difference_is_paired(
    results: Path, summarize: Any, tmp_path: Path
) -> None:
    saved = {("ksm", 1): 100, ("ksm", 2): 120, ("advisor", 1): 101, ("advisor", 2): 123}
    plan = synthetic_plan(policies="ksm,advisor", boots=2)
    store(results, plan, None, lambda cell: saved[cell.policy, cell.boot])
    figure = tmp_path / "figure.svg"
    text = summarize("--figure", str(figure))
    assert [cells[0] for cells in rows(text, "1 idle")] == ["ksm", "advisor"] * 2
    assert [cells[6].split()[0] for cells in rows(text, "1 idle")[:2]] == ["110.0", "112.0"]
    # 1 and 3 MB/VM more: 2, standard deviation 1.414, t(0.975, 1) 12.706.
    assert rows(text, "1 idle, 15") == [["advisor - ksm", "2", *["+2.0 ± 12.7"] * 5]]
    assert "\npolicy advisor: advisor_max_cpu 70, " in text
    assert "advisor_mode scan-time" in flowing(text)
    assert 'data-head="gross, MB/VM">+2.0 ± 12.7</td>' in report_page(results)
    (difference,) = json.loads(summarize("--json"))["policy_differences"]
    assert (difference["policy"], difference["baseline"], difference["n_boots"]) == ("advisor", "ksm", 2)
    assert difference["differences"]["gross_mib_per_vm"]["mean"] == pytest.approx(2)
    assert "advisor" in figure.read_text()


def test_a_line_that_is_in_doubt_is_told_from_its_namesakes(results: Path, summarize: Any) -> None:
    def change(cell: Cell, records: Records) -> None:
        if cell.boot > 1:
            records["on"]["observed"]["host"]["meminfo"]["MemAvailable_bytes"] -= 300 * MIB
        if cell.boot < 3:
            began(records, **BOOTED)

    store(results, synthetic_plan(boots=4), change)
    text = flowing(summarize())
    assert text.count("parts from") == 1
    assert "1 idle, ksm, as booted (1 of 2 cells); 1 idle, ksm, restored (2 of 2 cells). Believe" in text
    assert "Fewer than 3 boots: 1 idle, ksm, as booted (2 boots); 1 idle, ksm, restored (2 boots)." in text


MIX = "constant_fill=5,idle=5,random_fill=5"


def test_a_mix_in_every_form(results: Path, summarize: Any, tmp_path: Path) -> None:
    store(results, synthetic_plan(mix=MIX, boots=2))
    figure = tmp_path / "figure.svg"
    text = summarize("--figure", str(figure))
    saved, used = rows(text, f"mix: {MIX}")
    assert saved == ["ksm", "2x1", *["92.0 ± 0.0"] * 3, *["100.0 ± 0.0"] * 2]
    assert used == [
        "ksm",
        "2x1",
        "8000 ± 0",
        "6620 ± 0",
        "8.0 ± 0.0",
        "92.0 ± 0.0",
        "12.0 ± 0.0",
        "6.0 ± 0.0",
    ]
    page = report_page(results)
    assert f">mix: {MIX}</td>" in page
    # Saved, used, ledger and growth
    assert page.count("<svg") == 4
    assert "the paper" not in figure.read_text()
    (summary,) = json.loads(summarize("--json"))["summaries"]
    assert (summary["workload"], summary["policy"], summary["paper"]) == (MIX, "ksm", None)
    table = pd.read_csv(io.StringIO(summarize("--csv")))
    assert list(table["workload"]) == [MIX, MIX]


def test_a_mix_that_failed_is_named_by_its_workloads(results: Path, summarize: Any) -> None:
    def change(_cell: Cell, records: Records) -> None:
        records["failed"] = synthetic_failure(records)

    store(results, synthetic_plan(mix=MIX), change)
    assert f"! mix: {MIX}, ksm, boot 1 repetition 1: failed, left out of the mean" in flowing(
        summarize(code=1)
    )


def test_cells_left_out_are_counted_and_named(results: Path, summarize: Any) -> None:
    def change(cell: Cell, records: Records) -> None:
        merge = records["merge"]["observed"]
        if (cell.workload, cell.boot) == ("random_fill", 2):
            merge.update(converged=False, converged_after_seconds=None, reason="time was up after 900 s")
        if (cell.workload, cell.boot) == ("constant_fill", 1):
            records["failed"] = synthetic_failure(records)
        if (cell.workload, cell.boot) == ("constant_fill", 2):
            records.clear()

    store(results, synthetic_plan(focus="2,3", boots=2), change)
    text = summarize()
    assert rows(text, "2 constant fill")[0] == ["ksm", "0/2", *["-"] * 6]
    assert rows(text, "3 random fill")[0][:3] == ["ksm", "1x1/2", "92.0"]
    notes = flowing(text)
    assert (
        "! 3 random fill, ksm, boot 2 repetition 1: unconverged, left out of the mean: not converged: time"
        in notes
    )
    assert "(freed 92.0 MB/VM when it ended)" in notes
    assert (
        "! 2 constant fill, ksm, boot 1 repetition 1: failed, left out of the mean: failed in merge" in notes
    )
    assert "! 2 constant fill, ksm, boot 2 repetition 1: missing, left out of the mean: not measured" in notes


def test_refused_pooling_shows_each_repetition(results: Path, summarize: Any) -> None:
    def change(cell: Cell, records: Records) -> None:
        # No policy asks for it: the host has it so.
        for record in records.values():
            record["provenance"]["ksm_knobs"]["merge_across_nodes"] = cell.boot - 1

    store(results, synthetic_plan(boots=2), change)
    text = summarize()
    assert rows(text, "1 idle")[0] == ["ksm", "2x1", *["-"] * 5]
    assert "ksm_knobs.merge_across_nodes: 0 / 1" in flowing(text)
    assert "synthetic boot 1 repetition 1 92.0 MB/VM, synthetic boot 2 repetition 1 92.0 MB/VM" in flowing(
        text
    )


def test_guests_that_write_all_the_time_are_said_to(results: Path, summarize: Any) -> None:
    def change(_cell: Cell, records: dict[str, dict[str, Any]]) -> None:
        for number, verdict in enumerate(records["verify"]["observed"]["guests"].values()):
            verdict["rewritten_pages_per_second"] = 198.0 + number

    store(results, synthetic_plan(workloads="rewritten,constant_fill", guests=2), None)
    assert "wrote to" not in flowing(summarize())
    store(results, synthetic_plan(run_id="writing", workloads="rewritten", guests=2), change)
    text = flowing(summarize("--run", "writing"))
    assert "rewritten, ksm: each guest wrote to 198 to 199 pages a second while it was measured" in text


def test_runs_by_another_convergence_rule_are_not_pooled(results: Path, summarize: Any) -> None:
    def change(_cell: Cell, records: Records) -> None:
        for record in records.values():
            record["requested"]["convergence"]["threshold_percent"] = 100

    store(results, synthetic_plan(run_id="strict"))
    store(results, synthetic_plan(run_id="lax"), change)
    text = summarize("--all")
    assert rows(text, "1 idle")[0][:2] == ["ksm", "1x1"]
    # The later of two sets as large is kept, the other is named with what differs.
    assert "! run strict, host1: 1 measured cells are left out, for they do not belong" in flowing(text)
    assert "convergence_rule: 0.5 % over 2 of at least 3 scans / 100 % over 2 of at least 3 scans" in flowing(
        text
    )
    (left,) = json.loads(summarize("--all", "--json"))["left_out"]
    assert (left["run_id"], left["cells"]) == ("strict", 1)


def test_runs_that_watched_the_guests_memory_and_runs_that_did_not_are_not_pooled(
    results: Path, summarize: Any
) -> None:
    def change(_cell: Cell, records: Records) -> None:
        samples = records["merge"]["observed"]["samples"]
        samples["guests_anon_pages"] = [400_000] * len(samples["seconds"])

    store(results, synthetic_plan(run_id="before"))
    store(results, synthetic_plan(run_id="since"), change)
    text = flowing(summarize("--all"))
    assert "! run before, host1: 1 measured cells are left out, for they do not belong" in text
    assert "of at least 3 scans / 0.5 % over 2 of at least 3 scans, guests' memory too" in text


def test_a_knob_that_changes_while_ksm_merges_spoils_the_cell(results: Path, summarize: Any) -> None:
    def change(_cell: Cell, records: Records) -> None:
        records["on"]["provenance"]["ksm_knobs"]["sleep_millisecs"] = 5

    store(results, synthetic_plan(), change)
    assert "merge and on were measured with different ksm_knobs.sleep_millisecs" in flowing(summarize(code=1))


def test_the_newest_run_is_the_default_and_the_others_are_named(results: Path, summarize: Any) -> None:
    for run_id, saved in (("first", 100.0), ("second", 200.0)):
        store(results, synthetic_plan(run_id=run_id), None, lambda _cell, saved=saved: saved)
    assert rows(summarize(), "1 idle")[0][6] == "200.0"
    assert "Other runs: first (choose with --run RUN_ID or --all)." in summarize()
    assert rows(summarize("--run", "first"), "1 idle")[0][6] == "100.0"
    for several in (["--all"], ["--run", "first", "second"]):
        assert rows(summarize(*several), "1 idle")[0][1:] == [
            "1x2",
            *["142.0"] * 2,
            "50.6",
            "142.0",
            *["150.0"] * 2,
        ]


def test_of_many_runs_the_first_and_the_last_are_named(results: Path, summarize: Any) -> None:
    for number in range(13):
        boot = f"2026-11-23T{number:02d}:00:00.000000Z"

        def change(_cell: Cell, records: Records, boot: str = boot) -> None:
            began(records, booted_at=boot)
            for record in records.values():
                record["recorded_at"] = boot

        store(results, synthetic_plan(run_id=f"run{number:02d}"), change)
    text = flowing(summarize("--all"))
    assert re.search(r"Runs run00, started \S+; 11 more; run12, started", text)
    assert "guests booted 2026-11-23T00:00:00Z in 200 s, 11 more, 2026-11-23T12:00:00Z in 200 s" in text


def test_json_holds_numbers_and_null(results: Path, summarize: Any) -> None:
    def change(cell: Cell, records: Records) -> None:
        if cell.workload == "constant_fill":
            records.clear()

    store(results, synthetic_plan(focus="1,2"), change)
    content = json.loads(summarize("--json"))
    first, second = content["summaries"]
    assert content["run_ids"] == ["synthetic"]
    assert first["estimates"]["gross_mib_per_vm"] == {
        "n_boots": 1,
        "repetitions": 1,
        "mean": 100.0,
        "half_width": None,
        "between_boot_sd": None,
        "within_boot_sd": None,
    }
    assert content["quantities"]["gross_mib_per_vm"]["unit"] == "MB/VM"
    assert first["paper"]["paper"] == 50.6
    assert second["estimates"]["gross_mib_per_vm"] is None
    assert second["cells"][0]["status"] == "missing"


def test_csv_is_the_tidy_table(results: Path, summarize: Any) -> None:
    def change(cell: Cell, records: Records) -> None:
        if cell.workload == "constant_fill":
            records.clear()

    store(results, synthetic_plan(focus="1,2"), change)
    table = pd.read_csv(io.StringIO(summarize("--csv"))).set_index("workload")
    assert dict(table["gross_mib_per_vm"].fillna(-1)) == {"idle": 100.0, "constant_fill": -1.0}
    assert dict(table["status"]) == {"idle": "complete", "constant_fill": "missing"}
    assert set(table["policy"]) == {"ksm"}


def test_a_census_is_on_the_page_and_in_the_json(results: Path, summarize: Any) -> None:
    plan = synthetic_plan(focus="1,3", guests=2)
    run = store(results, plan)
    assert "Page census" not in report_page(results)
    first, second = sorted(plan.cells, key=lambda cell: cell.workload)
    # 256 pages are 1 MiB: 512 of zeros less the one that stays, 255 within each guest, 256 between them.
    contents = [1] * 256 + list(range(2, 257))
    guests = {"guest01": [0] * 512 + contents, "guest02": contents}
    # KSM had saved 1000 of these 1277 pages; by its counters 51200, 100 MiB for each of the two.
    merged = {"mapped_pages": 1002, "frames": 2, "zero_pages": 0}
    record = census_record(guests, cell=first, max_page_sharing=10_000, pages_sharing=51_200, merged=merged)
    (cell_directory(run, first) / "census.json").write_text(json.dumps(record))
    (cell_directory(run, second) / "census.json").write_text("{}")
    summarize()
    shown = report_page(results)
    (line,) = re.findall(r"<tr role=\"row\">(.*1/1</td>.*zero pages.*)</tr>", shown)
    cells = re.findall(r">([^<]*)</td>", line)
    assert cells == ["1 idle", "ksm", "1/1", "1.0", "1.0", "0.5", "0.0", "2.5", "2.0", "100.0", "78.3"]
    assert "By the page census a perfect KSM would save 2.5 of 3.0 MB/VM" in shown
    assert "census.json holds a record of kind None" in shown
    content = json.loads(summarize("--json"))
    seen, unusable = (summary["census"] for summary in content["summaries"])
    assert seen["ideal"] == pytest.approx((511 + 510 + 256) / 256 / 2)
    assert seen["efficiency_percent"] == pytest.approx(100 * 1000 / 1277)
    assert unusable is None
    assert any("census.json holds a record of kind None" in note for note in content["notes"])


def test_the_tidy_table_is_the_same_as_parquet(results: Path, summarize: Any, tmp_path: Path) -> None:
    store(results, synthetic_plan(focus="all", boots=2))
    path = tmp_path / "table.parquet"
    lines = pd.read_csv(io.StringIO(summarize("--csv", "--parquet", str(path))))
    stored = pd.read_parquet(path)
    assert list(stored.columns) == list(lines.columns)
    assert stored["freed_mib_per_vm"].tolist() == pytest.approx(lines["freed_mib_per_vm"].tolist())
    assert stored["workload"].tolist() == lines["workload"].tolist()


def test_parquet_without_pyarrow_says_what_to_install(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store(results, synthetic_plan())

    def without_pyarrow(*_words: object, **_named: object) -> None:
        raise ImportError("Missing optional dependency 'pyarrow'.")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", without_pyarrow)
    assert main(["summarize", "--results", str(results), "--parquet", str(tmp_path / "t.parquet")]) == 2
    assert "pip install -e '.[parquet]'" in capsys.readouterr().err


@pytest.mark.parametrize(("service", "said"), [("", 131), ("ksm-pacer", "from 20000")])
def test_a_knob_that_a_daemon_moves_is_told_by_what_it_began_with(service: str, said: object) -> None:
    asked = SimpleNamespace(service=service, ksm_knobs={"pages_to_scan": 20000, "smart_scan": 0})
    read_back = SimpleNamespace(ksm_knobs={"pages_to_scan": 131, "smart_scan": 0})
    cell: Any = SimpleNamespace(on=SimpleNamespace(requested=asked), provenance=read_back)
    assert asked_knobs(cell) == {"pages_to_scan": said, "smart_scan": 0}
