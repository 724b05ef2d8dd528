"""Real guests, real KSM: booted once, restored for each cell; equal content merges, and nothing is lost.

The tests run in their order; the last one throws away the checkpoint that serves all the others.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.confinement import confinement
from ansible.module_utils.host_state import not_private, open_to_others
from this_host import (
    CHECKPOINTS,
    GUESTS,
    GUESTS_DIRECTORY,
    MEMORY_MIB,
    MIB,
    RECORDS,
    ROOT,
    SIZE,
    SSH,
    Cells,
    State,
    cells,
    domains,
    follow,
    in_guest,
    knob,
    left,
    playbook,
    started,
    state,
    succeeded,
)

from analysis.records.loading import load_run
from plugins.module_utils.ksm_probe import Roots, tuners

pytestmark = pytest.mark.system

SLEEP = Path("/sys/kernel/mm/ksm/sleep_millisecs")


@pytest.fixture(scope="module")
def campaign(results: Path, proof: Cells) -> dict[str, Any]:
    """Foci 2 and 3 of the boot that the proof made, the last cell's guests kept."""
    asked = {**SIZE, "focus": "2,3", "census": True, "keep_guests": True, "run_id": "system"}
    output = succeeded(playbook(results_directory=str(results), **asked))
    measured = cells(results / "system")
    return {
        "output": output,
        "constant": next(cell for name, cell in measured.items() if name.startswith("constant_fill")),
        "random": next(cell for name, cell in measured.items() if name.startswith("random_fill")),
    }


def gross_bytes(cell: dict[str, Any]) -> int:
    ksm = cell["on"]["observed"]["host"]["ksm"]
    return (ksm["pages_sharing"] + (ksm["ksm_zero_pages"] or 0)) * cell["on"]["provenance"]["page_size_bytes"]


def freed_bytes(cell: dict[str, Any]) -> int:
    """What the guests' own processes gave back: the fall of their PSS, which no neighbour moves."""
    sums = [
        sum(guest["smaps_rollup"]["Pss_bytes"] for guest in cell[kind]["observed"]["guests"].values())
        for kind in ("off", "on")
    ]
    return sums[0] - sums[1]


def filled_bytes(cell: dict[str, Any]) -> int:
    return sum(guest["filled_bytes"] for guest in cell["off"]["observed"]["workload"].values())


