"""Records of version 1: every published one loads, and the figures are those that were published."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from analysis.measure.statistics import summarise
from analysis.measure.table import tidy
from analysis.plan.design import PROJECT, RECORD_KINDS
from analysis.records.loading import load_run
from analysis.records.migration import migrate_capacity, migrate_census, migrate_forecast, migrate_record
from analysis.records.models import SnapshotRecord

REFERENCE = PROJECT / "results/reference"
RUNS = sorted(path.parent for path in REFERENCE.glob("*/plan.json"))


def refused(content: Any) -> bool:
    try:
        SnapshotRecord.model_validate_json(json.dumps(content))
    except ValidationError:
        return True
    return False


def stored(path: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((REFERENCE / path).read_text())
    return content


def test_a_record_says_the_policy_the_boot_and_the_start() -> None:
    first = stored("reference-15/localhost/focus1-idle-guests15-rep2/on.json")
    before = json.loads(json.dumps(first))
    found = migrate_record(first)
    assert first == before
    assert found["schema_version"] == 2
    assert found["cell"] == {
        "hypervisor": "localhost",
        "cell_id": "focus1-idle-guests15-rep2",
        "workload": "idle",
        "policy": "ksm",
        "guests": 15,
        "guest_memory_bytes": 512 << 20,
        "boot": 2,
        "repetition": 1,
    }
    assert found["requested"] == {**first["requested"], "policy": "ksm", "service": ""}
    assert found["provenance"].pop("start") == {
        "from": "boot",
        "checkpoint": None,
        "booted_at": None,
        "boot_seconds": None,
        "restore_seconds": None,
        "loaded": False,
        "arm_order": "on-off",
    }
    assert found["provenance"] == first["provenance"]
    assert found["observed"] == first["observed"]
    assert migrate_record(found) == found


@pytest.mark.parametrize("damaged", [None, [], {}, {"schema_version": 1}, {"schema_version": 1, "cell": 1}])
def test_what_is_no_record_is_left_to_the_schema(damaged: Any) -> None:
    for migrate in (migrate_record, migrate_capacity, migrate_forecast):
        assert migrate(damaged) == damaged
    assert refused(damaged)


def test_a_census_outside_an_experiment_has_no_cell() -> None:
    assert migrate_census({"schema_version": 1, "cell": None}) == {"schema_version": 2, "cell": None}
    assert migrate_census({"schema_version": 1, "cell": 1}) == {"schema_version": 1, "cell": 1}
    assert migrate_census(None) is None


def test_a_damaged_cell_of_version_1_is_left_to_the_schema() -> None:
    first = stored("reference-15/localhost/focus1-idle-guests15-rep2/on.json")
    del first["cell"]["order"]
    assert migrate_record(first) == first
    assert refused(first)


@pytest.mark.parametrize("directory", RUNS, ids=lambda path: str(path.name))
def test_every_published_run_loads_whole(directory: Path) -> None:
    run = load_run(directory)
    assert run.cells
    assert [(cell.status, cell.problem) for cell in run.cells] == [("complete", "")] * len(run.cells)
    for cell in run.cells:
        assert {*RECORD_KINDS} == cell.stored.keys()
        assert cell.census is None or cell.census.cell == cell.cell


def test_there_are_published_runs_and_censuses() -> None:
    assert len(RUNS) == 8
    assert len(list(REFERENCE.glob("*/*/*/census.json"))) == 19


# As summarize printed them before, for runs of one repetition: used off and on in MiB; saved by MemAvailable,
# gross, general_profit and PSS in MB/VM; settled after seconds; ksmd's CPU seconds.
SHOWN = {
    "used_available_off_mib": 0,
    "used_available_on_mib": 0,
    "mem_available_mib_per_vm": 1,
    "gross_mib_per_vm": 1,
    "general_profit_mib_per_vm": 1,
    "pss_mib_per_vm": 1,
    "converged_after_seconds": 1,
    "ksmd_cpu_seconds": 1,
}
PUBLISHED = {
    ("calibration-2", "idle"): (1134, 973, 80.5, 58.5, 55.7, 87.2, 3.0, 2.3),
    ("calibration-2", "constant_fill"): (1736, 926, 405.1, 409.8, 402.0, 409.8, 3.0, 2.0),
    ("calibration-2", "random_fill"): (1789, 1638, 75.5, 30.0, 22.2, 30.0, 9.0, 7.9),
}


@pytest.mark.parametrize(("run", "workload"), PUBLISHED)
def test_the_published_figures_are_unchanged(run: str, workload: str) -> None:
    summaries = summarise(tidy([load_run(REFERENCE / run)]))
    (found,) = (one for one in summaries if one.workload == workload)
    assert (found.policy, found.variant, found.boots) == ("ksm", "ksm", (1,))
    shown = [(found.estimates[name], places) for name, places in SHOWN.items()]
    rounded = tuple(None if value is None else round(value.mean, places) for value, places in shown)
    assert rounded == PUBLISHED[run, workload]


def test_the_arms_of_abba_are_lines_of_their_own_with_their_own_figures() -> None:
    summaries = summarise(tidy([load_run(REFERENCE / "reference-15")]))
    saved = {(one.workload, one.variant): one.estimates["mem_available_mib_per_vm"] for one in summaries}
    assert {key: round(value.mean, 1) for key, value in saved.items() if value is not None} == {
        ("idle", "ksm"): 119.1,
        ("idle", "KSM on first"): 90.6,
        ("constant_fill", "ksm"): 428.3,
        ("constant_fill", "KSM on first"): 430.8,
        ("random_fill", "ksm"): 45.3,
        ("random_fill", "KSM on first"): 57.4,
    }
    assert {value.half_width for value in saved.values() if value is not None} == {None}
