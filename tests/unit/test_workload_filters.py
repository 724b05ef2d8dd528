"""The filters over what the guests answered: one size for all, reports and verdicts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from plugin_files import load

from analysis.capacity import PROBES

workload = load("plugins/filter/workload.py")
MIB = 1 << 20
GUESTS = ["guest01", "guest02"]


def barrier(*available_bytes: int) -> dict[str, Any]:
    return {
        name: {"workload_barrier": {"stdout": json.dumps({"available_bytes": size})}}
        for name, size in zip(GUESTS, available_bytes, strict=True)
    }


def report(digest: str) -> dict[str, str]:
    return {
        "stdout": json.dumps(
            {"filled_bytes": MIB, "digest": digest, "fill_seconds": 0.5, "digest_seconds": 0.1, "seed": "s"}
        )
    }


def test_the_fill_is_what_the_smallest_guest_has_less_the_reserve_in_whole_mib() -> None:
    hosts = barrier(400 * MIB + 5, 390 * MIB + MIB - 1)
    assert workload.workload_fill_bytes(hosts, GUESTS, 32) == 358 * MIB
    assert workload.workload_fill_bytes(hosts, ["guest01"], 32) == 368 * MIB


@pytest.mark.parametrize("least_bytes", [33 * MIB - 1, 0])
def test_a_fill_of_nothing_is_refused_by_the_guests_name(least_bytes: int) -> None:
    assert workload.workload_fill_bytes(barrier(400 * MIB, 33 * MIB), GUESTS, 32) == MIB
    with pytest.raises(
        AnsibleFilterError, match=r"^guest_reserve_mib is 32, and guest02 has only \d+ MiB available"
    ):
        workload.workload_fill_bytes(barrier(400 * MIB, least_bytes), GUESTS, 32)


def test_a_guest_that_is_not_at_the_barrier_is_named() -> None:
    hosts = barrier(400 * MIB, 400 * MIB)
    hosts["guest02"] = {"workload_barrier": {"unreachable": True}}
    with pytest.raises(AnsibleFilterError, match=r"^guest02 did not come to the barrier"):
        workload.workload_fill_bytes(hosts, GUESTS, 32)


def test_no_guests_are_refused() -> None:
    with pytest.raises(AnsibleFilterError, match=r"^workload_guests is empty"):
        workload.workload_fill_bytes({}, [], 32)


def test_an_answer_that_is_no_json_is_shown_with_its_guest() -> None:
    hosts = {"guest01": {"workload_barrier": {"stdout": "Segmentation fault"}}}
    with pytest.raises(AnsibleFilterError, match="guest01 answered 'Segmentation fault'"):
        workload.workload_fill_bytes(hosts, ["guest01"], 32)


def test_reports_and_verdicts() -> None:
    hosts = {
        "guest01": {"workload_start": report("d1"), "workload_verify": report("d1")},
        "guest02": {"workload_start": report("d2"), "workload_verify": report("other")},
    }
    assert workload.workload_reports(hosts, GUESTS)["guest01"] == {
        "filled_bytes": MIB,
        "digest": "d1",
        "fill_seconds": 0.5,
        "seed": "s",
    }
    verdicts = workload.workload_verdicts(hosts, GUESTS)
    assert verdicts["guest01"] == {
        "filled_bytes": MIB,
        "digest_before": "d1",
        "digest_after": "d1",
        "intact": True,
    }
    assert verdicts["guest02"]["intact"] is False


def test_of_a_mix_only_the_filled_guests_answer_and_the_idle_one_counts_for_the_size() -> None:
    hosts = barrier(400 * MIB, 200 * MIB)
    hosts["guest01"] |= {"workload_start": report("d1"), "workload_verify": report("d1")}
    hosts["guest02"] |= {"workload_start": {"skipped": True}, "workload_verify": {"skipped": True}}
    assert workload.workload_fill_bytes(hosts, GUESTS, 32) == 168 * MIB
    assert list(workload.workload_reports(hosts, GUESTS)) == ["guest01"]
    assert list(workload.workload_verdicts(hosts, GUESTS)) == ["guest01"]


def test_an_idle_guest_has_neither() -> None:
    hosts = {
        name: {"workload_start": {"skipped": True}, "workload_verify": {"skipped": True}} for name in GUESTS
    }
    assert workload.workload_reports(hosts, GUESTS) == {}
    assert workload.workload_verdicts(hosts, GUESTS) == {}
    assert workload.workload_verdicts({name: {} for name in GUESTS}, GUESTS) == {}


PROBE = {
    "write_latency_p50_us": 1.5,
    "write_latency_p99_us": 20.0,
    "touch_mib_per_second": 700.0,
    "cpu_iterations_per_second": 900.0,
}
DIVERGENCE = {
    **PROBE,
    "cpu_iterations_per_second": None,
    "written_bytes": MIB,
    "seconds": 0.5,
    "digest": "d2",
}
SILENCES: list[dict[str, Any]] = [
    {"unreachable": True, "msg": "Connection timed out", "changed": False},
    {"failed": True, "rc": 1, "stdout": "", "stderr": "testbed-workload: a probe needs ..."},
    # With a terminal, as over ssh, the error comes on standard output.
    {"failed": True, "rc": 1, "stdout": "testbed-workload: a probe needs ...", "stderr": ""},
    {"skipped": True},
    {},
]


@pytest.mark.parametrize("silence", SILENCES)
def test_a_guest_that_gave_no_answer_is_null_beside_one_that_did(silence: dict[str, Any]) -> None:
    hosts = {
        "guest01": {
            "workload_probe": {"stdout": json.dumps(PROBE)},
            "workload_diverge": {"stdout": json.dumps(DIVERGENCE)},
        },
        "guest02": {"workload_probe": silence, "workload_diverge": silence},
    }
    assert workload.workload_probes(hosts, GUESTS) == {"guest01": PROBE, "guest02": None}
    assert workload.workload_divergences(hosts, GUESTS) == {"guest01": DIVERGENCE, "guest02": None}
    hosts["guest02"] = {}
    assert workload.workload_probes(hosts, GUESTS)["guest02"] is None
    assert workload.workload_divergences(hosts, GUESTS)["guest02"] is None


def test_a_divergence_has_the_measures_of_a_probe() -> None:
    hosts = {"guest01": {"workload_diverge": {"stdout": json.dumps(DIVERGENCE)}}}
    assert workload.workload_probes(hosts, ["guest01"], "workload_diverge") == {
        "guest01": {**PROBE, "cpu_iterations_per_second": None}
    }


def test_a_probe_that_is_no_json_is_no_silence() -> None:
    hosts = {"guest01": {"workload_probe": {"rc": 0, "stdout": "Segmentation fault"}}}
    with pytest.raises(AnsibleFilterError, match="guest01 answered 'Segmentation fault' to workload_probe"):
        workload.workload_probes(hosts, ["guest01"])


def test_the_verdict_on_a_guest_that_diverged_is_since_then() -> None:
    hosts = {
        "guest01": {
            "workload_start": report("d1"),
            "workload_diverge": {"stdout": json.dumps(DIVERGENCE)},
            "workload_verify": report("d2"),
        },
        "guest02": {
            "workload_start": report("d1"),
            "workload_diverge": {"failed": True, "stdout": "no"},
            "workload_verify": report("d1"),
        },
    }
    assert workload.workload_verdicts(hosts, ["guest01"])["guest01"]["intact"] is False
    since = workload.workload_verdicts(hosts, GUESTS, "workload_diverge")
    assert since == {
        "guest01": {"filled_bytes": MIB, "digest_before": "d2", "digest_after": "d2", "intact": True}
    }


def test_the_measures_are_those_of_the_analysis() -> None:
    assert workload.PROBES == PROBES
