"""A real capacity run of small guests: the envelope ends the arm without KSM, the merged guests diverge.

Its guests are restored from the checkpoint that the proof has made.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from this_host import GUESTS, MEMORY_MIB, MIB, Cells, State, left, playbook, succeeded

from analysis.__main__ import main

pytestmark = pytest.mark.system

ENVELOPE_MIB = 1000


@pytest.fixture(scope="module")
def run(proof: Cells, before: State, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    results = tmp_path_factory.mktemp("results")
    variables = {
        "guest_memory_mib": MEMORY_MIB,
        "capacity_envelope_mib": ENVELOPE_MIB,
        "capacity_step_guests": GUESTS,
        "capacity_most_guests": GUESTS,
        "capacity_probe_seconds": 2,
        "capacity_divergence_seconds": 30,
        "run_id": "small",
        "results_directory": str(results),
    }
    output = succeeded(playbook(name="capacity.yml", **variables))
    assert "is up after" not in output
    paths = sorted((results / "capacity/small/localhost").iterdir())
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in paths)
    records = {path.stem: json.loads(path.read_text()) for path in paths}
    return {"results": results, "records": records, "left": left(before)}


def steps(run: dict[str, Any], policy: str) -> dict[int, dict[str, Any]]:
    return {
        record["guests"]: record
        for record in run["records"].values()
        if record["kind"] == "capacity_step" and record["policy"] == policy
    }


def test_without_ksm_the_envelope_is_full_and_the_limit_exact(run: dict[str, Any]) -> None:
    seen = steps(run, "off")
    limit = max(guests for guests, record in seen.items() if record["stop"] is None)
    assert 0 < limit < GUESTS
    # Each guest has its memory and QEMU's own, whatever the envelope is told.
    assert limit * MEMORY_MIB < ENVELOPE_MIB < (limit + 1) * 2 * MEMORY_MIB
    beyond = seen[limit + 1]
    assert beyond["stop"]["measure"] == "used_mib"
    assert beyond["observed"]["envelope"]["working_set_bytes"] > ENVELOPE_MIB * MIB
    assert beyond["observed"]["envelope"]["failcnt"] == 0
    assert all(probe is not None for probe in beyond["observed"]["probes"].values())


def test_with_ksm_the_same_guests_fit(run: dict[str, Any]) -> None:
    on, off = steps(run, "ksm")[GUESTS], steps(run, "off")[GUESTS]
    assert on["stop"] is None
    assert on["observed"]["converged"] is True
    used = {record["policy"]: record["observed"]["envelope"]["working_set_bytes"] for record in (on, off)}
    assert used["off"] - used["ksm"] > GUESTS * 64 * MIB


def test_the_guests_live_through_their_divergence(run: dict[str, Any]) -> None:
    (record,) = [one for one in run["records"].values() if one["kind"] == "divergence"]
    observed = record["observed"]
    assert observed["guests_alive"] == record["guests"] > 0
    assert observed["oom_kills"] in (0, None)
    sharing = observed["samples"]["pages_sharing"]
    assert sharing[-1] < sharing[0] / 2
    assert max(observed["samples"]["cow_ksm"]) - observed["samples"]["cow_ksm"][0] > 10_000
    used = observed["samples"]["envelope_working_set_bytes"]
    assert max(used) - used[0] > record["guests"] * 64 * MIB


def test_everything_is_put_right(run: dict[str, Any]) -> None:
    assert run["left"] == []
    # As seen in another way
    assert list(Path("/sys/fs/cgroup").glob("**/ksmtestbed.partition")) == []
    assert list(Path("/sys/fs/cgroup").glob("**/machine-ksmtestbed.slice")) == []


def test_the_report_tells_it(run: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["report", "--results", str(run["results"]), "--figures", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "Capacity run small: constant_fill" in text
    assert "All guests live" in text
    drawn = {path.name.split("-")[0] for path in tmp_path.iterdir()}
    assert drawn == {"capacity", "performance", "trade", "divergence"}
