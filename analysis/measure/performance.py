"""What guests lose under a policy in the cells of an experiment, and what order and chance alone do."""

from collections.abc import Hashable, Mapping, Sequence
from math import nan

from analysis.measure.probes import COSTS, lost, probed
from analysis.records.loading import CellRecords


def boot_of(records: CellRecords) -> str:
    """What a cell began from: two checkpoints of one boot would not be the same start."""
    return f"{records.boot_key} {records.provenance.start.checkpoint}"


def lost_in(records: CellRecords) -> dict[str, float]:
    """What the guests of a cell lost from its off to its on record, by COSTS; NaN where it does not tell.

    Of guests that gave each answer in both, so that medians are of the same ones.
    """
    arms = [records.off.observed.probes, records.on.observed.probes]
    silent = {probe.guest for arm in arms for probe in arm if probe.answer is None}
    in_both = set.intersection(*({probe.guest for probe in arm} for arm in arms)) - silent
    off, on = (probed([probe for probe in arm if probe.guest in in_both]) for arm in arms)
    return lost(off, on)


def beyond(loss: Mapping[str, float], chance: Mapping[str, float]) -> dict[str, float]:
    """What is lost beyond chance, in percent by COSTS: ratios of on to off are divided by those of chance.

    They are not subtracted: nobody loses 125 % of a throughput. ``chance``: what cells under off lost in the
    same boot, of none nothing.
    """
    found = {}
    for name, (_value, sign) in COSTS.items():
        mine, other = (1 + sign * one / 100 for one in (loss[name], chance.get(name, 0.0)))
        found[name] = sign * 100 * (mine / other - 1) if other else nan
    return found


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
    cell, asked = records.cell, records.on.requested
    return cell.hypervisor, cell.workload, cell.guests, cell.guest_memory_bytes, asked.probes, asked.rehearsed
