"""What was measured: tables of a summary, what a reader must know beside them, JSON and CSV."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import pandas as pd

from analysis.measure.efficiency import CensusMeans, censuses
from analysis.measure.others import marks_words
from analysis.measure.pooling import LeftOut
from analysis.measure.statistics import (
    COMPARED,
    LEAST_BOOTS,
    Measured,
    PolicyDifference,
    Summary,
    averaged,
)
from analysis.plan.design import MIB
from analysis.plan.policies import policy_order
from analysis.plan.workloads import title
from analysis.records.checks import self_tuned, swap_used_bytes
from analysis.records.loading import COMPLETE, CellRecords, Run
from analysis.report.quantities import CENSUS, QUANTITIES, SAVED, UNITS, USED, Quantity
from analysis.report.tables import Grid, Part, heading, notes, table

FREED = QUANTITIES["freed_mib_per_vm"]
PAPER = "paper_mib_per_vm"

_BEGAN = {"checkpoint": ", restored from a checkpoint", "boot": ", measured as booted", "": ""}
_BEGAN_SHORT = {"checkpoint": "restored", "boot": "as booted", "": ""}
_MOST_NAMED = 12


@dataclass(frozen=True)
class Answer:
    """What is summarised.

    Attributes:
        summaries: as from :func:`analysis.measure.statistics.summarise`.
        runs: the runs that they cover.
        differences: as from :func:`analysis.measure.statistics.policy_differences`.
        others: ids of the runs that were not asked for.
        left_out: cells that do not belong to the others, see :func:`analysis.measure.pooling.largest_set`.
        problems: a sentence for each run that cannot be used.
    """

    summaries: tuple[Summary, ...]
    runs: tuple[Run, ...]
    differences: tuple[PolicyDifference, ...] = ()
    others: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    problems: tuple[str, ...] = ()


def summary_parts(answer: Answer) -> list[Part]:
    """The summary as text."""
    parts: list[Part] = ["\n".join(measured_on(answer.runs, boots=True))]
    for where, mine in by_place(answer.summaries):
        parts += [heading(where), *grids(mine)]
    if answer.differences:
        parts.append(difference_grid(answer.differences))
    parts.append(notes([*remarks(answer), *LEGEND]))
    return parts


LEGEND = (
    f"freed: {FREED.sentence[0].lower()}{FREED.sentence[1:]}",
    f"{UNITS} `python -m analysis quantities` says what every column is and where it comes from.",
)


def measured_on(runs: Sequence[Run], *, boots: bool = False) -> list[str]:
    """The runs, the hosts that they were measured on with the policies and, where wanted, the boots."""
    named = [f"{run.plan.run_id}, started {run.plan.created_at[:19]}Z" for run in runs]
    lines = [f"{'Run' if len(runs) == 1 else 'Runs'} {'; '.join(_ends(named))}"]
    by_host: dict[str, list[CellRecords]] = {}
    for run in runs:
        for cell in run.cells:
            if cell.status == COMPLETE:
                by_host.setdefault(cell.cell.hypervisor, []).append(cell)
    for hypervisor, cells in sorted(by_host.items()):
        machines = dict.fromkeys(_machine(cell) for cell in cells)
        lines += [f"{hypervisor}: {machine}" for machine in machines]
        lines += _swap_lines(cells)
        lines += _policy_lines(cells)
        lines += _boot_lines(cells) if boots else []
    return lines


def _machine(cell: CellRecords) -> str:
    found = cell.provenance
    return (
        f"{found.os_release}, kernel {found.kernel_release}, QEMU "
        f"{found.qemu_version or 'of unknown version'} ({found.accelerator}), "
        f"{found.cpu_count} x {found.cpu_model or found.architecture}, "
        f"{found.memory_total_bytes / (MIB << 10):.1f} GiB"
    )


def _swap_lines(measured: Sequence[CellRecords]) -> list[str]:
    """The host's swap where it has some, and how much of it was in use when its cells began."""
    swaps = [cell for cell in measured if cell.provenance.swap_total_bytes]
    if not swaps:
        return []
    total = max(cell.provenance.swap_total_bytes for cell in swaps)
    used = [swap_used_bytes(cell.off) or 0 for cell in swaps]
    return [
        f"swap of {total / MIB:.0f} MiB, of which {min(used) / MIB:.0f} to {max(used) / MIB:.0f} MiB were in "
        "use when the cells began; none was swapped in or out while they were measured"
    ]


