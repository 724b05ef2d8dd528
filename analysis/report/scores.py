"""Forecasts beside what was measured afterwards, as text and JSON."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from analysis.measure.policies import Place
from analysis.model.capacity import found_limits
from analysis.model.judging import JudgedRun
from analysis.model.performance import costs, relation, steps_table
from analysis.model.scoring import (
    AVAILABLE,
    LEAST_SAVED,
    NAIVE,
    OFF_USE,
    ON_USE,
    SAVED,
    SCORED,
    USED,
    Coverage,
    Errors,
    Group,
    Joined,
    Refused,
    groups,
    score,
)
from analysis.model.sharing import HOST
from analysis.plan.design import MIB
from analysis.report.capacity import capacity_parts
from analysis.report.performance import has_performance, performance_grid, performance_remarks
from analysis.report.policies import place_json, place_name
from analysis.report.quantities import QUANTITIES
from analysis.report.tables import Grid, Part, heading, notes, table

ERROR, SAVING_ERROR, INSIDE = (
    QUANTITIES[name] for name in ("error_percent", "saving_error_percent", "inside_percent")
)
ALL = "all"
_NAIVE_HEADS = {"constant_saving": "constant", "no_saving": "none"}


@dataclass(frozen=True)
class Scores:
    """What a report is of.

    ``forecasts``: how many were read; ``refused``: each cell that a forecast covers and that is not scored;
    ``not_read``: a sentence for each forecast that a run names and that cannot be used; ``probed``: cells in
    which guests were probed; ``left_out``: a sentence for each file or run that cannot be used.
    """

    forecasts: int
    joined: tuple[Joined, ...]
    refused: tuple[Refused, ...]
    not_read: tuple[str, ...]
    capacity: tuple[JudgedRun, ...]
    probed: tuple[Place, ...]
    left_out: tuple[str, ...]


def score_parts(scores: Scores) -> list[Part]:
    """The report as text."""
    parts: list[Part] = _joined_parts(scores) if scores.forecasts or scores.not_read else []
    for judged in scores.capacity:
        parts += capacity_parts(judged)
    for place in filter(has_performance, scores.probed):
        parts += [heading(place_name(place)), performance_grid(place)]
        parts.append(notes([*(f"! {one}" for one in place.left_out), *performance_remarks(place)]))
    if scores.left_out:
        n = len(scores.left_out)
        parts.append(heading("1 file or run is left out" if n == 1 else f"{n} files or runs are left out"))
        parts.append(notes(f"! {problem}." for problem in scores.left_out))
    return parts


def score_json(scores: Scores) -> str:
    """The report as JSON."""
    content = {
        "schema_version": 4,
        "counts": _counts(scores),
        "joined": [_joined_json(one) for one in scores.joined],
        "scores": [_group_json(group) for group in groups(scores.joined)],
        "refused": [asdict(one) for one in scores.refused],
        "not_read": list(scores.not_read),
        "left_out": list(scores.left_out),
        "capacity": [_capacity_json(judged) for judged in scores.capacity],
        "probed": [place_json(place) for place in scores.probed],
    }
    return json.dumps(content, indent=2)


def _counts(scores: Scores) -> dict[str, Any]:
    """How many cells the forecasts cover, each forecast for itself, and what became of them."""
    cells = [one for one in scores.refused if one.cell_id]
    return {
        "covered": len(scores.joined) + len(cells),
        "scored": len(scores.joined),
        "not_scored": dict(Counter(one.reason for one in cells)),
        "predicted_without_a_cell": len(scores.refused) - len(cells),
        "named_and_not_read": len(scores.not_read),
    }


def _joined_json(one: Joined) -> dict[str, Any]:
    errors = {
        used: {
            what: {
                "error": one.error(what, used),
                "inside": one.inside(what, used),
                "naive": {name: one.error(what, used, name) for name in NAIVE},
            }
            for what in SCORED
        }
        for used in one.measured
    }
    return {**asdict(one), "errors": errors}


def _group_json(group: Group) -> dict[str, Any]:
    def scored(joined: Sequence[Joined]) -> dict[str, Any]:
        return {
            used: {
                what: None if (seen := score(joined, what, used)) is None else asdict(seen) for what in SCORED
            }
            for used in group.joined[0].measured
        }

    return {
        "model": group.model,
        "policy": group.policy,
        "scope": group.scope,
        "definition": group.definition,
        "guest_memory_bytes": group.guest_memory_bytes,
        "calibration": list(group.calibration),
        "loads": [
            {"workload": workload, "guests": guests, **scored(mine)}
            for (workload, guests), mine in group.loads.items()
        ],
        "all": scored(group.joined),
    }


def _capacity_json(judged: JudgedRun) -> dict[str, object]:
    run = judged.run
    steps = steps_table(run) if run.arms else None
    both = None if steps is None else relation(steps)
    return {
        "run_id": run.run_id,
        "hypervisor": run.hypervisor,
        "workload": run.workload,
        "capacity_bytes": run.capacity_bytes,
        "steps": [] if steps is None else json.loads(steps.to_json(orient="records")),
        "relation": [] if both is None else json.loads(both.to_json(orient="records")),
        "costs": [] if both is None else [asdict(one) for one in costs(both)],
        "limits": [asdict(one) for one in found_limits(run)],
        "joins": [asdict(one) for one in judged.joins],
        "divergences": [
            {**asdict(one), "survived": one.survived, "safe_holds": one.safe_holds}
            for one in judged.divergences
        ],
        "refused": list(judged.refused),
    }


def _joined_parts(scores: Scores) -> list[Part]:
    parts: list[Part] = [heading("Forecasts against what was measured afterwards")]
    for group in groups(scores.joined):
        kind = f"{group.name}{', host memory' if group.scope == HOST else ''}"
        parts.append(heading(f"By the model {kind}"))
        parts.append(_use_grid(group))
        parts.append(_saving_grid(group))
        if AVAILABLE in group.joined[0].measured:
            parts.append(_both_grid(group))
        parts.append(notes(_summary(group)))
    remarks = []
    if scores.joined:
        remarks.append(
            "Errors are predicted less measured, relative to the measured; mean: of the absolute values. "
            "Naive answers to what is saved: "
            + "; ".join(f"{_NAIVE_HEADS[name]}: {says}" for name, says in NAIVE.items())
            + "."
        )
    return [*parts, notes([*remarks, *_count_lines(scores)])]


def _use_grid(group: Group) -> Grid:
    heads = (
        "load",
        "N",
        "cells",
        "measured\nMiB",
        "predicted\nMiB",
        "95 %",
        "inside",
        *_error_heads(ON_USE),
    )
    rows = []
    for load, n, mine in _lines(group):
        seen = score(mine, ON_USE)
        one = mine[0]
        half = one.half_width[ON_USE]
        rows.append(
            (
                load,
                n,
                str(len(mine)),
                "" if load == ALL else f"{fmean(cell.measured[USED].on for cell in mine) / MIB:.0f}",
                "" if load == ALL else f"{fmean(cell.predicted.on for cell in mine) / MIB:.0f}",
                "" if load == ALL else "none" if half is None else f"±{half / MIB:.0f}",
                _inside(seen),
                *_errors(seen, ON_USE),
            )
        )
    return table(heads, rows, title=f"Memory used, {group.policy}")


def _saving_grid(group: Group) -> Grid:
    heads = (
        "load",
        "N",
        "cells",
        "measured\nMB/VM",
        "predicted\nMB/VM",
        "95 %",
        "inside",
        *_error_heads(SAVED),
    )
    rows = []
    for load, n, mine in _lines(group):
        said = [one for one in mine if one.error(SAVED) is not None]
        seen = score(mine, SAVED)
        per_vm = ("", "", "")
        if said and load != ALL:
            half = said[0].half_width[SAVED]
            per_vm = (
                f"{fmean(one.measured[USED].saved / one.guests for one in said) / MIB:.1f}",
                f"{fmean(one.predicted.saved / one.guests for one in said) / MIB:.1f}",
                "none" if half is None else f"±{half / said[0].guests / MIB:.1f}",
            )
        rows.append((load, n, str(len(said)), *per_vm, _inside(seen), *_errors(seen, SAVED)))
    return table(heads, rows, title=f"Memory saved, KSM off less {group.policy}")


def _both_grid(group: Group) -> Grid:
    """The second definition of used: the forecast is of the first, so what the lists hold is an error."""
    heads = (
        "load",
        "N",
        "cells",
        "used\ninside",
        *(f"used {head}" if place == 0 else head for place, head in enumerate(_error_heads(ON_USE))),
        *(f"saved {head}" if place == 0 else head for place, head in enumerate(_error_heads(SAVED)[:3])),
    )
    rows = []
    for load, n, mine in _lines(group):
        use = score(mine, ON_USE, AVAILABLE)
        saved = score(mine, SAVED, AVAILABLE)
        rows.append(
            (load, n, str(len(mine)), _inside(use), *_errors(use, ON_USE), *_errors(saved, SAVED)[:3])
        )
    return table(
        heads,
        rows,
        title="The same as the paper measured (MemTotal - MemAvailable): free pages on per-CPU lists and "
        "whatever other programs held count as used",
    )


def _lines(group: Group) -> list[tuple[str, str, Sequence[Joined]]]:
    """What a table has a line for: load, N and cells of each, and all together."""
    lines: list[tuple[str, str, Sequence[Joined]]] = [
        (load, str(guests), mine) for (load, guests), mine in group.loads.items()
    ]
    return [*lines, (ALL, "", group.joined)] if len(lines) > 1 else lines


def _error_heads(what: str) -> tuple[str, ...]:
    first, *more = (_NAIVE_HEADS[name] for name in _naive_names(what))
    return ("error, %\nmean", "\nworst", f"naive, %\n{first}", *(f"\n{name}" for name in more))


def _naive_names(what: str) -> list[str]:
    # Who says that nothing is saved errs by all of it.
    return [name for name in NAIVE if what != SAVED or name != "no_saving"]


def _errors(seen: Errors | None, what: str) -> tuple[str, ...]:
    names = _naive_names(what)
    quantity = SAVING_ERROR if what == SAVED else ERROR
    if seen is None:
        return ("-",) * (2 + len(names))
    return (
        quantity.number(100 * seen.mean),
        quantity.number(100 * seen.worst, sign=True),
        *(quantity.number(100 * seen.naive[name]) for name in names),
    )


def _inside(seen: Errors | None) -> str:
    if seen is None or not seen.coverage.cells:
        return "-"
    return f"{seen.coverage.inside} of {seen.coverage.cells}"


def _summary(group: Group) -> list[str]:
    use, off, saved = (score(group.joined, what) for what in (ON_USE, OFF_USE, SAVED))
    lines = []
    if use is not None:
        lines.append(f"Used with {group.policy}: {_words(use, ERROR.decimals)}; {_coverage(use.coverage)}.")
    if saved is not None:
        lines.append(f"Saved: {_words(saved, SAVING_ERROR.decimals)}; {_coverage(saved.coverage)}.")
    if off is not None:
        lines.append(
            f"Used with KSM off ({off.cells} cells): mean error {100 * off.mean:.2f} %, worst "
            f"{100 * off.worst:+.2f} %; {_coverage(off.coverage)}."
        )
    little = [one for one in group.joined if one.error(SAVED) is None]
    if little:
        lines.append(
            f"! {len(little)} cells saved less than {100 * LEAST_SAVED:.0f} % of what was used: the error "
            "relative to the saving is not scored there."
        )
    return lines


def _words(seen: Errors, decimals: int) -> str:
    ratio = "no error of ours to compare" if seen.ratio is None else f"{seen.ratio:.1f} times ours"
    return (
        f"mean error {100 * seen.mean:.{decimals}f} %, worst {100 * seen.worst:+.{decimals}f} % in "
        f"{_cells(seen.cells)}, too high in {seen.too_high}; best naive answer: "
        f"{seen.best_naive.replace('_', ' ')}, mean error "
        f"{100 * seen.naive[seen.best_naive]:.{decimals}f} %, {ratio}"
    )


def _coverage(seen: Coverage) -> str:
    if seen.low is None or seen.high is None:
        return "no 95 % interval to be inside of"
    return (
        f"inside the 95 % interval: {seen.inside} of {seen.cells}, "
        f"{INSIDE.number(100 * seen.inside / seen.cells)} % (Wilson's 95 % interval "
        f"{INSIDE.number(100 * seen.low)} to {INSIDE.number(100 * seen.high)} %, cells taken as independent)"
    )


def _count_lines(scores: Scores) -> list[str]:
    """What became of every cell that a forecast covers."""
    counts = _counts(scores)
    lines = [
        f"The forecasts cover {_cells(counts['covered'])}, each forecast counted for itself: "
        + "; ".join(
            [
                *([f"{counts['scored']} scored"] if counts["scored"] else []),
                *(f"{n} not scored, {reason}" for reason, n in counts["not_scored"].items()),
            ]
            or ["none is measured"]
        )
        + "."
    ]
    waiting = [one for one in scores.refused if not one.cell_id]
    grouped: dict[tuple[str, str, str], list[str]] = {}
    for one in waiting:
        numbers = grouped.setdefault((one.forecast_id, one.reason, one.detail), [])
        numbers.append(f"{one.workload} at N = {one.guests}")
    for (forecast, reason, detail), loads in grouped.items():
        lines.append(f"! {forecast} predicts {', '.join(loads)}: {_because(reason, detail)}.")
    cells: dict[tuple[str, str, str, str], list[str]] = {}
    for one in scores.refused:
        if one.cell_id:
            cells.setdefault((one.forecast_id, one.run_id, one.reason, one.detail), []).append(one.cell_id)
    for (forecast, run_id, reason, detail), names in cells.items():
        lines.append(
            f"! {forecast}: run {run_id}, {', '.join(names)} not scored: {_because(reason, detail)}."
        )
    return [*lines, *(f"! {sentence}." for sentence in scores.not_read)]


def _because(reason: str, detail: str) -> str:
    return f"{reason} ({detail})" if detail else reason


def _cells(n: int) -> str:
    return "1 cell" if n == 1 else f"{n} cells"
