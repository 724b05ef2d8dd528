"""A capacity run's variables, when it stops, and which step comes next."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import yaml
from synthetic_capacity import MIB, capacity_record

from analysis.capacity import used_bytes
from analysis.capacity_design import CapacityDesign, fitting, next_guests, stop
from analysis.design import PROJECT, Design, DesignError

VARIABLES = yaml.safe_load((PROJECT / "inventory/group_vars/all/capacity.yml").read_text())
EXPERIMENT = yaml.safe_load((PROJECT / "inventory/group_vars/all/experiment.yml").read_text())
del EXPERIMENT["results_directory"]
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
        ({"capacity_workload": "busy"}, "capacity_workload is 'busy'"),
        ({"capacity_step_guests": 0}, "capacity_step_guests is 0"),
        ({"capacity_envelope_mib": "big"}, "capacity_envelope_mib is 'big'"),
        ({"capacity_probe_seconds": None}, "capacity_probe_seconds is not set"),
        ({"capacity_step": 3}, "capacity_step is not a variable of a capacity run"),
    ],
)
def test_a_wrong_variable_is_named(changes: dict[str, Any], words: str) -> None:
    assert words in refused(**changes)


def test_the_cgroup_leaves_room_for_the_step_that_does_not_fit() -> None:
    experiment = Design.from_variables(EXPERIMENT)
    three = replace(DESIGN, step_guests=3)
    assert three.limit_bytes(experiment, 160) == (8192 + 3 * (512 + 160) + 64 * 16) * MIB
    # Without an envelope the host's memory takes the step.
    with pytest.raises(DesignError, match="is 2048: a step of 3 and the probes may take 3040"):
        replace(three, envelope_mib=0).limit_bytes(experiment, 160)


def observed(**changes: Any) -> tuple[dict[str, Any], int]:
    record = copy.deepcopy(capacity_record())
    host = record["observed"]["host"]["meminfo"]
    host["MemAvailable_bytes"] = changes.get("available_mib", 8000) * MIB
    window = record["observed"]["window"]
    window["psi_some_microseconds"]["memory"] = changes.get("stalled_us", 0)
    window["vmstat"] |= changes.get("vmstat", {})
    if changes.get("silent"):
        record["observed"]["probes"]["guest02"] = None
    record["observed"]["envelope"]["working_set_bytes"] = changes.get("used_mib", 1600) * MIB
    return record["observed"], used_bytes(record)


@pytest.mark.parametrize(
    ("changes", "measure", "words"),
    [
        ({"used_mib": 8193}, "used_mib", "the envelope of 8192 MiB is full: 8193 MiB are used"),
        ({"silent": True}, "silent_guests", "no answer from guest02"),
        ({"available_mib": 2047}, "available_mib", "the host has only 2047 MiB available"),
        ({"vmstat": {"oom_kill": 1}}, "oom_kills", "the kernel killed 1 processes"),
        # 10 s of probes, of which 10.1 % were spent waiting.
        ({"stalled_us": 1_010_000}, "psi_memory_percent", "waited for memory during 10.1 % of the time"),
        ({"vmstat": {"pswpout": 101}}, "swapped_pages_per_second", "swapped 10 pages a second"),
        ({"vmstat": {"pgmajfault": 1001}}, "major_faults_per_second", "100 major faults a second"),
    ],
)
def test_each_limit_ends_an_arm_and_says_why(changes: dict[str, Any], measure: str, words: str) -> None:
    found = stop(DESIGN, *observed(**changes))
    assert found is not None
    assert (found["measure"], words in str(found["reason"])) == (measure, True), found


def test_just_below_every_limit_goes_on() -> None:
    seen = observed(
        used_mib=8192, available_mib=2048, stalled_us=999_999, vmstat={"pswpin": 100, "pgmajfault": 1000}
    )
    assert stop(DESIGN, *seen) is None


def test_without_a_guest_a_moments_faults_are_no_limit() -> None:
    seen, used = observed(vmstat={"pgmajfault": 5000}, stalled_us=9_000_000)
    seen["probes"] = {}
    assert stop(DESIGN, seen, used) is None
    seen["host"]["meminfo"]["MemAvailable_bytes"] = 1
    assert stop(DESIGN, seen, used) is not None


def walk(limit: int, step: int, most: int = 64) -> list[int]:
    """The steps of an arm on a host that holds so many guests."""
    seen, steps, at = {}, [], 0
    while True:
        seen[at] = at > limit
        steps.append(at)
        following = next_guests(seen, step, most)
        if following is None:
            assert fitting(seen) == min(limit, most)
            return steps
        at = following


def test_the_limit_is_exact_whatever_the_step() -> None:
    assert walk(4, 1) == [0, 1, 2, 3, 4, 5]
    assert walk(5, 3) == [0, 3, 6, 5]
    assert walk(6, 3) == [0, 3, 6, 9, 8, 7]
    assert walk(3, 3) == [0, 3, 6, 5, 4]
    assert walk(100, 3, most=7) == [0, 3, 6, 7]


def test_a_host_that_holds_no_guest_ends_at_once() -> None:
    assert next_guests({0: True}, 1, 64) is None
    assert fitting({0: True}) is None