def _policy_lines(measured: Sequence[CellRecords]) -> list[str]:
    """Each policy with the knobs that were asked for and the huge pages, as read back."""
    lines: dict[str, None] = {}
    for cell in sorted(measured, key=lambda cell: policy_order(cell.cell.policy)):
        service = cell.on.requested.service
        said = (
            ", ".join(f"{name} {value}" for name, value in asked_knobs(cell).items())
            + f"; huge pages {cell.provenance.thp.get('enabled', 'unknown')}"
            + (f"; service {service}" if service else "")
        )
        lines[f"policy {cell.cell.policy}: {said}"] = None
    return list(lines)


def _boot_lines(measured: Sequence[CellRecords]) -> list[str]:
    """When the guests of the cells were booted, where the records know it."""
    boots = {}
    for cell in measured:
        start = cell.provenance.start
        if start.booted_at is not None:
            took = "" if start.boot_seconds is None else f" in {start.boot_seconds:.0f} s"
            boots[start.booted_at] = f"{start.booted_at[:19]}Z{took}"
    named = [boots[when] for when in sorted(boots)]
    return [f"guests booted {', '.join(_ends(named))}"] if named else []


def _ends(named: list[str]) -> list[str]:
    """The names; of many the first and the last, and how many there are between."""
    return named if len(named) <= _MOST_NAMED else [named[0], f"{len(named) - 2} more", named[-1]]


def asked_knobs(records: CellRecords) -> dict[str, int | str]:
    """The knobs that were asked for, with the values read back; absent where the kernel has none.

    Of one that a tuner sets as it goes, the value that it began with.
    """
    read_back, requested = records.provenance.ksm_knobs, records.on.requested
    tuned = self_tuned(read_back, requested.service)
    return {
        name: f"from {value}" if name in tuned else read_back.get(name, "absent")
        for name, value in requested.ksm_knobs.items()
    }


def place(summary: Summary) -> str:
    """Where and with what: host, guests, and what these began from."""
    size = summary.guest_memory_bytes >> 20
    return f"{summary.hypervisor}: {summary.guests} guests of {size} MB{_BEGAN[summary.start_from]}"


def by_place(summaries: Sequence[Summary]) -> list[tuple[str, list[Summary]]]:
    """Summaries that belong in one table, with their place."""
    places: dict[str, list[Summary]] = {}
    for summary in summaries:
        places.setdefault(place(summary), []).append(summary)
    return list(places.items())


def grids(summaries: Sequence[Summary]) -> list[Grid]:
    """The tables of one place: what was saved, and what was used and spent."""
    papers = any(summary.paper for summary in summaries)
    saved = [name for name in SAVED if papers or name != PAPER]
    return [
        _grid("Saved, mean of the boots ± half of the 95 % interval", saved, summaries),
        _grid("Used and spent", USED, summaries),
    ]


def _grid(name: str, columns: Sequence[str], summaries: Sequence[Summary]) -> Grid:
    quantities = [QUANTITIES[column] for column in columns]
    heads = ("workload", "policy", "boots", *(one.head for one in quantities))
    rows = [row for summary in summaries for row in _rows(summary, quantities)]
    return table(heads, rows, names=2, title=name)


def _rows(summary: Summary, quantities: Sequence[Quantity]) -> list[tuple[str, ...]]:
    """Means with intervals; below them the spread between and within boots, where there is one."""
    seen = [(one, summary.estimates.get(one.name)) for one in quantities]
    paper = QUANTITIES[PAPER].number(summary.paper.paper) if summary.paper else "-"
    means = [paper if one.name == PAPER else one.estimate(found) for one, found in seen]
    between = ["" if f is None or f.between_boot_sd is None else q.spread(f.between_boot_sd) for q, f in seen]
    within = ["" if f is None or f.within_boot_sd is None else q.spread(f.within_boot_sd) for q, f in seen]
    rows = [(title(summary.workload), summary.variant, boots_text(summary), *means)]
    rows += [("", "sd between", "", *between)] if any(between) else []
    rows += [("", "sd within", "", *within)] if any(within) else []
    return rows


def boots_text(summary: Summary) -> str:
    """Boots x repetitions in the mean: 3x2, 3x1-2 where they have not all as many; of how many cells."""
    if not summary.boots:
        return f"0/{summary.planned}"
    left_out = f"/{summary.planned}" if summary.measured < summary.planned else ""
    return replicates(summary.boots) + left_out


def replicates(boots: Sequence[int]) -> str:
    """Boots x repetitions of each: 3x2, or 3x1-2 where they have not all as many."""
    least, most = min(boots), max(boots)
    return f"{len(boots)}x{least}" + (f"-{most}" if most > least else "")


