"""`python -m analysis explain RUN`: where the saving of a run comes from, on one screen."""

import math
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import pandas as pd

from analysis import figures
from analysis.burndown import PERCENTS, Burndown, burndown
from analysis.cell_census import ROWS, CensusMeans, census_means
from analysis.design import MIB
from analysis.guests import contributions, outliers
from analysis.ledger import GUEST_REST, HOST_REST, RMAP, RMAP_ITEM_BYTES, SPLIT, Item, Ledger, ledger
from analysis.mix import MIX, label, title
from analysis.records import CellRecords, Run, find_run, find_runs, load_run
from analysis.report import by_place, heading, notes, wrap
from analysis.statistics import FocusSummary, averaged, summarise
from analysis.table import tidy

_LABEL, _COLUMN = 50, 18


@dataclass(frozen=True)
class FocusExplained:
    """The averaged cells of one focus and what was worked out of each."""

    summary: FocusSummary
    cells: tuple[CellRecords, ...]
    ledgers: tuple[Ledger, ...]
    burndowns: tuple[Burndown, ...]
    guests: tuple[pd.DataFrame, ...]
    census: CensusMeans | None
    census_problems: list[str]

    @property
    def unit(self) -> int:
        """Bytes of the host that are 1 MB/VM."""
        return self.summary.guests * MIB


def explain(arguments: Namespace) -> int:
    """Print the explanation of a run, the newest by default; 1 when it has no cell to explain."""
    results: Path = arguments.results
    directory = find_run(results, arguments.run_id) if arguments.run_id else find_runs(results)[-1]
    run = load_run(directory)
    explained = explain_run(run)
    if arguments.figure:
        books = [(label(f.summary.focus, f.summary.workload), f.ledgers[0]) for f in explained]
        figures.save(figures.ledger_figure(books), arguments.figure)
    if arguments.burndown:
        cells = [records for focus in explained for records in focus.cells]
        figures.save(figures.burndown_figure(cells), arguments.burndown)
    print(explanation_text(run, explained, each_guest=arguments.guests), end="")
    return 0 if explained else 1


def explain_run(run: Run) -> list[FocusExplained]:
    """Every focus of the run that has a repetition which may be averaged."""
    explained = []
    for summary in summarise(tidy([run])):
        cells = averaged(summary, [run])
        if cells:
            explained.append(
                FocusExplained(
                    summary,
                    cells,
                    tuple(map(ledger, cells)),
                    tuple(map(burndown, cells)),
                    tuple(map(contributions, cells)),
                    *census_means(cells),
                )
            )
    return explained


def explanation_text(run: Run, explained: Sequence[FocusExplained], *, each_guest: bool = False) -> str:
    """The explanation as text of at most 110 columns; one screen, unless each guest is asked for."""
    parts = [heading([run])]
    for where, summaries in by_place([focus.summary for focus in explained]):
        mine = [focus for focus in explained if focus.summary in summaries]
        parts.append("\n".join([where, *_figures(mine), *_guest_lines(mine, each_guest=each_guest)]))
        parts.append("\n".join(wrap(_words(focus)) for focus in mine))
    left_out = [note for note in notes(summarise(tidy([run]))) if note.startswith("!")]
    left_out += [f"! {problem}" for focus in explained for problem in focus.census_problems]
    if left_out:
        parts.append("\n".join(map(wrap, left_out)))
    return "\n\n".join(parts) + "\n"


