"""A run's controller is told to stop, or killed, in each phase: the host is as it was, and nothing is lost.

`make faults` runs these, for most of an hour. Nothing is started after the fault: where the controller is
killed the host puts itself right by its lease.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from this_host import CAPACITY, Cells, State, domains, failure, finished, follow, left, started, whole

pytestmark = pytest.mark.faults

SIGNALS = ("SIGINT", "SIGTERM", "SIGKILL")
# Phase -> what is asked for, and what the run says when it is in that phase
PHASES: dict[str, tuple[dict[str, Any], str]] = {
    "boot": ({"focus": 1, "checkpoint": "fresh", "first_boot": 9}, "booting 2 guests"),
    "checkpoint": ({"focus": 1, "checkpoint": "fresh", "first_boot": 9}, "guest02 is up"),
    "restore": ({"focus": 1}, ": restore"),
    "load": ({"focus": 2}, ": load"),
    "off": ({"focus": 1}, ": off"),
    "merge": ({"focus": 1, "converge_min_full_scans": 10000}, "MiB/VM"),
    "on": ({"focus": 1}, ": on"),
    "after": ({"focus": 1, "follow_seconds": 600}, ": after"),
    "census": ({"focus": 2, "census": True}, ": census"),
    "churn": ({"focus": 2, "churn_seconds": 600}, ": arrive"),
    "verify": ({"focus": 2}, ": verify"),
    "putting right": ({"focus": 1}, ": done in"),
    "capacity step": (CAPACITY, "arm ksm, boot 1: Let KSM settle"),
    "divergence": (CAPACITY, "arm ksm, boot 1: Let one guest"),
}


@pytest.mark.parametrize("name", SIGNALS)
@pytest.mark.parametrize("phase", PHASES)
def test_the_controller_ends(results: Path, proof: Cells, before: State, phase: str, name: str) -> None:
    asked, text = PHASES[phase]
    run_id = f"{phase.replace(' ', '-')}-{name}"
    run = started(results, run_id=run_id, **asked)
    follow(run, text)
    stop(run, name)
    code, said = finished(run)
    assert code != 0, said
    assert left(before) == [], said
    assert domains() == []
    whole(results, run_id, capacity="name" in asked)


def stop(run: subprocess.Popen[str], name: str) -> None:
    """Tell the controller alone; kill all of it, so that none of its processes puts anything right."""
    if name == "SIGKILL":
        os.killpg(run.pid, signal.SIGKILL)
    else:
        os.kill(run.pid, signal.Signals[name])


def kill_a_guest(run: subprocess.Popen[str]) -> None:
    """The QEMU of one guest, from outside, as soon as there is one."""
    while not (pids := [path.read_text() for path in Path("/run/libvirt/qemu").glob("ksm-testbed-*.pid")]):
        assert run.poll() is None
        time.sleep(0.02)
    os.kill(int(pids[0]), signal.SIGKILL)


@pytest.mark.parametrize("phase", [phase for phase in PHASES if phase != "putting right"])
def test_a_guest_is_killed(results: Path, proof: Cells, before: State, phase: str) -> None:
    """Its cell and its run fail and name it; the guests that diverge one by one go on without it."""
    asked, text = PHASES[phase]
    run_id = f"{phase.replace(' ', '-')}-guest"
    capacity = "name" in asked
    run = started(results, run_id=run_id, **(asked if capacity else {**asked, "focus": 2}))
    follow(run, text)
    kill_a_guest(run)
    code, said = finished(run)
    assert left(before) == [], said
    assert domains() == []
    whole(results, run_id, capacity=capacity)
    if phase == "divergence":
        assert code == 0, said
        seen = [json.loads(path.read_text()) for path in results.glob(f"capacity/{run_id}/*/*divergence*")]
        assert any(one["observed"]["guests_alive"] == one["guests"] - 1 for one in seen)
        return
    assert code != 0, said
    assert "guest0" in (said if capacity else failure(results / run_id))


def test_a_guest_is_killed_while_the_host_is_put_right(results: Path, proof: Cells, before: State) -> None:
    """Nothing is owed to it any more."""
    asked, text = PHASES["putting right"]
    run = started(results, run_id="removed", **asked)
    follow(run, text)
    with suppress(AssertionError, ProcessLookupError):
        kill_a_guest(run)
    code, said = finished(run)
    assert code == 0, said
    assert left(before) == []
    whole(results, "removed")


def test_two_runs_at_once(results: Path, proof: Cells, before: State) -> None:
    """The second one is told whose the host is, and changes nothing; the first one goes on to its end."""
    first = started(results, run_id="first", focus=1)
    follow(first, ": restore")
    second = started(results, run_id="second", focus=1)
    code, told = finished(second)
    assert code != 0
    assert "this host is in use by" in told
    assert "experiment first" in told
    code, rest = finished(first)
    assert code == 0, rest
    assert "done in" in rest
    assert left(before) == []
