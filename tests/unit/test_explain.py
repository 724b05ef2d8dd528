"""The explanation of a run: each figure from the records, every host's ledger, outliers by name."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from synthetic import MIB, store, synthetic_failure, synthetic_plan
from synthetic_census import census_record

from analysis.__main__ import main
from analysis.commands.choosing import chosen_table
from analysis.measure.statistics import summarise
from analysis.plan.design import Cell, cell_directory
from analysis.records.loading import Run, load_run
from analysis.report.explanation import explain_all, explanation_json, explanation_parts, waterfalls
from analysis.report.summary import Answer
from analysis.report.tables import render

Records = dict[str, dict[str, Any]]


def answer(*runs: Run) -> Answer:
    chosen = chosen_table(runs)
    return Answer(tuple(summarise(chosen.table)), runs, left_out=chosen.left_out)


def explained(*runs: Run) -> str:
    seen = answer(*runs)
    return render(*explanation_parts(seen, explain_all(seen)))


def rows(text: str) -> Mapping[str, list[str]]:
    """The cells of each line by its name; of the lines of one name the last."""
    found = (re.split(r"  +", line.strip()) for line in text.splitlines())
    return {name: cells for name, *cells in found}


def text(results: Path, change: Any = None, **design: Any) -> str:
    return explained(load_run(store(results, synthetic_plan(**design), change)))


def test_the_measures_the_ledger_and_the_burndown(results: Path) -> None:
    found = text(results, focus="all", boots=3)
    seen = rows(found)
    assert seen["freed"] == ["92.0 ± 0.0"] * 3
    assert seen["gross"] == ["100.0 ± 0.0"] * 3
    assert seen["KSM's rmap_items"] == ["-8.0"] * 3
    assert seen["MemAvailable"] == ["92.0 ± 0.0"] * 3
    assert seen["the paper"] == ["50.6", "440.3", "31.6"]
    assert seen["MemAvailable less the paper"] == ["+41.4", "-348.3", "+60.4"]
    assert seen["50 % of the saving after, s"] == ["3.0"] * 3
    assert "guest memory swapped out" not in seen
    flowing = " ".join(found.split())
    assert "1 idle, ksm: freed 92.0 ± 0.0 MB/VM (95 % over 3 boots)." in flowing
    assert "The unexplained rest is +0.0 % of the change, within 5 %." in flowing
    assert "its 50.6 is 41.4 less, outside our interval" in flowing
    assert "max_page_sharing 256 at most 374.5" in flowing
    assert "none stands out" in flowing


def test_of_two_boots_nothing_is_said_of_the_papers_figure(results: Path) -> None:
    flowing = " ".join(text(results, boots=2).split())
    assert "freed 92.0 ± 0.0 MB/VM (2 boots: too few to conclude from)" in flowing
    assert "our interval" not in flowing


def test_every_hosts_ledger_is_shown(results: Path) -> None:
    def change(cell: Cell, records: Records) -> None:
        if cell.hypervisor == "host2":
            for record in records.values():
                record["provenance"]["cpu_model"] = "another CPU"

    saved = {"host1": 100, "host2": 60}
    plan = synthetic_plan(hosts=("host1", "host2"))
    run = load_run(store(results, plan, change, lambda cell: saved[cell.hypervisor]))
    found = explained(run)
    assert [line for line in found.splitlines() if re.match(r"host\d: 15", line)] == [
        f"{host}: 15 guests of 512 MB, restored from a checkpoint; policy ksm" for host in saved
    ]
    assert re.findall(r"^gross +(\S+)$", found, re.MULTILINE) == ["100.0", "60.0"]
    assert re.findall(r"^host\d: .* 2 x (.*), 23", found, re.MULTILINE) == ["synthetic CPU", "another CPU"]
    books = waterfalls(explain_all(answer(run)))
    assert [(book.name, book.start, book.end) for book in books] == [
        ("host1: 1 idle, ksm", 100.0, 92.0),
        ("host2: 1 idle, ksm", 60.0, 52.0),
    ]


def test_a_cell_without_a_ledger_is_named_and_the_others_are_explained(results: Path) -> None:
    def change(cell: Cell, records: Records) -> None:
        if cell.workload == "idle":
            for kind in ("off", "on"):
                del records[kind]["observed"]["host"]["meminfo"]["SUnreclaim_bytes"]

    found = text(results, change, focus="1,2")
    assert rows(found)["KSM's rmap_items"] == ["-", "-8.0"]
    assert rows(found)["gross"] == ["100.0", "100.0"]
    assert "its records lack SUnreclaim" in " ".join(found.split())


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
    found = explained(loaded)
    # 103 and 112, and not the 106 of three cells; the items lead from it to MemAvailable.
    assert rows(found)["gross"] == ["107.5 ± 57.2"]
    assert rows(found)["MemAvailable"] == ["99.5 ± 57.2"]
    assert "KSM's counters account for 107.5" in " ".join(found.split())
    (book,) = waterfalls(explain_all(answer(loaded)))
    assert book.start + sum(book.steps.values()) == pytest.approx(book.end)
    assert (book.start, book.end) == (107.5, 99.5)


def test_each_policy_is_a_block_of_its_own_that_names_it(results: Path) -> None:
    found = text(results, policies="ksm,advisor", focus="1,2")
    places = [line for line in found.splitlines() if line.startswith("host1: 15")]
    assert places == [
        f"host1: 15 guests of 512 MB, restored from a checkpoint; policy {policy}"
        for policy in ("ksm", "advisor")
    ]
    assert "1 idle, advisor: freed 92.0 MB/VM, no interval (1 boot). The host used 6620 MiB" in " ".join(
        found.split()
    )


def test_more_workloads_than_fit_side_by_side_go_below(results: Path) -> None:
    mixes = ("idle=5,random_fill=10", "idle=10,random_fill=5")
    plans = [
        synthetic_plan(run_id="foci", focus="all"),
        *(synthetic_plan(run_id=f"mix{n}", mix=mix) for n, mix in enumerate(mixes)),
    ]
    foci, *others = (load_run(store(results, plan)) for plan in plans)
    found = explained(replace(foci, cells=(*foci.cells, *(cell for run in others for cell in run.cells))))
    heads = [re.split("  +", line)[1:] for line in found.splitlines() if line.startswith("MB/VM, mean")]
    assert heads == [["1 idle", "2 constant fill", "3 random fill", "mix"], ["mix"]]


def test_a_mix_is_explained_without_the_paper_and_its_guests_by_workload(results: Path) -> None:
    mib = {"constant_fill": 400, "idle": 100, "random_fill": 40}

    def change(_cell: Cell, records: Records) -> None:
        for number in range(1, 16):
            smaps = records["on"]["observed"]["guests"][f"guest{number:02d}"]["smaps_rollup"]
            workload = list(mib)[(number - 1) // 5]
            smaps["Pss_bytes"] = (482 - mib[workload] - (number == 8) * 300) * MIB

    found = text(results, change, mix="constant_fill=5,idle=5,random_fill=5")
    assert "the paper" not in found
    flowing = " ".join(found.split())
    assert "Mix: constant_fill=5,idle=5,random_fill=5, ksm: freed" in flowing
    assert (
        "Each guest gave by PSS 400.0 to 400.0 MB (constant_fill), 100.0 to 400.0 MB (idle), 40.0 to 40.0 MB "
        "(random_fill); guest08 in boot 1 repetition 1 (400.0, +" in flowing
    )
    assert "stands out" in flowing


def test_each_guest_has_a_line_where_that_is_asked_for(results: Path) -> None:
    seen = answer(load_run(store(results, synthetic_plan(guests=2))))
    guests = [
        re.split("  +", line)
        for line in render(*explanation_parts(seen, explain_all(seen), each_guest=True)).splitlines()
        if "  guest0" in line
    ]
    # 25600 merged pages and 131072 rmap_items of 64 B
    assert guests == [["1 idle", f"guest0{n}", "100.0", "100.0", "8.0"] for n in (1, 2)]


def with_census(results: Path, focus: str = "1,2", boots: int = 2) -> Run:
    """Cells with a census of two guests; boot 2 of constant fill has none."""
    plan = synthetic_plan(focus=focus, boots=boots, guests=2)
    run = store(results, plan)
    # 6 pages each: 2 zero pages, a content twice, one that both have, and one of its own.
    guests = {"guest01": [0, 0, 1, 1, 2, 3], "guest02": [0, 0, 4, 4, 2, 5]}
    for cell in plan.cells:
        if (cell.workload, cell.boot) == ("constant_fill", 2):
            continue
        saved = 6 if cell.workload == "idle" else 3
        merged = {"mapped_pages": saved + 1, "frames": 1, "zero_pages": 0}
        record = census_record(guests, cell=cell, merged=merged, pages_sharing=7)
        (cell_directory(run, cell) / "census.json").write_text(json.dumps(record))
    return load_run(run)


def test_a_census_is_shown_with_the_efficiency_of_its_moment(results: Path) -> None:
    run = with_census(results)
    found = explained(run)
    assert rows(found)["efficiency, %"] == ["100.0", "50.0"]
    assert "By the page census (1 of 2 cells) a perfect KSM" in " ".join(found.split())
    seen = answer(run)
    first, second = json.loads(explanation_json(seen, explain_all(seen)))["explained"]
    # Of 12 pages 3 of 4 zero pages go, 2 within a guest, 1 between them; 4 KiB pages, 2 guests.
    assert first["census"]["zero"] == pytest.approx(3 / 256 / 2)
    assert first["census"]["ideal"] == pytest.approx(6 / 256 / 2)
    assert (first["census"]["counted"], second["census"]["counted"]) == (2, 1)


def test_a_run_without_a_census_says_nothing_of_one(results: Path) -> None:
    assert "census" not in text(results)


def test_a_census_of_another_cell_or_a_damaged_one_is_named_and_not_used(results: Path) -> None:
    plan = synthetic_plan(focus="1,2")
    run = store(results, plan)
    second, first = sorted(plan.cells, key=lambda cell: cell.workload)
    other = json.dumps(census_record({"guest01": [1, 1]}, cell=first))
    (cell_directory(run, first) / "census.json").write_text("{")
    (cell_directory(run, second) / "census.json").write_text(other)
    found = " ".join(explained(load_run(run)).split())
    assert "census.json" in found
    assert "of another cell or run" in found
    assert "perfect KSM" not in found
    # The cells themselves are explained all the same.
    assert "2 constant fill, ksm: freed 92.0" in found


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
    assert "1 idle, ksm: freed 92.0" in found


def test_a_run_without_a_usable_cell_explains_nothing(results: Path) -> None:
    run = load_run(store(results, synthetic_plan(), lambda _cell, records: records.clear()))
    assert explain_all(answer(run)) == []


def test_json_holds_the_items_the_course_and_the_guests(results: Path) -> None:
    seen = answer(load_run(store(results, synthetic_plan(guests=2))))
    content = json.loads(explanation_json(seen, explain_all(seen)))
    (line,) = content["explained"]
    steps = line["ledger"]["to_mem_available"]
    assert steps["KSM's rmap_items"] == -8.0
    assert 100.0 + sum(steps.values()) == pytest.approx(92.0)
    assert line["course"]["seconds_to_50_percent"] == 3.0
    assert line["guests"]["guest01"]["guest_pss_drop_mib"] == 100.0
    assert line["estimates"]["freed_mib_per_vm"]["mean"] == 92.0
    assert content["quantities"]["guest_pss_drop_mib"]["unit"] == "MB"


def test_what_pages_held_is_drawn_for_each_line_that_has_a_census(results: Path, tmp_path: Path) -> None:
    plan = synthetic_plan(workloads="idle", boots=1, guests=2)
    (cell,) = plan.cells
    # By hand, of 2 guests: 1024 zero pages, of which one stays; one content 257 times in a guest; 512 that
    # both have: 1023, 256 and 512 pages of 4 KiB, of which KSM has merged 1280
    both = range(2, 514)
    guests = {"guest01": [0] * 512 + [1] * 257 + [*both], "guest02": [0] * 512 + [*both]}
    merged = {"mapped_pages": 1281, "frames": 1, "zero_pages": 0}
    record = census_record(guests, cell=cell, merged=merged, pages_sharing=1280)
    directory = store(results, plan)
    (cell_directory(directory, cell) / "census.json").write_text(json.dumps(record))
    path = tmp_path / "contents.svg"
    assert main(["explain", "--results", str(results), "--contents", str(path)]) == 0
    drawn = path.read_text()
    assert drawn.count("<svg") == 1
    assert "1 idle, ksm, zero pages: 2.0 MB/VM" in drawn
    assert "1 idle, ksm, duplicates within a guest (I): 0.5 MB/VM" in drawn
    assert "1 idle, ksm, duplicates between guests (D): 1.0 MB/VM" in drawn
    assert "1 idle, ksm, saved by KSM then: 2.5 MB/VM" in drawn
