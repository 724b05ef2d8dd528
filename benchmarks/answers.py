"""How long all guests take to answer: through their serial ports, over new SSH connections, over kept ones.

    ansible-playbook playbooks/experiment.yml -e focus=1 -e keep_guests=true
    python benchmarks/answers.py [--rounds 5]

Asks the guests that a run kept for the same thing, in turn by each way: the time and the available memory,
which is what the barrier asks. Prints the seconds until the last of them has answered, and each as a ratio
to the serial ports'.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

from plugins.module_utils.guest_channel import ask_all

GUESTS = Path("/var/lib/ksm-testbed/guests")
COMMAND = "date +%s && grep MemAvailable /proc/meminfo"


def ssh(name: str, *options: str) -> list[str]:
    """The command of an SSH connection to a guest."""
    words = [word for option in options for word in ("-o", option)]
    return ["ssh", "-q", "-F", str(GUESTS / "ssh_config"), *words, name]


def seconds(act: Callable[[], None]) -> float:
    """What an act takes."""
    began = time.monotonic()
    act()
    return time.monotonic() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often each way is taken")
    arguments = parser.parse_args()
    names = sorted(path.name for path in GUESTS.glob("guest*") if (path / "channel").exists())
    if not names:
        sys.exit("no guests run: keep those of an experiment, with -e keep_guests=true")

    def channel() -> None:
        asked = {name: (GUESTS / name / "channel", ["barrier", f"{time.time():.0f}"]) for name in names}
        _answers, silent = ask_all(asked, 300)
        if silent:
            sys.exit(f"no answer: {silent}")

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(max_workers=len(names)) as pool:

        def over_ssh(*options: str) -> None:
            def one(name: str) -> None:
                command = [*ssh(name, *options), COMMAND]
                subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)

            list(pool.map(one, names))

        kept = (f"ControlPath={folder}/%p", "ControlMaster=auto", "ControlPersist=600")
        ways: dict[str, Callable[[], None]] = {
            "serial ports": channel,
            "new SSH connections": lambda: over_ssh("ControlMaster=no"),
            "kept SSH connections": lambda: over_ssh(*kept),
        }
        over_ssh(*kept)
        took: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(arguments.rounds):
            for name, way in ways.items():
                took[name].append(seconds(way))
        for name in names:
            subprocess.run([*ssh(name, *kept), "-O", "exit"], check=False, capture_output=True)
    print(f"{len(names)} guests, {arguments.rounds} rounds, seconds until all have answered:")
    base = median(took["serial ports"])
    for name, values in took.items():
        print(
            f"{name:22} median {median(values):5.1f} ({min(values):.1f} to {max(values):.1f}), "
            f"{median(values) / base:.1f} times the serial ports'"
        )


if __name__ == "__main__":
    main()