def difference_grid(differences: Sequence[PolicyDifference]) -> Grid:
    """Each policy against the baseline, saving more (+) or less (-)."""
    quantities = [QUANTITIES[name] for name in SAVED if name in COMPARED]
    several = len({one.hypervisor for one in differences}) > 1
    return table(
        ("workload, guests", "policies", "boots", *(one.head for one in quantities)),
        [
            (
                f"{f'{one.hypervisor}: ' if several else ''}{title(one.workload)}, {one.guests}",
                f"{one.policy} - {one.baseline}",
                str(one.n_boots),
                *(q.estimate(one.differences[q.name], sign=True) for q in quantities),
            )
            for one in differences
        ],
        names=2,
        title="Saved more (+) or less (-) than under the other policy from the same checkpoint",
    )


def census_grid(summaries: Sequence[Summary], counted: Sequence[CensusMeans | None]) -> Grid | None:
    """The means of the page censuses, None where there is none."""
    quantities = [QUANTITIES[name] for name in CENSUS]
    rows = [
        (
            title(summary.workload),
            summary.variant,
            f"{census.counted}/{census.cells}",
            *(one.number(getattr(census, census_part(one))) for one in quantities),
        )
        for summary, census in zip(summaries, counted, strict=True)
        if census is not None
    ]
    if not rows:
        return None
    heads = ("workload", "policy", "cells", *(one.head for one in quantities))
    return table(heads, rows, names=2, title="Page census: what could merge")


def census_part(quantity: Quantity) -> str:
    """The attribute of CensusMeans that holds a quantity of the census."""
    return quantity.name.removesuffix("_mib_per_vm")


def row_name(summary: Summary) -> str:
    """What one line is called in words: 1 idle, ksm."""
    return f"{title(summary.workload)}, {summary.variant}"


def line_names(summaries: Sequence[Summary]) -> list[str]:
    """What each line is called, with its host, guests and their start where these differ."""
    places = [
        (
            one.hypervisor,
            f"{one.guests} guests",
            f"{one.guest_memory_bytes >> 20} MB",
            _BEGAN_SHORT[one.start_from],
        )
        for one in summaries
    ]
    differ = [len(set(values)) > 1 for values in zip(*places, strict=True)]
    return [
        ", ".join(
            [row_name(one), *(part for part, wanted in zip(place, differ, strict=True) if wanted and part)]
        )
        for one, place in zip(summaries, places, strict=True)
    ]


def remarks(answer: Answer) -> list[str]:
    """What the reader of the tables must know: what is left out and why, pooling refused, few boots."""
    summaries = answer.summaries
    lines = [*warnings(answer)]
    lines += _about_boots(
        [
            (name, summary)
            for name, summary in zip(line_names(summaries), summaries, strict=True)
            if summary.measured and not summary.not_pooled
        ]
    )
    if answer.others:
        lines.append(f"Other runs: {', '.join(answer.others)} (choose with --run RUN_ID or --all).")
    return lines


def warnings(answer: Answer) -> list[str]:
    """What is left out or in doubt, and why."""
    named = list(zip(line_names(answer.summaries), answer.summaries, strict=True))
    lines = [f"! {problem}" for problem in answer.problems]
    for name, summary in named:
        cells = averaged(summary, answer.runs)
        lines += [*_not_pooled(name, summary), *_left_out(name, summary), *_unknown(name, summary)]
        lines += [f"! {name}: {words}" for words in marks_words(cells)]
        lines += [f"{name}: {words}" for words in rewriting_words(cells)]
    lines += _parted(named)
    lines += [
        f"! {title(one.workload)}: {one.policy} is not compared with {one.baseline}, for they were measured "
        f"under different conditions: {'; '.join(one.not_compared)}."
        for one in answer.differences
        if one.not_compared
    ]
    return lines + left_out_words(answer.left_out)


def left_out_words(left_out: Sequence[LeftOut]) -> list[str]:
    """A sentence for the cells of each run that do not belong to the others."""
    return [
        f"! run {one.run_id}, {one.hypervisor}: {one.cells} measured cells are left out, for they do not "
        f"belong to the others: {'; '.join(one.differing)}."
        for one in left_out
    ]


def rewriting_words(cells: Sequence[CellRecords]) -> list[str]:
    """That guests wrote all the time, and how much; none where they did not."""
    verdicts = [verdict for cell in cells for verdict in cell.verify.observed.guests.values()]
    rates = [rate for one in verdicts if (rate := one.rewritten_pages_per_second) is not None]
    if not rates:
        return []
    return [
        f"each guest wrote to {min(rates):.0f} to {max(rates):.0f} pages a second while it was measured: the "
        "saving is that of a steady load, not of guests at rest."
    ]


