"""The action capacity_record: what it makes of two readings of a host, and which step it asks for next."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from plugin_files import load
from synthetic_capacity import MIB, capacity_record, divergence_record, envelope_samples, probe, step

from analysis.records.action import GIVEN
from analysis.records.models import RECORDS

action = load("plugins/action/capacity_record.py")
DIGEST = "sha256:" + "1" * 64
START = {
    "from": "checkpoint",
    "checkpoint": "boot1-512mib-0123456789ab",
    "booted_at": "2026-11-26T08:00:00.000000Z",
    "boot_seconds": 85.5,
    "restore_seconds": 12.3,
    "loaded": False,
    "arm_order": "off-on",
}
CAPACITY = {
    "workload": "idle",
    "policy": "ksm",
    "envelope_mib": 8192,
    "step_guests": 3,
    "most_guests": 64,
    "probes": 5,
    "probe_seconds": 2,
    "divergence": True,
    "stop_psi_memory_percent": 10.0,
    "stop_available_mib": 1,
    "stop_major_faults_per_second": 100.0,
    "stop_swapped_pages_per_second": 10.0,
}


def assert_sound(record: dict[str, Any]) -> None:
    RECORDS[record["kind"]].model_validate_json(json.dumps(record))


def plan(folder: Path | None = None, **changes: Any) -> dict[str, Any]:
    return {
        "run_id": "cap1",
        "directory": str(folder),
        "capacity": {**CAPACITY, **changes},
        "design": {"guest_reserve_mib": 32},
        "policies": {
            "off": {"run": 0, "knobs": {}, "service": ""},
            "ksm": {"run": 1, "knobs": {"pages_to_scan": 20000, "merge_across_nodes": 1}, "service": ""},
            "advisor": {"run": 1, "knobs": {"advisor_mode": "scan-time"}, "service": ""},
        },
        "envelope_bytes": changes.get("envelope_mib", 8192) * MIB or None,
        "forecasts": [],
        "guest_memory_bytes": 512 * MIB,
        "full_guest_bytes": 672 * MIB,
        "design_digest": "sha256:" + "0" * 64,
    }


def snapshot(seconds: float, **changes: int) -> dict[str, Any]:
    """A reading of the synthetic host at a second of its clock, some counters larger."""
    record = copy.deepcopy(capacity_record())
    host = record["observed"]["host"]
    host["vmstat"] |= {"pgfault": 1000, "pgmajfault": 10, "cow_ksm": 5, "pswpin": 0, "pswpout": 0}
    host["vmstat"]["oom_kill"] = 0
    for name, more in changes.items():
        host["vmstat"][name] += more
    return {
        "host": host,
        "guests": {},
        "envelope": record["observed"]["envelope"],
        "other_mergeable": [{"pid": 77, "command": "qemu", "merging_pages": 0, "mergeable_bytes": MIB}],
        "provenance": {
            name: value
            for name, value in record["provenance"].items()
            if name not in (*GIVEN, "guest_memory_bytes")
        },
        "recorded_at": f"2026-11-24T19:00:{seconds:06.3f}000Z",
        "monotonic_seconds": 1000 + seconds,
    }


def merging(seconds: float, run: int = 1, **knobs: Any) -> dict[str, Any]:
    """A reading with run, and the knobs of the policy ksm with these laid over them."""
    seen = snapshot(seconds)
    seen["host"]["ksm"]["run"] = run
    asked = {"pages_to_scan": 20000, "merge_across_nodes": 1, "use_zero_pages": 0}
    seen["provenance"]["ksm_knobs"] |= asked | knobs
    return seen


def arguments(**changes: Any) -> dict[str, Any]:
    return {
        "plan": plan(),
        "provenance": {
            "image_digest": DIGEST,
            "accelerator": "tcg",
            "testbed_version": "0.1.0",
            "start": START,
        },
        "arm": {"boot": 2, "policy": "off"},
        "guests": 2,
        "before": snapshot(1),
        "probes": [probe("guest01"), probe("guest02")],
        "admission": envelope_samples([1000, 1700, 1600]),
        "converged": None,
        "followed": [],
        **changes,
    }


def test_a_step_is_what_was_before_the_probes_and_what_their_time_did() -> None:
    record = action.step_record(arguments(), "host1", snapshot(11, pgfault=700, pgmajfault=20, cow_ksm=300))
    assert_sound(record)
    assert record["recorded_at"] == "2026-11-24T19:00:01.000000Z"
    window = record["observed"]["window"]
    assert window["seconds"] == 10
    swapped = {"pswpin": 0, "pswpout": 0}
    assert window["vmstat"] == {"pgfault": 700, "pgmajfault": 20, "cow_ksm": 300, **swapped, "oom_kill": 0}
    assert [one["pid"] for one in record["observed"]["other_mergeable"]] == [77]
    assert record["stop"] is None
    assert record["envelope_bytes"] == 8192 * MIB
    assert (record["boot"], record["policy"]) == (2, "off")
    assert record["requested"] == {"guest_reserve_bytes": 32 * MIB, "host_reserve_bytes": MIB}
    assert record["provenance"]["start"] == START and record["provenance"]["image_digest"] == DIGEST


def test_a_step_without_a_guest_has_no_start_and_was_not_watched() -> None:
    nobody = {"guests": 0, "probes": [], "admission": None}
    args = arguments(**nobody, provenance={**arguments()["provenance"], "start": None})
    assert_sound(action.step_record(args, "host1", snapshot(11)))


def test_a_guest_without_an_answer_stops_the_arm() -> None:
    silent = [probe("guest02"), {"guest": "guest01", "answer": None}]
    record = action.step_record(arguments(probes=silent), "host1", snapshot(11))
    assert_sound(record)
    assert record["stop"]["reason"] == "no answer from guest01"


def series(began: float, *changes: dict[str, Any]) -> dict[str, Any]:
    return {"began_monotonic_seconds": began, "observed": {"knob_changes": changes, "converged": True}}


def changed(seconds: float, knob: str, before: str, after: str) -> dict[str, Any]:
    return {"seconds": seconds, "knob": knob, "before": before, "after": after}


SWITCHED_ON = changed(3.0, "run", "0", "1")
STOPPED = changed(4.0, "run", "1", "0")
PAGES = changed(5.0, "pages_to_scan", "20000", "10")


@pytest.mark.parametrize(
    ("policy", "watched", "settled", "now", "expected"),
    [
        ("ksm", [SWITCHED_ON], [], {}, []),
        ("ksm", [SWITCHED_ON, PAGES], [], {"pages_to_scan": 10}, [PAGES]),
        # KSM was followed from two seconds after the host was.
        ("ksm", [], [STOPPED], {"run": 0}, [STOPPED | {"seconds": 6.0}]),
        # While the guests were probed nothing was sampled.
        ("ksm", [], [], {"use_zero_pages": 1}, [changed(12.0, "use_zero_pages", "0", "1")]),
        ("off", [], [], {"run": 1}, [changed(12.0, "run", "0", "1")]),
        ("off", [PAGES], [], {"pages_to_scan": 10}, []),
        # The kernel's advisor sets this one at each scan.
        ("advisor", [SWITCHED_ON, PAGES], [], {"pages_to_scan": 10}, []),
    ],
)
def test_what_somebody_sets_of_ksm_during_a_step_is_recorded(
    policy: str,
    watched: list[dict[str, Any]],
    settled: list[dict[str, Any]],
    now: dict[str, Any],
    expected: list[dict[str, Any]],
) -> None:
    was = {"run": int(policy != "off")} | ({"advisor_mode": "scan-time"} if policy == "advisor" else {})
    args = arguments(
        before=merging(8, **was),
        arm={"boot": 1, "policy": policy},
        followed=[series(999.0, *watched), series(1001.0, *settled)],
    )
    record = action.step_record(args, "host1", merging(11, **was | now))
    assert_sound(record)
    assert record["observed"]["knob_changes"] == expected


def test_a_knob_that_was_set_before_a_step_is_seen_by_what_the_policy_says() -> None:
    args = arguments(before=merging(1, pages_to_scan=10), arm={"boot": 1, "policy": "ksm"})
    record = action.step_record(args, "host1", merging(2, pages_to_scan=10))
    assert record["observed"]["knob_changes"] == [changed(0.0, "pages_to_scan", "20000", "10")]


def test_ksms_own_memory_fills_the_envelope_too() -> None:
    before = snapshot(1)
    before["envelope"]["working_set_bytes"] = 8192 * MIB - 1
    assert action.step_record(arguments(before=before), "host1", snapshot(11))["stop"] is None
    ksm = before["host"]["ksm"]
    ksm["general_profit"] = (ksm["pages_sharing"] + (ksm["ksm_zero_pages"] or 0)) * 4096 - 3 * MIB
    record = action.step_record(arguments(before=before), "host1", snapshot(11))
    assert record["stop"]["reason"] == "the envelope of 8192 MiB is full: 8195 MiB are used"
    assert action.is_full(plan(), before)


def test_a_kernel_without_a_counter_has_null_there() -> None:
    before, after = snapshot(1), snapshot(11)
    for seen in (before, after):
        del seen["host"]["vmstat"]["cow_ksm"]
        seen["host"]["psi"] = None
    record = action.step_record(arguments(before=before), "host1", after)
    assert_sound(record)
    assert record["observed"]["window"]["vmstat"]["cow_ksm"] is None
    assert record["observed"]["window"]["psi_some_microseconds"] is None


def test_without_an_envelope_the_host_is_the_limit() -> None:
    before = {**snapshot(1), "envelope": None}
    record = action.step_record(arguments(plan=plan(envelope_mib=0), before=before), "host1", snapshot(11))
    assert_sound(record)
    assert record["envelope_bytes"] is None


def diverged(**changes: Any) -> dict[str, Any]:
    answer = {"written_bytes": 300 * MIB, "seconds": 1.5, "digest": "crc32-sha256:0"}
    turns = [("guest01", 1003.0, 1004.5), ("guest02", 1004.5, 1008.5)]
    args = arguments(
        before=merging(3),
        series={
            "began_monotonic_seconds": 1002.0,
            "observed": {
                "samples": divergence_record([900, 900, 200, 100], [1, 2, 3, 4])["observed"]["samples"]
            },
        },
        divergences=[
            {"guest": name, "began": began, "ended": ended, "answer": answer} for name, began, ended in turns
        ],
        held={"guest03": 300 * MIB},
        alive=3,
        guests=3,
        arm={"boot": 1, "policy": "ksm"},
    )
    return {**args, **changes}


def test_a_divergence_has_its_turns_on_the_clock_of_the_series() -> None:
    args = diverged()
    # A clock that is set back moves nothing.
    args["before"]["recorded_at"] = "2020-01-01T00:00:00.000000Z"
    later = merging(12)
    later["host"]["vmstat"]["oom_kill"] = 1
    record = action.divergence_record(args, "host1", later)
    assert_sound(record)
    turns = record["observed"]["turns"]
    assert [(one["guest"], one["started_seconds"], one["finished_seconds"]) for one in turns] == [
        ("guest01", 1.0, 2.5),
        ("guest02", 2.5, 6.5),
    ]
    assert record["observed"]["held_bytes"] == dict.fromkeys(("guest01", "guest02", "guest03"), 300 * MIB)
    assert record["observed"]["oom_kills"] == 1
    assert [one["pid"] for one in record["observed"]["other_mergeable"]] == [77]
    assert (record["policy"], record["stop"]) == ("ksm", None)
    assert record["observed"]["knob_changes"] == []
    assert action.file_name(record) == "idle-boot1-divergence-guests003.json"


def test_a_knob_that_somebody_sets_while_guests_diverge_is_recorded() -> None:
    followed = [series(1000.0), series(1002.0, changed(4.0, "pages_to_scan", "20000", "10"))]
    record = action.divergence_record(diverged(followed=followed), "host1", merging(12))
    assert_sound(record)
    (change,) = record["observed"]["knob_changes"]
    assert (change["knob"], change["seconds"]) == ("pages_to_scan", 6.0)


def test_a_guest_lost_while_it_diverges_leaves_its_end_open() -> None:
    args = diverged(alive=1)
    args["divergences"][1]["answer"] = None
    record = action.divergence_record(args, "host1", snapshot(12))
    assert_sound(record)
    assert record["observed"]["turns"][1]["finished_seconds"] is None
    assert record["observed"]["guests_alive"] == 1


def stored(folder: Path, *records: dict[str, Any]) -> None:
    for record in records:
        (folder / action.file_name(record)).write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("used_mib", "stopped", "following"),
    # 3 guests of 672 MiB fit, then 1 of them, then it is tried; beyond the envelope it is over.
    [(1600, False, 6), (7000, False, 4), (8191, False, 4), (8193, True, None)],
)
def test_how_many_guests_come_next_follows_from_the_room_that_is_left(
    tmp_path: Path, used_mib: int, stopped: bool, following: int | None
) -> None:
    last = step("off", 3, used_mib, "full" if stopped else "")
    stored(tmp_path, last)
    found = action.progress(last, tmp_path, plan(tmp_path))
    assert (found["next_guests"], found["diverging_guests"]) == (following, [])
    assert found["msg"].startswith(f"boot 1, off, 3 guests use {used_mib} MiB")
    assert ("beyond the limit: full" in found["msg"]) is stopped


def test_a_step_in_which_somebody_changed_a_knob_ends_its_arm_and_sets_no_limit(tmp_path: Path) -> None:
    rivals = step("off", 3, 1600)
    rivals["observed"]["knob_changes"] = [changed(5.0, "run", "0", "1")]
    filled = {"workload": "random_fill"}
    stored(tmp_path, step("off", 2, 1000) | filled, rivals | filled)
    found = action.progress(rivals | filled, tmp_path, plan(tmp_path))
    assert (found["next_guests"], found["diverging_guests"]) == (None, [])
    assert found["msg"].endswith("; somebody changed run from 0 to 1: it is left out, and its arm ends")
    last = step("ksm", 4, 8200, "full") | filled
    stored(tmp_path, step("ksm", 3, 7000) | filled, last)
    assert action.progress(last, tmp_path, plan(tmp_path))["diverging_guests"] == [3, 2]


def test_at_the_end_of_a_policys_arm_the_guests_of_its_limit_and_of_that_without_ksm_diverge(
    tmp_path: Path,
) -> None:
    filled = {"workload": "idle=1,random_fill=1"}
    records = [
        {**one, **filled}
        for one in (
            *(step("off", n, n * 2500, "full" if n == 4 else "") for n in range(5)),
            *(step("ksm", n, n * 1500, "full" if n == 6 else "") for n in range(7)),
            step("off", 9, 100, boot=2),
        )
    ]
    stored(tmp_path, *records)
    found = action.progress(records[11], tmp_path, plan(tmp_path))
    assert (found["next_guests"], found["diverging_guests"]) == (None, [5, 3])
    nothing = plan(tmp_path, divergence=False)
    assert action.progress(records[11], tmp_path, nothing)["diverging_guests"] == []
