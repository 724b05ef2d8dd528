"""A capacity run's variables, when it stops, and which step comes next."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from planned import play_action, variables
from synthetic_capacity import MIB, capacity_record

from analysis.plan.capacity_design import CapacityDesign, arms, check_variables, next_guests, stop
from analysis.plan.design import PROJECT, Design, DesignError
from analysis.records.models import StepObserved

VARIABLES = yaml.safe_load((PROJECT / "inventory/group_vars/all/capacity.yml").read_text())
EXPERIMENT = variables()
DESIGN = CapacityDesign.from_variables(VARIABLES)


def refused(**changes: Any) -> str:
    with pytest.raises(DesignError) as error:
        CapacityDesign.from_variables({**VARIABLES, **changes})
    return str(error.value)


def test_the_defaults_and_strings_from_the_command_line() -> None:
    assert DESIGN.envelope_bytes == 8192 * MIB
    given = CapacityDesign.from_variables(
        {**VARIABLES, "capacity_envelope_mib": "0", "capacity_divergence": "false"}
    )
    assert given.envelope_bytes is None
    assert given.divergence is False


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"capacity_workload": "busy"},
            "capacity_workload names 'busy', which does not exist: there are build, constant_fill, ",
        ),
        ({"capacity_workload": "idle,random_fill"}, "names 'idle,random_fill', which does not exist"),
        ({"capacity_workload": "idle=5,busy=5"}, "capacity_workload names 'busy', which does not exist"),
        (
            {"capacity_workload": "idle=1,redis=1"},
            "capacity_workload names redis, an application, whose guests",
        ),
        ({"capacity_workload": "idle=5"}, "a mix of two workloads or more"),
        ({"capacity_policy": "kms"}, "capacity_policy names 'kms', which does not exist: there are advisor"),
        ({"capacity_policy": "off"}, "capacity_policy names off, which is measured anyway: allowed are"),
        ({"capacity_most_guests": 0}, "capacity_most_guests is 0: allowed is a whole number from 1 to 999"),
        ({"capacity_most_guests": 1000}, "capacity_most_guests is 1000"),
        ({"capacity_step_guests": 0}, "capacity_step_guests is 0"),
        ({"capacity_envelope_mib": "big"}, "capacity_envelope_mib is 'big'"),
        ({"capacity_probe_seconds": None}, "capacity_probe_seconds is not set"),
        ({"capacity_probes": -1}, "capacity_probes is -1: allowed is a whole number from 0 to 100"),
        ({"capacity_step": 3}, "capacity_step is not a variable of a capacity run"),
    ],
)
def test_a_wrong_variable_is_named(changes: dict[str, Any], words: str) -> None:
    assert words in refused(**changes)


def test_what_chooses_an_experiments_cells_is_not_looked_at() -> None:
    given = {"guests": "2,4", "mix": "idle=1,random_fill=1", "policies": "kms", "focus": 9, "repetitions": 5}
    capacity, design = check_variables(VARIABLES, {**EXPERIMENT, **given})
    assert capacity == DESIGN
    assert (design.loads, design.policies, design.guests) == (("constant_fill",), ("ksm",), (64,))
    assert capacity.digest(design) == capacity.digest(check_variables(VARIABLES, EXPERIMENT)[1])


def test_a_mix_is_shares_of_any_number_of_guests() -> None:
    mixed = {**VARIABLES, "capacity_workload": "random_fill=1,idle=2"}
    capacity, design = check_variables(mixed, EXPERIMENT)
    assert capacity.workload == "idle=2,random_fill=1"
    assert (design.loads, design.guests) == (("idle", "random_fill"), (64,))


def test_wrong_variables_of_both_kinds_are_named_at_once() -> None:
    with pytest.raises(DesignError) as error:
        check_variables({**VARIABLES, "capacity_policy": "kms"}, {**EXPERIMENT, "accelerator": "xen"})
    assert "capacity_policy names 'kms'" in str(error.value)
    assert "accelerator is 'xen'" in str(error.value)


@pytest.mark.parametrize("policy", ["ksmtuned", "pacer"])
def test_a_policy_that_runs_a_service_is_refused_since_no_step_starts_it(policy: str) -> None:
    with pytest.raises(DesignError, match=rf"^capacity_policy is {policy}, which runs the service ksm"):
        check_variables({**VARIABLES, "capacity_policy": policy}, EXPERIMENT)


def test_every_guest_that_may_be_started_needs_a_port() -> None:
    most = {**VARIABLES, "capacity_most_guests": 999}
    check_variables(most, {**EXPERIMENT, "guest_ssh_port_base": 64536})
    with pytest.raises(DesignError, match=r"^guest_ssh_port_base is 64537: allowed is up to 64536, for each"):
        check_variables(most, {**EXPERIMENT, "guest_ssh_port_base": 64537})


def test_the_arms_are_off_and_the_policy_and_differ_in_ksm_alone() -> None:
    given = {"thp_enabled": "never", "ksm_knobs": {"sleep_millisecs": 5}}
    _, design = check_variables({**VARIABLES, "capacity_policy": "advisor"}, {**EXPERIMENT, **given})
    off, on = arms(design).values()
    assert list(arms(design)) == ["off", "advisor"]
    assert (off["run"], off["knobs"], on["run"], on["knobs"]["sleep_millisecs"]) == (0, {}, 1, 5)
    assert off["thp_enabled"] == on["thp_enabled"] == "never"
    differ = {name for name, value in on["requested"].items() if off["requested"][name] != value}
    assert differ == {"policy", "ksm_knobs"}
    assert (off["requested"]["policy"], on["requested"]["policy"]) == ("off", "advisor")


def test_another_policy_or_workload_is_another_run() -> None:
    def digest(**changes: Any) -> str:
        capacity, design = check_variables({**VARIABLES, **changes}, EXPERIMENT)
        return capacity.digest(design)

    assert digest() == digest(capacity_policy="ksm")
    assert len({digest(), digest(capacity_policy="advisor"), digest(capacity_workload="idle")}) == 3


def capacity_plan(directory: Path, **changes: Any) -> dict[str, Any]:
    """The result of the action."""
    arguments = {
        "experiment": EXPERIMENT,
        "capacity": {**VARIABLES, **changes},
        "directory": str(directory),
        "run_id": "some",
    }
    return play_action(directory, {"capacity_plan": arguments})


def test_the_action_returns_the_arms_and_refuses_a_run_that_exists(tmp_path: Path) -> None:
    planned = capacity_plan(tmp_path)
    folder = tmp_path / "capacity" / "some"
    assert (planned["run_id"], planned["directory"]) == ("some", str(folder))
    assert planned["arms"] == [{"boot": 1, "policy": "off"}, {"boot": 1, "policy": "ksm"}]
    assert planned["policies"] == arms(check_variables(VARIABLES, EXPERIMENT)[1])
    assert list(planned["workloads"]) == ["constant_fill"]
    assert (planned["most_guests"], planned["guest_memory_bytes"]) == (64, 512 * MIB)
    assert planned["capacity"]["policy"] == "ksm"
    assert not (tmp_path / "capacity").exists()
    folder.mkdir(parents=True)
    assert capacity_plan(tmp_path)["msg"] == f"run_id some exists as {folder}: give another run_id."


def test_the_action_fails_in_the_designs_words(tmp_path: Path) -> None:
    refused = capacity_plan(tmp_path, capacity_step_guests=0)
    assert refused["failed"]
    assert refused["msg"] == "capacity_step_guests is 0: allowed is a whole number from 1 to 64."


def test_the_cgroup_leaves_room_for_a_guest_that_is_started_and_the_probes() -> None:
    experiment = Design.from_variables(EXPERIMENT)
    assert DESIGN.limit_bytes(experiment, 160) == (8192 + 512 + 160 + 5 * 16) * MIB
    # However many guests a step has: several are started only where they fit.
    assert replace(DESIGN, step_guests=3).limit_bytes(experiment, 160) == DESIGN.limit_bytes(experiment, 160)
    # Without an envelope the host's memory takes the guest.
    with pytest.raises(DesignError, match="is 700: a guest and the probes may take 752 MiB"):
        replace(DESIGN, envelope_mib=0, stop_available_mib=700).limit_bytes(experiment, 160)


def test_each_boot_has_its_arms_and_its_checkpoint(tmp_path: Path) -> None:
    arguments = {
        "experiment": {**EXPERIMENT, "boots": 2, "first_boot": 3},
        "capacity": VARIABLES,
        "directory": str(tmp_path),
        "run_id": "some",
        "hypervisors": ["localhost"],
    }
    planned = play_action(tmp_path, {"capacity_plan": arguments})
    assert [(arm["boot"], arm["policy"]) for arm in planned["arms"]] == [
        (3, "off"),
        (3, "ksm"),
        (4, "off"),
        (4, "ksm"),
    ]
    needs = [need["checkpoint"] for need in planned["disk_needs"]["localhost"] if "checkpoint" in need]
    assert [(need["boot"], need["guests"]) for need in needs] == [(3, 64), (4, 64)]


def observed(**changes: Any) -> StepObserved:
    record = copy.deepcopy(capacity_record())
    host = record["observed"]["host"]["meminfo"]
    host["MemAvailable_bytes"] = changes.get("available_mib", 8000) * MIB
    window = record["observed"]["window"]
    window["psi_some_microseconds"]["memory"] = changes.get("stalled_us", 0)
    window["vmstat"] |= changes.get("vmstat", {})
    if changes.get("silent"):
        record["observed"]["probes"][1]["answer"] = None
    if changes.get("guests") == 0:
        record["observed"]["probes"] = []
    return StepObserved.model_validate_json(json.dumps(record["observed"]))


@pytest.mark.parametrize(
    ("used_mib", "changes", "measure", "words"),
    [
        (8193, {}, "used_mib", "the envelope of 8192 MiB is full: 8193 MiB are used"),
        (1600, {"silent": True}, "silent_guests", "no answer from guest02"),
        (1600, {"available_mib": 2047}, "available_mib", "the host has only 2047 MiB available"),
        (1600, {"vmstat": {"oom_kill": 1}}, "oom_kills", "the kernel killed 1 processes"),
        # 10 s of probes, of which 10.1 % were spent waiting.
        (
            1600,
            {"stalled_us": 1_010_000},
            "psi_memory_percent",
            "waited for memory during 10.1 % of the time",
        ),
        (1600, {"vmstat": {"pswpout": 101}}, "swapped_pages_per_second", "swapped 10 pages a second"),
        (1600, {"vmstat": {"pgmajfault": 1001}}, "major_faults_per_second", "100 major faults a second"),
    ],
)
def test_each_limit_ends_an_arm_and_says_why(
    used_mib: float, changes: dict[str, Any], measure: str, words: str
) -> None:
    found = stop(DESIGN, observed(**changes), used_mib * MIB)
    assert found is not None
    assert (found["measure"], words in str(found["reason"])) == (measure, True), found


def test_just_below_every_limit_goes_on() -> None:
    seen = observed(available_mib=2048, stalled_us=999_999, vmstat={"pswpin": 100, "pgmajfault": 1000})
    assert stop(DESIGN, seen, 8192 * MIB) is None


def test_without_a_guest_a_moments_faults_are_no_limit() -> None:
    hurried = {"vmstat": {"pgmajfault": 5000}, "stalled_us": 9_000_000, "guests": 0}
    assert stop(DESIGN, observed(**hurried), 0) is None
    assert stop(DESIGN, observed(**hurried, available_mib=1), 0) is not None


def walk(each_mib: float, step: int, most: int = 64) -> list[int]:
    """The steps of an arm whose guests, of 672 MiB before they are merged, need so much each in 8192 MiB."""
    design, steps, at = replace(DESIGN, step_guests=step, most_guests=most), [], 0
    while at is not None:
        steps.append(at)
        free = 8192 - at * each_mib
        if free < 0:
            break
        at = next_guests(at, free * MIB, 672 * MIB, design)
    return steps


def test_a_step_takes_more_than_one_guest_only_where_all_fit_unmerged() -> None:
    assert walk(2000, 1) == [0, 1, 2, 3, 4, 5]
    # With 9 guests 2144 MiB are left, room for 3; with 12 only 128.
    assert walk(672, 4) == [0, 4, 8, 12, 13]
    # With 36 guests 992 MiB are left, room for 1; that none is known to fit ends nothing.
    assert walk(200, 5) == [0, 5, 10, 15, 20, 25, 29, 32, 34, 36, 37, 38, 39, 40, 41]
    assert walk(100, 3, most=7) == [0, 3, 6, 7]
