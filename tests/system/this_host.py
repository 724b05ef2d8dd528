"""What the system tests know of this host: its playbooks, its state, its guests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ansible.module_utils

ROOT = Path(__file__).resolve().parents[2]
ansible.module_utils.__path__.append(str(ROOT / "plugins/module_utils"))

from ansible.module_utils.host_state import LEASE, differences, read_state  # noqa: E402 -- found by the line above
from ansible.module_utils.lease import Lease  # noqa: E402

GUESTS_DIRECTORY = Path("/var/lib/ksm-testbed/guests")
# The testbed's own way to its guests
SSH = ["ssh", "-F", str(GUESTS_DIRECTORY / "ssh_config")]
CHECKPOINTS = Path("/var/lib/ksm-testbed/checkpoints")
MIB = 1 << 20
# A holder that puts a host right takes its time.
HOLDER_SECONDS = 600
RECORDS = ("off", "merge", "on", "verify")
# The guests that boot for all system tests; with fewer, the first ones are restored.
GUESTS = 3
MEMORY_MIB = 256
# The first two of the guests that booted
SIZE = {"guests": 2, "guest_memory_mib": MEMORY_MIB}
# A capacity run of one step
CAPACITY = {
    "name": "capacity.yml",
    "guests": None,
    "guest_memory_mib": MEMORY_MIB,
    "capacity_envelope_mib": 1000,
    "capacity_step_guests": 3,
    "capacity_most_guests": 3,
    "capacity_probes": 1,
}
Cells = dict[str, dict[str, Any]]
# Against guests that hang; on a busy machine they take as long as they take.
PATIENCE = {"guests_boot_timeout_seconds": 3600, "guests_answer_timeout_seconds": 3600}


def command(*arguments: str, name: str = "experiment.yml", **variables: Any) -> list[str]:
    """The command of a playbook with these variables."""
    given = json.dumps({**PATIENCE, **variables})
    return ["ansible-playbook", f"playbooks/{name}", *arguments, "-e", given]


def playbook(
    *arguments: str, name: str = "experiment.yml", **variables: Any
) -> subprocess.CompletedProcess[str]:
    """Run a playbook to its end."""
    return subprocess.run(
        command(*arguments, name=name, **variables),
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


def succeeded(done: subprocess.CompletedProcess[str]) -> str:
    """What a playbook said that must have succeeded."""
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return done.stdout


def cells(run: Path) -> Cells:
    """The records of a run: cell -> kind -> record."""
    return {
        place.name: {path.stem: json.loads(path.read_text()) for path in place.glob("*.json")}
        for place in (run / "localhost").iterdir()
    }


State = dict[str, Any]


def state() -> State:
    """The host as it is, as teardown reads it."""
    found: State = read_state()
    return found


def left(before: State) -> list[str]:
    """What of a run is left on this host, and which settings are not as they were.

    The holder of its lease, which ends after the run, is waited for.
    """
    deadline = time.monotonic() + HOLDER_SECONDS
    while Lease(Path(LEASE)).is_held():
        if time.monotonic() > deadline:
            return [f"a holder of {LEASE}"]
        time.sleep(0.1)
    return [one.text for one in differences(before, state()) if one.kind == "left"]


def knob(name: str) -> str:
    """One of KSM's settings as it is."""
    found: str = state()["settings"][f"ksm/{name}"]
    return found


def in_guest(number: int, *words: str, text: str | None = None) -> str:
    """What a command in a guest printed, over SSH, with this input. A login changes the guest's memory."""
    given: dict[str, Any] = {"stdin": subprocess.DEVNULL} if text is None else {"input": text}
    done = subprocess.run(
        [*SSH, f"guest{number:02d}", *words], check=False, capture_output=True, text=True, **given
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def domains() -> list[str]:
    """This testbed's domains, as libvirt itself says."""
    done = subprocess.run(
        ["virsh", "-c", "qemu:///system", "list", "--all", "--name"],
        check=True,
        capture_output=True,
        text=True,
    )
    return [name for name in done.stdout.split() if name.startswith("ksm-testbed-")]


def follow(run: subprocess.Popen[str], text: str) -> list[str]:
    """What a run says up to a line with this text."""
    assert run.stdout is not None
    said = []
    for line in run.stdout:
        said.append(line)
        if text in line:
            return said
    raise AssertionError("".join(said)[-3000:])


def finished(run: subprocess.Popen[str]) -> tuple[int, str]:
    """A run's exit code, and the end of what it said since it was followed."""
    assert run.stdout is not None
    said = run.stdout.read()
    return run.wait(), said[-4000:]


def started(
    results: Path,
    *words: str,
    name: str = "experiment.yml",
    environment: Mapping[str, str] | None = None,
    **asked: Any,
) -> subprocess.Popen[str]:
    """A playbook that runs in a session of its own, for the first two guests where no other number is asked.

    A variable that is None is not given.
    """
    given = {word: value for word, value in {**SIZE, **asked}.items() if value is not None}
    return subprocess.Popen(
        command(*words, name=name, results_directory=str(results), **given),
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )


def failure(run: Path) -> str:
    """Why the one cell of a run failed, as its record says."""
    (failed,) = run.rglob("failed.json")
    message: str = json.loads(failed.read_text())["observed"]["message"]
    return message


def whole(results: Path, run_id: str, *, capacity: bool = False) -> None:
    """Every record that was written can be read, none is cut off, and the run can be summarised."""
    folder = results / "capacity" / run_id if capacity else results / run_id
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".json", ".log"}
    for path in files:
        if path.suffix == ".json":
            json.loads(path.read_text())
    if not capacity:
        assert run_id in summary(results, run_id)


def summary(results: Path, run_id: str) -> str:
    """What `summarize` says of a run, to either stream."""
    words = [sys.executable, "-m", "analysis", "summarize", "--results", str(results), "--run", run_id]
    done = subprocess.run(words, cwd=ROOT, check=False, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    return " ".join((done.stdout + done.stderr).split())
