"""Figures, drawn without a display, PNG or SVG by the file's suffix."""

import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.errors import UserError
from analysis.measure.ledger import GUEST_REST, HOST_REST
from analysis.measure.statistics import LEAST_BOOTS, Estimate, Summary, exact
from analysis.plan.policies import policy_order
from analysis.plan.workloads import in_order, title
from analysis.report import svg
from analysis.report.quantities import QUANTITIES, Quantity
from analysis.report.svg import svg_text, tip

FORMATS = (".png", ".svg", ".pdf")

# Okabe and Ito's palette, told apart by people with any colour vision.
OFF, ON, PAPER, GAIN, LOSS = "#0072B2", "#E69F00", "#999999", "#009E73", "#D55E00"
GREY, LIGHT = "#555555", "#8FD0BA"
# One colour for each workload, one dash for each policy
COLOURS = (OFF, ON, GAIN, "#CC79A7", "#56B4E9", LOSS, "#F0E442")
DASHES = ("-", "--", "-.", ":")
# One mark for each policy, where colours are of something else or not enough
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
PANELS_IN_A_ROW = 3
# A figure of its own on a page: readable on a phone, too
PANEL_INCHES = 4.8
USED_OFF = "used_available_off_mib"
# So many groups of bars have room for figures in a larger type.
_FEW = 4

STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#e5e5e5",
    "axes.axisbelow": True,
    **svg.STYLE,
}


class FigureError(UserError):
    """A figure that cannot be drawn or stored."""


def figure_2(summaries: Sequence[Summary]) -> Figure:
    """The paper's figure 2: host memory used with KSM off and on, saved per VM beside the paper's.

    A row of two panels for each number and size of guests; in it a group of bars for each workload and
    policy, the hosts side by side. Where some guests were restored from a checkpoint and others measured as
    they booted, the restored ones are drawn. The paper gives the saving per VM only, not the height of its
    bars: they are not drawn. Raises FigureError when nothing has a mean.
    """
    places = drawn_places(summaries)
    with mpl.rc_context(STYLE):
        widest = max(map(len, places))
        figure = Figure(figsize=(max(10, 2.0 * widest), 4.6 * len(places)), layout="constrained")
        panels = figure.subplots(len(places), 2, width_ratios=(1, 1.15), squeeze=False)
        for (left, right), drawn in zip(panels, places, strict=True):
            _used_panel(left, drawn)
            _saved_panel(right, drawn)
        figure.supxlabel(
            about_intervals([one for drawn in places for one in drawn]),
            fontsize=8,
            color=GREY,
            x=0.01,
            ha="left",
        )
    return figure


def used_figure(drawn: Sequence[Summary]) -> Figure:
    """The left panel of figure 2 by itself, for a narrow page."""
    return _one_panel(drawn, _used_panel)


def saved_figure(drawn: Sequence[Summary]) -> Figure:
    """The right panel of figure 2 by itself, for a narrow page."""
    return _one_panel(drawn, _saved_panel)


def drawn_places(summaries: Sequence[Summary]) -> list[list[Summary]]:
    """What figure 2 shows, by number and size of guests. Raises FigureError when nothing has a mean."""
    known = [one for one in summaries if one.estimates[USED_OFF] is not None]
    if not known:
        raise FigureError("there is nothing to draw: no cell may be averaged.")
    places: dict[tuple[int, int], list[Summary]] = {}
    for one in known:
        places.setdefault((one.guests, one.guest_memory_bytes), []).append(one)
    restored = [[one for one in mine if one.start_from == "checkpoint"] or mine for mine in places.values()]
    loads = in_order(one.workload for one in known)
    # Hosts stand side by side, within their workload and policy.
    return [
        sorted(drawn, key=lambda one: (loads.index(one.workload), policy_order(one.policy), one.hypervisor))
        for drawn in restored
    ]


def _one_panel(drawn: Sequence[Summary], panel: Callable[[Axes, Sequence[Summary]], None]) -> Figure:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(max(PANEL_INCHES, 0.95 * len(drawn)), 3.8), layout="constrained")
        panel(figure.subplots(), drawn)
    return figure


def _used_panel(axes: Axes, drawn: Sequence[Summary]) -> None:
    off, on = QUANTITIES[USED_OFF], QUANTITIES["used_available_on_mib"]
    _grouped(
        axes,
        drawn,
        [
            ("KSM off", OFF, [summary.estimates[off.name] for summary in drawn]),
            (_on_name(drawn), ON, [summary.estimates[on.name] for summary in drawn]),
        ],
        off,
    )
    axes.set_ylabel(f"MemTotal − MemAvailable, {off.unit}")
    axes.set_title(f"Host memory used by {_guests(drawn)}", fontsize=10, loc="left")


