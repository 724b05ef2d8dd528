"""What guests lose under a policy, as a table and in words: what differs, and what does not."""

from collections.abc import Iterator, Mapping

from analysis.measure.policies import Place
from analysis.measure.probes import KSMD, P99
from analysis.measure.statistics import LEAST_BOOTS, Estimate
from analysis.report.quantities import CELL_COSTS, COSTS, QUANTITIES
from analysis.report.summary import replicates
from analysis.report.tables import Grid, table

FREED = QUANTITIES["freed_mib_per_vm"]


def performance_grid(place: Place) -> Grid:
    """What each policy of a place frees and loses; last what cells under off lost from arm to arm."""
    front, names = place.front(P99), (*CELL_COSTS, KSMD)
    rows = [
        (
            line.policy,
            replicates(line.boots),
            FREED.estimate(line.estimates[FREED.name]),
            *(QUANTITIES[name].estimate(line.estimates[name]) for name in names),
            "yes" if line.policy in front else "",
        )
        for line in place.lines
    ]
    less = ""
    if place.control:
        less = ", beyond what cells under off show"
        boots = max((seen.n_boots for seen in place.control.values() if seen is not None), default=0)
        shown = (QUANTITIES[name].estimate(place.control[name]) for name in CELL_COSTS)
        rows.append(("off: order, chance", str(boots) if boots else "-", "", *shown, "", ""))
    heads = ("policy", "boots", FREED.head, *(QUANTITIES[name].head for name in names), "Pareto\np99")
    return table(heads, rows, title=f"Performance lost from KSM off to the policy in the same guests{less}")


def performance_remarks(place: Place) -> Iterator[str]:
    """What differs from KSM off and what does not, of each policy of a place that was probed."""
    probed = [line for line in place.lines if any(line.estimates[name] is not None for name in COSTS)]
    if probed and not place.control:
        yield (
            "what order and chance do is in the performance lost, since not each boot has a cell under "
            "off (policies=off,...)."
        )
    for line in probed:
        told = {name: seen for name in COSTS if (seen := line.estimates[name]) is not None}
        if min(seen.n_boots for seen in told.values()) < LEAST_BOOTS:
            yield f"{line.policy}: of fewer than {LEAST_BOOTS} boots no difference is concluded."
        else:
            yield f"{line.policy}, against KSM off: {differing(told)}."


def has_performance(place: Place) -> bool:
    """Whether guests of the place were probed."""
    return any(line.estimates[name] is not None for line in place.lines for name in COSTS)


def differing(told: Mapping[str, Estimate]) -> str:
    """Costs whose 95 % interval leaves out 0, with their size, and the others as not told apart."""
    differ = [name for name, seen in told.items() if abs(seen.mean) > (seen.half_width or 0.0)]
    same = [QUANTITIES[name].label for name in told if name not in differ]
    words = [f"{QUANTITIES[name].label} {QUANTITIES[name].estimate(told[name])} %" for name in differ]
    words += [f"no difference can be told of {', '.join(same)}"] if same else []
    return "; ".join(words)
