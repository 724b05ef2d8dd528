"""Forecasts beside what was measured afterwards, as text and JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from analysis.model.capacity import actual_limit, relation, steps_table
from analysis.model.scoring import KSM_MATTERS, NAIVE, Joined, JudgedRun, Score, by_model, score
from analysis.model.sharing import HOST
from analysis.plan.design import MIB
from analysis.report.capacity import capacity_parts
from analysis.report.tables import Grid, Part, heading, notes, table


@dataclass(frozen=True)
class Scores:
    """What a report is of.

    ``forecasts``: how many were read; ``refused``: a sentence for each cell or forecast that is not joined;
    ``left_out``: one for each file or run that cannot be used.
    """

    forecasts: int
    joined: tuple[Joined, ...]
    refused: tuple[str, ...]
    capacity: tuple[JudgedRun, ...]
    left_out: tuple[str, ...]


def score_parts(scores: Scores) -> list[Part]:
    """The report as text."""
    parts: list[Part] = _joined_parts(scores) if scores.forecasts else []
    for judged in scores.capacity:
        parts += capacity_parts(judged)
    if scores.left_out:
        n = len(scores.left_out)
        parts.append(heading("1 file or run is left out" if n == 1 else f"{n} files or runs are left out"))
        parts.append(notes(f"! {problem}." for problem in scores.left_out))
    return parts


def score_json(scores: Scores) -> str:
    """The report as JSON."""
    matter = by_model([one for one in scores.joined if one.ksm_matters])
    content = {
        "schema_version": 2,
        "joined": [
            {
                **asdict(one),
                "error_off": one.error_off,
                "error_on": one.error_on,
                "naive_errors": one.naive_errors,
                "inside": one.inside,
                "ksm_matters": one.ksm_matters,
            }
            for one in scores.joined
        ],
        "score": {model: asdict(score(mine)) for model, mine in by_model(scores.joined).items()},
        "score_where_ksm_matters": {model: asdict(score(mine)) for model, mine in matter.items()},
        "refused": list(scores.refused),
        "left_out": list(scores.left_out),
        "capacity": [_capacity_json(judged) for judged in scores.capacity],
    }
    return json.dumps(content, indent=2)


def _capacity_json(judged: JudgedRun) -> dict[str, object]:
    run = judged.run
    steps = steps_table(run) if run.arms else None
    return {
        "run_id": run.run_id,
        "hypervisor": run.hypervisor,
        "workload": run.workload,
        "capacity_bytes": run.capacity_bytes,
        "steps": [] if steps is None else json.loads(steps.to_json(orient="records")),
        "relation": [] if steps is None else json.loads(relation(steps).to_json(orient="records")),
        "limits": {policy: asdict(actual_limit(arm)) for policy, arm in run.arms.items()},
        "joins": [asdict(one) for one in judged.joins],
        "divergences": [
            {**asdict(one), "survived": one.survived, "safe_holds": one.safe_holds}
            for one in judged.divergences
        ],
        "refused": list(judged.refused),
    }


def _joined_parts(scores: Scores) -> list[Part]:
    parts: list[Part] = [heading("Forecasts against what was measured afterwards: memory used")]
    for model, mine in by_model(scores.joined).items():
        parts.append(_grid(model, mine))
        matters = [one for one in mine if one.ksm_matters]
        policy = mine[0].policy
        lines = [_score("All", policy, score(mine))]
        if matters and len(matters) < len(mine):
            lines.append(_score(f"Where it saves at least {100 * KSM_MATTERS:.0f} %", policy, score(matters)))
        parts.append(notes(lines))
    remarks = []
    if scores.joined:
        remarks += [f"{name.replace('_', ' ')}: {meaning}." for name, meaning in NAIVE.items()]
        if any(one.error_off is None for one in scores.joined):
            remarks.append("KSM off -: measured after KSM was on, whose split huge pages stay split.")
    else:
        remarks.append("Nothing could be joined.")
    return [*parts, notes([*remarks, *(f"! {reason}." for reason in scores.refused)])]


def _grid(model: str, joined: Sequence[Joined]) -> Grid:
    policy = joined[0].policy
    heads = (
        "load",
        "N",
        "KSM off\nerror, %",
        f"{policy}, MiB\nmeasured",
        "\npredicted",
        "\n95 %",
        "\nerror, %",
        "naive, error %\nconstant saving",
        "\nsharing ratio",
        "\nnominal",
    )
    return table(
        heads,
        [_row(one) for one in joined],
        title=f"By the model {model}{', host memory' if joined[0].scope == HOST else ''}",
    )


def _row(one: Joined) -> tuple[str, ...]:
    naive = one.naive_errors
    return (
        one.workload,
        str(one.guests),
        _percent(one.error_off),
        f"{one.measured_on / MIB:.0f}",
        f"{one.predicted_on / MIB:.0f}",
        "none" if one.half_width_on is None else f"±{one.half_width_on / MIB:.0f}",
        _percent(one.error_on),
        *(_percent(naive[name]) for name in NAIVE),
    )


def _score(label: str, policy: str, seen: Score) -> str:
    ratio = "no error of ours to compare" if seen.ratio is None else f"{seen.ratio:.1f} times ours"
    inside = (
        f"{seen.inside} of {seen.with_interval} inside their interval"
        if seen.with_interval
        else "no interval to be inside of"
    )
    off = ""
    if seen.worst_off is not None and seen.mean_off is not None:
        off = f"KSM off worst {100 * seen.worst_off:.2f} %, mean {100 * seen.mean_off:.2f} %; "
    return (
        f"{label} ({seen.cells} cells): with {policy} worst error {100 * seen.worst:.2f} %, mean "
        f"{100 * seen.mean:.2f} %; {off}{inside}. Best naive answer: {seen.best_naive.replace('_', ' ')}, "
        f"mean error {100 * seen.naive_mean[seen.best_naive]:.2f} %, {ratio}."
    )


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:+.2f}"