def _saved_panel(axes: Axes, drawn: Sequence[Summary]) -> None:
    freed, available = QUANTITIES["freed_mib_per_vm"], QUANTITIES["mem_available_mib_per_vm"]
    papers = [exact(summary.paper.paper if summary.paper else None) for summary in drawn]
    _grouped(
        axes,
        drawn,
        [
            (freed.label, GAIN, [summary.estimates[freed.name] for summary in drawn]),
            (available.label, LIGHT, [summary.estimates[available.name] for summary in drawn]),
            *([(QUANTITIES["paper_mib_per_vm"].label, PAPER, papers)] if any(papers) else []),
        ],
        freed,
    )
    axes.set_ylabel(freed.unit)
    axes.set_title(f"Saved per VM, {_guests(drawn)}", fontsize=10, loc="left")


def _guests(drawn: Sequence[Summary]) -> str:
    return f"{drawn[0].guests} guests of {drawn[0].guest_memory_bytes >> 20} MB"


def about_intervals(drawn: Sequence[Summary]) -> str:
    """What the lines on the bars are, and the intervals that are none."""
    sentences = []
    if any(len(one.boots) >= LEAST_BOOTS for one in drawn):
        sentences.append("Lines on bars: 95 % t interval over boots.")
    few = [f"{title(one.workload)}: {len(one.boots)}" for one in drawn if len(one.boots) < LEAST_BOOTS]
    if few:
        sentences.append(
            f"No line on fewer than {LEAST_BOOTS} boots ({', '.join(dict.fromkeys(few))}): too few to "
            "conclude from."
        )
    sentences.append(
        "The paper gives its saving per VM only (by MemAvailable), so its bars of memory used are not drawn."
        if any(one.paper for one in drawn)
        else "The paper measured none of these."
    )
    return "\n".join(line for sentence in sentences for line in textwrap.wrap(sentence, 150))


@dataclass(frozen=True)
class Waterfall:
    """The way from KSM's gross counters to the rise of MemAvailable, MB/VM: start, steps by name, end."""

    name: str
    start: float
    steps: Mapping[str, float]
    end: float
    flagged: bool


