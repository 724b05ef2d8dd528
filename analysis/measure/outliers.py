"""What each guest contributes to the saving and costs, and which of them stand out."""

import pandas as pd

from analysis.plan.design import MIB
from analysis.plan.mix import guest_workloads
from analysis.records.loading import CellRecords

# Iglewicz and Hoaglin (1993), How to Detect and Handle Outliers: modified z-scores above 3.5.
OUTLIER_Z = 3.5
_LEAST_DEVIATION = MIB


def contributions(records: CellRecords) -> pd.DataFrame:
    """One row a guest, index its name, off less on.

    Columns: workload; pss_drop_bytes; huge_pages_drop_bytes (NaN when the kernel does not tell);
    merging_pages, rmap_items and profit_bytes at on (NaN without ksm_stat); guest_cpu_seconds and
    minor_faults from one arm to the other; robust_z of pss_drop_bytes among the guests of the same workload.
    """
    off, on = records.observed("off")["guests"], records.observed("on")["guests"]
    workloads = guest_workloads(records.cell.workload, on)
    rows = {}
    for name in sorted(on):
        before, after = off[name], on[name]
        huge = [seen["smaps_rollup"].get("AnonHugePages_bytes", float("nan")) for seen in (before, after)]
        stat = after["ksm_stat"] or {}
        rows[name] = {
            "workload": workloads[name],
            "pss_drop_bytes": before["smaps_rollup"]["Pss_bytes"] - after["smaps_rollup"]["Pss_bytes"],
            "huge_pages_drop_bytes": huge[0] - huge[1],
            "merging_pages": stat.get("ksm_merging_pages", float("nan")),
            "rmap_items": stat.get("ksm_rmap_items", float("nan")),
            "profit_bytes": stat.get("ksm_process_profit", float("nan")),
            "guest_cpu_seconds": abs(after["cpu_seconds"] - before["cpu_seconds"]),
            "minor_faults": abs(after["minor_faults"] - before["minor_faults"]),
        }
    frame = pd.DataFrame.from_dict(rows, orient="index")
    return frame.assign(robust_z=frame.groupby("workload")["pss_drop_bytes"].transform(robust_z))


def robust_z(values: pd.Series) -> pd.Series:
    """Modified z-score: 0.6745 (x - median) / MAD; where the MAD is 0, by the mean absolute deviation."""
    deviation = values - values.median()
    spread = deviation.abs().median() / 0.6745
    if spread == 0:
        spread = deviation.abs().mean() * 1.253314
    return deviation / spread if spread else deviation * 0.0


def outliers(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows whose PSS drop stands out: |robust z| above 3.5, and at least 1 MiB from the workload's median."""
    medians = frame.groupby("workload")["pss_drop_bytes"].transform("median")
    away = (frame["pss_drop_bytes"] - medians).abs()
    return frame[(frame["robust_z"].abs() > OUTLIER_Z) & (away >= _LEAST_DEVIATION)]
