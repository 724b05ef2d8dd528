"""Plans of schema version 1, as this version reads them."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from planned import planned, variables

from analysis.plan.design import (
    PROJECT,
    Design,
    DesignError,
    cell_directory,
)
from analysis.plan.runs import is_complete, make_plan, open_run, read_plan
from analysis.records.migration import migrate_plan
from analysis.records.models import PlanRecord

REFERENCE = PROJECT / "results" / "reference"
RUNS = sorted(path.parent for path in REFERENCE.glob("*/plan.json"))


def stored(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "plan.json").read_text())
    return content


def first_version(run: str = "reference-15") -> dict[str, Any]:
    content = stored(REFERENCE / run)
    assert content["schema_version"] == 1
    return content


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_every_reference_plan_fits_the_schema_and_finds_its_cells(run: Path) -> None:
    PlanRecord.model_validate_json(json.dumps(migrate_plan(stored(run))))
    plan = read_plan(run)
    assert [cell.cell_id for cell in plan.cells] == [cell["cell_id"] for cell in stored(run)["cells"]]
    assert all(is_complete(cell_directory(run, cell)) for cell in plan.cells)
    assert {cell.policy for cell in plan.cells} == set(plan.policies) == {"ksm"}


def test_repetitions_were_boots_and_foci_say_what_their_workload_says() -> None:
    content = first_version()
    migrated = migrate_plan(content)
    assert [(cell["workload"], cell["boot"], cell["repetition"]) for cell in migrated["cells"]] == [
        ("idle", 1, 1),
        ("constant_fill", 1, 1),
        ("random_fill", 1, 1),
        ("idle", 2, 1),
        ("constant_fill", 2, 1),
        ("random_fill", 2, 1),
    ]
    assert "focus" not in migrated["cells"][0]
    assert "order" not in migrated["cells"][0]
    design = migrated["design"]
    assert (design["guests"], design["boots"], design["repetitions"]) == ([15], 2, 1)
    assert (design["policies"], design["workloads"]) == (["ksm"], [])
    assert migrated["cell_order_seed"] is None
    assert migrated["design_digest"] == content["design_digest"]


def test_what_was_asked_of_the_host_then_is_the_policys_request() -> None:
    run = REFERENCE / "thp-never-4"
    (policy,) = migrate_plan(stored(run))["policies"].values()
    cell = read_plan(run).cells[0]
    record = json.loads((cell_directory(run, cell) / "on.json").read_text())
    assert record["schema_version"] == 1
    assert policy["requested"] == {**record["requested"], "policy": "ksm", "service": ""}
    assert policy["thp_enabled"] == "never"
    assert policy["knobs"] == record["requested"]["ksm_knobs"]


def test_the_workloads_of_a_mix_are_named() -> None:
    migrated = migrate_plan(first_version("mix-15"))
    assert sorted(migrated["workloads"]) == ["constant_fill", "idle", "random_fill"]
    assert migrated["cells"][0]["workload"] == "constant_fill=5,idle=5,random_fill=5"


def test_variables_that_a_plan_is_older_than_have_what_was_measured_then() -> None:
    content = first_version()
    for name in ("mix", "census", "guest_ssh_port_base"):
        content["design"].pop(name, None)
    design = migrate_plan(content)["design"]
    assert (design["mix"], design["census"], design["guest_ssh_port_base"]) == ("", False, 22200)


def test_nothing_is_changed_in_place_and_a_plan_of_today_not_at_all() -> None:
    content = first_version()
    before = copy.deepcopy(content)
    migrate_plan(content)
    assert content == before
    today = planned().to_json()
    assert migrate_plan(today) is today


def test_a_run_of_the_first_version_can_be_read_but_not_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "plan.json").write_text(json.dumps({**first_version(), "run_id": "old"}))
    assert read_plan(tmp_path / "old").loads == ["idle", "constant_fill", "random_fill"]
    new = make_plan(Design.from_variables(variables(focus="all", boots=2)), ["localhost"], "old")
    with pytest.raises(DesignError, match=r"^run_id old is of an earlier version, .* give another run_id\.$"):
        open_run(tmp_path, new)