def _not_pooled(name: str, summary: Summary) -> list[str]:
    if not summary.not_pooled:
        return []
    each = ", ".join(
        f"{one.run_id} boot {one.boot} repetition {one.repetition} {_seen(one)}"
        for one in summary.cells
        if one.status == COMPLETE
    )
    return [
        f"! {name}: its {summary.measured} cells are not pooled, for they were measured under different "
        f"conditions: {'; '.join(summary.not_pooled)}. Freed in each: {each}."
    ]


def _left_out(name: str, summary: Summary) -> list[str]:
    several = len({one.run_id for one in summary.cells}) > 1
    lines = []
    for one in summary.cells:
        if one.status == COMPLETE:
            continue
        run = f"run {one.run_id}, " if several else ""
        value = "" if one.freed_mib_per_vm is None else f" (freed {_seen(one)} when it ended)"
        lines.append(
            f"! {name}, {run}boot {one.boot} repetition {one.repetition}: {one.status}, left out of the "
            f"mean: {one.problem.rstrip('.')}{value}."
        )
    return lines


def _unknown(name: str, summary: Summary) -> list[str]:
    return [f"! {name}: not known: {reason}." for reason in summary.unknown]


def _parted(named: Sequence[tuple[str, Summary]]) -> list[str]:
    """Where the two ways to measure memory freed part."""
    where = [f"{name} ({one.parted} of {one.measured} cells)" for name, one in named if one.parted]
    if not where:
        return []
    return [
        "! host freed parts from freed, for something else on the host took or gave memory: "
        f"{'; '.join(where)}. Believe freed."
    ]


def _seen(cell: Measured) -> str:
    return f"{FREED.number(cell.freed_mib_per_vm)} {FREED.unit}"


def _about_boots(pooled: Sequence[tuple[str, Summary]]) -> list[str]:
    """What the intervals and spreads are of, and where there are too few boots."""
    lines = []
    few = [(name, summary) for name, summary in pooled if len(summary.boots) < LEAST_BOOTS]
    if few:
        named = "; ".join(f"{name} ({_boots(len(one.boots))})" for name, one in few)
        lines.append(
            f"Fewer than {LEAST_BOOTS} boots: {named}. One boot has no interval, whatever the repetitions "
            "within it; that of two is printed as what it is, and nothing follows from it. More: `-e "
            "boots=3`."
        )
    if any(len(summary.boots) > 1 for _name, summary in pooled):
        lines.append(
            "±: half of the 95 % t interval over boots. sd between: standard deviation of the boots' means."
        )
    if any(max(summary.boots) > 1 for _name, summary in pooled):
        lines.append(
            "sd within: standard deviation of the repetitions within a boot, pooled over the boots. Boots "
            "3x2: 3 boots of 2 repetitions each."
        )
    return lines


def _boots(number: int) -> str:
    return "1 boot" if number == 1 else f"{number} boots"


def summary_json(answer: Answer) -> str:
    """The summary as JSON: run_ids, other_run_ids, quantities, summaries and policy_differences; left_out and
    notes say what is not in them.

    A summary is a Summary, with ``variant``, and ``census``: CensusMeans, or null where none was taken.
    ``quantities`` are those of the estimates, by name.
    """
    counted, problems = censuses(answer.summaries, answer.runs)
    names = {name for summary in answer.summaries for name in summary.estimates}
    content = {
        "schema_version": 3,
        "run_ids": [run.plan.run_id for run in answer.runs],
        "other_run_ids": list(answer.others),
        "quantities": described(name for name in QUANTITIES if name in names),
        "summaries": [
            {
                **asdict(summary),
                "variant": summary.variant,
                "census": None if census is None else census_dict(census),
            }
            for summary, census in zip(answer.summaries, counted, strict=True)
        ],
        "policy_differences": [asdict(one) for one in answer.differences],
        "left_out": [asdict(one) for one in answer.left_out],
        "notes": [*remarks(answer), *(f"! {one}" for one in problems), UNITS],
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def census_dict(census: CensusMeans) -> dict[str, Any]:
    """Means of censuses for JSON."""
    content = {field.name: getattr(census, field.name) for field in fields(census)}
    if census.strangers is not None:
        cells, largest = census.strangers
        content["strangers"] = {"cells": cells, "largest": largest.to_json()}
    return content


def described(names: Iterable[str]) -> dict[str, dict[str, str | int]]:
    """What the registry says of these quantities, by name."""
    kept = ("label", "unit", "decimals", "source", "sentence")
    return {name: {part: getattr(QUANTITIES[name], part) for part in kept} for name in names}


def summary_csv(table: pd.DataFrame) -> str:
    """The tidy table, one line for each planned cell; what was not measured is empty."""
    return table.to_csv(index=False)
