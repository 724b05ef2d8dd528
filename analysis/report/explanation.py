"""Where the saving comes from: ledger, burndown, guests and census of each line of a summary."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import pandas as pd

from analysis.measure.applications import ApplicationCost, application_costs
from analysis.measure.burndown import PERCENTS, Burndown, burndown
from analysis.measure.efficiency import CensusMeans, census_means
from analysis.measure.follow import follow_words
from analysis.measure.ledger import GUEST_REST, HOST_REST, RMAP, SPLIT, Item, Ledger, LedgerError, ledger
from analysis.measure.outliers import contributions
from analysis.measure.statistics import Summary, averaged, boot_mean
from analysis.plan.design import MIB
from analysis.plan.workloads import focus_of, title
from analysis.records.loading import CellRecords
from analysis.report.figures import Waterfall
from analysis.report.quantities import CENSUS, PER_VM, QUANTITIES, Quantity
from analysis.report.summary import (
    Answer,
    by_place,
    census_dict,
    census_part,
    described,
    line_names,
    measured_on,
    row_name,
    warnings,
)
from analysis.report.tables import Grid, Part, heading, notes, table

# Columns that stand side by side
_COLUMNS = 4
_GUEST_COLUMNS = {
    "guest_pss_drop_mib": "pss_drop_bytes",
    "guest_merged_mib": "merged_bytes",
    "guest_rmap_mib": "rmap_bytes",
}
_APPLICATION = (
    "application_figure",
    "application_change_percent",
    "application_cpu_seconds",
    "application_cpu_change_percent",
)
_DECAY = (
    "application_written_mib_per_second",
    "application_quiet_mib_per_second",
    "application_saved_change_mib",
    "application_command_seconds",
)
_TRACKED = ("shared_mib_per_vm", "unshared_mib_per_vm", "volatile_mib_per_vm")
_RANGE = {"min": "least", "median": "median", "max": "most"}
_GROSS = QUANTITIES["gross_mib_per_vm"]


@dataclass(frozen=True)
class Explained:
    """The averaged cells of one line of the summary and what was worked out of each.

    ``ledgers`` and their ``ledger_boots``: of the cells that have one; ``problems`` names the others.
    """

    summary: Summary
    cells: tuple[CellRecords, ...]
    ledgers: tuple[Ledger, ...]
    ledger_boots: tuple[str, ...]
    burndowns: tuple[Burndown, ...]
    guests: tuple[pd.DataFrame, ...]
    census: CensusMeans | None
    applications: tuple[ApplicationCost, ...]
    problems: tuple[str, ...]

    @property
    def unit(self) -> int:
        """Bytes of the host that are 1 MB/VM."""
        return self.summary.guests * MIB

    def mean(self, values: Iterable[float | None]) -> float | None:
        """Mean over the boots of one value of each cell, as the summary's; None where one is not known."""
        return boot_mean(values, (records.boot_key for records in self.cells))

    @property
    def tracked(self) -> dict[str, float | None]:
        """What KSM looks after under the policy, by the names of the registry, MB/VM."""
        return {
            name: self.mean(_tracked(records, name.removesuffix("_mib_per_vm")) for records in self.cells)
            for name in _TRACKED
        }

    def book_mean(self, value: Callable[[Ledger], float | None]) -> float | None:
        """Mean over the boots of a value of each ledger; None without one."""
        return boot_mean(map(value, self.ledgers), self.ledger_boots) if self.ledgers else None

    def steps(self, items: Callable[[Ledger], Sequence[Item]]) -> dict[str, float]:
        """Means of some items of the ledgers by name, MB/VM."""
        if not self.ledgers:
            return {}
        # Every ledger has the same items.
        by_name = zip(*(items(book) for book in self.ledgers), strict=True)
        return {
            same[0].name: boot_mean((item.bytes / self.unit for item in same), self.ledger_boots) or 0.0
            for same in by_name
        }


