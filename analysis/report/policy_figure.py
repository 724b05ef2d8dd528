"""The Pareto figure of policies: the memory that the guests use against ksmd's CPU and the guests' p99."""

from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.measure.policies import CPU, USE, Place
from analysis.measure.probes import P99
from analysis.measure.statistics import Estimate
from analysis.measure.steady import CPU_SETTLED
from analysis.plan.policies import policy_order
from analysis.report.figures import (
    COLOURS,
    GREY,
    MARKERS,
    PANELS_IN_A_ROW,
    STYLE,
    FigureError,
    drawn_half_width,
    entitle,
    legend_entries,
)
from analysis.report.policies import place_name
from analysis.report.quantities import QUANTITIES

# From so many times the least cost on the axis is logarithmic.
WIDE = 20


def pareto_figure(places: Sequence[Place]) -> Figure:
    """A panel for each place and each cost that is known of two policies or more there: ksmd's two, p99.

    A line joins the policies that no other one beats in both, by their means. Raises FigureError when there
    is no such place.
    """
    panels = [
        (place, cost) for cost in (CPU, CPU_SETTLED, P99) for place in places if len(_drawn(place, cost)) > 1
    ]
    if not panels:
        raise FigureError(
            "there is nothing to draw: no place has two policies with KSM on; what one loses "
            "against off is drawn by report --figures DIR."
        )
    policies = sorted({line.policy for place in places for line in place.lines}, key=policy_order)
    looks = {
        policy: (COLOURS[at % len(COLOURS)], MARKERS[at // len(COLOURS) % len(MARKERS)])
        for at, policy in enumerate(policies)
    }
    columns = min(len(panels), PANELS_IN_A_ROW)
    rows = -(-len(panels) // columns)
    with mpl.rc_context({**STYLE, "axes.grid.axis": "both"}):
        figure = Figure(figsize=(4.2 * columns + 2.4, 3.8 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for unused in axes[len(panels) :]:
            figure.delaxes(unused)
        for one, (place, cost) in zip(axes, panels, strict=False):
            _panel(one, place, cost, looks)
        handles = legend_entries(axes)
        figure.legend(handles.values(), handles, loc="outside right center", frameon=False, fontsize=8)
        entitle(figure, "Memory against what it costs: left and down is better")
        figure.supxlabel(
            "Mean of the boots; lines on points: 95 % interval.\nHollow: not settled in some cell. "
            "Grey line: no policy is better in both.",
            fontsize=8, color=GREY, x=0.01, ha="left",
        )  # fmt: skip
    return figure


def _drawn(place: Place, cost: str) -> list[tuple[str, Estimate, Estimate, bool]]:
    """Policy, memory used, cost, and whether all of its cells had settled; where both are known."""
    return [
        (line.policy, use, spent, not line.unsettled)
        for line in place.lines
        if (use := line.estimates[USE]) is not None and (spent := line.estimates[cost]) is not None
    ]


def _panel(axes: Axes, place: Place, cost: str, looks: dict[str, tuple[str, str]]) -> None:
    front = []
    for policy, use, spent, settled in _drawn(place, cost):
        colour, marker = looks[policy]
        axes.errorbar(
            spent.mean, use.mean, xerr=drawn_half_width(spent), yerr=drawn_half_width(use),
            color=colour, marker=marker, markerfacecolor=colour if settled else "none",
            linestyle="none", elinewidth=1, label=policy,
        )  # fmt: skip
        if policy in place.front(cost):
            front.append((spent.mean, use.mean))
    axes.plot(*zip(*sorted(front), strict=True), color=GREY, linewidth=0.8, zorder=0)
    spent_of, use_of = QUANTITIES[cost], QUANTITIES[USE]
    axes.set_xlabel(f"{spent_of.label}, {spent_of.unit}")
    axes.set_ylabel(f"{use_of.label}, {use_of.unit}")
    axes.set_title(place_name(place), fontsize=9, loc="left")
    costs = [spent.mean for _policy, _use, spent, _settled in _drawn(place, cost)]
    if 0 < min(costs) < max(costs) / WIDE:
        axes.set_xscale("log")
    elif min(costs) >= 0:
        axes.set_xlim(left=0)
