"""An interrupted run says which cell it hit, in which phase and task, in a record that fits the schema."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from planned import RUN_ID, complete, planned

from analysis.plan.design import Cell, DesignError, cell_directory
from analysis.plan.runs import open_run
from analysis.progress.interruption import record_interruption
from analysis.records.models import FailedRecord, PlanRecord
from analysis.records.reading import RecordError, read_record

HIT = ("merge", "Follow until settled")


@pytest.fixture
def plan(tmp_path: Path) -> PlanRecord:
    given = {"focus": "2,3", "policies": "advisor", "ksm_knobs": {"sleep_millisecs": 7}}
    return open_run(tmp_path, planned(hosts=("host1", "host2"), **given))


def last(plan: PlanRecord, hypervisor: str) -> Cell:
    return next(cell for cell in reversed(plan.cells) if cell.hypervisor == hypervisor)


def test_the_cell_that_was_measured_says_so_and_no_other(tmp_path: Path, plan: PlanRecord) -> None:
    run, cell = tmp_path / RUN_ID, last(plan, "host2")
    (written,) = record_interruption(run, {"host2": (cell.cell_id, *HIT)})
    assert written == cell_directory(run, cell) / "failed.json"
    assert written.stat().st_mode & 0o777 == 0o600
    assert written.parent.stat().st_mode & 0o777 == 0o700
    assert [path for path in run.rglob("*.json") if path.name != "plan.json"] == [written]


def test_where_it_is_not_told_nothing_is_written(tmp_path: Path, plan: PlanRecord) -> None:
    assert plan.cells
    assert record_interruption(tmp_path / RUN_ID, {}) == []
    assert list((tmp_path / RUN_ID).iterdir()) == [tmp_path / RUN_ID / "plan.json"]


@pytest.mark.parametrize("phase", ["restore", "load", "off", "merge", "on", "census", "verify"])
def test_the_record_fits_the_schema_and_names_the_phase_and_the_task(
    tmp_path: Path, plan: PlanRecord, phase: str
) -> None:
    cell = last(plan, "host1")
    (written,) = record_interruption(tmp_path / RUN_ID, {"host1": (cell.cell_id, phase, "Wait for all")})
    record = json.loads(written.read_text())
    assert read_record(written, FailedRecord).to_json() == record
    said = {"phase": phase, "task": "Wait for all", "message": "interrupted by the user"}
    assert record["observed"] == said
    assert record["cell"] == asdict(cell)
    assert record["requested"] == plan.policies["advisor"].requested.to_json()
    assert record["requested"]["ksm_knobs"]["sleep_millisecs"] == 7
    assert record["provenance"]["design_digest"] == plan.design_digest
    assert record["provenance"]["start"] is None


def test_what_was_measured_of_the_cell_is_kept_beside_it(tmp_path: Path, plan: PlanRecord) -> None:
    run, cell = tmp_path / RUN_ID, last(plan, "host1")
    cell_directory(run, cell).mkdir(parents=True)
    (cell_directory(run, cell) / "off.json").write_text("off")
    assert record_interruption(run, {"host1": (cell.cell_id, *HIT)})
    assert (cell_directory(run, cell) / "off.json").read_text() == "off"


def test_a_cell_that_is_complete_or_has_failed_is_left_as_it_is(tmp_path: Path, plan: PlanRecord) -> None:
    run, done, failed = tmp_path / RUN_ID, last(plan, "host1"), last(plan, "host2")
    complete(run, plan, done)
    hit = {"host1": (done.cell_id, *HIT), "host2": (failed.cell_id, *HIT)}
    (written,) = record_interruption(run, hit)
    before = written.read_text()
    assert record_interruption(run, hit) == []
    assert written.read_text() == before
    assert not (cell_directory(run, done) / "failed.json").exists()


def test_a_cell_that_the_run_has_not_is_refused(tmp_path: Path, plan: PlanRecord) -> None:
    assert plan.cells
    with pytest.raises(DesignError, match=r"has no cell idle-ksm-guests15-boot1-rep1 on host1\.$"):
        record_interruption(tmp_path / RUN_ID, {"host1": ("idle-ksm-guests15-boot1-rep1", *HIT)})


def test_a_directory_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="is not a run"):
        record_interruption(tmp_path, {"host1": ("x", *HIT)})
