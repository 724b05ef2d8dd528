"""The filters of the playbooks: what each guest holds, what it answered, what failed in which phase."""

from __future__ import annotations

from typing import Any

import pytest
from plugin_files import load

from analysis.plan.workloads import read_workload, workload_names

experiment = load("plugins/filter/experiment.py")
FILTERS = experiment.FilterModule().filters()
WORKLOADS = {name: read_workload(name).to_json() for name in workload_names()}
THREE = ["guest01", "guest02", "guest03"]
CONSTANT = [{"content": "constant", "percent": 100}]
RANDOM = [{"content": "random", "percent": 100}]


def test_each_guest_of_a_mix_holds_what_its_workload_says() -> None:
    segments = FILTERS["guest_segments"]
    assert segments(THREE, THREE, "constant_fill=1,idle=1,random_fill=1", WORKLOADS) == {
        "guest01": CONSTANT,
        "guest02": [],
        "guest03": RANDOM,
    }
    assert segments(THREE, THREE, "idle", WORKLOADS) == {name: [] for name in THREE}


def test_only_the_guests_that_came_to_the_barrier_now_are_filled_by_their_place_among_all() -> None:
    answers = {"guest03": {"available_bytes": 1}, "guest01": {"available_bytes": 1}}
    found = FILTERS["guest_segments"](answers, THREE, "constant_fill=2,random_fill=1", WORKLOADS)
    assert found == {"guest03": RANDOM, "guest01": CONSTANT}


def test_guests_that_run_an_application_are_told_which_by_their_place() -> None:
    applications = FILTERS["guest_applications"]
    found = applications(["guest02", "guest03"], THREE, "idle=1,nginx=1,redis=1", WORKLOADS)
    assert {name: one["name"] for name, one in found.items()} == {"guest02": "nginx", "guest03": "redis"}
    assert found["guest03"]["ready"] == WORKLOADS["redis"]["application"]["ready"]
    assert applications(THREE, THREE, "idle", WORKLOADS) == {}
    # A cell that failed before it had guests
    assert applications({}, {}, "idle=1,redis=1", WORKLOADS) == {}


@pytest.mark.parametrize(
    ("load_", "kept"),
    [
        ("random_fill", True),
        ("constant_fill", False),
        ("idle", False),
        ("idle=5,random_fill=1", True),
        ("constant_fill=2,idle=2", False),
    ],
)
def test_a_load_is_kept_where_its_files_say_so(load_: str, kept: bool) -> None:
    assert FILTERS["keeps_load"](load_, WORKLOADS) is kept


def test_a_mix_is_loaded_before_its_checkpoint_where_its_workload_alone_is_and_after_it_otherwise() -> None:
    mix = "constant_fill=1,idle=1,random_fill=1"
    segments = FILTERS["guest_segments"]
    assert segments(THREE, THREE, mix, WORKLOADS, kept=True) == {"guest03": RANDOM}
    assert segments(THREE, THREE, mix, WORKLOADS, kept=False) == {"guest01": CONSTANT, "guest02": []}
    contents = FILTERS["load_contents"]
    assert contents(mix, WORKLOADS) == {"constant_fill": [], "idle": [], "random_fill": RANDOM}
    assert contents("random_fill", WORKLOADS) == {"random_fill": RANDOM}
    assert contents("idle=5,random_fill=1", WORKLOADS) == {"idle": [], "random_fill": RANDOM}


@pytest.mark.parametrize(
    ("load_", "restored_loaded", "loaded"),
    [
        ("random_fill", True, True),
        ("idle=2,random_fill=1", True, True),
        ("constant_fill=2,random_fill=1", True, False),
        ("constant_fill", False, False),
    ],
)
def test_a_start_is_loaded_where_its_checkpoint_holds_all_that_is_filled(
    load_: str, restored_loaded: bool, loaded: bool
) -> None:
    start = FILTERS["start_with"]({"from": "checkpoint", "loaded": restored_loaded}, load_, WORKLOADS)
    assert start == {"from": "checkpoint", "loaded": loaded}
    assert FILTERS["start_with"](None, load_, WORKLOADS) is None


def test_reports_are_of_the_load_that_came_with_the_checkpoint_and_of_the_one_made_now() -> None:
    reports = FILTERS["workload_reports"]
    domains = {"guest01": "ksm-testbed-guest01", "guest02": "ksm-testbed-guest02"}
    kept = {"guest01": {"digest": "kept"}, "guest02": {"digest": "kept"}, "guest03": {"digest": "of more"}}
    now = {"answers": {"guest02": {"digest": "now"}}}
    kept_loaded = {"domains": domains, "load": {"reports": kept}}
    assert reports(kept_loaded, {"skipped": True}) == {name: kept[name] for name in domains}
    # Of a mix one guest came loaded, and the other was loaded after that
    one_kept = {"domains": domains, "load": {"reports": {"guest01": {"digest": "kept"}}}}
    assert reports(one_kept, now) == {"guest01": {"digest": "kept"}, **now["answers"]}
    assert reports({"domains": domains, "load": {}}, now) == now["answers"]
    assert reports({"domains": domains, "load": {}}, {"skipped": True}) == {}
    assert reports({}, {}) == {}


def test_members_of_answers() -> None:
    answers = {"guest01": {"digest": "a", "seed": "s"}, "guest02": {"digest": "b", "seed": "t"}}
    assert FILTERS["member"](answers, "digest") == {"guest01": "a", "guest02": "b"}


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ({"msg": "guest02 ended while it booted"}, "host1: guest02 ended while it booted"),
        (
            {"msg": "non-zero return code", "stderr": "no memory\n"},
            "host1: non-zero return code: no memory",
        ),
        ({"msg": None, "stderr": "no memory\n"}, "host1: no memory"),
        ({"unreachable": True, "msg": "Failed to connect"}, "host1: Failed to connect"),
    ],
)
def test_what_failed_is_told_with_its_host_and_task(result: dict[str, Any], message: str) -> None:
    task = {"name": "Restore the guests", "action": "guests", "args": {}}
    assert FILTERS["failure_of"](task, result, "host1") == {
        "phase": "restore",
        "task": "Restore the guests",
        "message": message,
    }


def test_a_task_that_nobody_named_is_still_one() -> None:
    assert FILTERS["failure_of"]({}, {}, "host1")["task"] == "unknown task"


@pytest.mark.parametrize(
    ("task", "phase"),
    [
        ({"action": "ksm", "args": {"state": "applied"}}, "restore"),
        ({"action": "guests", "args": {"state": "restored"}}, "restore"),
        ({"action": "workload", "args": {"state": "loaded"}}, "load"),
        ({"action": "measure_record", "args": {"phase": "off"}}, "off"),
        ({"action": "measure_record", "args": {"phase": "on"}}, "on"),
        ({"action": "measure_record", "args": {}}, "merge"),
        ({"action": "ksm_testbed.host.measure_record", "args": {"phase": "verify"}}, "verify"),
        ({"action": "census_record"}, "census"),
        ({"action": "ansible.builtin.command"}, "restore"),
        ({"action": "workload", "args": None}, "load"),
        ({"action": "ansible.builtin.command", "vars": {"phase": "on"}}, "on"),
        ({"action": "measure_record", "args": {"phase": "off"}, "vars": {"phase": "on"}}, "off"),
        ({}, "restore"),
    ],
)
def test_the_phase_follows_from_the_action(task: dict[str, Any], phase: str) -> None:
    assert experiment.phase_of(task) == phase
