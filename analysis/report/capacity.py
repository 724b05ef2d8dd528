"""Capacity runs and divergence as text."""

import math

from analysis.model.capacity import Divergence, relation, steps_table
from analysis.plan.design import MIB
from analysis.records.capacity import (
    CapacityRun,
)

_HELD = {True: "it held", False: "it did NOT hold", None: "whether it holds is not known"}


def capacity_lines(run: CapacityRun) -> list[str]:
    """The steps of a run as a table of text, and memory saved against performance lost."""
    table = steps_table(run)
    lines = [
        f"{'policy':<15}{'N':>4}{'used MiB':>9}{'p50 us':>8}{'p99 us':>8}{'touch MiB/s':>12}{'CPU it/s':>10}"
        f"{'ksmd %':>7}{'PSI mem %':>10}{'COW/s':>7}{'majflt/s':>9}{'steal %':>8}"
    ]
    for row in table.to_dict("records"):
        numbers = (
            _shown(row["write_latency_p50_us"], 8, 1),
            _shown(row["write_latency_p99_us"], 8, 1),
            _shown(row["touch_mib_per_second"], 12, 0),
            _shown(row["cpu_iterations_per_second"], 10, 0),
            _shown(row["ksmd_percent"], 7, 1),
            _shown(row["psi_memory_percent"], 10, 1),
            _shown(row["cow_ksm_per_second"], 7, 0),
            _shown(row["pgmajfault_per_second"], 9, 1),
            _shown(row["steal_percent"], 8, 1),
        )
        lines.append(
            f"{row['policy']:<15}{row['guests']:>4}{row['used_bytes'] / MIB:>9.0f}{''.join(numbers)}"
        )
        if row["stop"]:
            lines.append(f"     stopped: {row['stop']}")
        if row["silent_guests"]:
            lines.append(f"     ! {row['silent_guests']} guests gave no answer; the medians leave them out")
        if row["converged"] is False:
            lines.append("     ! not converged: KSM was still merging")
    both = relation(table)
    if not both.empty:
        lines += [
            "",
            "Memory saved against performance lost, each policy against off at the same N:",
            f"{'policy':<15}{'N':>4}{'saved MiB':>11}{'touch lost %':>14}{'CPU lost %':>12}"
            f"{'p50 added %':>13}{'p99 added %':>13}",
        ]
        for row in both.to_dict("records"):
            lines.append(
                f"{row['policy']:<15}{row['guests']:>4}{row['saved_bytes'] / MIB:>11.0f}"
                f"{_shown(row['touch_lost_percent'], 14, 1)}"
                f"{_shown(row['cpu_lost_percent'], 12, 1)}{_shown(row['p50_added_percent'], 13, 1)}"
                f"{_shown(row['p99_added_percent'], 13, 1)}"
            )
    return lines


def divergence_lines(seen: Divergence) -> list[str]:
    """One divergence in words."""
    rate = "unknown" if seen.mean_rate is None else f"{seen.mean_rate / MIB:.0f} MiB/s"
    lines = [
        f"Divergence, {seen.workload}, {seen.policy}, {seen.guests} guests: "
        f"{seen.regained_bytes / MIB:.0f} MiB regained by the guests, {rate} on average, "
        f"{seen.peak_rate / MIB:.0f} MiB/s at the peak; copy-on-write faults: "
        f"{'unknown' if seen.cow_ksm is None else seen.cow_ksm}.",
        f"Write latency p99: {_shown(seen.p99_before_us, 0, 1)} us before, "
        f"{_shown(seen.p99_during_us, 0, 1)} us during. "
        f"{'All guests live' if seen.survived else f'{seen.guests_alive} of {seen.guests} guests live'}; "
        f"peak use {seen.peak_used_bytes / MIB:.0f} of {seen.capacity_bytes / MIB:.0f} MiB.",
    ]
    if seen.safe_bytes is not None:
        lines.append(
            f"The safe need of these guests was forecast as {seen.safe_bytes / MIB:.0f} MiB: "
            f"{_HELD[seen.safe_holds]}."
        )
    if not seen.whole:
        lines.append("! The series ended before every guest had answered: what came later is not in it.")
    return lines


def _shown(value: float | None, width: int, decimals: int) -> str:
    return f"{'-' if value is None or math.isnan(value) else f'{value:.{decimals}f}':>{width}}"
