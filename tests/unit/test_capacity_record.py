"""The action capacity_record: what it makes of two readings of a host, and which step it asks for next."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from plugin_files import load
from synthetic_capacity import MIB, capacity_record, divergence_record

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
    "probe_seconds": 6,
    "divergence": True,
    "divergence_seconds": 120,
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
        "envelope_bytes": changes.get("envelope_mib", 8192) * MIB or None,
        "forecasts": [],
        "guest_memory_bytes": 512 * MIB,
        "most_guests": 64,
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


def arguments(**changes: Any) -> dict[str, Any]:
    probe = capacity_record()["observed"]["probes"]["guest01"]
    return {
        "plan": plan(),
        "provenance": {
            "image_digest": DIGEST,
            "accelerator": "tcg",
            "testbed_version": "0.1.0",
            "start": START,
        },
        "policy": "off",
        "guests": 2,
        "before": snapshot(1),
        "probes": {"guest01": probe, "guest02": probe},
        "converged": None,
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
    assert record["policy"] == "off" and record["requested"] == {"guest_reserve_bytes": 32 * MIB}
    assert record["provenance"]["start"] == START and record["provenance"]["image_digest"] == DIGEST


def test_a_step_without_a_guest_has_no_start() -> None:
    args = arguments(guests=0, probes={}, provenance={**arguments()["provenance"], "start": None})
    assert_sound(action.step_record(args, "host1", snapshot(11)))


def test_a_guest_without_an_answer_stops_the_arm() -> None:
    record = action.step_record(arguments(probes={"guest01": None}), "host1", snapshot(11))
    assert_sound(record)
    assert record["stop"]["reason"] == "no answer from guest01"


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
    known = divergence_record([900, 900, 200, 100], [1000, 1000, 1700, 1800])["observed"]
    said = {**known["probes_during"]["guest01"], "cpu_iterations_per_second": None}
    answer = {**said, "written_bytes": 300 * MIB, "seconds": 1.5, "digest": "crc32-sha256:0"}
    args = arguments(
        before=snapshot(3),
        series={"began_seconds": 1002.0, "samples": known["samples"]},
        divergences={"guest01": answer, "guest02": answer},
        answered_seconds=1008.5,
        alive=2,
        policy="advisor",
    )
    return {**args, **changes}


def test_a_divergence_has_its_times_on_the_clock_of_the_series() -> None:
    record = action.divergence_record(diverged(), "host1", snapshot(12, oom_kill=1))
    assert_sound(record)
    write = record["observed"]["write"]
    assert (write["started_seconds"], write["finished_seconds"]) == (1.0, 6.5)
    assert write["written_bytes"] == {"guest01": 300 * MIB, "guest02": 300 * MIB}
    assert record["observed"]["oom_kills"] == 1
    assert [one["pid"] for one in record["observed"]["other_mergeable"]] == [77]
    assert (record["policy"], record["stop"]) == ("advisor", None)
    assert action.file_name(record) == "idle-divergence-guests002.json"


def test_a_clock_that_is_set_back_moves_no_time_of_a_divergence() -> None:
    args = diverged()
    args["before"]["recorded_at"] = "2020-01-01T00:00:00.000000Z"
    write = action.divergence_record(args, "host1", snapshot(12))["observed"]["write"]
    assert (write["started_seconds"], write["finished_seconds"]) == (1.0, 6.5)


def test_a_guest_lost_in_the_storm_leaves_the_end_open() -> None:
    args = diverged(alive=1)
    args["divergences"]["guest02"] = None
    record = action.divergence_record(args, "host1", snapshot(12))
    assert_sound(record)
    assert record["observed"]["write"]["finished_seconds"] is None
    assert record["observed"]["probes_during"]["guest02"] is None
    assert record["observed"]["guests_alive"] == 1


@pytest.mark.parametrize(("guests", "stopped", "following"), [(3, False, 6), (6, True, 5), (4, True, None)])
def test_the_next_step_follows_from_the_records_so_far(
    tmp_path: Path, guests: int, stopped: bool, following: int | None
) -> None:
    stop = {"reason": "full", "measure": "used_mib", "value": 1.0, "limit": 0.5}
    for number in sorted({0, 3, guests}):
        record = capacity_record(guests=number, stop=stop if stopped and number == guests else None)
        (tmp_path / action.file_name(record)).write_text(json.dumps(record))
    other = capacity_record(guests=9, policy="ksm", stop=stop)  # the other arm's limit is not this one's
    (tmp_path / action.file_name(other)).write_text(json.dumps(other))
    found = action.progress(record, tmp_path, plan(tmp_path))
    assert found["next_guests"] == following
    assert found["fitting_guests"] == {"off": 3, "ksm": 0}
    assert found["msg"].startswith(f"policy off, {guests} guests use 1600 MiB")
    assert ("beyond the limit: full" in found["msg"]) is stopped
