"""An interrupted run says which cell it hit, in a record that fits the schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from analysis.design import PROJECT, Design, DesignError, cell_directory, make_plan, open_run
from analysis.interruption import record_interruption


def variables(**given: Any) -> dict[str, Any]:
    defaults = yaml.safe_load((PROJECT / "inventory/group_vars/all/experiment.yml").read_text())
    del defaults["results_directory"]
    return {**defaults, **given}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    design = Design.from_variables(variables(focus="2,3", orders="on-off"))
    plan = make_plan(design, ["host1", "host2"], "run1")
    open_run(tmp_path, plan)
    done = cell_directory(tmp_path / "run1", plan.cells[0])
    done.mkdir(parents=True)
    for kind in ("off", "merge", "on", "verify"):
        (done / f"{kind}.json").write_text("{}")
    half = cell_directory(tmp_path / "run1", plan.cells[1])
    half.mkdir(parents=True)
    (half / "merge.json").write_text("{}")
    return tmp_path / "run1"


def test_the_first_incomplete_cell_of_each_hypervisor_is_hit(run: Path) -> None:
    written = record_interruption(run)
    assert [path.relative_to(run).parts[:2] for path in written] == [
        ("host2", "focus2-constant_fill-guests15-rep1"),
        ("host1", "focus3-random_fill-guests15-rep1"),
    ]
    assert (run / "host2/focus2-constant_fill-guests15-rep1/merge.json").exists()
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in written)


def test_the_record_fits_the_schema_and_names_the_phase(run: Path) -> None:
    schema = json.loads((PROJECT / "analysis/schema/record.schema.json").read_text())
    records = [json.loads(path.read_text()) for path in record_interruption(run)]
    for record in records:
        Draft202012Validator(schema).validate(record)
    # order on-off: merge is there, so it was hit while it measured with KSM on
    assert [record["observed"]["phase"] for record in records] == ["on", "merge"]


def test_a_failure_that_is_recorded_already_is_kept(run: Path) -> None:
    record_interruption(run)
    assert record_interruption(run) == []


def test_a_directory_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DesignError, match="is not a run"):
        record_interruption(tmp_path)