def ledger_figure(books: Sequence[Waterfall]) -> Figure:
    """A waterfall a panel, from KSM's gross counters to the rise of MemAvailable, MB/VM.

    Raises FigureError when there is none.
    """
    if not books:
        raise FigureError("there is nothing to draw: no cell with a ledger has been measured.")
    with mpl.rc_context({**STYLE, "axes.grid.axis": "x"}):
        columns = min(len(books), PANELS_IN_A_ROW)
        rows = -(-len(books) // columns)
        figure = Figure(
            figsize=(4.2 * columns + 2.4, 4.4 * rows) if columns > 1 else (5.4, 3.8), layout="constrained"
        )
        panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
        for axes in panels[len(books) :]:
            figure.delaxes(axes)
        for axes, book in zip(panels, books, strict=False):
            _waterfall(axes, book)
            axes.set_title(book.name + (": rest above 5 %" if book.flagged else ""), fontsize=10, loc="left")
            axes.set_xlabel(f"{QUANTITIES['gross_mib_per_vm'].unit} (MiB)")
        if columns > 1:
            entitle(figure, "From KSM's counters to what the host gained")
    return figure


def _waterfall(axes: Axes, book: Waterfall) -> None:
    gross = QUANTITIES["gross_mib_per_vm"]
    names = ["gross counters", *book.steps, QUANTITIES["mem_available_mib_per_vm"].label]
    level = book.start
    starts, widths, colours = [0.0], [level], [OFF]
    for name, step in book.steps.items():
        starts.append(level)
        widths.append(step)
        colours.append(PAPER if name in (GUEST_REST, HOST_REST) else GAIN if step >= 0 else LOSS)
        level += step
    starts.append(0.0)
    widths.append(book.end)
    colours.append(OFF)
    places = range(len(names))
    axes.barh(places, widths, left=starts, color=colours, height=0.7)
    edge = max(start + max(width, 0) for start, width in zip(starts, widths, strict=True))
    for place, (start, width) in enumerate(zip(starts, widths, strict=True)):
        total = place in (0, len(names) - 1)
        axes.annotate(
            gross.number(width, sign=not total),
            (max(start, start + width), place),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    low = min(start + min(width, 0) for start, width in zip(starts, widths, strict=True))
    axes.set_xlim(min(0, low * 1.05), edge * 1.16 if edge > 0 else 1)
    axes.set_yticks(places, names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)


def entitle(figure: Figure, title: str) -> None:
    """Give a figure of several panels its title, above the first one."""
    figure.suptitle(title, fontsize=12, x=0.01, ha="left")


def save(figure: Figure, path: Path) -> None:
    """Store a figure in the format of the file's suffix. Raises FigureError when that is not possible."""
    if path.suffix.lower() not in FORMATS:
        raise FigureError(f"--figure is {str(path)!r}: its suffix must be {' or '.join(FORMATS)}.")
    try:
        if path.suffix.lower() == ".svg":
            path.write_text(svg_text(figure), encoding="utf-8")
            return
        with mpl.rc_context(STYLE):
            figure.savefig(path, dpi=160)
    except OSError as error:
        raise FigureError(f"{path} cannot be written: {error.strerror}.") from None


def _on_name(summaries: Sequence[Summary]) -> str:
    """What the bars of the on arm are called: the policy where all have the same."""
    policies = {summary.policy for summary in summaries}
    return policies.pop() if len(policies) == 1 else "policy on"


def _line_name(summary: Summary) -> str:
    return f"{title(summary.workload)}, {summary.variant}"


def _tick(summary: Summary, *, host: bool) -> str:
    """What stands under the bars: workload, policy and host; a mix has a line for each workload."""
    breaks = {": ": ":\n", ",": ",\n", " fill": "\nfill", "-": "-\n"}
    words = f"{title(summary.workload)}\n{summary.variant}"
    for before, after in breaks.items():
        words = words.replace(before, after)
    return f"{words}\n{summary.hypervisor}" if host else words


def _grouped(
    axes: Axes,
    summaries: Sequence[Summary],
    series: Sequence[tuple[str, str, Sequence[Estimate | None]]],
    quantity: Quantity,
) -> None:
    """Bars of each series beside one another; the axis holds the values and the intervals that are drawn."""
    width = 0.8 / len(series)
    size = 9 if len(summaries) <= _FEW else 7.5
    # Numbers on narrow bars would run into one another.
    on_bars = min(size, 22 / len(series)) if len(summaries) <= _FEW else 6
    tops, bottoms = [], [0.0]
    for number, (name, colour, values) in enumerate(series):
        known = [(place, value) for place, value in enumerate(values) if value is not None]
        halves = [drawn_half_width(value) for _place, value in known]
        bars = axes.bar(
            [place + (number - (len(series) - 1) / 2) * width for place, _value in known],
            [value.mean for _place, value in known],
            width * 0.94,
            yerr=halves if not all(map(math.isnan, halves)) else None,
            error_kw={"ecolor": "#222222", "elinewidth": 1, "capsize": 3},
            color=colour,
            label=name,
        )
        for bar, (place, value) in zip(bars, known, strict=True):
            of_paper = colour == PAPER
            said = f"{quantity.number(value.mean)} {quantity.unit}" if of_paper else quantity.words(value)
            tip(bar, f"{_line_name(summaries[place])}, {name}: {said}")
        texts = [quantity.number(value.mean) for _place, value in known]
        axes.bar_label(bars, texts, padding=2, fontsize=on_bars)
        for (_place, value), half in zip(known, halves, strict=True):
            reach = 0.0 if math.isnan(half) else half
            tops.append(value.mean + reach)
            bottoms.append(value.mean - reach)
    several = len({summary.hypervisor for summary in summaries}) > 1
    ticks = [_tick(summary, host=several) for summary in summaries]
    axes.set_xticks(range(len(summaries)), ticks, fontsize=size)
    low, high = min(bottoms), max([*tops, 0.0])
    room = 0.2 * (high - low or 1.0)
    axes.set_ylim(low - room * 0.3 if low < 0 else 0, high + room)
    axes.tick_params(length=0)
    axes.legend(
        frameon=False, loc="upper left", bbox_to_anchor=(0, 1.02), ncols=len(series), fontsize=9, borderpad=0
    )


def legend_entries(panels: Iterable[Axes]) -> dict[str, Any]:
    """Label -> handle of all that is drawn in these panels, each label once."""
    return {
        label: handle
        for axes in panels
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }


def drawn_half_width(seen: Estimate) -> float:
    """Half of an interval, NaN where it is none or over too few boots to be drawn."""
    return seen.half_width if seen.half_width is not None and seen.conclusive else math.nan
