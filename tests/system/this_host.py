"""What the system tests know of this host: its playbooks, KSM knobs and domains."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
KSM = Path("/sys/kernel/mm/ksm")
CHECKPOINTS = Path("/var/lib/ksm-testbed/checkpoints")
MIB = 1 << 20
RECORDS = ("off", "merge", "on", "verify")
# The guests that boot for all system tests; with fewer, the first ones are restored.
GUESTS = 3
MEMORY_MIB = 256
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
    return subprocess.run(command(*arguments, name=name, **variables), cwd=ROOT, check=False,
                          capture_output=True, text=True, stdin=subprocess.DEVNULL)


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


def knobs() -> dict[str, str]:
    """KSM's settings and whether anything is merged."""
    names = (
        "run",
        "pages_to_scan",
        "sleep_millisecs",
        "smart_scan",
        "max_page_sharing",
        "use_zero_pages",
        "pages_sharing",
    )
    return {name: (KSM / name).read_text().strip() for name in names if (KSM / name).exists()}


def domains() -> list[str]:
    """This testbed's domains."""
    done = subprocess.run(
        ["virsh", "-c", "qemu:///system", "list", "--all", "--name"],
        check=True,
        capture_output=True,
        text=True,
    )
    return [name for name in done.stdout.split() if name.startswith("ksm-testbed-")]
