"""What was measured, as text, JSON, CSV and one self-contained HTML page."""

import json
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import jinja2
import pandas as pd

from analysis.measure.efficiency import ROWS, CensusMeans, censuses
from analysis.measure.statistics import (
    COMPARED,
    PAPER_MIB_PER_VM,
    Difference,
    Estimate,
    PolicyDifference,
    Summary,
    exact,
)
from analysis.plan.design import MIB
from analysis.plan.policies import policy_order
from analysis.plan.workloads import focus_of, title
from analysis.records.loading import COMPLETE, CellRecords, Run

TEMPLATES = Path(__file__).resolve().parent / "templates"
WIDTH = 110
_WORKLOAD_WIDTH, _LABEL_WIDTH, _N_WIDTH = 16, 29, 8
_BOOTS = "boots"

_FOOTNOTE = (
    "boots: boots in the mean x repetitions in each, of how many planned cells where not all. MB means MiB "
    "(2^20 bytes), the paper's MB included. Host used: MemTotal - MemAvailable of the whole host, with KSM "
    "off and with the policy on. Saved by MemAvail: rise of MemAvailable from off to on, as in the paper; "
    "gross: (pages_sharing + ksm_zero_pages) x page size; profit: general_profit, the gross less KSM's own "
    "memory; PSS: fall of the guests' proportional set sizes. differ: ours by MemAvail less the paper's."
)


@dataclass(frozen=True)
class Column:
    """A column of the summary: group heading, heading, width in text, decimals, and what it shows.

    ``quantity`` is a key of the estimates, or paper or difference.
    """

    group: str
    head: str
    width: int
    decimals: int
    quantity: str


COLUMNS = (
    Column("host used, MiB", "off", 7, 0, "host_used_off_mib"),
    Column("host used, MiB", "on", 7, 0, "host_used_on_mib"),
    Column("saved, MB/VM, by", "MemAvail", 9, 1, "saved_mem_available_mib_per_vm"),
    Column("saved, MB/VM, by", "gross", 7, 1, "saved_gross_mib_per_vm"),
    Column("saved, MB/VM, by", "profit", 7, 1, "saved_general_profit_mib_per_vm"),
    Column("saved, MB/VM, by", "PSS", 7, 1, "saved_pss_mib_per_vm"),
    Column("paper, MB/VM", "figure", 7, 1, "paper"),
    Column("paper, MB/VM", "differ", 7, 1, "difference"),
    Column("settled", "after s", 8, 1, "converged_after_seconds"),
    Column("ksmd", "CPU s", 7, 1, "ksmd_cpu_seconds"),
)

_BEGAN = {
    "checkpoint": ", restored from a checkpoint",
    "boot": ", measured as booted",
    "": "",
}
# Headings of what two policies are compared by
_HEADS = tuple(column.head for column in COLUMNS if column.quantity in COMPARED)
_COMPARED_WIDTH, _DIFFERENCE_WIDTH = 50, 13


def summary_text(
    summaries: Sequence[Summary],
    runs: Sequence[Run],
    differences: Sequence[PolicyDifference] = (),
    others: Sequence[str] = (),
) -> str:
    """The summary as aligned text of at most 110 columns.

    Args:
        summaries: as from :func:`analysis.measure.statistics.summarise`.
        runs: the runs that they cover.
        differences: as from :func:`analysis.measure.statistics.policy_differences`.
        others: ids of the runs left out.
    """
    parts = [heading(runs, boots=True)]
    for where, mine in by_place(summaries):
        parts.append("\n".join([where, *_table_lines(mine)]))
    if differences:
        parts.append("\n".join(_difference_lines(differences)))
    parts.append("\n".join(wrap(line) for line in notes(summaries, differences, others)))
    return "\n\n".join(parts) + "\n"


def heading(runs: Sequence[Run], *, boots: bool = False) -> str:
    """What was measured on what, under which policies and, where wanted, from which boots, in some lines."""
    lines = []
    for run in runs:
        lines.append(f"Run {run.plan.run_id}, started {run.plan.created_at}")
        measured = [cell for cell in run.cells if cell.status == COMPLETE]
        if not measured:
            continue
        found = measured[0].provenance
        host = (
            f"{found['os_release']}, kernel {found['kernel_release']}, QEMU "
            f"{found['qemu_version'] or 'of unknown version'} ({found['accelerator']}), "
            f"{found['cpu_count']} x {found['cpu_model'] or found['architecture']}, "
            f"{found['memory_total_bytes'] / (MIB << 10):.1f} GiB"
        )
        policies = _policy_lines(measured)
        said = [f"{host}; {policies[0]}"] if len(policies) == 1 else [host, *policies]
        lines += [wrap(line) for line in (*said, *(_boot_lines(measured) if boots else ()))]
    return "\n".join(lines)


