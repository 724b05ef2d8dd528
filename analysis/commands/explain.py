"""`python -m analysis explain RUN`: where the saving of a run comes from, on one screen."""

import math
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import pandas as pd

from analysis.measure.burndown import PERCENTS, Burndown, burndown
from analysis.measure.efficiency import ROWS, CensusMeans, census_means
from analysis.measure.ledger import GUEST_REST, HOST_REST, RMAP, RMAP_ITEM_BYTES, SPLIT, Item, Ledger, ledger
from analysis.measure.outliers import contributions, outliers
from analysis.measure.statistics import Estimate, Summary, averaged, boot_mean, summarise
from analysis.measure.table import tidy
from analysis.plan.design import MIB
from analysis.plan.workloads import focus_of, title
from analysis.records.loading import CellRecords, Run, find_run, find_runs, load_run
from analysis.report import figures
from analysis.report.summary import by_place, heading, notes, replicates, row_name, wrap

_LABEL, _COLUMN = 50, 18
_COLUMNS = 3


@dataclass(frozen=True)
class Explained:
    """The averaged cells of one line of the summary and what was worked out of each."""

    summary: Summary
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

    def mean(self, values: Iterable[float | None]) -> float | None:
        """Mean over the boots of one value of each cell, as the summary's; None where one is not known."""
        return boot_mean(values, (records.boot_key for records in self.cells))


def explain(arguments: Namespace) -> int:
    """Print the explanation of a run, the newest by default; 1 when it has no cell to explain."""
    results: Path = arguments.results
    directory = find_run(results, arguments.run_id) if arguments.run_id else find_runs(results)[-1]
    run = load_run(directory)
    explained = explain_run(run)
    if arguments.figure:
        books = [(row_name(one.summary), one.ledgers[0]) for one in explained]
        figures.save(figures.ledger_figure(books), arguments.figure)
    if arguments.burndown:
        cells = [records for one in explained for records in one.cells]
        figures.save(figures.burndown_figure(cells), arguments.burndown)
    print(explanation_text(run, explained, each_guest=arguments.guests), end="")
    return 0 if explained else 1


def explain_run(run: Run) -> list[Explained]:
    """Every line of the run's summary that has a cell which may be averaged."""
    explained = []
    for summary in summarise(tidy([run])):
        cells = averaged(summary, [run])
        if cells:
            explained.append(
                Explained(
                    summary,
                    cells,
                    tuple(map(ledger, cells)),
                    tuple(map(burndown, cells)),
                    tuple(map(contributions, cells)),
                    *census_means(cells),
                )
            )
    return explained


def explanation_text(run: Run, explained: Sequence[Explained], *, each_guest: bool = False) -> str:
    """The explanation as text of at most 110 columns.

    A block for each policy, of which three workloads fill one screen, unless each guest is asked for.
    """
    parts = [heading([run])]
    for where, mine in _blocks(explained):
        for first in range(0, len(mine), _COLUMNS):
            some = mine[first : first + _COLUMNS]
            parts.append("\n".join([where, *_figures(some), *_guest_lines(some, each_guest=each_guest)]))
            parts.append("\n".join(wrap(_words(one)) for one in some))
    left_out = [note for note in notes(summarise(tidy([run]))) if note.startswith("!")]
    left_out += [f"! {problem}" for one in explained for problem in one.census_problems]
    if left_out:
        parts.append("\n".join(map(wrap, left_out)))
    return "\n\n".join(parts) + "\n"


def _blocks(explained: Sequence[Explained]) -> list[tuple[str, list[Explained]]]:
    """What is shown side by side: the workloads of one place and policy, with what they share."""
    blocks: dict[str, list[Explained]] = {}
    for where, summaries in by_place([one.summary for one in explained]):
        for one in explained:
            if one.summary in summaries:
                blocks.setdefault(f"{where}; {one.summary.variant}", []).append(one)
    return list(blocks.items())


