"""Real guests, real KSM: constant content merges, random content does not, and nothing is lost.

One set of two small guests serves all tests of this file, in their order.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from this_host import MIB, ROOT, domains, knobs, playbook

SIZE = ["-e", "guests=2", "-e", "guest_memory_mib=256"]

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Foci 2 and 3 on two guests that are kept; the knobs before and after."""
    results = tmp_path_factory.mktemp("results")
    before = knobs()
    done = playbook(
        *SIZE,
        "-e",
        "focus=2,3",
        "-e",
        "run_id=system",
        "-e",
        f"results_directory={results}",
        "-e",
        "keep_guests=true",
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    cells = {path.name.split("-")[0]: path for path in (results / "system" / "localhost").iterdir()}
    records = {
        name: {
            kind: json.loads((path / f"{kind}.json").read_text()) for kind in ("off", "merge", "on", "verify")
        }
        for name, path in cells.items()
    }
    yield {"results": results, "records": records, "before": before, "after": knobs(), "output": done.stdout}
    playbook(name="teardown.yml")


def saved_bytes(cell: dict[str, Any]) -> int:
    ksm = cell["on"]["observed"]["host"]["ksm"]
    return (ksm["pages_sharing"] + (ksm["ksm_zero_pages"] or 0)) * cell["on"]["provenance"]["page_size_bytes"]


def filled_bytes(cell: dict[str, Any]) -> int:
    return sum(guest["filled_bytes"] for guest in cell["off"]["observed"]["workload"].values())


def test_constant_content_merges(campaign: dict[str, Any]) -> None:
    cell = campaign["records"]["focus2"]
    assert filled_bytes(cell) > 2 * 128 * MIB
    assert saved_bytes(cell) > 0.95 * filled_bytes(cell)


def test_random_content_does_not_merge(campaign: dict[str, Any]) -> None:
    cell = campaign["records"]["focus3"]
    assert filled_bytes(cell) > 2 * 128 * MIB
    assert saved_bytes(cell) < 0.5 * filled_bytes(cell)


def test_the_guests_processes_show_the_saving_too(campaign: dict[str, Any]) -> None:
    """Independent of KSM's own counters, and of what other programs do with the host: the processes' PSS."""
    cell = campaign["records"]["focus2"]
    pss = [
        sum(guest["smaps_rollup"]["Pss_bytes"] for guest in cell[kind]["observed"]["guests"].values())
        for kind in ("off", "on")
    ]
    assert pss[0] - pss[1] == pytest.approx(saved_bytes(cell), rel=0.15)


def test_both_arms_saw_unmerged_and_merged_memory(campaign: dict[str, Any]) -> None:
    for cell in campaign["records"].values():
        assert cell["off"]["observed"]["host"]["ksm"]["pages_sharing"] == 0
        assert cell["merge"]["observed"]["converged"] is True


def test_digests_are_intact_and_seeds_differ(campaign: dict[str, Any]) -> None:
    for cell in campaign["records"].values():
        guests = cell["verify"]["observed"]["guests"]
        assert len(guests) == 2
        assert all(
            guest["intact"] and guest["digest_before"] == guest["digest_after"] for guest in guests.values()
        )
    digests = {
        name: {
            guest["digest_before"]
            for guest in campaign["records"][name]["verify"]["observed"]["guests"].values()
        }
        for name in ("focus2", "focus3")
    }
    assert len(digests["focus2"]) == 1
    assert len(digests["focus3"]) == 2


def test_the_host_is_put_back(campaign: dict[str, Any]) -> None:
    assert campaign["after"] == campaign["before"]


def test_guests_run_unprivileged_and_listen_on_loopback_only(campaign: dict[str, Any]) -> None:
    for record in campaign["records"]["focus2"]["on"]["observed"]["guests"].values():
        assert Path(f"/proc/{record['pid']}").stat().st_uid != 0
    listening = subprocess.run(["ss", "-Hltn"], check=True, capture_output=True, text=True).stdout
    ports = [line.split()[3] for line in listening.splitlines() if ":2220" in line.split()[3]]
    assert sorted(ports) == ["127.0.0.1:22201", "127.0.0.1:22202"]


def test_progress_is_shown(campaign: dict[str, Any]) -> None:
    assert "guest01 is up" in campaign["output"]
    assert "settled" in campaign["output"]


def test_kept_guests_are_reused_and_a_lost_guest_is_recorded(campaign: dict[str, Any]) -> None:
    """A guest that dies while memory is filled: its cell is failed, the host put back, exit code 2."""
    before = {name: Path(f"/run/libvirt/qemu/{name}.pid").read_text() for name in domains()}
    assert len(before) == 2
    run = subprocess.Popen(
        [
            "ansible-playbook",
            "playbooks/experiment.yml",
            *SIZE,
            "-e",
            "focus=3",
            "-e",
            "run_id=lost",
            "-e",
            f"results_directory={campaign['results']}",
            "-e",
            "keep_guests=true",
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert run.stdout is not None
    said = []
    for line in run.stdout:
        said.append(line)
        if line.startswith("TASK [workload : Fill the guests"):
            assert before == {
                name: Path(f"/run/libvirt/qemu/{name}.pid").read_text() for name in domains()
            }, "not reused"
            subprocess.run(
                ["virsh", "-c", "qemu:///system", "destroy", "ksm-testbed-guest02"],
                check=True,
                capture_output=True,
            )
    assert run.wait(timeout=600) != 0, "".join(said)[-3000:]
    (cell,) = (campaign["results"] / "lost" / "localhost").iterdir()
    failed = json.loads((cell / "failed.json").read_text())
    assert "guest02" in failed["observed"]["message"]
    assert knobs() == campaign["before"]


def merging(campaign: dict[str, Any], run_id: str) -> tuple[subprocess.Popen[str], list[str]]:
    """An experiment that merges on and on, and what it has said until it did."""
    variables = {"focus": 2, "run_id": run_id, "results_directory": str(campaign["results"])}
    never_settled = {"converge_min_full_scans": 10000, "ksm_knobs": {"pages_to_scan": 1234}}
    run = subprocess.Popen(
        [
            "ansible-playbook",
            "playbooks/experiment.yml",
            *SIZE,
            "-e",
            json.dumps({**variables, **never_settled}),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert run.stdout is not None
    said = []
    for line in run.stdout:
        said.append(line)
        if "saved" in line and "MiB/VM" in line:
            return run, said
    raise AssertionError("".join(said)[-3000:])


def test_ctrl_c_puts_the_host_right(campaign: dict[str, Any]) -> None:
    """Interrupted while KSM merges: no guest left, knobs as before, records kept."""
    run, said = merging(campaign, "interrupted")
    assert knobs()["pages_to_scan"] == "1234"
    os.kill(run.pid, signal.SIGINT)
    assert run.stdout is not None
    said.append(run.stdout.read())
    assert run.wait(timeout=300) != 0
    assert "Interrupted" in "".join(said), "".join(said)[-3000:]
    assert domains() == []
    assert knobs() == campaign["before"]
    (cell,) = (campaign["results"] / "interrupted" / "localhost").iterdir()
    assert (cell / "off.json").is_file()
    assert not (cell / "on.json").exists()
    failed = json.loads((cell / "failed.json").read_text())
    assert failed["observed"] == {"phase": "merge", "task": "", "message": "interrupted by the user"}


def test_the_run_after_one_that_was_killed_starts_clean(campaign: dict[str, Any]) -> None:
    run, _said = merging(campaign, "killed")
    os.killpg(run.pid, signal.SIGKILL)
    run.wait(timeout=60)
    assert len(domains()) == 2
    assert knobs()["pages_to_scan"] == "1234"
    results = campaign["results"]
    quick = {"sleep_millisecs": 0, "smart_scan": 0}
    done = playbook(
        *SIZE, "-e", json.dumps({"run_id": "after", "ksm_knobs": quick, "results_directory": str(results)})
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    (cell,) = (results / "after" / "localhost").iterdir()
    record = json.loads((cell / "on.json").read_text())
    # Nothing of the killed run is left under the new one: the knobs are the host's own.
    measured = {name: str(value) for name, value in record["provenance"]["ksm_knobs"].items()}
    assert measured["pages_to_scan"] == campaign["before"]["pages_to_scan"]
    assert domains() == []
    assert knobs() == campaign["before"]


def test_summary_of_the_campaign(campaign: dict[str, Any]) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "analysis",
            "summarize",
            "--results",
            str(campaign["results"]),
            "--run",
            "system",
        ],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "focus 2" in done.stdout.lower() or "constant" in done.stdout.lower()