def start(cell: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = cell["on"]["provenance"]["start"]
    return found


def test_restored_guests_save_what_they_saved_just_after_their_boot(proof: Cells) -> None:
    booted = next(cell for cell in proof.values() if start(cell)["from"] == "boot")
    restored = next(cell for cell in proof.values() if start(cell)["from"] == "checkpoint")
    assert start(booted)["booted_at"] == start(restored)["booted_at"]
    assert gross_bytes(restored) > GUESTS * 16 * MIB
    # Boots of 15 guests differ by about 1 % among one another (docs/measurement.md); few small ones by more.
    assert gross_bytes(restored) == pytest.approx(gross_bytes(booted), rel=0.05)
    assert freed_bytes(restored) == pytest.approx(freed_bytes(booted), rel=0.25)


def test_each_cell_begins_with_ksm_off_in_processes_of_its_own(
    campaign: dict[str, Any], proof: Cells
) -> None:
    measured = [*proof.values(), campaign["constant"], campaign["random"]]
    for cell in measured:
        ksm = cell["off"]["observed"]["host"]["ksm"]
        assert (ksm["run"], ksm["pages_sharing"], ksm["pages_shared"]) == (0, 0, 0)
        assert cell["merge"]["observed"]["converged"] is True
    pids = [guest["pid"] for cell in measured for guest in cell["off"]["observed"]["guests"].values()]
    assert len(set(pids)) == len(pids) == 2 * GUESTS + 2 * 2


def test_a_second_run_boots_nothing_and_says_so(campaign: dict[str, Any], proof: Cells) -> None:
    assert "is up after" not in campaign["output"]
    assert "restored 2 guests of boot 1, which booted in" in campaign["output"]
    measured = [*proof.values(), campaign["constant"], campaign["random"]]
    assert len({start(cell)["booted_at"] for cell in measured}) == 1


def test_random_content_is_restored_with_its_load(campaign: dict[str, Any]) -> None:
    assert start(campaign["random"])["loaded"] is True
    assert start(campaign["constant"])["loaded"] is False


def test_constant_content_merges(campaign: dict[str, Any]) -> None:
    cell = campaign["constant"]
    assert filled_bytes(cell) > 2 * 128 * MIB
    assert gross_bytes(cell) > 0.95 * filled_bytes(cell)


def test_random_content_does_not_merge(campaign: dict[str, Any]) -> None:
    cell = campaign["random"]
    assert filled_bytes(cell) > 2 * 128 * MIB
    assert gross_bytes(cell) < 0.5 * filled_bytes(cell)


def test_the_host_sees_the_saving_too(campaign: dict[str, Any]) -> None:
    """Independent of KSM's own counters: the kernel's PSS of the QEMU processes."""
    cell = campaign["constant"]
    assert freed_bytes(cell) == pytest.approx(gross_bytes(cell), rel=0.15)


def test_nothing_of_another_cell_is_in_a_random_fill(campaign: dict[str, Any]) -> None:
    """By the census: what focus 2 fills has ten thousands of copies; here no content but zeros has many."""
    constant, random = (campaign[name]["census"]["observed"]["contents"] for name in ("constant", "random"))
    assert max(constant["copies"]) > 0.9 * filled_bytes(campaign["constant"]) / 4096
    pages = filled_bytes(campaign["random"]) / 4096
    assert sorted(random["copies"])[-2] < 0.01 * pages


def test_digests_are_intact_and_seeds_differ(campaign: dict[str, Any]) -> None:
    digests = {}
    for name in ("constant", "random"):
        guests = campaign[name]["verify"]["observed"]["guests"]
        assert len(guests) == 2
        assert all(guest["intact"] for guest in guests.values())
        assert all(guest["digest_before"] == guest["digest_after"] != "" for guest in guests.values())
        digests[name] = {guest["digest_before"] for guest in guests.values()}
    assert len(digests["constant"]) == 1
    assert len(digests["random"]) == 2


def test_the_host_is_put_back_but_for_the_guests_kept(campaign: dict[str, Any], before: State) -> None:
    now = state()
    assert now["settings"] == before["settings"]
    running = {name for name, how in now["domains"].items() if how == "running"} - before["domains"].keys()
    assert sorted(running) == sorted(domains()) == ["ksm-testbed-guest01", "ksm-testbed-guest02"]
    words = ("guest01", "guest02", "/var/lib/ksm-testbed/guests")
    assert [text for text in left(before) if not any(word in text for word in words)] == []


def test_guests_are_confined_and_listen_on_loopback_only(campaign: dict[str, Any], before: State) -> None:
    running = [int(Path(f"/run/libvirt/qemu/{name}.pid").read_text()) for name in domains()]
    assert len(running) == 2
    for pid in running:
        assert confinement(pid).startswith("user ")
        assert Path(f"/proc/{pid}").stat().st_uid != 0
    assert start(campaign["random"])["confinement"].startswith("user ")
    now = state()
    assert open_to_others(before) == open_to_others(now) == []
    # All that listens now and did not before, and the same as another program sees it
    ports = ["tcp 127.0.0.1:22201", "tcp 127.0.0.1:22202"]
    theirs = [name for name, owner in now["sockets"].items() if owner.startswith("QEMU of ksm-testbed-")]
    assert sorted(theirs) == ports
    listening = subprocess.run(["ss", "-Hltn"], check=True, capture_output=True, text=True).stdout
    assert sorted(f"tcp {line.split()[3]}" for line in listening.splitlines() if ":2220" in line) == ports


# Tries, from within a guest, to reach each address over TCP, and what answers to UDP; one JSON object.
REACH = """
import json, socket, subprocess, sys
subprocess.run(["ip", "route", "replace", "default", "via", "10.0.2.2"], check=True)
def tcp(host, port):
    try:
        with socket.create_connection((host, port), timeout=10):
            return True
    except OSError:
        return False
def dns(host):
    question = b"\\x12\\x34\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\7example\\3com\\0\\0\\1\\0\\1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.settimeout(10)
        try:
            probe.sendto(question, (host, 53))
            return bool(probe.recv(512))
        except OSError:
            return False
asked = json.loads(sys.argv[1])
print(json.dumps({"tcp": [tcp(*place) for place in asked["tcp"]], "dns": dns("10.0.2.3")}))
"""


def test_a_guest_reaches_neither_this_host_nor_what_is_beyond(campaign: dict[str, Any]) -> None:
    """By 10.0.2.2 a guest would reach the host's loopback, were it not restricted."""
    with socket.create_server(("0.0.0.0", 0)) as listener:  # noqa: S104 -- for this test's moment
        port = listener.getsockname()[1]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            with contextlib.suppress(OSError):
                probe.connect(("192.0.2.1", 9))  # sends nothing; tells the host's own address
            own = probe.getsockname()[0]
        with socket.create_connection(("127.0.0.1", port)):
            listener.accept()[0].close()
        listener.setblocking(False)
        places = [["10.0.2.15", 22], ["10.0.2.2", port], ["10.0.2.2", 22202], [own, port], ["1.1.1.1", 80]]
        asked = shlex.quote(json.dumps({"tcp": places}))
        reached = json.loads(in_guest(1, "python3", "-", asked, text=REACH))
        with pytest.raises(BlockingIOError):
            listener.accept()
    # Itself it reaches, so the program that tries is sound.
    assert reached == {"tcp": [True, False, False, False, False], "dns": False}


def test_a_restored_guest_has_the_right_time(campaign: dict[str, Any]) -> None:
    """In processes that began minutes after the guests were saved."""
    earliest = time.time()
    clock = in_guest(1, "date", "+%s")
    # Saved when it was a minute or more ago, so a clock that nobody put right would be as much behind.
    assert earliest - 30 < int(clock) < time.time() + 30


def test_a_guest_is_known_by_the_host_key_that_came_with_its_seed(campaign: dict[str, Any]) -> None:
    """Also restored; it made no other, and whoever has another is not let in."""
    seen = in_guest(2, "cd /etc/ssh && ls ssh_host_* && cat ssh_host_ed25519_key.pub").splitlines()
    assert seen[:-1] == ["ssh_host_ed25519_key", "ssh_host_ed25519_key.pub"]
    key = " ".join(seen[-1].split()[:2])
    assert f"guest02 {key}" in (GUESTS_DIRECTORY / "known_hosts").read_text().splitlines()
    other = [*SSH, "-o", "HostKeyAlias=guest01", "guest02", "true"]
    refused = subprocess.run(other, check=False, capture_output=True, text=True)
    assert refused.returncode == 255
    assert "Host key verification failed." in refused.stderr


def test_checkpoints_and_the_guests_files_are_private(campaign: dict[str, Any]) -> None:
    assert not_private(state()) == []
    paths = [CHECKPOINTS, *CHECKPOINTS.rglob("*")]
    assert {path.stat().st_mode & 0o777 for path in paths if path.is_dir()} == {0o700}
    assert {path.stat().st_mode & 0o777 for path in paths if path.is_file()} == {0o600}


def test_results_are_private_and_hold_no_key(campaign: dict[str, Any], results: Path) -> None:
    paths = [results / "system", *(results / "system").rglob("*")]
    assert {path.stat().st_mode & 0o777 for path in paths if path.is_dir()} == {0o700}
    files = [path for path in paths if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    secret = (ROOT / ".cache/ssh/id_ed25519").read_text().splitlines()[1]
    assert len(secret) > 40
    for text in (campaign["output"], *(path.read_text() for path in files)):
        assert secret not in text and "PRIVATE KEY" not in text


def test_progress_is_of_the_matrix(campaign: dict[str, Any], results: Path) -> None:
    log = results / "system" / "progress.log"
    assert log.stat().st_mode & 0o777 == 0o600
    for said in (campaign["output"], log.read_text()):
        assert "cell 2 of 2" in said
        assert "settled" in said


def test_guests_that_leave_come_back_and_diverge_are_seen_in_what_ksm_saves(
    results: Path, proof: Cells, before: State
) -> None:
    # As long as ksmd may take with a small part of a CPU
    asked = {**SIZE, "focus": 2, "churn_seconds": 30, "run_id": "churn"}
    succeeded(playbook(results_directory=str(results), **asked))
    (cell,) = cells(results / "churn").values()
    assert [one.status for one in load_run(results / "churn").cells] == ["complete"]
    page = cell["on"]["provenance"]["page_size_bytes"]
    last = {
        kind: cell[kind]["observed"]["samples"]["pages_sharing"][-1] * page
        for kind in ("leave", "arrive", "diverge")
    }
    whole, fill = gross_bytes(cell), filled_bytes(cell) / 2
    assert last["leave"] < whole - 0.9 * fill
    assert last["arrive"] > 0.95 * whole
    assert last["diverge"] < last["arrive"] - 0.9 * fill
    verified = cell["verify"]["observed"]["guests"]
    assert len(verified) == 2 and all(one["intact"] for one in verified.values())
    assert left(before) == []


def test_a_lost_guest_is_recorded(campaign: dict[str, Any], results: Path, before: State) -> None:
    """A guest dies before its memory is filled: its cell and the run failed, the host is put back."""
    run = started(results, focus=2, run_id="lost")
    said = follow(run, "restored 2 guests")
    virsh = ["virsh", "-c", "qemu:///system", "destroy", "ksm-testbed-guest02"]
    subprocess.run(virsh, check=True, capture_output=True)
    assert run.stdout is not None
    said.append(run.stdout.read())
    assert run.wait() != 0, "".join(said)[-3000:]
    (cell,) = cells(results / "lost").values()
    assert "guest02" in cell["failed"]["observed"]["message"]
    assert left(before) == []


def test_a_fill_that_a_guest_has_no_memory_for_is_told(proof: Cells, results: Path) -> None:
    """The guest's kernel kills the program that fills; what waits for it answers all the same."""
    size = {"guests": 1, "guest_memory_mib": MEMORY_MIB, "guest_reserve_mib": 1}
    done = playbook(results_directory=str(results), focus=2, run_id="full", **size)
    assert done.returncode != 0, done.stdout[-3000:]
    (cell,) = cells(results / "full").values()
    seen = cell["failed"]["observed"]
    assert seen["phase"] == "load"
    assert "the workload died while it filled memory" in seen["message"]
    assert "raise guest_reserve_mib" in seen["message"]


def merging(results: Path, run_id: str, focus: int, **asked: Any) -> subprocess.Popen[str]:
    """An experiment that merges on and on, followed until it does."""
    run = started(results, focus=focus, run_id=run_id, converge_min_full_scans=10000, **asked)
    follow(run, "MiB/VM")
    return run


@pytest.mark.parametrize(("name", "focus"), [("SIGINT", 2), ("SIGTERM", 1)])
def test_an_interruption_puts_the_host_right(
    results: Path, proof: Cells, before: State, name: str, focus: int
) -> None:
    """Interrupted while KSM merges: no guest left, knobs as before, records kept, the cell's says where."""
    run = merging(results, name, focus, ksm_knobs={"pages_to_scan": 1234})
    assert knob("pages_to_scan") == "1234"
    os.kill(run.pid, signal.Signals[name])
    assert run.stdout is not None
    said = run.stdout.read()
    assert run.wait() != 0
    assert "Interrupted" in said, said[-3000:]
    assert left(before) == []
    (cell,) = cells(results / name).values()
    assert "off" in cell
    assert "on" not in cell
    seen = cell["failed"]["observed"]
    assert (seen["phase"], seen["message"]) == ("merge", "interrupted by the user")
    assert seen["task"] == "Switch KSM on and follow it until the saving has settled"


def test_summary_of_the_campaign(campaign: dict[str, Any], results: Path) -> None:
    summarize = [sys.executable, "-m", "analysis", "summarize", "--results", str(results), "--run", "system"]
    done = subprocess.run(summarize, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "constant fill" in done.stdout
    assert "restored from a checkpoint" in done.stdout


def test_every_record_is_there(campaign: dict[str, Any]) -> None:
    for name in ("constant", "random"):
        assert set(campaign[name]) == {*RECORDS, "census"}


@pytest.fixture(scope="module")
def aftermath(results: Path, proof: Cells) -> dict[str, Any]:
    """A run is killed while it merges; the next one's checkpoint is damaged after its first cell has begun.

    One guest is enough for it, and boots soonest. The daemon that sets KSM's pace runs when the first one is
    killed, and in one of the two cells of the next.
    """
    killed = merging(results, "killed", focus=1, policies="pacer")
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    seen = {"domains": domains(), "tuners": tuners(Roots()), "smart_scan": knob("smart_scan")}
    # Another scale for the same knobs: what the killed run set is not under them.
    asked = {"policies": "smart_scan,pacer", "ksm_knobs": {"max_page_sharing": 64}, "probes": 1}
    run = started(results, focus=1, guests=1, run_id="after", **asked)
    said = follow(run, "cell 1 of 2 idle-")
    said += follow(run, ": on")
    booted_at = start(next(iter(proof.values())))["booted_at"]
    folders = [path.parent for path in CHECKPOINTS.glob("*/manifest.json") if booted_at in path.read_text()]
    (damaged,) = [folder for folder in folders if '"load": null' in (folder / "manifest.json").read_text()]
    with (damaged / "guest01/memory").open("r+b") as memory:
        memory.truncate(MIB)
    assert run.stdout is not None
    rest = run.stdout.read()
    assert run.wait() == 0, rest[-3000:]
    return {
        "seen": seen,
        "said": "".join(said),
        "rest": rest,
        "cells": cells(results / "after"),
        "folders": folders,
        "damaged": damaged.name,
    }


def test_the_run_after_one_that_was_killed_starts_clean_and_goes_on(
    aftermath: dict[str, Any], before: State
) -> None:
    assert len(aftermath["seen"]["domains"]) == 2
    assert (aftermath["seen"]["tuners"], aftermath["seen"]["smart_scan"]) == (["ksm-pacer"], "0")
    assert "is up after" not in aftermath["said"]
    cell = next(cell for name, cell in aftermath["cells"].items() if "-smart_scan-" in name)
    measured = cell["on"]["provenance"]["ksm_knobs"]
    found = (measured["pages_to_scan"], measured["smart_scan"], measured["max_page_sharing"])
    assert found == (20000, 1, 64)
    # What is applied is what is recorded as requested.
    asked = cell["on"]["requested"]
    assert {name: measured[name] for name in asked["ksm_knobs"]} == asked["ksm_knobs"]
    assert left(before) == []


def test_the_testbeds_daemon_sets_the_pace_of_a_cell(aftermath: dict[str, Any], results: Path) -> None:
    (cell,) = [one for one in load_run(results / "after").cells if one.cell.policy == "pacer"]
    assert (cell.status, cell.problem) == ("complete", "")
    assert cell.on.observed.tuners == ("ksm-pacer",)
    assert cell.merge.observed.converged is True
    assert cell.off.observed.tuners == ()


def test_a_guest_is_probed_with_ksm_off_and_under_the_policy(aftermath: dict[str, Any]) -> None:
    for cell in aftermath["cells"].values():
        for arm in ("off", "on"):
            (probe,) = cell[arm]["observed"]["probes"]
            assert probe["answer"]["cpu_iterations_per_second"] > 0
            # An operation costs the host's CPUs something.
            assert probe["probe"]["run_seconds"] > 0
            assert probe["read_bytes"] == 4 * MIB


def test_a_checkpoint_damaged_in_the_middle_of_a_run_is_made_again(aftermath: dict[str, Any]) -> None:
    name, rest = aftermath["damaged"], aftermath["rest"]
    assert f"checkpoint {name} is thrown away: guest01/memory has {MIB} bytes of" in rest
    assert "guest01 is up" in rest
    # With it goes what stands on it.
    assert not any(folder.exists() for folder in aftermath["folders"])
    # The records name two boots, which are two replicates whatever their number.
    assert len(aftermath["cells"]) == 2
    assert len({start(cell)["booted_at"] for cell in aftermath["cells"].values()}) == 2


def test_teardown_proves_that_the_host_is_as_it_was(aftermath: dict[str, Any], before: State) -> None:
    """The host of the run that was killed put itself right, and the next run kept its state anew."""
    output = succeeded(playbook(name="teardown.yml"))
    assert "this host is as it was before run after of " in output, output[-3000:]
    assert left(before) == []
    was = before["settings"]["ksm/sleep_millisecs"]
    SLEEP.write_text(f"{int(was) + 1}\n")
    try:
        refused = playbook(name="teardown.yml")
    finally:
        SLEEP.write_text(f"{was}\n")
    assert refused.returncode != 0
    assert f"ksm/sleep_millisecs was {was} and is {int(was) + 1}" in " ".join(refused.stdout.split())