def _figures(shown: Sequence[Explained]) -> list[str]:
    names = ["mix" if "=" in one.summary.workload else title(one.summary.workload) for one in shown]
    lines = [
        _row("MB/VM (MiB), mean of the boots", names),
        "-" * (_LABEL + _COLUMN * len(shown)),
        _numbers(
            "(b) gross counters", [f.mean(b.available.start_bytes / f.unit for b in f.ledgers) for f in shown]
        ),
    ]
    lines += _item_lines(shown, lambda book: book.available.items)
    papers = [one.summary.paper for one in shown]
    lines += [
        _numbers("(a) MemAvailable", [_estimated(f, "saved_mem_available_mib_per_vm") for f in shown]),
        *_item_lines(shown, lambda book: book.parts, "of it in "),
        _numbers("    both rests, % of (a)", [_rest_percent(one) for one in shown], "+.1f"),
        _numbers("(c) general_profit", [_estimated(f, "saved_general_profit_mib_per_vm") for f in shown]),
        _numbers("(d) PSS of the guests", [_estimated(f, "saved_pss_mib_per_vm") for f in shown]),
        *_item_lines(shown, lambda book: book.pss.items[-1:], "of it in "),
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
    if any(one.census for one in shown):
        lines.append("page census, at one moment while KSM was on")
        lines += [
            _numbers(f"    {name}", [None if f.census is None else getattr(f.census, part) for f in shown])
            for name, part in ROWS
        ]
    for percent in PERCENTS:
        times = [f.mean(b.seconds_to[percent] for b in f.burndowns) for f in shown]
        lines.append(_numbers(f"{percent} % of the final saving, after seconds", times))
    lines += [
        _numbers("within 1 % of it from then on, after full scans", [_near_scans(f) for f in shown]),
        _numbers("settled, after seconds", [_estimated(f, "converged_after_seconds") for f in shown]),
        _numbers("ksmd CPU seconds", [_estimated(f, "ksmd_cpu_seconds") for f in shown]),
    ]
    return lines


def _guest_lines(shown: Sequence[Explained], *, each_guest: bool) -> list[str]:
    """What the guests contributed and cost: the range and the median, or a line for each."""
    tables = []
    for one in shown:
        page = one.cells[0].page_size_bytes
        boots = [records.boot_key for records in one.cells]
        repetitions = pd.concat(
            [guests.assign(boot=boot) for guests, boot in zip(one.guests, boots, strict=True)]
        ).rename_axis("guest")
        columns = ["pss_drop_bytes", "merging_pages", "rmap_items"]
        means = repetitions.groupby(["guest", "boot"])[columns].mean().groupby(level="guest").mean()
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


def _words(one: Explained) -> str:
    census = "" if one.census is None else one.census.words()
    parts = [_result(one), _origin(one), census, _against_paper(one), _guest_words(one)]
    return " ".join(filter(None, parts))


def _result(one: Explained) -> str:
    name = row_name(one.summary)
    name = name[0].upper() + name[1:]
    off, on, saved = (
        one.summary.estimates[quantity]
        for quantity in ("host_used_off_mib", "host_used_on_mib", "saved_mem_available_mib_per_vm")
    )
    if off is None or on is None or saved is None:
        return f"{name}: the host's memory is not known."
    return (
        f"{name}: the host used {on.mean:.0f} MiB in place of {off.mean:.0f}, "
        f"{saved.mean:.1f} MB/VM less ({_spread(one, saved)})."
    )


def _spread(one: Explained, saved: Estimate) -> str:
    if saved.half_width is None:
        words = "one boot, no interval"
    else:
        cov = "" if saved.cov is None else f", CoV {100 * saved.cov:.1f} %"
        words = f"±{saved.half_width:.1f}, 95 % over {saved.n_boots} boots{cov}"
    if saved.within_boot_sd is None:
        return words
    within = f"standard deviation within a boot {saved.within_boot_sd:.1f}"
    return f"{words}; {within}, boots x repetitions {replicates(one.summary.boots)}"


def _origin(one: Explained) -> str:
    gross = one.mean(book.available.start_bytes / one.unit for book in one.ledgers)
    sentence = f"KSM's counters account for {gross:.1f}"
    split, rmap = _item(one, SPLIT), _item(one, RMAP)
    if split >= 0.05:
        sentence += f", huge pages split on the way freed {split:.1f} of zeros that no counter credits"
    sentence += f", and its rmap_items took {-rmap:.1f}."
    rest = _rest_percent(one)
    flagged = [book for book in one.ledgers if book.flagged]
    if flagged:
        largest = max((book.largest_rest for book in flagged), key=lambda rest: abs(rest.bytes))
        return (
            f"{sentence} ! The unexplained rest is above 5 % of the host's change in {len(flagged)} of "
            f"{len(one.ledgers)} cells, at most {largest.bytes / MIB:+.0f} MiB ({largest.name})."
        )
    if rest is None:
        return f"{sentence} The host's available memory did not change."
    return f"{sentence} The unexplained rest is {round(rest, 1) + 0.0:+.1f} % of the change, within 5 %."


def _against_paper(one: Explained) -> str:
    paper = one.summary.paper
    if paper is None:
        return ""
    within = paper.half_width is not None and abs(paper.difference) <= paper.half_width
    sentence = f"The paper's {paper.paper:.1f} is {abs(paper.difference):.1f} "
    sentence += "more" if paper.difference < 0 else "less"
    sentence += ", inside our interval" if within else ""
    workload = one.cells[0].observed("off")["workload"].values()
    filled = fmean(seen["filled_bytes"] for seen in workload) / MIB if workload else 0
    focus = focus_of(one.summary.workload)
    if focus == 1:
        return (
            f"{sentence}; {_item(one, SPLIT):.1f} of ours come from huge pages, which its kernel 2.6.32 did "
            "not have, and the rest depends on the system that the guests booted."
        )
    if focus == 2:
        knobs = one.cells[0].provenance["ksm_knobs"]
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


def _guest_words(one: Explained) -> str:
    drops: dict[str, list[float]] = {}
    for frame in one.guests:
        for workload, value in zip(frame["workload"], frame["pss_drop_bytes"], strict=True):
            drops.setdefault(str(workload), []).append(value / MIB)
    ranges = {workload: f"{min(mine):.1f} to {max(mine):.1f} MB" for workload, mine in drops.items()}
    gave = (
        f"{next(iter(ranges.values()))} by PSS"
        if len(ranges) == 1
        else "by PSS " + ", ".join(f"{seen} ({workload})" for workload, seen in ranges.items())
    )
    named = [
        f"{name} in boot {records.cell.boot} repetition {records.cell.repetition} "
        f"({row['pss_drop_bytes'] / MIB:.1f}, z {row['robust_z']:+.1f})"
        for records, frame in zip(one.cells, one.guests, strict=True)
        for name, row in outliers(frame).iterrows()
    ]
    stand_out = (
        f"{', '.join(named)} stand{'s' if len(named) == 1 else ''} out" if named else "none stands out"
    )
    return f"Each guest gave {gave}; {stand_out}."


def _item_lines(
    shown: Sequence[Explained], items: Callable[[Ledger], Sequence[Item]], prefix: str = ""
) -> list[str]:
    """A line for each item that is a rest, or that shows at one decimal."""
    lines = []
    for place, item in enumerate(items(shown[0].ledgers[0])):
        steps = [f.mean(items(book)[place].bytes / f.unit for book in f.ledgers) for f in shown]
        if item.name in (GUEST_REST, HOST_REST) or any(abs(step or 0) >= 0.05 for step in steps):
            lines.append(_numbers(f"    {prefix}{item.name}", steps, "+.1f"))
    return lines


def _item(one: Explained, name: str) -> float:
    """An item of the way to MemAvailable, MB/VM; every ledger has each once."""
    found = (item.bytes for book in one.ledgers for item in book.available.items if item.name == name)
    return one.mean(value / one.unit for value in found) or 0.0


def _estimated(one: Explained, quantity: str) -> float | None:
    found = one.summary.estimates[quantity]
    return None if found is None else found.mean


def _rest_percent(one: Explained) -> float | None:
    return one.mean(None if (rest := book.rest_fraction) is None else 100 * rest for book in one.ledgers)


def _near_scans(one: Explained) -> float | None:
    return one.mean(float(merge.near_final_scans) for merge in one.burndowns)


def _numbers(label: str, values: Sequence[float | None], form: str = ".1f") -> str:
    return _row(label, ["-" if value is None else format(round(value, 1) + 0.0, form) for value in values])


def _row(label: str, cells: Sequence[str]) -> str:
    return f"{label:<{_LABEL}}" + "".join(f"{cell:>{_COLUMN}}" for cell in cells)
