"""How the saving grows while KSM merges."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.measure.burndown import burndown
from analysis.plan.design import MIB
from analysis.plan.policies import policy_order
from analysis.plan.workloads import in_order, title
from analysis.records.loading import CellRecords
from analysis.report.figures import COLOURS, DASHES, PANEL_INCHES, STYLE, FigureError
from analysis.report.quantities import QUANTITIES
from analysis.report.svg import tip
from plugins.module_utils.ksm_convergence import saved_pages

# Of more cells the median and a band are drawn.
MOST_LINES = 60
_MOMENTS = 200


def burndown_figure(cells: Sequence[CellRecords], *, wide: bool = True) -> Figure:
    """Saved per VM against time while KSM merges, one line a cell, a dot where a full scan ended.

    Of more than MOST_LINES cells the median of each workload and policy, and where nine of ten cells are.
    Raises FigureError when there is no cell.
    """
    if not cells:
        raise FigureError("there is nothing to draw: no cell has been measured.")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10 if wide else PANEL_INCHES, 4.2), layout="constrained")
        axes = figure.subplots()
        loads = in_order(records.cell.workload for records in cells)
        policies = sorted({records.cell.policy for records in cells}, key=policy_order)
        together: dict[tuple[str, str], list[CellRecords]] = {}
        for records in cells:
            together.setdefault((records.cell.workload, records.cell.policy), []).append(records)
        few = len(cells) <= MOST_LINES
        for (workload, policy), mine in together.items():
            look: dict[str, Any] = {
                "color": COLOURS[loads.index(workload) % len(COLOURS)],
                "linestyle": DASHES[policies.index(policy) % len(DASHES)],
                "label": f"{title(workload)}, {policy}",
            }
            (_growth_lines if few else _growth_band)(axes, mine, look)
        gross = QUANTITIES["gross_mib_per_vm"]
        marks = "dots: full scans; rings: settled" if few else "median; shaded: 5 to 95 % of the cells"
        axes.set_xlabel(f"seconds since KSM was switched on\n{marks}")
        axes.set_ylabel(f"{gross.label}, {gross.unit}")
        if wide:
            axes.set_title("How the saving grows while KSM merges", fontsize=12, loc="left")
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
        axes.set_xlim(left=0)
        axes.legend(frameon=False, fontsize=9)
    return figure


def _growth_lines(axes: Axes, cells: Sequence[CellRecords], look: dict[str, Any]) -> None:
    for number, records in enumerate(cells):
        merge, unit = burndown(records), records.cell.guests * MIB
        look = look if number == 0 else {**look, "label": "_"}
        (line,) = axes.plot(
            merge.seconds, [value / unit for value in merge.saved_bytes], linewidth=1.5, **look
        )
        settled = merge.settled_seconds
        tip(
            line,
            f"{records.cell.cell_id} of run {records.run_id}: "
            f"{QUANTITIES['gross_mib_per_vm'].number(merge.final_bytes / unit)} MB/VM at the end, "
            + ("never settled" if settled is None else f"settled after {settled:.0f} s"),
        )
        axes.plot(
            [second for _scan, second, _saved in merge.by_scan[1:]],
            [saved / unit for _scan, _second, saved in merge.by_scan[1:]],
            linestyle="none",
            marker="o",
            markersize=3.5,
            color=look["color"],
        )
        if settled is not None:
            axes.plot(
                settled,
                merge.saved_bytes[merge.seconds.index(settled)] / unit,
                marker="o",
                markersize=9,
                markerfacecolor="none",
                color=look["color"],
            )


def _growth_band(axes: Axes, cells: Sequence[CellRecords], look: dict[str, Any]) -> None:
    """A cell whose series is over counts with its last value."""
    series = [records.merge.observed.samples for records in cells]
    moments = np.linspace(0, max(one.seconds[-1] for one in series), _MOMENTS)
    saved = []
    for records, one in zip(cells, series, strict=True):
        pages = np.array(list(map(saved_pages, one.pages_sharing, one.ksm_zero_pages)))
        known = np.searchsorted(one.seconds, moments, side="right") - 1
        saved.append(pages[known.clip(0)] * records.page_size_bytes / (records.cell.guests * MIB))
    low, middle, high = np.percentile(saved, (5, 50, 95), axis=0)
    axes.fill_between(moments, low, high, color=look["color"], alpha=0.2, linewidth=0)
    axes.plot(moments, middle, linewidth=1.6, **{**look, "label": f"{look['label']}, {len(cells)} cells"})
