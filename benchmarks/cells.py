"""What each cell of a run cost beside its necessary parts, and what its boots and checkpoints cost.

    python benchmarks/cells.py results/20261126T083906Z

Necessary are the restore, the load and the merge until it settled. Reads the run's records and progress.log,
and the checkpoints that are on this host still. MiB are 2^20 bytes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import sys
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

CHECKPOINTS = Path("/var/lib/ksm-testbed/checkpoints")
MIB = 1 << 20
LINE = re.compile(r"(?P<at>\S+Z) \[ *[\d:]+\] cell \d+ of \d+ (?P<cell>\S+): (?P<what>.*)")
RESTORED = re.compile(
    r"restored (\d+) (?:loaded )?guests .* checked in ([\d.]+) s, restored in ([\d.]+), SSH in ([\d.]+), "
    r"barrier in ([\d.]+)"
)
PHASES = ("restore", "load", "off", "merge", "on", "census", "verify")


def phases(log: str) -> dict[str, dict[str, float]]:
    """Cell -> phase -> seconds, and `wall`; to the second, as the log's stamps are; no cell that failed."""
    marks: dict[str, list[tuple[datetime, str]]] = {}
    for match in map(LINE.match, log.splitlines()):
        if match:
            marks.setdefault(match["cell"], []).append((datetime.fromisoformat(match["at"]), match["what"]))
    found = {}
    for cell, seen in marks.items():
        if not seen[-1][1].startswith("done"):
            continue
        starts = [(at, what) for at, what in seen if what in PHASES] + [(seen[-1][0], "end")]
        found[cell] = {
            what: (after - at).total_seconds() for (at, what), (after, _) in itertools.pairwise(starts)
        }
        found[cell]["wall"] = (starts[-1][0] - starts[0][0]).total_seconds()
    return found


def record(place: Path, kind: str) -> dict[str, Any]:
    """One record of a cell."""
    content: dict[str, Any] = json.loads((place / f"{kind}.json").read_text(encoding="utf-8"))
    return content


def show_cells(run: Path, log: str) -> None:
    """A line for each cell that has all of its records."""
    print(f"{'cell':46} {'restore':>8} {'load':>6} {'merge':>6} {'rest':>6} {'wall':>6}  wall/necessary")
    ratios = []
    for cell, seconds in phases(log).items():
        place = run / "localhost" / cell
        restore = record(place, "on")["provenance"]["start"]["restore_seconds"] or 0.0
        load, merge = seconds.get("load", 0.0), record(place, "merge")["observed"]["duration_seconds"]
        necessary = restore + load + merge
        ratios.append(seconds["wall"] / necessary)
        rest = seconds["wall"] - necessary
        steps = f"{restore:8.1f} {load:6.1f} {merge:6.1f} {rest:6.1f} {seconds['wall']:6.0f}"
        print(f"{cell:46} {steps}  {ratios[-1]:.2f}")
    if ratios:
        said = f"median {median(ratios):.2f}, at most {max(ratios):.2f}"
        print(f"{len(ratios)} cells, wall/necessary: {said}\n")


def show_restores(log: str) -> None:
    """What restoring so many guests took, step by step."""
    found = map(RESTORED.search, log.splitlines())
    restores = [tuple(map(float, match.groups())) for match in found if match]
    for guests in sorted({int(restore[0]) for restore in restores}):
        columns = list(zip(*(restore[1:] for restore in restores if restore[0] == guests), strict=True))
        said = ", ".join(
            f"{name} {median(column):.1f} ({min(column):.1f} to {max(column):.1f})"
            for name, column in zip(("check", "restore", "SSH", "barrier"), columns, strict=True)
        )
        print(f"{guests} guests, {len(columns[0])} restores, median seconds (least to most): {said}")


def show_checkpoints(run: Path) -> None:
    """Size of each checkpoint that the run used against the memory that its guests use."""
    used: dict[str, list[float]] = {}
    for path in sorted(run.glob("localhost/*/off.json")):
        off = json.loads(path.read_text(encoding="utf-8"))
        start, guests = off["provenance"]["start"], off["observed"]["guests"]
        if start["from"] == "checkpoint" and not start["loaded"] and not off["observed"]["workload"]:
            held = sum(guest["smaps_rollup"]["Rss_bytes"] for guest in guests.values())
            used.setdefault(start["checkpoint"], []).append(held / len(guests))
    for name, each in used.items():
        manifest = json.loads((CHECKPOINTS / name / "manifest.json").read_text(encoding="utf-8"))
        files = [guest["files"] for guest in manifest["guests"].values()]
        size = sum(file["bytes"] for guest in files for file in guest.values()) / len(files)
        print(
            f"{name}: booted in {manifest['boot_seconds']:.0f} s, {size / MIB:.0f} MiB a guest, "
            f"{size / median(each):.2f} times what an idle guest's QEMU uses ({median(each) / MIB:.0f} MiB)"
        )


def main() -> None:
    """Print all of it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, help="the directory of a run")
    run: Path = parser.parse_args().run
    try:
        log = (run / "progress.log").read_text(encoding="utf-8")
    except OSError as error:
        sys.exit(f"{run} has no progress.log ({error.strerror}): name the directory of a run")
    show_cells(run, log)
    show_restores(log)
    show_checkpoints(run)


if __name__ == "__main__":
    main()
