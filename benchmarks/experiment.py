"""Wall time of one focus against the sum of its necessary parts, measured in the same run.

    python benchmarks/experiment.py --focus 2 [-e guests=4 ...]

Necessary are: the CPU time of the boots divided by the CPUs (emulated boots; with kvm the longest boot), the
fill (the slowest guest's), and the merge until it converged. Prints the parts, what each step of the playbook
took, and the memory of a guest's QEMU besides its RAM.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
UP = re.compile(r"(\S+) is up after (\d+) s, ([\d.]+) s of CPU")
TASK = re.compile(r"TASK \[(.*?)\]")
MIB = 1 << 20


def run(
    focus: str, extra: list[str], results: Path
) -> tuple[float, dict[str, float], dict[str, tuple[float, float]]]:
    """Run the playbook; return (wall seconds, seconds by task, guest -> boot seconds and CPU seconds)."""
    words = [word for pair in extra for word in ("-e", pair)]
    command = [
        "ansible-playbook",
        "playbooks/experiment.yml",
        "-e",
        f"focus={focus}",
        *words,
        "-e",
        f"results_directory={results}",
    ]
    began = time.monotonic()
    tasks: dict[str, float] = {}
    boots: dict[str, tuple[float, float]] = {}
    current, since = "start", began
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL
    ) as process:
        for line in process.stdout or ():
            if up := UP.search(line):
                boots[up[1]] = (float(up[2]), float(up[3]))
            if task := TASK.match(line):
                now = time.monotonic()
                tasks[current] = tasks.get(current, 0.0) + now - since
                current, since = task[1], now
    if process.returncode:
        sys.exit(f"the experiment failed with exit code {process.returncode}: run it by itself to see why")
    now = time.monotonic()
    tasks[current] = tasks.get(current, 0.0) + now - since
    return now - began, tasks, boots


def records(results: Path) -> dict[str, Any]:
    """Return the records of the one cell that was measured."""
    (cell,) = {path.parent for path in results.glob("*/*/*/on.json")}
    return {kind: json.loads((cell / f"{kind}.json").read_text()) for kind in ("off", "merge", "on")}


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--focus", default="2", choices=["1", "2", "3"])
    parser.add_argument("-e", action="append", default=[], metavar="NAME=VALUE", dest="extra")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ksm-testbed-") as folder:
        wall, tasks, boots = run(arguments.focus, arguments.extra, Path(folder))
        seen = records(Path(folder))
    cpu = sum(seconds for _, seconds in boots.values())
    emulated = seen["on"]["provenance"]["accelerator"] == "tcg"
    boot = cpu / (os.cpu_count() or 1) if emulated else max(seconds for seconds, _ in boots.values())
    fill = max((guest["fill_seconds"] for guest in seen["off"]["observed"]["workload"].values()), default=0.0)
    merge = seen["merge"]["observed"]["duration_seconds"]
    necessary = boot + fill + merge
    print(
        f"guests {len(boots)}, focus {arguments.focus}, {'tcg' if emulated else 'kvm'}, {os.cpu_count()} CPUs"
    )
    print(
        f"boot CPU seconds a guest  mean {cpu / len(boots):.1f}, most {max(c for _, c in boots.values()):.1f}"
    )
    print(f"necessary: boots {boot:.1f} s + fill {fill:.1f} s + merge {merge:.1f} s = {necessary:.1f} s")
    print(f"whole run: {wall:.1f} s, {wall / necessary:.2f} times the necessary")
    guests = seen["off"]["observed"]["guests"].values()
    pss = sum(guest["smaps_rollup"]["Pss_bytes"] for guest in guests) / len(boots)
    if arguments.focus != "1":
        memory = seen["off"]["cell"]["guest_memory_bytes"]
        print(
            f"PSS of a guest's QEMU besides its RAM, all of which is taken as resident: "
            f"{(pss - memory) / MIB:.0f} MiB"
        )
    print("steps of 1 s and more:")
    for name, seconds in sorted(tasks.items(), key=lambda item: -item[1]):
        if seconds >= 1:
            print(f"  {seconds:7.1f} s  {name}")


if __name__ == "__main__":
    main()