def _tracked(records: CellRecords, name: str) -> float | None:
    pages: int | None = getattr(records.on.observed.host.ksm, f"pages_{name}")
    return None if pages is None else pages * records.page_size_bytes / MIB / records.cell.guests


def explain_all(answer: Answer) -> list[Explained]:
    """Every line of the summary that has a cell which may be averaged, on every host."""
    explained = []
    for summary in answer.summaries:
        if cells := averaged(summary, answer.runs):
            books, boots, problems = _ledgers(cells)
            census, census_problems = census_means(cells)
            applications, application_problems = application_costs(cells)
            explained.append(
                Explained(
                    summary,
                    cells,
                    books,
                    boots,
                    tuple(map(burndown, cells)),
                    tuple(map(contributions, cells)),
                    census,
                    tuple(applications),
                    (*problems, *census_problems, *application_problems),
                )
            )
    return explained


def _ledgers(cells: Sequence[CellRecords]) -> tuple[tuple[Ledger, ...], tuple[str, ...], list[str]]:
    books, boots, problems = [], [], []
    for records in cells:
        try:
            books.append(ledger(records))
            boots.append(records.boot_key)
        except LedgerError as error:
            problems.append(str(error))
    return tuple(books), tuple(boots), problems


def explanation_parts(
    answer: Answer, explained: Sequence[Explained], *, each_guest: bool = False
) -> list[Part]:
    """The explanation: for each host and policy the tables of its workloads, and a paragraph on each."""
    parts: list[Part] = ["\n".join(measured_on(answer.runs))]
    for where, mine in blocks(explained):
        parts.append(heading(where))
        for first in range(0, len(mine), _COLUMNS):
            some = mine[first : first + _COLUMNS]
            parts += [
                ledger_grid(some),
                *filter(None, [census_rows(some)]),
                tracked_grid(some),
                course_grid(some),
            ]
        parts += [
            guest_grid(mine, each_guest=each_guest),
            *filter(None, [application_grid(mine), decay_grid(mine)]),
            *map(words, mine),
        ]
    doubts = [*warnings(answer), *problems_of(explained)]
    return [*parts, notes(doubts)] if doubts else parts


def problems_of(explained: Sequence[Explained]) -> list[str]:
    """A warning for each ledger and census that cannot be used."""
    return [f"! {problem}" for one in explained for problem in one.problems]


def blocks(explained: Sequence[Explained]) -> list[tuple[str, list[Explained]]]:
    """What is shown side by side: the workloads of one place and policy, with what they share."""
    found: dict[str, list[Explained]] = {}
    for where, summaries in by_place([one.summary for one in explained]):
        for one in explained:
            if one.summary in summaries:
                found.setdefault(f"{where}; policy {one.summary.policy}", []).append(one)
    return list(found.items())


def ledger_grid(shown: Sequence[Explained]) -> Grid:
    """From the gross counters to MemAvailable and PSS, item by item, MB/VM."""
    rows = [
        _estimates("freed_mib_per_vm", shown),
        _estimates("gross_mib_per_vm", shown),
        *_items(shown, lambda book: book.available.items),
        _estimates("mem_available_mib_per_vm", shown),
        *_items(shown, lambda book: book.parts, "of it in "),
        _row(QUANTITIES["rest_percent"], [rest_percent(one) for one in shown], sign=True),
        _estimates("general_profit_mib_per_vm", shown),
        _estimates("pss_mib_per_vm", shown),
        *_items(shown, lambda book: book.pss.items[-1:], "of it in "),
        _estimates("freed_host_mib_per_vm", shown),
    ]
    papers = [one.summary.paper for one in shown]
    if any(papers):
        rows += [
            _row(QUANTITIES["paper_mib_per_vm"], [None if one is None else one.paper for one in papers]),
            (
                "  MemAvailable less the paper",
                *(_GROSS.number(None if one is None else one.difference, sign=True) for one in papers),
            ),
        ]
    return table(
        (f"{PER_VM}, mean of the boots ± 95 %", *_names(shown)), rows, title="Where the saving comes from"
    )