def _policy_lines(measured: Sequence[CellRecords]) -> list[str]:
    """Each policy with the knobs that were asked for and the huge pages, as read back."""
    first: dict[str, CellRecords] = {}
    for cell in measured:
        first.setdefault(cell.cell.policy, cell)
    lines = []
    for policy, cell in sorted(first.items(), key=lambda item: policy_order(item[0])):
        service = cell.records["on"]["requested"]["service"]
        lines.append(
            f"{policy}: "
            + ", ".join(f"{name} {value}" for name, value in asked_knobs(cell).items())
            + f"; huge pages {cell.provenance['thp']['enabled']}"
            + (f"; service {service}" if service else "")
        )
    return lines


def _boot_lines(measured: Sequence[CellRecords]) -> list[str]:
    """When the guests of the cells were booted, where the records know it."""
    boots = {}
    for cell in measured:
        start = cell.provenance["start"]
        if start["booted_at"] is not None:
            took = "" if start["boot_seconds"] is None else f" in {start['boot_seconds']:.0f} s"
            boots[start["booted_at"]] = f"{start['booted_at'][:19]}Z{took}"
    return [f"Guests booted {', '.join(boots[when] for when in sorted(boots))}"] if boots else []


def asked_knobs(records: CellRecords) -> dict[str, int | str]:
    """The knobs that were asked for, with the values read back; absent where the kernel has none."""
    read_back = records.provenance["ksm_knobs"]
    return {name: read_back.get(name, "absent") for name in records.records["on"]["requested"]["ksm_knobs"]}


def notes(
    summaries: Sequence[Summary],
    differences: Sequence[PolicyDifference] = (),
    others: Sequence[str] = (),
) -> list[str]:
    """What the reader of the table must know: cells left out and why, pooling refused, units."""
    lines = []
    for summary in summaries:
        name = row_name(summary)
        if summary.not_pooled:
            lines.append(
                f"! {name}: its {summary.measured} cells are not pooled, for they were measured under "
                f"different conditions: {'; '.join(summary.not_pooled)}. Each by MemAvailable: "
                + ", ".join(
                    f"{one.run_id} boot {one.boot} repetition {one.repetition} "
                    f"{one.saved_mem_available_mib_per_vm:.1f} MB/VM"
                    for one in summary.cells
                    if one.status == COMPLETE
                )
                + "."
            )
        several = len({one.run_id for one in summary.cells}) > 1
        for one in summary.cells:
            run = f"run {one.run_id}, " if several else ""
            if one.status != COMPLETE:
                seen = one.saved_mem_available_mib_per_vm
                value = "" if seen is None else f" ({seen:.1f} MB/VM by MemAvailable when it ended)"
                lines.append(
                    f"! {name}, {run}boot {one.boot} repetition {one.repetition}: {one.status}, left out of "
                    f"the mean: {one.problem.rstrip('.')}{value}."
                )
    lines += [
        f"! {title(one.workload)}: {one.policy} is not compared with {one.baseline}, for they were measured "
        f"under different conditions: {'; '.join(one.not_compared)}."
        for one in differences
        if one.not_compared
    ]
    pooled = [summary for summary in summaries if summary.measured and not summary.not_pooled]
    if any(len(summary.boots) == 1 for summary in pooled):
        lines.append(
            "One boot: no interval, whatever the repetitions within it. More: `-e boots=3` of the experiment."
        )
    if any(len(summary.boots) > 1 for summary in pooled):
        lines.append(
            "± 95 %: half of the t interval over boots; CoV: standard deviation between boots over the mean."
        )
    if any(max(summary.boots) > 1 for summary in pooled):
        lines.append("within: standard deviation of the repetitions within a boot, pooled over the boots.")
    if any(summary.arm_order != "off-on" for summary in summaries):
        lines.append(
            "KSM on first: what KSM split and freed stays so when it is switched off, so that these are no "
            "repetitions of the others."
        )
    lines.append(_FOOTNOTE)
    if others:
        lines.append(f"Other runs: {', '.join(others)} (choose with --run RUN_ID or --all).")
    return lines


