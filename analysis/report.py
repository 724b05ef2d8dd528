"""What was measured, as text, JSON, CSV and one self-contained HTML page."""

import json
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import jinja2
import pandas as pd

from analysis.cell_census import ROWS, CensusMeans, censuses
from analysis.design import MIB
from analysis.mix import MIX, label
from analysis.records import COMPLETE, CellRecords, Run
from analysis.statistics import PAPER_MIB_PER_VM, Estimate, FocusSummary

TEMPLATES = Path(__file__).resolve().parent / "templates"
WIDTH = 110
_LABEL_WIDTH, _N_WIDTH = 17, 8

_FOOTNOTE = (
    "n: repetitions in the mean / planned. MB means MiB (2^20 bytes), the paper's MB included. Host used: "
    "MemTotal - MemAvailable of the whole host. Saved by MemAvail: rise of MemAvailable from KSM off to on, "
    "as in the paper; gross: (pages_sharing + ksm_zero_pages) x page size; profit: general_profit, the gross "
    "less KSM's own memory; PSS: fall of the guests' proportional set sizes. differ: ours by MemAvail less "
    "the paper's."
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
    Column("host used, MiB", "KSM off", 9, 0, "host_used_off_mib"),
    Column("host used, MiB", "KSM on", 9, 0, "host_used_on_mib"),
    Column("saved, MB/VM, by", "MemAvail", 10, 1, "saved_mem_available_mib_per_vm"),
    Column("saved, MB/VM, by", "gross", 8, 1, "saved_gross_mib_per_vm"),
    Column("saved, MB/VM, by", "profit", 8, 1, "saved_general_profit_mib_per_vm"),
    Column("saved, MB/VM, by", "PSS", 8, 1, "saved_pss_mib_per_vm"),
    Column("paper, MB/VM", "figure", 8, 1, "paper"),
    Column("paper, MB/VM", "differ", 8, 1, "difference"),
    Column("settled", "after s", 9, 1, "converged_after_seconds"),
    Column("ksmd", "CPU s", 7, 1, "ksmd_cpu_seconds"),
)


def summary_text(summaries: Sequence[FocusSummary], runs: Sequence[Run], others: Sequence[str] = ()) -> str:
    """The summary as aligned text of at most 110 columns.

    Args:
        summaries: as from :func:`analysis.statistics.summarise`.
        runs: the runs that they cover.
        others: ids of the runs left out.
    """
    parts = [heading(runs)]
    for where, mine in by_place(summaries):
        parts.append("\n".join([where, *_table_lines(mine)]))
    parts.append("\n".join(wrap(line) for line in notes(summaries, others)))
    return "\n\n".join(parts) + "\n"


def heading(runs: Sequence[Run]) -> str:
    """What was measured on what, in some lines."""
    lines = []
    for run in runs:
        measured = next((cell for cell in run.cells if cell.status == COMPLETE), None)
        lines.append(f"Run {run.plan.run_id}, started {run.plan.created_at}")
        if measured is None:
            continue
        found = measured.provenance
        lines.append(
            wrap(
                f"{found['os_release']}, kernel {found['kernel_release']}, QEMU "
                f"{found['qemu_version'] or 'of unknown version'} ({found['accelerator']}), "
                f"{found['cpu_count']} x {found['cpu_model'] or found['architecture']}, "
                f"{found['memory_total_bytes'] / (MIB << 10):.1f} GiB; huge pages {found['thp']['enabled']}; "
                "KSM " + ", ".join(f"{name} {value}" for name, value in asked_knobs(measured).items())
            )
        )
    return "\n".join(lines)


def asked_knobs(records: CellRecords) -> dict[str, int | str]:
    """The knobs that were asked for, with the values read back; absent where the kernel has none."""
    read_back = records.provenance["ksm_knobs"]
    return {name: read_back.get(name, "absent") for name in records.records["on"]["requested"]["ksm_knobs"]}


def notes(summaries: Sequence[FocusSummary], others: Sequence[str] = ()) -> list[str]:
    """What the reader of the table must know: cells left out and why, pooling refused, units."""
    lines = []
    for summary in summaries:
        name = label(summary.focus, summary.workload)
        if summary.not_pooled:
            lines.append(
                f"! {name}: its {summary.measured} repetitions are not pooled, for they were measured under "
                f"different conditions: {'; '.join(summary.not_pooled)}. Each by MemAvailable: "
                + ", ".join(
                    f"{repetition.run_id} repetition {repetition.repetition} "
                    f"{repetition.saved_mem_available_mib_per_vm:.1f} MB/VM"
                    for repetition in summary.repetitions
                    if repetition.status == COMPLETE
                )
                + "."
            )
        several = len({repetition.run_id for repetition in summary.repetitions}) > 1
        for repetition in summary.repetitions:
            run = f"run {repetition.run_id}, " if several else ""
            if repetition.status != COMPLETE:
                seen = repetition.saved_mem_available_mib_per_vm
                value = "" if seen is None else f" ({seen:.1f} MB/VM by MemAvailable when it ended)"
                lines.append(
                    f"! {name}, {run}repetition {repetition.repetition}: {repetition.status}, left out of "
                    f"the mean: {repetition.problem.rstrip('.')}{value}."
                )
    if any(summary.measured == 1 for summary in summaries):
        lines.append(
            "One repetition: no interval. More: `python -m analysis run --focus all --repetitions 4`."
        )
    if any(summary.measured > 1 and not summary.not_pooled for summary in summaries):
        lines.append(
            "±: half of the 95 % t interval, by repetition; CoV: standard deviation over mean, by repetition."
        )
    lines.append(_FOOTNOTE)
    if others:
        lines.append(f"Other runs: {', '.join(others)} (choose with --run RUN_ID or --all).")
    return lines


