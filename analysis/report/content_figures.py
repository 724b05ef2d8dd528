"""What pages hold, and what of it KSM merges: by workload from censuses, by host from surveys."""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.measure.efficiency import CensusMeans
from analysis.report.figures import COLOURS, GAIN, PANEL_INCHES, PAPER, STYLE
from analysis.report.quantities import QUANTITIES
from analysis.report.survey import Survey
from analysis.report.svg import tip

_ZERO, _WITHIN, _BETWEEN = COLOURS[4], COLOURS[1], GAIN


def census_figure(counted: Mapping[str, CensusMeans]) -> Figure:
    """A bar for each workload, MB/VM: zero, within, between, what cannot merge; a mark where KSM came to."""
    named = {
        QUANTITIES["zero_mib_per_vm"].label: (_ZERO, [one.zero for one in counted.values()]),
        QUANTITIES["within_mib_per_vm"].label: (_WITHIN, [one.within for one in counted.values()]),
        QUANTITIES["between_mib_per_vm"].label: (_BETWEEN, [one.between for one in counted.values()]),
        "cannot merge": (
            PAPER,
            [one.resident - one.zero - one.within - one.between for one in counted.values()],
        ),
    }
    merged = QUANTITIES["saved_mib_per_vm"]
    return _bars(
        list(counted),
        named,
        merged.label,
        [one.saved for one in counted.values()],
        "MB/VM, mean of the cells",
    )


def hosts_figure(surveys: Sequence[Survey]) -> Figure:
    """A bar for each host that has a census, MiB: zero, within, between; a mark where KSM is now."""
    names = {"zero": _ZERO, "within": _WITHIN, "between": _BETWEEN}
    named = {
        QUANTITIES[f"surveyed_{name}_mib"].label: (
            colour,
            [seen.totals[f"surveyed_{name}_mib"].pages for seen in surveys],
        )
        for name, colour in names.items()
    }
    gross = QUANTITIES["surveyed_gross_mib"]
    now = [None if (total := seen.totals.get(gross.name)) is None else total.pages for seen in surveys]
    return _bars([seen.record.hypervisor for seen in surveys], named, gross.label, now, gross.unit)


def _bars(
    rows: Sequence[str],
    parts: Mapping[str, tuple[str, Sequence[float]]],
    mark: str,
    marked: Sequence[float | None],
    unit: str,
) -> Figure:
    with mpl.rc_context({**STYLE, "axes.grid.axis": "x"}):
        figure = Figure(figsize=(PANEL_INCHES, 1.7 + 0.5 * len(rows)), layout="constrained")
        axes = figure.subplots()
        starts = [0.0] * len(rows)
        for name, (colour, values) in parts.items():
            bars = axes.barh(range(len(rows)), values, left=starts, color=colour, height=0.6, label=name)
            for bar, row, value in zip(bars, rows, values, strict=True):
                tip(bar, f"{row}, {name}: {value:.1f} {unit}")
            starts = [start + value for start, value in zip(starts, values, strict=True)]
        _marks(axes, rows, mark, marked, unit)
        axes.set_yticks(range(len(rows)), rows)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(unit)
        figure.legend(loc="outside lower left", ncols=2, frameon=False, fontsize=9)
    return figure


def _marks(axes: Axes, rows: Sequence[str], name: str, values: Sequence[float | None], unit: str) -> None:
    known = [(place, value) for place, value in enumerate(values) if value is not None]
    for number, (place, value) in enumerate(known):
        (line,) = axes.plot(
            [value] * 2,
            [place - 0.4, place + 0.4],
            color="#000000",
            linewidth=2.5,
            label=name if number == 0 else "_",
        )
        tip(line, f"{rows[place]}, {name}: {value:.1f} {unit}")