def census_rows(shown: Sequence[Explained]) -> Grid | None:
    """The page census at one moment while KSM was on; None where none was taken."""
    if not any(one.census for one in shown):
        return None
    rows = [
        _row(
            QUANTITIES[name],
            [None if f.census is None else getattr(f.census, census_part(QUANTITIES[name])) for f in shown],
        )
        for name in CENSUS
    ]
    return table(("MB/VM, at one moment", *_names(shown)), rows, title="Page census: what could merge")


def tracked_grid(shown: Sequence[Explained]) -> Grid:
    """What KSM looks after beside what it saved: by the on records, mean of the boots."""
    rows = [_row(QUANTITIES[name], [one.tracked[name] for one in shown]) for name in _TRACKED]
    return table((f"{PER_VM}, under the policy", *_names(shown)), rows, title="What KSM looks after")


def application_grid(shown: Sequence[Explained]) -> Grid | None:
    """What the guests' applications did with KSM off and merged; None where none was measured."""
    figure, change, cpu, cpu_change = (QUANTITIES[name] for name in _APPLICATION)
    rows = [
        (
            f"{row_name(one.summary)}: {' '.join(filter(None, (_of_which(one.summary, cost), cost.unit)))}",
            str(cost.boots),
            figure.estimate(cost.figure_off),
            figure.estimate(cost.figure_on),
            change.estimate(cost.figure_change, sign=True),
            cpu.estimate(cost.cpu_off_seconds),
            cpu.estimate(cost.cpu_on_seconds),
            cpu_change.estimate(cost.cpu_change, sign=True),
        )
        for one in shown
        for cost in one.applications
    ]
    heads = (
        "application",
        "boots",
        "figure\noff",
        "\non",
        f"change\n{change.unit}",
        f"CPU, {cpu.unit}\noff",
        "\non",
        f"change\n{cpu_change.unit}",
    )
    return table(heads, rows, title="What the applications did, KSM off and then on") if rows else None


def decay_grid(shown: Sequence[Explained]) -> Grid | None:
    """How fast the guests' applications undo what was merged; None where it was not read."""
    quantities = [QUANTITIES[name] for name in _DECAY]
    rows = [
        (
            ": ".join(filter(None, (row_name(one.summary), _of_which(one.summary, cost)))),
            str(cost.boots),
            *(
                quantity.estimate(seen, sign=seen is cost.saved_change_mib)
                for quantity in quantities
                for seen in [getattr(cost, quantity.name.removeprefix("application_"))]
            ),
        )
        for one in shown
        for cost in one.applications
        if cost.saved_change_mib is not None
    ]
    heads = ("one guest at work", "boots", *(one.head for one in quantities))
    return table(heads, rows, title="How fast work undoes the saving") if rows else None


def _of_which(summary: Summary, cost: ApplicationCost) -> str:
    """The application of a mix; "" where the line's workload is the application."""
    return "" if cost.workload == summary.workload else cost.workload


def course_grid(shown: Sequence[Explained]) -> Grid:
    """How the saving grew."""
    rows = [
        _row(
            QUANTITIES[f"seconds_to_{percent}_percent"],
            [f.mean(b.seconds_to[percent] for b in f.burndowns) for f in shown],
        )
        for percent in PERCENTS
    ]
    rows += [
        _row(
            QUANTITIES["near_final_scans"],
            [f.mean(float(b.near_final_scans) for b in f.burndowns) for f in shown],
        ),
        _estimates("converged_after_seconds", shown),
        _estimates("ksmd_cpu_seconds", shown),
    ]
    return table(("", *_names(shown)), rows, title="How it grew")


