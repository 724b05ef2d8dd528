"""Machines of a survey of several hosts that would share more on another one."""

from collections.abc import Sequence
from typing import Any

from analysis.measure.placement import Move, moves
from analysis.plan.design import MIB
from analysis.records.placement import PlacementRecord
from analysis.records.survey import SurveyRecord
from analysis.report.survey import Survey
from analysis.report.tables import Part, table

_MOVES = 5


def placement_parts(record: PlacementRecord, surveys: Sequence[SurveyRecord]) -> list[Part]:
    """Which machines would share more on another host, of those hosts that are shown."""
    rows = [
        (name, move.hypervisor, move.to, *(f"{mib:.0f}" for mib in amounts))
        for name, move, amounts in _moves(record, surveys)[:_MOVES]
    ]
    if not rows:
        return ["No machine would surely share more on another of these hosts than where it is."]
    heads = ("machine", "on", "to", "shares there\nMiB", "here\nMiB", "to gain\nMiB", "±, 95 %")
    return [table(heads, rows, names=3, title="Machines that would share more on another host")]


def placement_content(record: PlacementRecord, surveys: Sequence[SurveyRecord]) -> list[dict[str, Any]]:
    """The same for JSON, all of them."""
    names = ("there_mib", "here_mib", "gain_mib", "half_width_mib")
    return [
        {
            "machine": name,
            "pid": move.pid,
            "hypervisor": move.hypervisor,
            "to": move.to,
            **dict(zip(names, amounts, strict=True)),
        }
        for name, move, amounts in _moves(record, surveys)
    ]


def _moves(
    record: PlacementRecord, surveys: Sequence[SurveyRecord]
) -> list[tuple[str, Move, tuple[float, ...]]]:
    """Name and move of machines in these surveys, and there, here, gain and half of its interval in MiB."""
    seen = {one.hypervisor: Survey(one) for one in surveys if one.run_id == record.run_id}
    found = []
    for move in moves(record):
        survey = seen.get(move.hypervisor)
        if survey is None or move.pid not in survey.names:
            continue
        unit = survey.record.provenance.page_size_bytes / MIB
        pages = (move.there_pages, move.here_pages, move.gain_pages, move.half_width_pages)
        found.append((survey.names[move.pid], move, tuple(amount * unit for amount in pages)))
    return found
