"""What the system tests know of this host: its playbooks, KSM knobs and domains."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KSM = Path("/sys/kernel/mm/ksm")
MIB = 1 << 20


def playbook(*arguments: str, name: str = "experiment.yml") -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ansible-playbook", f"playbooks/{name}", *arguments], cwd=ROOT, check=False,
                          capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=1200)


def knobs() -> dict[str, str]:
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
    done = subprocess.run(
        ["virsh", "-c", "qemu:///system", "list", "--all", "--name"],
        check=True,
        capture_output=True,
        text=True,
    )
    return [name for name in done.stdout.split() if name.startswith("ksm-testbed-")]