def guest_grid(shown: Sequence[Explained], *, each_guest: bool = False) -> Grid:
    """What the guests gave and cost: least, median and most, or a line for each."""
    rows = []
    for one in shown:
        seen = guest_means(one)
        if not each_guest:
            seen = seen.agg(list(_RANGE))
        for place, values in seen.iterrows():
            cells = [QUANTITIES[name].number(float(values[name])) for name in _GUEST_COLUMNS]
            rows.append((_name(one).replace("\n", ", "), _RANGE.get(str(place), str(place)), *cells))
    heads = [QUANTITIES[name].head for name in _GUEST_COLUMNS]
    return table(("workload", "guest", *heads), rows, names=2, title="What each guest gave and cost")


def guest_means(one: Explained) -> pd.DataFrame:
    """A row for each guest: mean over the boots of what it gave, by the names of the registry."""
    frames = [
        guests.assign(boot=records.boot_key, merged_bytes=guests["merging_pages"] * records.page_size_bytes)
        for guests, records in zip(one.guests, one.cells, strict=True)
    ]
    seen = pd.concat(frames).rename_axis("guest").rename(columns={v: k for k, v in _GUEST_COLUMNS.items()})
    by_boot = seen.groupby(["guest", "boot"])[list(_GUEST_COLUMNS)].mean()
    return by_boot.groupby(level="guest").mean() / MIB


def words(one: Explained) -> str:
    """One paragraph: what was freed, where it comes from, what the paper had, which guests stand out."""
    census = "" if one.census is None else one.census.words()
    parts = [
        _result(one),
        _origin(one),
        follow_words(one.cells),
        census,
        _against_paper(one),
        _guest_words(one),
    ]
    return " ".join(filter(None, parts))


def _result(one: Explained) -> str:
    name = row_name(one.summary)
    freed = QUANTITIES["freed_mib_per_vm"].words(one.summary.estimates["freed_mib_per_vm"])
    sentence = f"{name[0].upper()}{name[1:]}: freed {freed}."
    used = [one.summary.estimates[name] for name in ("used_off_mib", "used_on_mib")]
    if None in used:
        return sentence
    off, on = (QUANTITIES["used_on_mib"].number(seen.mean) for seen in used if seen is not None)
    return f"{sentence} The host used {on} MiB in place of {off}."


def _origin(one: Explained) -> str:
    gross = one.summary.estimates["gross_mib_per_vm"]
    if gross is None or not one.ledgers:
        return ""
    sentence = f"KSM's counters account for {_GROSS.number(gross.mean)}"
    steps = one.steps(lambda book: book.available.items)
    if steps[SPLIT] >= 0.05:
        sentence += (
            f", huge pages split on the way freed {_GROSS.number(steps[SPLIT])} of zeros that no counter "
            "credits"
        )
    sentence += f", and its rmap_items took {_GROSS.number(-steps[RMAP])}."
    rest = rest_percent(one)
    flagged = [book for book in one.ledgers if book.flagged]
    if flagged:
        largest = max((book.largest_rest for book in flagged), key=lambda rest: abs(rest.bytes))
        return (
            f"{sentence} ! The unexplained rest is above 5 % of the host's change in {len(flagged)} of "
            f"{len(one.ledgers)} cells, at most {largest.bytes / MIB:+.0f} MiB ({largest.name})."
        )
    if rest is None:
        return f"{sentence} The host's available memory did not change."
    shown = QUANTITIES["rest_percent"].number(rest, sign=True)
    return f"{sentence} The unexplained rest is {shown} % of the change, within 5 %."


