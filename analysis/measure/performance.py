"""What guests lose under a policy in the cells of an experiment, and what order and chance alone do."""

from collections.abc import Collection, Hashable, Mapping, Sequence
from math import nan

from analysis.measure.probes import COSTS, lost, probed
from analysis.records.loading import CellRecords
from analysis.records.models import Probe

# A median over guests says nothing of one whose memory alone has merged.
WORST_P50 = "worst_p50_added_percent"
# What a cell's guests lose, and 1 where more of what was measured is worse
LOSSES = {**{name: sign for name, (_value, sign) in COSTS.items()}, WORST_P50: 1}


def boot_of(records: CellRecords) -> str:
    """What a cell began from: two checkpoints of one boot would not be the same start."""
    return f"{records.boot_key} {records.provenance.start.checkpoint}"


def lost_in(records: CellRecords) -> dict[str, float]:
    """What the guests of a cell lost from its off to its on record, by LOSSES; NaN where it does not tell.

    Of guests that gave each answer in both, so that medians are of the same ones. WORST_P50 is that of the
    guest that lost most; of several alike it is the one with the worst luck, in cells under off, too.
    """
    arms = [records.off.observed.probes, records.on.observed.probes]
    silent = {probe.guest for arm in arms for probe in arm if probe.answer is None}
    in_both = set.intersection(*({probe.guest for probe in arm} for arm in arms)) - silent
    of_guest = [_lost_by(arms, {guest})["p50_added_percent"] for guest in in_both]
    return {**_lost_by(arms, in_both), WORST_P50: max(of_guest, default=nan)}


def _lost_by(arms: Sequence[Sequence[Probe]], guests: Collection[str]) -> dict[str, float]:
    off, on = (probed([probe for probe in arm if probe.guest in guests]) for arm in arms)
    return lost(off, on)


def beyond(loss: Mapping[str, float], chance: Mapping[str, float]) -> dict[str, float]:
    """What is lost beyond chance, in percent by LOSSES: ratios of on to off are divided by those of chance.

    They are not subtracted: nobody loses 125 % of a throughput. ``chance``: what cells under off lost in the
    same boot, of none nothing.
    """
    found = {}
    for name, sign in LOSSES.items():
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
