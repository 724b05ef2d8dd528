"""Policies side by side as text and JSON."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from analysis.measure.churn import ARRIVED, ARRIVED_LOST, CHURNED
from analysis.measure.policies import COURSE, CPU, TO_BEST, USE, Against, Line, Place
from analysis.measure.pooling import LeftOut
from analysis.measure.probes import OPERATION_CPU, P99
from analysis.measure.statistics import LEAST_BOOTS
from analysis.measure.steady import CPU_SETTLED, OF_BEST, STEADY
from analysis.plan.workloads import title
from analysis.records.loading import Run
from analysis.report.performance import has_performance, performance_grid, performance_remarks
from analysis.report.quantities import COMPARED_POLICIES, QUANTITIES, UNITS
from analysis.report.summary import described, left_out_words, measured_on, replicates
from analysis.report.tables import Grid, Part, heading, notes, table

# What a policy is compared with the best one by
_AGAINST = (USE, TO_BEST, CPU, CPU_SETTLED)


def policy_parts(
    places: Sequence[Place], runs: Sequence[Run], left_out: Sequence[LeftOut], problems: Sequence[str]
) -> list[Part]:
    """The tables of each place, and what must be known beside them."""
    return ["\n".join(measured_on(runs, boots=True)), *side_parts(places, left_out, problems)]


def side_parts(
    places: Sequence[Place], left_out: Sequence[LeftOut] = (), problems: Sequence[str] = ()
) -> list[Part]:
    """The same without what it was measured on."""
    parts: list[Part] = []
    for place in places:
        if place.lines:
            parts += [heading(place_name(place)), _grid(place)]
        if place.steadiest is not None:
            parts.append(_steady_grid(place))
        if has_performance(place):
            parts.append(performance_grid(place))
        if _churned(place):
            parts.append(_churn_grid(place))
        if len(place.lines) > 1 and place.least is not None:
            parts.append(_against_grid(place, place.line(place.least)))
    return [*parts, notes([*warnings(places, left_out, problems), *_legend(places)])]


def place_name(place: Place) -> str:
    """Where policies stand side by side: host, guests and what these do."""
    size = place.guest_memory_bytes >> 20
    return f"{place.hypervisor}: {place.guests} guests of {size} MB, {title(place.workload)}"


def warnings(places: Sequence[Place], left_out: Sequence[LeftOut], problems: Sequence[str]) -> list[str]:
    """What is left out or in doubt, and why."""
    lines = [f"! {problem}" for problem in problems]
    for place in places:
        lines += [f"! {place_name(place)}: {problem}" for problem in place.left_out]
        unsettled = [f"{one.policy} ({one.unsettled} of {one.cells})" for one in place.lines if one.unsettled]
        if unsettled:
            lines.append(
                f"! {place_name(place)}: had not settled when their time was over, so that they may still "
                f"have been saving: {', '.join(unsettled)}."
            )
    few = sorted({one.policy for place in places for one in place.lines if len(one.boots) < LEAST_BOOTS})
    if few:
        lines.append(
            f"Fewer than {LEAST_BOOTS} boots: {', '.join(few)}. Nothing follows from their intervals."
        )
    return lines + left_out_words(left_out)


def _legend(places: Sequence[Place]) -> Iterator[str]:
    for place in places:
        shortest, longest = min(place.followed_seconds, default=0), max(place.followed_seconds, default=0)
        if longest - shortest > 1:
            yield (
                f"{place_name(place)}: cells were followed for {shortest:.0f} to {longest:.0f} s; what is "
                f"said of that time is of the first {shortest:.0f} s of each."
            )
        if place.most is not None:
            yield (
                f"{place_name(place)}: the best is {place.most}, whose gross saving is greatest; lost "
                f"on the way: over {place.horizon_seconds:.0f} s."
            )
        yield from (f"{place_name(place)}: {remark}" for remark in performance_remarks(place))
    yield "Pareto: no other policy uses less memory for as little CPU of ksmd until settled, by the means."
    yield f"{UNITS} `python -m analysis quantities` says what every column is and where it comes from."


def _grid(place: Place) -> Grid:
    quantities = [QUANTITIES[name] for name in COMPARED_POLICIES]
    front = place.front(CPU)
    rows = [
        (
            line.policy,
            replicates(line.boots),
            *(_shown(place, line, one.name) for one in quantities),
            "yes" if line.policy in front else "",
        )
        for line in place.lines
    ]
    heads = ("policy", "boots", *(one.head for one in quantities), "Pareto")
    return table(
        heads,
        rows,
        title="Each policy from the same checkpoints, mean of the boots ± half of the 95 % interval",
    )


def _steady_grid(place: Place) -> Grid:
    quantities = [QUANTITIES[name] for name in (*STEADY, *OF_BEST.values())]
    rows = [
        (line.policy, replicates(line.boots), *(one.estimate(line.estimates[one.name]) for one in quantities))
        for line in place.lines
    ]
    heads = ("policy", "boots", *(one.head for one in quantities))
    title = (
        f"The first {place.followed_seconds[0]:.0f} s after the record under the policy; the best, by its "
        f"mean: {place.steadiest}"
    )
    return table(heads, rows, title=title)


def _churned(place: Place) -> bool:
    """Whether guests of the place left, came back and diverged."""
    return any(line.estimates[name] is not None for line in place.lines for name in CHURNED)


def _churn_grid(place: Place) -> Grid:
    quantities = [QUANTITIES[name] for name in CHURNED]
    rows = [
        (line.policy, replicates(line.boots), *(_churn_shown(line, one.name) for one in quantities))
        for line in place.lines
    ]
    heads = ("policy", "boots", *(one.head for one in quantities))
    return table(heads, rows, title="When half of the guests left, when they came back, when one diverged")


def _churn_shown(line: Line, name: str) -> str:
    """An estimate; of a saving that was not there in time in words."""
    late = name == ARRIVED and line.estimates[name] is None and line.estimates[ARRIVED_LOST] is not None
    return "not in each boot" if late else QUANTITIES[name].estimate(line.estimates[name])


def _shown(place: Place, line: Line, name: str) -> str:
    """An estimate; of a time that came in no or not in every cell, in how many it did not."""
    if name != TO_BEST or not line.unreached:
        return QUANTITIES[name].estimate(line.estimates[name])
    never = f"> {place.horizon_seconds:.0f}"
    return never if line.unreached == line.cells else f"{never} in {line.unreached} of {line.cells}"


def _against_grid(place: Place, least: Line) -> Grid:
    rows, compared = [], _compared(place)
    for line in place.lines:
        if line is least:
            continue
        found = {name: line.less(least, name) for name in compared}
        use = found[USE]
        rows.append(
            (
                f"{line.policy} - {least.policy}",
                str(use.n_boots) if use else "-",
                *(_signed(name, seen) for name, seen in found.items()),
                _told_apart(use),
            )
        )
    heads = ("policies", "boots", *(QUANTITIES[name].head for name in compared), "which is")
    return table(
        heads, rows, title=f"Against {least.policy}, under which the guests use least, paired by boot"
    )


def _compared(place: Place) -> tuple[str, ...]:
    """What policies are compared with the best one by: performance, too, where it was measured."""
    return (*_AGAINST, P99, OPERATION_CPU) if has_performance(place) else _AGAINST


def _signed(name: str, seen: Against | None) -> str:
    return QUANTITIES[name].estimate(None if seen is None else seen.difference, sign=True)


def _told_apart(seen: Against | None) -> str:
    """What the paired difference of the memory used says, in words."""
    if seen is None or seen.n_boots < LEAST_BOOTS:
        return "too few boots"
    if not seen.apart:
        return "not told apart"
    return "more" if seen.difference.mean > 0 else "less"


def policy_json(
    places: Sequence[Place], runs: Sequence[Run], left_out: Sequence[LeftOut], problems: Sequence[str]
) -> str:
    """The places as JSON: run_ids, quantities, places and notes.

    Of a place ``control``: of what is lost in performance, what cells under off show. Of each policy its
    boots, unsettled and unreached cells, settings, estimates by quantity, ``against``: paired differences
    from the policy ``least``, and whether it is on the Pareto front. ``steadiest``: the best of the series
    after the on records, by its mean; ``followed_seconds``: of the shortest of them, which is as far as they
    are compared, and the longest.
    """
    content = {
        "schema_version": 1,
        "run_ids": [run.plan.run_id for run in runs],
        "quantities": described(COURSE),
        "places": [place_json(place) for place in places],
        "notes": [*warnings(places, left_out, problems), UNITS],
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def place_json(place: Place) -> dict[str, Any]:
    """One place as JSON, see :func:`policy_json`."""
    kept = (
        "hypervisor",
        "workload",
        "guests",
        "guest_memory_bytes",
        "horizon_seconds",
        "most",
        "steadiest",
        "followed_seconds",
        "least",
    )
    least = None if place.least is None else place.line(place.least)
    return {
        **{name: getattr(place, name) for name in kept},
        "policies": [
            {
                **{n: getattr(line, n) for n in ("policy", "boots", "unsettled", "unreached", "settings")},
                "estimates": {name: seen and asdict(seen) for name, seen in line.estimates.items()},
                "against": {
                    name: None if seen is None else {**asdict(seen), "apart": seen.apart}
                    for name in _compared(place)
                    if least is not None
                    for seen in [line.less(least, name)]
                },
                "pareto": line.policy in place.front(CPU),
            }
            for line in place.lines
        ],
        "control": {name: seen and asdict(seen) for name, seen in place.control.items()},
        "left_out": list(place.left_out),
    }