def _against_paper(one: Explained) -> str:
    paper = one.summary.paper
    if paper is None:
        return ""
    sentence = f"By MemAvailable, as the paper measured, its {_GROSS.number(paper.paper)} is "
    sentence += f"{_GROSS.number(abs(paper.difference))} {'more' if paper.difference < 0 else 'less'}"
    sentence += {True: ", outside our interval", False: ", inside our interval", None: ""}[paper.apart]
    workload = one.cells[0].off.observed.workload.values()
    filled = fmean(seen.filled_bytes for seen in workload) / MIB if workload else 0
    focus = focus_of(one.summary.workload)
    if focus == 1:
        split = one.steps(lambda book: book.available.items).get(SPLIT, 0.0)
        return (
            f"{sentence}; {_GROSS.number(split)} of ours come from huge pages, which its kernel 2.6.32 did "
            "not have, and the rest depends on the system that the guests booted."
        )
    if focus == 2:
        sharing = int(one.cells[0].provenance.ksm_knobs.get("max_page_sharing", 0))
        most = _GROSS.number(filled * (1 - 1 / sharing) if sharing else filled)
        bound = f"with max_page_sharing {sharing} at most {most}" if sharing else f"at most {most}"
        return (
            f"{sentence}; one content in {filled:.0f} MB of each guest can save {bound}, and what a guest "
            "keeps for its own system merges only as in focus 1."
        )
    return (
        f"{sentence}; the {filled:.0f} MB of random bytes in each guest cannot merge, so this is what the "
        "guests' systems have in common beside them."
    )


def _guest_words(one: Explained) -> str:
    quantity = QUANTITIES["guest_pss_drop_mib"]
    drops: dict[str, list[float]] = {}
    for frame in one.guests:
        for workload, value in zip(frame["workload"], frame["pss_drop_bytes"], strict=True):
            drops.setdefault(str(workload), []).append(value / MIB)
    ranges = {
        workload: f"{quantity.number(min(mine))} to {quantity.number(max(mine))} {quantity.unit}"
        for workload, mine in drops.items()
    }
    gave = (
        f"{next(iter(ranges.values()))} by PSS"
        if len(ranges) == 1
        else "by PSS " + ", ".join(f"{seen} ({workload})" for workload, seen in ranges.items())
    )
    named = [
        f"{name} in boot {records.cell.boot} repetition {records.cell.repetition} "
        f"({quantity.number(row['pss_drop_bytes'] / MIB)}, {row['beyond']:+.1f} interquartile ranges beyond)"
        for records, frame in zip(one.cells, one.guests, strict=True)
        for name, row in frame[frame["stands_out"]].iterrows()
    ]
    if not named:
        return f"Each guest gave {gave}; none stands out."
    return f"Each guest gave {gave}; {', '.join(named)} stand{'s' if len(named) == 1 else ''} out."