def _figures(foci: Sequence[FocusExplained]) -> list[str]:
    names = [
        "mix" if s.focus == MIX else f"{s.focus} {s.workload.replace('_', ' ')}"
        for s in (focus.summary for focus in foci)
    ]
    lines = [
        _row("MB/VM (MiB), mean of the repetitions", names),
        "-" * (_LABEL + _COLUMN * len(foci)),
        _numbers(
            "(b) gross counters", [_mean(b.available.start_bytes / f.unit for b in f.ledgers) for f in foci]
        ),
    ]
    lines += _item_lines(foci, lambda book: book.available.items)
    papers = [focus.summary.paper for focus in foci]
    lines += [
        _numbers("(a) MemAvailable", [_estimated(f, "saved_mem_available_mib_per_vm") for f in foci]),
        *_item_lines(foci, lambda book: book.parts, "of it in "),
        _numbers("    both rests, % of (a)", [_rest_percent(focus) for focus in foci], "+.1f"),
        _numbers("(c) general_profit", [_estimated(f, "saved_general_profit_mib_per_vm") for f in foci]),
        _numbers("(d) PSS of the guests", [_estimated(f, "saved_pss_mib_per_vm") for f in foci]),
        *_item_lines(foci, lambda book: book.pss.items[-1:], "of it in "),
    ]
    if any(papers):
        lines += [
            _numbers("the paper", [None if paper is None else paper.paper for paper in papers]),
            _numbers(
                "(a) less the paper",
                [None if paper is None else paper.difference for paper in papers],
                "+.1f",
            ),
        ]
    if any(focus.census for focus in foci):
        lines.append("page census, at one moment while KSM was on")
        lines += [
            _numbers(f"    {name}", [None if f.census is None else getattr(f.census, part) for f in foci])
            for name, part in ROWS
        ]
    for percent in PERCENTS:
        times = [_mean(b.seconds_to[percent] for b in focus.burndowns) for focus in foci]
        lines.append(_numbers(f"{percent} % of the final saving, after seconds", times))
    lines += [
        _numbers("within 1 % of it from then on, after full scans", [_near_scans(f) for f in foci]),
        _numbers("settled, after seconds", [_estimated(f, "converged_after_seconds") for f in foci]),
        _numbers("ksmd CPU seconds", [_estimated(f, "ksmd_cpu_seconds") for f in foci]),
    ]
    return lines


def _guest_lines(foci: Sequence[FocusExplained], *, each_guest: bool) -> list[str]:
    """What the guests contributed and cost: the range and the median, or a line for each."""
    tables = []
    for focus in foci:
        page, repetitions = focus.cells[0].page_size_bytes, pd.concat(focus.guests)
        means = repetitions[["pss_drop_bytes", "merging_pages", "rmap_items"]].groupby(level=0).mean()
        table = means.mul([1 / MIB, page / MIB, RMAP_ITEM_BYTES / MIB], axis="columns")
        tables.append(table if each_guest else table.agg(["min", "median", "max"]))
    names = {"min": "least", "median": "median", "max": "most"}
    lines = ["a guest's fall of PSS, merged pages, rmap_items (ksm_stat), MB"]
    for place in sorted({place for table in tables for place in table.index}) if each_guest else names:
        cells = [
            " ".join("-" if math.isnan(v) else f"{v:.1f}" for v in map(float, table.loc[place].array))
            if place in table.index
            else "-"
            for table in tables
        ]
        lines.append(_row(f"    {names.get(place, place)}", cells))
    return lines


def _words(focus: FocusExplained) -> str:
    census = "" if focus.census is None else focus.census.words()
    parts = [_result(focus), _origin(focus), census, _against_paper(focus), _guest_words(focus)]
    return " ".join(filter(None, parts))


def _result(focus: FocusExplained) -> str:
    summary = focus.summary
    name = title(summary.focus, summary.workload)
    name = name[0].upper() + name[1:]
    off, on, saved = (
        summary.estimates[name]
        for name in ("host_used_off_mib", "host_used_on_mib", "saved_mem_available_mib_per_vm")
    )
    if off is None or on is None or saved is None:
        return f"{name}: the host's memory is not known."
    spread = (
        "one repetition, no interval"
        if saved.half_width is None or saved.cov is None
        else f"±{saved.half_width:.1f}, 95 % t interval of {saved.n} repetitions, CoV {100 * saved.cov:.1f} %"
    )
    return (
        f"{name}: the host used {on.mean:.0f} MiB with "
        f"KSM in place of {off.mean:.0f}, {saved.mean:.1f} MB/VM less ({spread})."
    )


def _origin(focus: FocusExplained) -> str:
    sentence = (
        f"KSM's counters account for {_mean(b.available.start_bytes / focus.unit for b in focus.ledgers):.1f}"
    )
    split, rmap = _item(focus, SPLIT), _item(focus, RMAP)
    if split >= 0.05:
        sentence += f", huge pages split on the way freed {split:.1f} of zeros that no counter credits"
    sentence += f", and its rmap_items took {-rmap:.1f}."
    rest = _rest_percent(focus)
    flagged = [book for book in focus.ledgers if book.flagged]
    if flagged:
        largest = max((book.largest_rest for book in flagged), key=lambda rest: abs(rest.bytes))
        return (
            f"{sentence} ! The unexplained rest is above 5 % of the host's change in {len(flagged)} of "
            f"{len(focus.ledgers)} repetitions, at most {largest.bytes / MIB:+.0f} MiB ({largest.name})."
        )
    if rest is None:
        return f"{sentence} The host's available memory did not change."
    return f"{sentence} The unexplained rest is {rest:+.1f} % of the change, within 5 %."


