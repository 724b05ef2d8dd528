"""What guests lose under a policy in the cells of an experiment, and what order and chance alone do."""

from collections.abc import Hashable, Sequence

from analysis.measure.probes import lost, probed
from analysis.records.loading import CellRecords


def boot_of(records: CellRecords) -> str:
    """What a cell began from: two checkpoints of one boot would not be the same start."""
    return f"{records.boot_key} {records.provenance.start.checkpoint}"


def lost_in(records: CellRecords) -> dict[str, float]:
    """What the guests of a cell lost from its off to its on record, by COSTS; NaN where it does not tell."""
    return lost(probed(records.off.observed.probes), probed(records.on.observed.probes))


def controls_of(
    cells: Sequence[CellRecords], controls: Sequence[CellRecords]
) -> dict[str, list[dict[str, float]]]:
    """What cells under off lost from arm to arm, by boot; none where a boot of these cells has none.

    Args:
        cells: under other policies, of one load, complete.
        controls: complete cells under off, those of other loads and boots too.
    """
    wanted = {(boot_of(cell), _load(cell)) for cell in cells}
    found: dict[str, list[dict[str, float]]] = {}
    for one in controls:
        if (boot_of(one), _load(one)) in wanted:
            found.setdefault(boot_of(one), []).append(lost_in(one))
    return found if found.keys() >= {boot for boot, _load in wanted} else {}


def _load(records: CellRecords) -> tuple[Hashable, ...]:
    cell, probes = records.cell, records.on.requested.probes
    return cell.hypervisor, cell.workload, cell.guests, cell.guest_memory_bytes, probes
