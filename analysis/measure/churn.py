"""What a policy does when guests leave, come back, and one diverges (churn_seconds)."""

from math import nan

from analysis.measure.burndown import PERCENT, first_at, guests_gross_series, ksmd_percent, lost_byte_seconds
from analysis.plan.design import CHURN, MIB
from analysis.records.loading import CellRecords

CHURN_CPU = {kind: f"{kind}_ksmd_percent" for kind in CHURN}
ARRIVED, ARRIVED_LOST = "arrive_best_90_percent_seconds", "arrive_lost_mib_per_vm_seconds"
# The registry of quantities says what each is.
CHURNED = (ARRIVED, ARRIVED_LOST, *CHURN_CPU.values())


def churned(records: CellRecords, best_bytes: float | None) -> dict[str, float]:
    """What one cell says by CHURNED; NaN for what it does not tell.

    Args:
        records: a complete cell.
        best_bytes: the final gross saving of the best policy in its boot, of as many guests; None: not known.

    Raises RecordError for a series that cannot be used.
    """
    series = {kind: record.observed.samples for kind, record in records.churn.items()}
    found = dict.fromkeys(CHURNED, nan)
    found |= {CHURN_CPU[kind]: ksmd_percent(samples) for kind, samples in series.items()}
    if best_bytes is not None and "arrive" in series:
        samples = series["arrive"]
        saved = guests_gross_series(records, samples)
        reached = first_at(samples.seconds, saved, best_bytes * PERCENT / 100)
        lost = lost_byte_seconds(samples.seconds, saved, best_bytes, samples.seconds[-1])
        found[ARRIVED] = nan if reached is None else reached
        found[ARRIVED_LOST] = lost / (records.cell.guests * MIB)
    return found