def _against_paper(focus: FocusExplained) -> str:
    paper = focus.summary.paper
    if paper is None:
        return ""
    within = paper.half_width is not None and abs(paper.difference) <= paper.half_width
    sentence = f"The paper's {paper.paper:.1f} is {abs(paper.difference):.1f} "
    sentence += "more" if paper.difference < 0 else "less"
    sentence += ", inside our interval" if within else ""
    workload = focus.cells[0].observed("off")["workload"].values()
    filled = fmean(seen["filled_bytes"] for seen in workload) / MIB if workload else 0
    if focus.summary.focus == 1:
        split = _item(focus, SPLIT)
        return (
            f"{sentence}; {split:.1f} of ours come from huge pages, which its kernel 2.6.32 did not have, "
            "and the rest depends on the system that the guests booted."
        )
    if focus.summary.focus == 2:
        knobs = focus.cells[0].provenance["ksm_knobs"]
        sharing = int(knobs.get("max_page_sharing", 0))
        most = filled * (1 - 1 / sharing) if sharing else filled
        bound = f"with max_page_sharing {sharing} at most {most:.1f}" if sharing else f"at most {most:.1f}"
        return (
            f"{sentence}; one content in {filled:.0f} MB of each guest can save {bound}, and what a guest "
            "keeps for its own system merges only as in focus 1."
        )
    return (
        f"{sentence}; the {filled:.0f} MB of random bytes in each guest cannot merge, so this is what the "
        "guests' systems have in common beside them."
    )


def _guest_words(focus: FocusExplained) -> str:
    drops: dict[str, list[float]] = {}
    for frame in focus.guests:
        for workload, value in zip(frame["workload"], frame["pss_drop_bytes"], strict=True):
            drops.setdefault(str(workload), []).append(value / MIB)
    ranges = {workload: f"{min(mine):.1f} to {max(mine):.1f} MB" for workload, mine in drops.items()}
    gave = (
        f"{next(iter(ranges.values()))} by PSS"
        if len(ranges) == 1
        else "by PSS " + ", ".join(f"{seen} ({workload})" for workload, seen in ranges.items())
    )
    named = [
        f"{name} in repetition {records.cell.repetition} "
        f"({row['pss_drop_bytes'] / MIB:.1f}, z {row['robust_z']:+.1f})"
        for records, frame in zip(focus.cells, focus.guests, strict=True)
        for name, row in outliers(frame).iterrows()
    ]
    stand_out = (
        f"{', '.join(named)} stand{'s' if len(named) == 1 else ''} out" if named else "none stands out"
    )
    return f"Each guest gave {gave}; {stand_out}."


def _item_lines(
    foci: Sequence[FocusExplained], items: Callable[[Ledger], Sequence[Item]], prefix: str = ""
) -> list[str]:
    """A line for each item that is a rest, or that shows at one decimal."""
    lines = []
    for place, item in enumerate(items(foci[0].ledgers[0])):
        steps = [fmean(items(book)[place].bytes / f.unit for book in f.ledgers) for f in foci]
        if item.name in (GUEST_REST, HOST_REST) or any(abs(step) >= 0.05 for step in steps):
            lines.append(_numbers(f"    {prefix}{item.name}", steps, "+.1f"))
    return lines


def _item(focus: FocusExplained, name: str) -> float:
    return fmean(
        item.bytes / focus.unit
        for book in focus.ledgers
        for item in book.available.items
        if item.name == name
    )


def _estimated(focus: FocusExplained, quantity: str) -> float | None:
    found = focus.summary.estimates[quantity]
    return None if found is None else found.mean


def _rest_percent(focus: FocusExplained) -> float | None:
    return _mean(None if (rest := book.rest_fraction) is None else 100 * rest for book in focus.ledgers)


def _near_scans(focus: FocusExplained) -> float | None:
    return _mean(float(merge.near_final_scans) for merge in focus.burndowns)


def _mean(values: Iterable[float | None]) -> float | None:
    known = list(values)
    return None if None in known else fmean(value for value in known if value is not None)


def _numbers(label: str, values: Sequence[float | None], form: str = ".1f") -> str:
    return _row(label, ["-" if value is None else format(round(value, 1) + 0.0, form) for value in values])


def _row(label: str, cells: Sequence[str]) -> str:
    return f"{label:<{_LABEL}}" + "".join(f"{cell:>{_COLUMN}}" for cell in cells)