def explanation_json(answer: Answer, explained: Sequence[Explained]) -> str:
    """The explanation as JSON: run_ids, quantities, explained and notes.

    Of each line: its treatment, estimates and census as in `summarize --json`; ``ledger``: items from gross
    to MemAvailable and to PSS, MB/VM; ``course``: means of the burndown; ``tracked``: what KSM looks after;
    ``guests``, by name; ``applications``: their figure and CPU time, off and on, and what they wrote to;
    ``words``.
    """
    shown = [
        *_GUEST_COLUMNS,
        *CENSUS,
        *_TRACKED,
        *_APPLICATION,
        *_DECAY,
        "rest_percent",
        "near_final_scans",
    ]
    content = {
        "schema_version": 1,
        "run_ids": [run.plan.run_id for run in answer.runs],
        "quantities": described(shown),
        "explained": [_line(one) for one in explained],
        "notes": [*warnings(answer), *problems_of(explained)],
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _line(one: Explained) -> dict[str, Any]:
    summary = one.summary
    kept = ("hypervisor", "workload", "policy", "variant", "guests", "guest_memory_bytes", "start_from")
    guests = guest_means(one).to_dict("index")
    return {
        **{name: getattr(summary, name) for name in kept},
        "boots": list(summary.boots),
        "estimates": {name: seen and asdict(seen) for name, seen in summary.estimates.items()},
        "ledger": {
            "to_mem_available": one.steps(lambda book: book.available.items),
            "parts_of_mem_available": one.steps(lambda book: book.parts),
            "to_pss": one.steps(lambda book: book.pss.items),
            "rest_percent": rest_percent(one),
        },
        "course": {
            **{
                f"seconds_to_{percent}_percent": one.mean(b.seconds_to[percent] for b in one.burndowns)
                for percent in PERCENTS
            },
            "near_final_scans": one.mean(float(b.near_final_scans) for b in one.burndowns),
        },
        "census": one.census and census_dict(one.census),
        "tracked": one.tracked,
        "guests": {
            str(name): {part: None if pd.isna(value) else value for part, value in values.items()}
            for name, values in guests.items()
        },
        "applications": [asdict(cost) for cost in one.applications],
        "words": words(one),
    }


def waterfalls(explained: Sequence[Explained]) -> list[Waterfall]:
    """The ledger of each line that has one, mean of its boots, for a figure."""
    several = len({one.summary.hypervisor for one in explained}) > 1
    steps = {id(one): one.steps(lambda book: book.available.items) for one in explained}
    shown = {name for mine in steps.values() for name, step in mine.items() if _shows(name, step)}
    found = []
    for one in explained:
        if one.ledgers:
            name = row_name(one.summary)
            found.append(
                Waterfall(
                    name=f"{one.summary.hypervisor}: {name}" if several else name,
                    start=(one.book_mean(lambda book: book.available.start_bytes) or 0.0) / one.unit,
                    steps={name: step for name, step in steps[id(one)].items() if name in shown},
                    end=(one.book_mean(lambda book: book.available.end_bytes) or 0.0) / one.unit,
                    flagged=any(book.flagged for book in one.ledgers),
                )
            )
    return found


def censuses_by_name(explained: Sequence[Explained]) -> dict[str, CensusMeans]:
    """The census of each line that has one, by what the line is called."""
    names = line_names([one.summary for one in explained]) if explained else []
    return {name: one.census for name, one in zip(names, explained, strict=True) if one.census is not None}


def rest_percent(one: Explained) -> float | None:
    """The ledgers' two rests over the change of MemAvailable."""
    return one.book_mean(lambda book: None if (rest := book.rest_fraction) is None else 100 * rest)


def _name(one: Explained) -> str:
    name = "mix" if "=" in one.summary.workload else title(one.summary.workload)
    return name if one.summary.variant == one.summary.policy else f"{name}\n{one.summary.variant}"


def _names(shown: Sequence[Explained]) -> list[str]:
    return list(map(_name, shown))


def _items(
    shown: Sequence[Explained], items: Callable[[Ledger], Sequence[Item]], prefix: str = ""
) -> list[tuple[str, ...]]:
    """A row for each item that is a rest, or that shows at one decimal."""
    steps = [one.steps(items) for one in shown]
    names = dict.fromkeys(name for mine in steps for name in mine)
    return [
        (f"  {prefix}{name}", *(_GROSS.number(mine.get(name), sign=True) for mine in steps))
        for name in names
        if any(_shows(name, mine.get(name, 0.0)) for mine in steps)
    ]


def _shows(name: str, step: float) -> bool:
    """Whether an item is a rest, or more than nothing at one decimal."""
    return name in (GUEST_REST, HOST_REST) or abs(step) >= 0.05


def _estimates(name: str, shown: Sequence[Explained]) -> tuple[str, ...]:
    quantity = QUANTITIES[name]
    return (_labelled(quantity), *(quantity.estimate(one.summary.estimates[name]) for one in shown))


def _row(quantity: Quantity, values: Sequence[float | None], *, sign: bool = False) -> tuple[str, ...]:
    return (_labelled(quantity), *(quantity.number(value, sign=sign) for value in values))


def _labelled(quantity: Quantity) -> str:
    return quantity.label if quantity.unit == PER_VM else f"{quantity.label}, {quantity.unit}"
