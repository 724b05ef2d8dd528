"""How the measures of memory saved scatter within a boot and between boots, and when the two of freed part.

    python benchmarks/freed.py results/reference/cells results/reference/cells-compacting

Reads records, measures nothing. One block for each treatment that was measured more than once: of each
measure the mean of the boots, the standard deviation between the boots and within them, MB/VM. Then each
cell, of all directories, in which the host's memory freed parts from the guests'.
"""

import sys
from pathlib import Path

import pandas as pd

from analysis.measure.pooling import largest_set
from analysis.measure.saving import PER_VM
from analysis.measure.statistics import Summary, summarise
from analysis.measure.table import tidy
from analysis.plan.design import MIB
from analysis.records.loading import COMPLETE, find_runs, load_runs


def main(directories: list[Path]) -> None:
    """Print the scatter of what is stored under these directories."""
    tables = [tidy(list(load_runs(find_runs(directory).directories).runs)) for directory in directories]
    for table in tables:
        for summary in summarise(largest_set(table).table):
            if sum(summary.boots) > 1:
                print(block(summary))
    cells = pd.concat(tables)
    cells = cells[cells["status"] == COMPLETE].drop_duplicates(["run_id", "hypervisor", "cell_id"])
    apart = (cells["freed_host_mib_per_vm"] - cells["freed_mib_per_vm"]) * cells["guests"]
    print(f"Host less guests, MiB of the host, {len(cells)} cells: ", end="")
    print(", ".join(f"{value:.0f}" for value in sorted(apart)))
    for row in cells[cells["parted_mib"].notna()].to_dict("records"):
        print(
            f"parted by {row['parted_mib']:+.0f} MiB: {row['run_id']} {row['cell_id']}, freed "
            f"{row['freed_mib_per_vm']:.1f} by the guests and {row['freed_host_mib_per_vm']:.1f} by the host"
        )


def block(summary: Summary) -> str:
    """One treatment, a line for each measure."""
    lines = [
        f"{summary.workload}, {summary.guests} guests of {summary.guest_memory_bytes // MIB} MB, "
        f"{summary.variant}, from {summary.start_from}; repetitions of each boot {summary.boots}",
        f"    {'MB/VM':<28}{'mean':>8}{'between':>9}{'within':>8}",
    ]
    for name in PER_VM:
        found = summary.estimates[name]
        if found is not None:
            spreads = (found.between_boot_sd, found.within_boot_sd)
            between, within = ("-" if spread is None else f"{spread:.2f}" for spread in spreads)
            lines.append(f"    {name:<28}{found.mean:>8.1f}{between:>9}{within:>8}")
    return "\n".join(lines)


if __name__ == "__main__":
    main([Path(word) for word in sys.argv[1:]])
