"""What each guest contributes to the saving and costs, and which of them stand out.

The rule: a guest stands out that lies further beyond the quartiles of its cell's guests of the same workload
than chance allows, in interquartile ranges (fences: Tukey, Exploratory Data Analysis, 1977). The fence is set
for the number of guests, so that of cells of normal guests FALSE_ALARMS have one that stands out (in place of
a fixed 1.5: Hoaglin, Iglewicz and Tukey, Journal of the American Statistical Association 81, 1986). Quartiles
take in what is usual in such cells: guests in two groups, by how many of their huge pages were split. The
median and the deviation from it do not, and call the smaller group outliers.
"""

import math
from functools import cache

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.measure.saving import RMAP_ITEM_BYTES
from analysis.plan.design import MIB
from analysis.plan.mix import guest_workloads
from analysis.records.loading import CellRecords

# Of cells with nothing unusual, so many have a guest that stands out.
FALSE_ALARMS = 0.01
# Of fewer, none can lie far beyond quartiles that it moves itself.
LEAST_GUESTS = 4
# One huge page, by which guests' memory comes and goes: equal guests differ by so much.
LEAST_RANGE_BYTES = 2 * MIB

_SIMULATED_CELLS = 20_000
_SEED = 1977

Values = npt.NDArray[np.float64]


def contributions(records: CellRecords) -> pd.DataFrame:
    """One row a guest, index its name, off less on.

    Columns: workload; pss_drop_bytes; huge_pages_drop_bytes (NaN when the kernel does not tell);
    merging_pages, rmap_bytes and profit_bytes at on (NaN without ksm_stat); guest_cpu_seconds and
    minor_faults from one arm to the other; ``beyond``, how far its pss_drop_bytes lies outside the quartiles
    of the guests of the same workload, in interquartile ranges, and ``stands_out``.
    """
    off, on = records.off.observed.guests, records.on.observed.guests
    workloads = guest_workloads(records.cell.workload, on)
    rows: dict[str, dict[str, str | float]] = {}
    drops: dict[str, dict[str, float]] = {}
    for name in sorted(on):
        before, after = off[name], on[name]
        huge = [seen.smaps_rollup.get("AnonHugePages_bytes", math.nan) for seen in (before, after)]
        stat = after.ksm_stat or {}
        drop = before.smaps_rollup["Pss_bytes"] - after.smaps_rollup["Pss_bytes"]
        drops.setdefault(workloads[name], {})[name] = drop
        rows[name] = {
            "workload": workloads[name],
            "pss_drop_bytes": drop,
            "huge_pages_drop_bytes": huge[0] - huge[1],
            "merging_pages": float(stat.get("ksm_merging_pages", math.nan)),
            "rmap_bytes": float(stat.get("ksm_rmap_items", math.nan)) * RMAP_ITEM_BYTES,
            "profit_bytes": float(stat.get("ksm_process_profit", math.nan)),
            "guest_cpu_seconds": abs(after.cpu_seconds - before.cpu_seconds),
            "minor_faults": abs(after.minor_faults - before.minor_faults),
        }
    for mine in drops.values():
        far = beyond(np.array(list(mine.values()), dtype=float), LEAST_RANGE_BYTES)
        for name, one in zip(mine, far.tolist(), strict=True):
            rows[name] |= {"beyond": one, "stands_out": abs(one) > fence(len(mine))}
    return pd.DataFrame(list(rows.values()), index=list(rows))


def beyond(values: Values, least_range: float) -> Values:
    """How far each value lies outside the quartiles, in interquartile ranges; negative below, 0 between.

    Args:
        values: shape (..., n), cells of n values each.
        least_range: what the interquartile range is at least, for values that are tied.
    """
    low, high = np.percentile(values, [25, 75], axis=-1, keepdims=True)
    outside: Values = np.maximum(values - high, 0) - np.maximum(low - values, 0)
    spread: Values = np.maximum(high - low, least_range)
    return outside / spread


@cache
def fence(guests: int) -> float:
    """How far beyond the quartiles a guest must lie to stand out among so many of one workload.

    In all but FALSE_ALARMS of cells of as many normal values the furthest lies within, by simulation with a
    seed of its own. Infinite for fewer than LEAST_GUESTS.
    """
    if guests < LEAST_GUESTS:
        return float("inf")
    cells = np.random.default_rng(_SEED).standard_normal((_SIMULATED_CELLS, guests))
    return float(np.quantile(np.abs(beyond(cells, 0.0)).max(axis=-1), 1 - FALSE_ALARMS))
