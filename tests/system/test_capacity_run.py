"""A real capacity run of small guests: each limit is found, and the merged guests diverge.

Its guests are restored from the checkpoint that the proof has made.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from this_host import GUESTS, MEMORY_MIB, MIB, Cells, State, left, playbook, succeeded

from analysis.__main__ import main
from analysis.model.capacity import FoundLimits, found_limits, line_bytes, peak_bytes, used_bytes
from analysis.records.capacity import CapacityRun, load_capacity

pytestmark = pytest.mark.system

# Two guests without KSM; three merged ones, the third of which passes the line while it is started
ENVELOPE_MIB = 800


@pytest.fixture(scope="module")
def run(proof: Cells, before: State, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    results = tmp_path_factory.mktemp("results")
    variables = {
        "guest_memory_mib": MEMORY_MIB,
        "capacity_envelope_mib": ENVELOPE_MIB,
        "capacity_step_guests": 2,
        "capacity_most_guests": GUESTS,
        "capacity_probes": 2,
        "capacity_probe_seconds": 1,
        "run_id": "small",
        "results_directory": str(results),
    }
    output = succeeded(playbook(name="capacity.yml", **variables))
    assert "is up after" not in output
    paths = sorted((results / "capacity/small/localhost").iterdir())
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in paths)
    records = {path.stem: json.loads(path.read_text()) for path in paths}
    (loaded,), problems = load_capacity(results)
    assert problems == []
    return {"results": results, "records": records, "run": loaded, "left": left(before)}


@pytest.fixture(scope="module")
def limits(run: dict[str, Any]) -> dict[str, FoundLimits]:
    loaded: CapacityRun = run["run"]
    return {one.policy: one for one in found_limits(loaded)}


def test_without_ksm_the_envelope_is_full_and_the_limit_exact(
    run: dict[str, Any], limits: dict[str, FoundLimits]
) -> None:
    steady = limits["off"].steady
    assert steady.reached and 0 < steady.guests < GUESTS
    # Each guest has its memory and QEMU's own, whatever the envelope is told.
    assert steady.guests * MEMORY_MIB < ENVELOPE_MIB < (steady.guests + 1) * 2 * MEMORY_MIB
    beyond = run["records"][f"constant_fill-boot1-off-guests{steady.guests + 1:03d}"]
    assert beyond["stop"]["measure"] == "used_mib"
    assert beyond["observed"]["envelope"]["working_set_bytes"] > ENVELOPE_MIB * MIB
    assert beyond["observed"]["envelope"]["failcnt"] == 0
    assert all(probe["answer"] is not None for probe in beyond["observed"]["probes"])


def test_merged_guests_fit_beyond_those_that_can_be_admitted(limits: dict[str, FoundLimits]) -> None:
    off, on = limits["off"], limits["ksm"]
    assert off.admission is not None and on.admission is not None and off.safe is not None
    assert off.admission.guests == off.steady.guests
    assert on.steady.guests > off.steady.guests
    assert off.safe <= off.steady.guests <= on.admission.guests <= on.steady.guests


def test_what_is_used_at_most_while_guests_start_was_seen(run: dict[str, Any]) -> None:
    loaded: CapacityRun = run["run"]
    for step in (*loaded.arms["off"], *loaded.arms["ksm"]):
        peak = peak_bytes(step)
        assert (peak is None) == (step.guests == 0)
        assert peak is None or peak <= line_bytes(step) + (MEMORY_MIB + 160) * MIB
    on = {step.guests: step for step in loaded.arms["ksm"]}
    last = max(on)
    peak = peak_bytes(on[last])
    # A guest is started whole, and then merged.
    assert peak is not None and peak > used_bytes(on[last]) + 32 * MIB
    assert on[last].observed.converged is True


def test_each_probe_has_the_time_of_the_guests_virtual_cpu(run: dict[str, Any]) -> None:
    loaded: CapacityRun = run["run"]
    probes = [probe for step in loaded.arms["off"] for probe in step.observed.probes]
    assert probes
    requested = worked = 0.0
    for probe in probes:
        assert probe.request is not None and probe.probe is not None and probe.read is not None
        assert (probe.read.run_seconds or 0) > 0
        assert (probe.read_bytes or 0) > 64 * MIB
        requested += probe.request.run_seconds or 0
        worked += probe.probe.run_seconds or 0
    # A probe works besides; what a request takes to start a program differs from one to the next.
    assert 0 < requested < worked


def test_the_guests_live_through_their_divergence_until_the_envelope_is_full(run: dict[str, Any]) -> None:
    seen = [one for one in run["records"].values() if one["kind"] == "divergence"]
    for record in seen:
        observed = record["observed"]
        assert observed["guests_alive"] == record["guests"] > 0
        assert observed["oom_kills"] in (0, None)
        sharing = observed["samples"]["pages_sharing"]
        assert sharing[-1] < sharing[0]
        assert max(observed["samples"]["cow_ksm"]) - observed["samples"]["cow_ksm"][0] > 10_000
        used = observed["samples"]["envelope_working_set_bytes"]
        assert max(used) - used[0] > 64 * MIB
    most = max(seen, key=lambda record: record["guests"])
    assert max(most["observed"]["samples"]["envelope_working_set_bytes"]) > ENVELOPE_MIB * MIB


def test_everything_is_put_right(run: dict[str, Any]) -> None:
    assert run["left"] == []
    # As seen in another way
    assert list(Path("/sys/fs/cgroup").glob("**/ksmtestbed.partition")) == []
    assert list(Path("/sys/fs/cgroup").glob("**/machine-ksmtestbed.slice")) == []
    assert list(Path("/run").glob("ksm-testbed-series*")) == []


def test_the_report_tells_it(run: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["report", "--results", str(run["results"]), "--figures", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "Capacity run small: constant_fill" in text
    assert "All guests live" in text
    drawn = {path.name.split("-")[0] for path in tmp_path.iterdir()}
    assert drawn == {"capacity", "performance", "trade", "divergence"}


def test_the_guests_of_a_boot_need_not_fit_in_the_envelope(before: State, tmp_path: Path) -> None:
    # Its hard limit, 64 MiB and one guest, is less than three guests need while they boot.
    variables = {
        "guest_memory_mib": MEMORY_MIB,
        "first_boot": 9,
        "checkpoint": "fresh",
        "capacity_workload": "idle",
        "capacity_envelope_mib": 64,
        "capacity_most_guests": GUESTS,
        "capacity_probes": 1,
        "capacity_probe_seconds": 1,
        "run_id": "booted",
        "results_directory": str(tmp_path),
    }
    output = succeeded(playbook(name="capacity.yml", **variables))
    assert output.count("is up after") == GUESTS
    (loaded,), problems = load_capacity(tmp_path)
    assert problems == []
    for limits in found_limits(loaded):
        assert limits.steady.guests == 0 and limits.steady.reached
    assert left(before) == []
