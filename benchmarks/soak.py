"""What cells one after another leave behind on this host, and how much their figures scatter; read-only.

Beside an experiment, from its begin on: python benchmarks/soak.py watch SAMPLES.csv
After it: python benchmarks/soak.py tell SAMPLES.csv RESULTS

`watch` takes a sample at each moment between two cells, when none of the testbed's guests runs, until it is
interrupted or told to end (SIGTERM).
`tell` prints each count at the first and the last of these moments with its least and greatest value, and
for each treatment in RESULTS the coefficients of variation of what was saved within a boot and between boots.
"""

import csv
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import pandas as pd

from analysis.measure.statistics import summarise
from analysis.measure.table import tidy
from analysis.records.loading import find_runs, load_runs

DAEMONS = ("libvirtd", "virtlogd")
KSM = Path("/sys/kernel/mm/ksm")
GUEST_PIDS = Path("/run/libvirt/qemu")
PLACES = {"run": "/run/libvirt", "qemu": "/var/lib/libvirt/qemu", "guests": "/var/lib/ksm-testbed/guests"}
RMAP_ITEMS = ("pages_shared", "pages_sharing", "pages_unshared", "pages_volatile")


def processes() -> dict[str, list[Path]]:
    """The processes of this host by name."""
    found: dict[str, list[Path]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                found.setdefault((folder / "comm").read_text().strip(), []).append(folder)
    return found


def number(path: Path, name: str) -> int:
    """A number of a file of `name: number` lines."""
    for line in path.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    return 0


def sample(running: dict[str, list[Path]]) -> dict[str, int]:
    """What should be the same between any two cells."""
    row = {"seconds": round(time.monotonic())}
    for daemon in DAEMONS:
        for place in running.get(daemon, [])[:1]:
            row[f"{daemon}_files"] = len(list((place / "fd").iterdir()))
            row[f"{daemon}_threads"] = number(place / "status", "Threads")
            row[f"{daemon}_rss_kib"] = number(place / "status", "VmRSS")
    row["libvirt_sockets"] = sum(
        "libvirt" in line or "ksm-testbed" in line for line in Path("/proc/net/unix").read_text().splitlines()
    )
    for name, folder in PLACES.items():
        row[f"{name}_files"] = len(list(Path(folder).rglob("*"))) if Path(folder).is_dir() else 0
    row["progress_files"] = len(list(Path("/run").glob("*.progress")))
    row["machine_cgroups"] = len(list(Path("/sys/fs/cgroup").glob("**/machine*")))
    row["rmap_items"] = sum(int((KSM / name).read_text()) for name in RMAP_ITEMS)
    row["slab_unreclaimable_kib"] = number(Path("/proc/meminfo"), "SUnreclaim")
    return row


def watch(path: Path) -> None:
    """Write the last sample of each pause between cells, until interrupted."""
    last: dict[str, int] | None = None
    with path.open("w", newline="") as file, suppress(KeyboardInterrupt):
        writer: csv.DictWriter[str] | None = None
        while True:
            if not any(GUEST_PIDS.glob("ksm-testbed-*.pid")):
                last = sample(processes())
            elif last is not None:
                if writer is None:
                    writer = csv.DictWriter(file, last)
                    writer.writeheader()
                writer.writerow(last)
                file.flush()
                last = None
            time.sleep(0.5)


def tell(samples: Path, results: Path) -> None:
    """Print the counts and the scatter."""
    table = pd.read_csv(samples)
    hours = (table["seconds"].iloc[-1] - table["seconds"].iloc[0]) / 3600
    print(f"{len(table)} moments between cells in {hours:.2f} h")
    print(f"{'':24} {'first':>10} {'last':>10} {'least':>10} {'most':>10}")
    for name in table.columns.drop("seconds"):
        of = table[name]
        print(f"{name:24} {of.iloc[0]:>10} {of.iloc[-1]:>10} {of.min():>10} {of.max():>10}")
    for summary in summarise(tidy(list(load_runs(find_runs(results).directories).runs))):
        for name in ("gross_mib_per_vm", "freed_mib_per_vm"):
            found = summary.estimates[name]
            if found is not None:
                spreads = (found.within_boot_sd, found.between_boot_sd)
                within, between = ("-" if sd is None else f"{100 * sd / found.mean:.2f} %" for sd in spreads)
                print(
                    f"{summary.workload}, {summary.variant}, {name}: {sum(summary.boots)} cells, mean "
                    f"{found.mean:.1f}, within a boot {within}, between {len(summary.boots)} boots {between}"
                )


if __name__ == "__main__":
    if sys.argv[1] == "watch":
        # What a shell starts in the background has no Ctrl-C.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        watch(Path(sys.argv[2]))
    else:
        tell(Path(sys.argv[2]), Path(sys.argv[3]))
