"""The filters of the playbook: what failed, in which phase, in which cell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from plugin_files import load

experiment = load("plugins/filter/experiment.py")


def failed(message: str = "", stderr: str = "", **task: Any) -> dict[str, Any]:
    return {"ansible_failed_task": task, "ansible_failed_result": {"msg": message, "stderr": stderr}}


def test_the_first_host_that_failed_is_named_with_what_it_said() -> None:
    hosts = {
        "guest01": {},
        "guest02": failed(
            "non-zero return code", "no memory\n", name="Fill", path="/p/roles/workload/tasks/main.yml:7"
        ),
        "localhost": failed("other", name="Boot"),
    }
    assert experiment.failure_of(hosts, ["guest01", "guest02", "localhost"]) == {
        "phase": "workload",
        "task": "Fill",
        "message": "guest02: non-zero return code: no memory",
    }


def test_a_guest_that_is_gone_is_a_failure_of_the_workload_that_names_it() -> None:
    """What Ansible 2.19 registers for a host whose SSH connection breaks."""
    gone = {"workload_start": {"unreachable": True, "msg": "Failed to connect to the host via ssh:\n closed"}}
    hosts = {"guest01": {"workload_start": {"stdout": "{}"}}, "guest02": gone}
    failure = experiment.failure_of(hosts, ["guest01", "guest02"])
    assert failure["phase"] == "workload"
    assert failure["message"] == (
        "guest02: it stopped answering, and may have ended: Failed to connect to the host via ssh: closed"
    )


def test_a_failure_that_nobody_tells_is_still_one() -> None:
    failure = experiment.failure_of({"guest01": {}}, ["guest01"])
    assert failure["phase"] == "workload" and failure["message"] == "a guest stopped answering"


@pytest.mark.parametrize(
    ("task", "phase"),
    [
        ({"path": "/p/roles/guests/tasks/main.yml:2"}, "boot"),
        ({"path": "/p/roles/workload/tasks/verify.yml:2"}, "workload"),
        ({"path": "/p/roles/ksm/tasks/unmerge.yml:2"}, "merge"),
        ({"path": "/home/ksm-guests/roles/workload/tasks/main.yml:2"}, "workload"),
        ({"path": "/home/ksm/playbooks/tasks/cell.yml:2"}, "boot"),
        (
            {
                "action": "measure_record",
                "args": {"phase": "on"},
                "path": "/p/roles/measure/tasks/main.yml:2",
            },
            "on",
        ),
        ({}, "boot"),
    ],
)
def test_the_phase_follows_from_the_role(task: dict[str, Any], phase: str) -> None:
    assert experiment.phase_of(task) == phase


def test_each_guest_of_a_mix_has_its_own_workload() -> None:
    does = experiment.FilterModule().filters()["guest_workloads"]
    assert does("constant_fill=1,idle=2", ["guest01", "guest02", "guest03"])["guest02"] == "idle"
    assert does("random_fill", ["guest01", "guest02"])["guest02"] == "random_fill"


def test_the_failed_cell_is_the_first_that_is_not_whole(tmp_path: Path) -> None:
    cells = [{"cell_id": name, "directory": str(tmp_path / name)} for name in ("first", "second", "third")]
    assert experiment.failed_cell(cells)["cell_id"] == "first"
    for name in ("first", "second", "third"):
        (tmp_path / name).mkdir()
        for kind in ("off", "merge", "on", "verify"):
            (tmp_path / name / f"{kind}.json").touch()
    (tmp_path / "second" / "on.json").unlink()
    assert experiment.failed_cell(cells)["cell_id"] == "second"
    (tmp_path / "second" / "on.json").touch()
    (tmp_path / "second" / "failed.json").touch()
    assert experiment.failed_cell(cells)["cell_id"] == "second"
    (tmp_path / "second" / "failed.json").unlink()
    assert experiment.failed_cell(cells)["cell_id"] == "third"