def row_name(summary: Summary) -> str:
    """What one line is called in words: 1 idle, ksm."""
    return f"{title(summary.workload)}, {summary.variant}"


def replicates(boots: Sequence[int]) -> str:
    """Boots x repetitions of each: 3x2, or 3x1-2 where they have not all as many."""
    least, most = min(boots), max(boots)
    return f"{len(boots)}x{least}" + (f"-{most}" if most > least else "")


def summary_json(
    summaries: Sequence[Summary],
    runs: Sequence[Run],
    differences: Sequence[PolicyDifference],
    others: Sequence[str],
) -> str:
    """The summary as JSON: run_ids, other_run_ids, summaries, policy_differences and notes.

    A summary is a Summary, with ``variant``, and ``census``: CensusMeans, or null where none was taken.
    """
    counted, problems = censuses(summaries, runs)
    content = {
        "schema_version": 2,
        "run_ids": [run.plan.run_id for run in runs],
        "other_run_ids": list(others),
        "unit": "MB is MiB, 2^20 bytes",
        "summaries": [
            {
                **asdict(summary),
                "variant": summary.variant,
                "census": None if census is None else asdict(census),
            }
            for summary, census in zip(summaries, counted, strict=True)
        ],
        "policy_differences": [asdict(one) for one in differences],
        "notes": [*notes(summaries, differences), *(f"! {problem}" for problem in problems)],
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def summary_csv(table: pd.DataFrame) -> str:
    """The tidy table, one line for each planned cell; what was not measured is empty."""
    return table.to_csv(index=False)


def html_page(
    summaries: Sequence[Summary],
    runs: Sequence[Run],
    differences: Sequence[PolicyDifference],
    remarks: Sequence[str],
    figures: Iterable[tuple[str, str]],
) -> str:
    """One page that needs nothing else.

    Args:
        summaries: as from :func:`analysis.measure.statistics.summarise`.
        runs: the runs that they cover.
        differences: as from :func:`analysis.measure.statistics.policy_differences`.
        remarks: what the reader must know, see :func:`notes`.
        figures: caption and SVG text of each.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    places = [
        {
            "where": where,
            "rows": [
                {"label": title(s.workload), "variant": s.variant, "lines": table_rows(s)} for s in mine
            ],
            "censuses": [
                {"label": row_name(summary), "cells": _census_cells(census), "words": census.words()}
                for summary, census in zip(mine, censuses(mine, runs)[0], strict=True)
                if census is not None
            ],
        }
        for where, mine in by_place(summaries)
    ]
    return environment.get_template("report.html.j2").render(
        heading=heading(runs, boots=True).splitlines(),
        columns=COLUMNS,
        places=places,
        compared=_HEADS,
        differences=[
            {"label": _difference_name(one), "n": one.n_boots, "cells": _difference_cells(one)}
            for one in differences
        ],
        census_columns=["n", *(name for name, _part in ROWS)],
        notes=remarks,
        figures=[{"caption": caption, "svg": svg[svg.index("<svg") :]} for caption, svg in figures],
    )


def _census_cells(census: CensusMeans) -> list[str]:
    values = [getattr(census, part) for _name, part in ROWS]
    shown = ["-" if value is None else f"{round(value, 1) + 0.0:.1f}" for value in values]
    return [f"{census.counted}/{census.cells}", *shown]


def by_place(summaries: Sequence[Summary]) -> list[tuple[str, list[Summary]]]:
    """Summaries that belong in one table, with what they share: host, guests, and what these began from."""
    places: dict[str, list[Summary]] = {}
    for summary in summaries:
        size = summary.guest_memory_bytes >> 20
        began = _BEGAN[summary.start_from]
        where = f"{summary.hypervisor}: {summary.guests} guests of {size} MB{began}"
        places.setdefault(where, []).append(summary)
    return list(places.items())


def table_rows(summary: Summary) -> list[list[str]]:
    """Cells of one line, boots first: means; below them the intervals and spreads where there are any."""
    shown = {**summary.estimates, **_against_paper(summary)}
    rows = {name: [name] for name in (_boots(summary), "± 95 %", "CoV", "within")}
    means, half_widths, covs, within = rows.values()
    for column in COLUMNS:
        value = shown[column.quantity]
        sign = "+" if column.quantity == "difference" else ""
        means.append("-" if value is None else f"{value.mean:{sign}.{column.decimals}f}")
        half, cov, spread = (
            (None, None, None) if value is None else (value.half_width, value.cov, value.within_boot_sd)
        )
        half_widths.append("" if half is None else f"±{half:.{column.decimals}f}")
        covs.append("" if cov is None else f"{100 * cov:.1f} %")
        within.append("" if spread is None else f"{spread:.{column.decimals}f}")
    return [means, *(row for row in (half_widths, covs, within) if any(row[1:]))]


def wrap(line: str, indent: str = "  ") -> str:
    """Text broken at 110 columns, continued with an indent."""
    return textwrap.fill(
        line, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def named(name: str, width: int, cells: str) -> str:
    """A line of a table; a name that is too long for its column, such as a mix's, has a line of its own."""
    return f"{name:<{width}}{cells}" if len(name) < width else f"{name}\n{'':<{width}}{cells}"


def _boots(summary: Summary) -> str:
    if not summary.boots:
        return f"0/{summary.planned}"
    left_out = f"/{summary.planned}" if summary.measured < summary.planned else ""
    return replicates(summary.boots) + left_out


def _against_paper(summary: Summary) -> dict[str, Estimate | None]:
    ours = summary.estimates["saved_mem_available_mib_per_vm"]
    difference = None
    if ours is not None and summary.paper is not None:
        difference = replace(ours, mean=summary.paper.difference, cov=None, within_boot_sd=None)
    return {
        "paper": exact(PAPER_MIB_PER_VM.get(focus_of(summary.workload) or 0)),
        "difference": difference,
    }


def _table_lines(summaries: Sequence[Summary]) -> list[str]:
    groups = {column.group: 0 for column in COLUMNS}
    for column in COLUMNS:
        groups[column.group] += column.width
    top = " " * (_LABEL_WIDTH + _N_WIDTH) + "".join(f"{group:>{width}}" for group, width in groups.items())
    under = _line(_label("workload", "policy"), [_BOOTS, *(column.head for column in COLUMNS)])
    lines = [top, under, "-" * len(under)]
    for summary in summaries:
        name = _label(title(summary.workload), summary.variant)
        for cells in table_rows(summary):
            lines.append(_line(name, cells))
            name = ""
    return lines


def _label(workload: str, policy: str) -> str:
    """Workload and policy in their columns, or where the workload is too long for its own, in words."""
    if len(workload) < _WORKLOAD_WIDTH:
        return f"{workload:<{_WORKLOAD_WIDTH}}{policy}"
    return f"{workload}, {policy}"


def _line(name: str, cells: Sequence[str]) -> str:
    widths = [_N_WIDTH, *(column.width for column in COLUMNS)]
    text = "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
    # A long name may use what the first column leaves free.
    over = len(name) - _LABEL_WIDTH
    if 0 <= over < len(text) - len(text.lstrip()):
        return f"{name}{text[over:]}".rstrip()
    return named(name, _LABEL_WIDTH, text).rstrip()


def _difference_lines(differences: Sequence[PolicyDifference]) -> list[str]:
    """Each policy against the baseline, saving more (+) or less (-)."""
    lines = [
        "Saved more (+) or less (-) than by the other policy from the same checkpoint, MB/VM, by",
        f"{'':<{_COMPARED_WIDTH}}{_BOOTS:>6}" + "".join(f"{head:>{_DIFFERENCE_WIDTH}}" for head in _HEADS),
    ]
    lines.append("-" * len(lines[1]))
    return lines + [
        named(
            _difference_name(one),
            _COMPARED_WIDTH,
            f"{one.n_boots:>6}" + "".join(f"{cell:>{_DIFFERENCE_WIDTH}}" for cell in _difference_cells(one)),
        )
        for one in differences
    ]


def _difference_name(one: PolicyDifference) -> str:
    return f"{title(one.workload)}, {one.guests} guests: {one.policy} - {one.baseline}"


def _difference_cells(one: PolicyDifference) -> list[str]:
    return [_difference_cell(one.differences[quantity]) for quantity in COMPARED]


def _difference_cell(seen: Difference | None) -> str:
    if seen is None:
        return "-"
    half = "" if seen.half_width is None else f" ±{seen.half_width:.1f}"
    return f"{round(seen.mean, 1) + 0.0:+.1f}{half}"
