"""What surveys foretold, beside what KSM then saved in the same guests: as text and JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from analysis.measure.foretold import Line
from analysis.measure.statistics import wilson
from analysis.report.quantities import QUANTITIES
from analysis.report.summary import described
from analysis.report.tables import Part, notes, table

TOLD, GROSS, PSS, ERROR = (
    "foretold_mib_per_vm",
    "gross_mib_per_vm",
    "pss_mib_per_vm",
    "foretold_error_percent",
)
INSIDE = QUANTITIES["inside_percent"]
# Measured beside foretold: attributes of a Line's cells
_BESIDE = ((GROSS, "counted", "gross", "gross_error_percent"), (PSS, "ideal", "pss", "pss_error_percent"))


def foretold_parts(lines: Sequence[Line], problems: Sequence[str]) -> list[Part]:
    """A table for KSM's counters and one for the fall of PSS, and what was left out."""
    if not lines:
        left_out = [f"! {problem}" for problem in problems]
        return ["No cell was surveyed before KSM was on: -e survey_sample=1 does it.", notes(left_out)]
    parts: list[Part] = []
    for name, told, saved, error in _BESIDE:
        heads = (
            "workload",
            "policy",
            "huge pages",
            "sample",
            "guests",
            "boots",
            *(QUANTITIES[one].head for one in (TOLD, name, ERROR)),
            "largest\n%",
        )
        rows = [
            (
                *_treatment(line),
                QUANTITIES[TOLD].estimate(line.of(told)),
                QUANTITIES[name].estimate(line.of(saved)),
                QUANTITIES[ERROR].estimate(line.of(error), sign=True),
                QUANTITIES[ERROR].number(
                    max((getattr(one, error) for one in line.cells), key=abs), sign=True
                ),
            )
            for line in lines
        ]
        title = f"Foretold before KSM was on, and saved then: {QUANTITIES[name].label}"
        parts.append(table(heads, rows, names=4, title=title))
    said = [
        "Mean ± half of the 95 % t interval over boots; largest: of the cells' errors.",
        *_covered(lines),
        *_moved(lines),
        *(f"! {problem}" for problem in problems),
    ]
    return [*parts, notes(said)]


def _treatment(line: Line) -> tuple[str, ...]:
    one, counts = line.treatment, line.of("gross")
    each = counts.repetitions / counts.n_boots
    return (
        one.workload,
        one.policy,
        one.thp_enabled,
        "whole" if one.sampled_one_in == 1 else f"1 in {one.sampled_one_in}",
        f"{one.guests} x {one.guest_memory_mib} MB",
        f"{counts.n_boots}x{each:g}",
    )


def _covered(lines: Sequence[Line]) -> list[str]:
    """How often what KSM's counters said was within the interval of a sample."""
    sampled = [one for line in lines if line.treatment.sampled_one_in > 1 for one in line.cells]
    hits = sum(one.counted.low_pages <= one.gross <= one.counted.high_pages for one in sampled)
    low, high = wilson(hits, len(sampled))
    if low is None or high is None:
        return []
    ends = f"{INSIDE.number(100 * low)} to {INSIDE.number(100 * high)} %"
    return [
        "Sampled surveys: what KSM's counters then said is within the sample's own 95 % interval in "
        f"{hits} of {len(sampled)} cells (Wilson's 95 % interval {ends}, cells taken as independent); what "
        "changed between the survey and then is not in that interval."
    ]


def _moved(lines: Sequence[Line]) -> list[str]:
    """How much of what was surveyed moved while it was read."""
    shares = []
    for line in lines:
        for one in line.cells:
            survey = one.records.survey
            census = survey and survey.observed.census
            if census and census.looked_pages:
                shares.append(100 * census.changed_pages / census.looked_pages)
    if not shares:
        return []
    return [f"While they were surveyed up to {max(shares):.1f} % of a cell's pages became others."]


def foretold_content(lines: Sequence[Line], problems: Sequence[str]) -> dict[str, Any]:
    """The same for JSON, cell by cell too."""
    return {
        "schema_version": 1,
        "quantities": described((TOLD, GROSS, PSS, ERROR)),
        "lines": [
            {
                **line.treatment._asdict(),
                **{
                    name: {
                        "foretold": asdict(line.of(told)),
                        "saved": asdict(line.of(saved)),
                        "error_percent": asdict(line.of(error)),
                    }
                    for name, told, saved, error in _BESIDE
                },
                "cells": [
                    {
                        "run_id": one.records.run_id,
                        "cell_id": one.records.cell.cell_id,
                        **{
                            name: {
                                "foretold": asdict(getattr(one, told)),
                                "saved": getattr(one, saved),
                                "error_percent": getattr(one, error),
                            }
                            for name, told, saved, error in _BESIDE
                        },
                    }
                    for one in line.cells
                ],
            }
            for line in lines
        ],
        "problems": list(problems),
    }