def summary_json(summaries: Sequence[FocusSummary], runs: Sequence[Run], others: Sequence[str]) -> str:
    """The summary as JSON: run_ids, other_run_ids, summaries and notes.

    A summary is a FocusSummary, with ``census``: CensusMeans, or null where none was taken.
    """
    counted, problems = censuses(summaries, runs)
    content = {
        "schema_version": 1,
        "run_ids": [run.plan.run_id for run in runs],
        "other_run_ids": list(others),
        "unit": "MB is MiB, 2^20 bytes",
        "summaries": [
            {**asdict(summary), "census": None if census is None else asdict(census)}
            for summary, census in zip(summaries, counted, strict=True)
        ],
        "notes": [*notes(summaries), *(f"! {problem}" for problem in problems)],
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def summary_csv(table: pd.DataFrame) -> str:
    """The tidy table, one line for each planned cell; what was not measured is empty."""
    return table.to_csv(index=False)


def html_page(
    summaries: Sequence[FocusSummary],
    runs: Sequence[Run],
    remarks: Sequence[str],
    figures: Iterable[tuple[str, str]],
) -> str:
    """One page that needs nothing else.

    Args:
        summaries: as from :func:`analysis.statistics.summarise`.
        runs: the runs that they cover.
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
            "rows": [{"label": _label(s), "lines": table_rows(s)} for s in mine],
            "censuses": [
                {"label": _label(summary), "cells": _census_cells(census), "words": census.words()}
                for summary, census in zip(mine, censuses(mine, runs)[0], strict=True)
                if census is not None
            ],
        }
        for where, mine in by_place(summaries)
    ]
    return environment.get_template("report.html.j2").render(
        heading=heading(runs).splitlines(),
        columns=COLUMNS,
        places=places,
        census_columns=["n", *(name for name, _part in ROWS)],
        notes=remarks,
        figures=[{"caption": caption, "svg": svg[svg.index("<svg") :]} for caption, svg in figures],
    )


def _census_cells(census: CensusMeans) -> list[str]:
    values = [getattr(census, part) for _name, part in ROWS]
    shown = ["-" if value is None else f"{round(value, 1) + 0.0:.1f}" for value in values]
    return [f"{census.counted}/{census.cells}", *shown]


def by_place(summaries: Sequence[FocusSummary]) -> list[tuple[str, list[FocusSummary]]]:
    """Summaries that belong in one table, with what they share: a host, and its guests' number and size."""
    places: dict[str, list[FocusSummary]] = {}
    for summary in summaries:
        size = summary.guest_memory_bytes >> 20
        places.setdefault(f"{summary.hypervisor}: {summary.guests} guests of {size} MB", []).append(summary)
    return list(places.items())


def table_rows(summary: FocusSummary) -> list[list[str]]:
    """Cells of one focus, n first: means; below them the half intervals and the CoV where there are any."""
    shown = {**summary.estimates, **_against_paper(summary)}
    means = [f"{summary.measured}/{summary.planned}"]
    half_widths, covs = ["± 95 %"], ["CoV"]
    for column in COLUMNS:
        value = shown[column.quantity]
        sign = "+" if column.quantity == "difference" else ""
        means.append("-" if value is None else f"{value.mean:{sign}.{column.decimals}f}")
        half = None if value is None else value.half_width
        half_widths.append("" if half is None else f"±{half:.{column.decimals}f}")
        covs.append("" if value is None or value.cov is None else f"{100 * value.cov:.1f} %")
    return [means, half_widths, covs] if any(half_widths[1:]) else [means]


def wrap(line: str, indent: str = "  ") -> str:
    """Text broken at 110 columns, continued with an indent."""
    return textwrap.fill(
        line, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def named(name: str, width: int, cells: str) -> str:
    """A line of a table; a name that is too long for its column, such as a mix's, has a line of its own."""
    return f"{name:<{width}}{cells}" if len(name) < width else f"{name}\n{'':<{width}}{cells}"


def _against_paper(summary: FocusSummary) -> dict[str, Estimate | None]:
    ours = summary.estimates["saved_mem_available_mib_per_vm"]
    difference = None
    if ours is not None and summary.paper is not None:
        difference = Estimate(ours.n, summary.paper.difference, summary.paper.half_width, None)
    paper = PAPER_MIB_PER_VM.get(summary.focus)
    return {"paper": None if paper is None else Estimate(1, paper, None, None), "difference": difference}


def _label(summary: FocusSummary) -> str:
    if summary.focus == MIX:
        return label(summary.focus, summary.workload)
    return f"{summary.focus} {summary.workload.replace('_', ' ')}"


def _table_lines(summaries: Sequence[FocusSummary]) -> list[str]:
    groups = {column.group: 0 for column in COLUMNS}
    for column in COLUMNS:
        groups[column.group] += column.width
    top = " " * (_LABEL_WIDTH + _N_WIDTH) + "".join(f"{group:>{width}}" for group, width in groups.items())
    under = _line("focus", ["n", *(column.head for column in COLUMNS)])
    lines = [top, under, "-" * len(under)]
    for summary in summaries:
        name = _label(summary)
        for cells in table_rows(summary):
            lines.append(_line(name, cells))
            name = ""
    return lines


def _line(name: str, cells: Sequence[str]) -> str:
    widths = [_N_WIDTH, *(column.width for column in COLUMNS)]
    cells_text = "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
    return named(name, _LABEL_WIDTH, cells_text).rstrip()
