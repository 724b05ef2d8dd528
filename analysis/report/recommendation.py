"""A recommended policy as text and JSON, as variables of an experiment, and as what sets it at each boot."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import yaml

from analysis.errors import UserError
from analysis.measure.policies import Against, Place
from analysis.model.recommending import BUDGET, LATENCY, MEMORY, TIME, Candidate, Recommendation, Regret
from analysis.plan.data_files import PROJECT
from analysis.plan.policies import KEEP, PACED, PACER
from analysis.plan.workloads import title
from analysis.report.quantities import QUANTITIES, UNITS, Quantity
from analysis.report.tables import Grid, Part, notes, table

_WANTED = {
    MEMORY: "most memory",
    BUDGET: "most memory with ksmd within {goal.cpu_percent:g} % of a CPU once settled",
    TIME: "90 % of the best saving soonest",
    LATENCY: "most memory with at most {goal.latency_percent:g} % more p99 of the guests' writes",
}
_HOST = "/sys/kernel/mm"
_PACER_PROGRAM = PROJECT / "plugins/module_utils/ksm_pacer.py"
_UNIT = """[Unit]
Description=KSM as the policy {policy} of the KSM testbed
ConditionPathExists={host}/ksm/run
Conflicts=ksmtuned.service
After=ksmtuned.service

[Service]
{service}

[Install]
WantedBy=multi-user.target
"""


@dataclass(frozen=True)
class Advice:
    """A recommendation, what it is for, and how it would have done where it did not look.

    ``places``: of the workloads in ``weights``. ``untried``: why leaving one out cannot be tried, "" where it
    was or is not asked for.
    """

    recommendation: Recommendation
    places: tuple[Place, ...]
    weights: Mapping[str, float]
    regrets: tuple[Regret, ...]
    untried: str
    run_ids: tuple[str, ...]

    @property
    def settings(self) -> Mapping[str, Any]:
        """Knobs, thp_enabled and service of the policy, as they were measured."""
        return self.places[0].line(self.recommendation.chosen.policy).settings


def advice_parts(advice: Advice) -> list[Part]:
    """The policy, its evidence beside the others', and its regret."""
    parts: list[Part] = [verdict(advice), _grid(advice.recommendation)]
    if advice.regrets:
        parts.append(_regret_grid(advice))
    return [*parts, notes(remarks(advice))]


def verdict(advice: Advice) -> str:
    """What is recommended, for what and on what evidence."""
    found = advice.recommendation
    chosen, best = found.chosen, found.best
    score, cost = QUANTITIES[found.goal.score], QUANTITIES[found.cost]
    one = advice.places[0]
    wanted = _WANTED[found.goal.kind].format(goal=found.goal)
    size = one.guest_memory_bytes >> 20
    lines = [
        f"Recommended: {chosen.policy}",
        f"For {wanted}, {one.guests} guests of {size} MB on {one.hypervisor}: {_loads(advice.weights)}.",
        f"{score.label}: {score.words(chosen.estimate)}.",
    ]
    if chosen is not best:
        lines.append(
            f"It cannot be told apart from {best.policy}, the best by its mean: "
            f"{_loss(found, chosen)} {score.unit}. It is the cheaper one: {cost.label} "
            f"{cost.estimate(chosen.cost(cost.name))} {cost.unit} in place of "
            f"{cost.estimate(best.cost(cost.name))}.{_at_most(score, chosen)}"
        )
    alike = [one.policy for one in found.candidates if one.alike and one not in (chosen, best)]
    if chosen is best and alike:
        lines.append(f"Not told apart from it, and no cheaper: {', '.join(alike)}.")
    elif alike:
        lines.append(f"Neither can be told apart: {', '.join(alike)}.")
    if chosen is best and not alike and len(found.candidates) > 1:
        lines.append("Every other policy is worse, by more than its interval.")
    return "\n".join(lines)


def _loads(weights: Mapping[str, float]) -> str:
    """The workloads, with their guests where they are not alike."""
    alike = len(set(weights.values())) == 1
    named = ", ".join(
        title(load) if alike else f"{weight:g} of {title(load)}" for load, weight in weights.items()
    )
    return f"{named}, as many guests of each" if alike and len(weights) > 1 else named


def _at_most(score: Quantity, chosen: Candidate) -> str:
    """The upper end of the interval of what the chosen one loses."""
    if chosen.loss is None or chosen.loss.difference.half_width is None:
        return ""
    most = chosen.loss.difference.mean + chosen.loss.difference.half_width
    return f" It may lose up to {score.number(most)} {score.unit}."


def remarks(advice: Advice) -> list[str]:
    """What is left out, and what the numbers are worth."""
    lines = [f"! {text}." for text in advice.recommendation.excluded]
    lines += [f"! {advice.untried}"] if advice.untried else []
    unsettled = {line.policy for place in advice.places for line in place.lines if line.unsettled} & {
        one.policy for one in advice.recommendation.candidates
    }
    if unsettled:
        lines.append(
            f"! {', '.join(sorted(unsettled))}: some cells had not settled when their time was over, and "
            "count as they were then."
        )
    if len(advice.weights) > 1:
        lines.append(
            "Several workloads are weighted by their guests; what guests of different workloads share is in "
            "a measured mix alone (-e mix=...)."
        )
    if 1 < len(advice.weights) < 3:
        lines.append("With three workloads or more each is left out once, to see what the choice is worth.")
    return [*lines, "Less: paired by boot, ± half of the 95 % interval over boots.", UNITS]


def _grid(found: Recommendation) -> Grid:
    score = QUANTITIES[found.goal.score]
    cost = QUANTITIES[found.cost]
    rows = [
        (
            one.policy,
            str(one.estimate.n_boots),
            score.estimate(one.estimate),
            "best" if one.loss is None else _loss(found, one),
            "" if one.loss is None else "not told apart" if one.alike else "worse",
            cost.estimate(one.cost(cost.name)),
        )
        for one in found.candidates
    ]
    heads = ("policy", "boots", score.head, f"than the best\n{score.unit}", "which is", cost.head)
    return table(heads, rows, title="The policies, best first")


def _regret_grid(advice: Advice) -> Grid:
    score = QUANTITIES[advice.recommendation.goal.score]
    rows = [
        (
            title(one.workload),
            one.policy,
            one.best,
            "0" if one.loss is None else _signed(score.name, one.loss),
        )
        for one in advice.regrets
    ]
    heads = ("left out", "recommended by the others", "best there", f"than the best there\n{score.unit}")
    return table(heads, rows, names=3, title="Each workload left out of the choice once")


def _loss(found: Recommendation, one: Candidate) -> str:
    return "0" if one.loss is None else _signed(found.goal.score, one.loss)


def _signed(name: str, seen: Against) -> str:
    return QUANTITIES[name].estimate(seen.difference, sign=True)


def advice_json(advice: Advice) -> str:
    """The recommendation as JSON: goal, policy, settings, candidates, excluded, regrets and notes."""
    found = advice.recommendation
    content = {
        "schema_version": 1,
        "run_ids": list(advice.run_ids),
        "goal": asdict(found.goal),
        "workloads": dict(advice.weights),
        "policy": found.chosen.policy,
        "best": found.best.policy,
        "score": found.goal.score,
        "cost": found.cost,
        "settings": dict(advice.settings),
        "candidates": [
            {
                "policy": one.policy,
                "estimate": asdict(one.estimate),
                "loss": one.loss and asdict(one.loss),
                "alike": one.alike,
                "cost": (seen := one.cost(found.cost)) and asdict(seen),
            }
            for one in found.candidates
        ],
        "excluded": list(found.excluded),
        "regrets": [asdict(one) for one in advice.regrets],
        "notes": remarks(advice),
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def variables_text(advice: Advice) -> str:
    """The policy as variables of an experiment, to be given as -e @FILE.

    A service sets knobs by itself: they are then left to it.
    """
    name, settings = advice.recommendation.chosen.policy, advice.settings
    laid = "+" in name
    content = {
        "policies": name,
        **({} if laid or settings["service"] else {"ksm_knobs": dict(settings["knobs"])}),
        "thp_enabled": settings["thp_enabled"],
    }
    return _comment(advice) + "---\n" + yaml.safe_dump(content, sort_keys=False)


def tmpfiles_text(advice: Advice) -> str:
    """The policy as lines of tmpfiles.d(5), which are written in their order at boot.

    Raises UserError where it runs a service, which sets the knobs itself.
    """
    if advice.settings["service"] == PACER:
        raise UserError(
            f"{PACER} is a daemon that sets KSM's knobs itself: in place of --tmpfiles use --systemd."
        )
    _refuse_service(advice, "--tmpfiles")
    lines = [f"w {path} - - - - {value}" for path, value in _at_boot(advice.settings)]
    return _comment(advice) + "\n".join(lines) + "\n"


def unit_files(advice: Advice) -> dict[str, str]:
    """The policy as a systemd unit, with the testbed's daemon where it is that: name of each file -> text.

    Raises UserError where it runs a service of a package, which has its unit.
    """
    settings = dict(advice.settings)
    paced = settings["service"] == PACER
    if paced:
        settings["knobs"] = {
            name: value for name, value in settings["knobs"].items() if name not in (*PACED, "run")
        }
    else:
        _refuse_service(advice, "--systemd")
    writes = [
        # What the kernel lacks, or refuses while pages are merged, is left as it is.
        f"{'ExecStartPre' if paced else 'ExecStart'}=-/bin/sh -c 'echo {value} > {path}'"
        for path, value in _at_boot(settings)
        if not (paced and path.endswith("/run"))
    ]
    runs = [f"ExecStart=/usr/bin/python3 -B /usr/local/sbin/{PACER} --start"]
    lines = [*writes, *runs, "PrivateNetwork=yes", "ProtectHome=yes"] if paced else ["Type=oneshot", *writes]
    policy = advice.recommendation.chosen.policy
    unit = _comment(advice) + _UNIT.format(policy=policy, host=_HOST, service="\n".join(lines))
    if paced:
        return {f"{PACER}.service": unit, PACER: _PACER_PROGRAM.read_text(encoding="utf-8")}
    return {"ksm-policy.service": unit}


def _refuse_service(advice: Advice, option: str) -> None:
    service = advice.settings["service"]
    if service:
        raise UserError(
            f"{advice.recommendation.chosen.policy} runs the service {service}, which sets KSM's knobs "
            f"itself: in place of {option} use `systemctl enable --now {service}`."
        )


def _at_boot(settings: Mapping[str, Any]) -> list[tuple[str, str | int]]:
    """Files and what is written to them, in an order that the kernel takes; KSM starts at the end."""
    # pages_to_scan answers EINVAL while the advisor is on, which resets it when it goes off (mm/ksm.c).
    knobs = dict(settings["knobs"])
    advisor = {knob: knobs.pop(knob) for knob in ("advisor_mode",) if knob in knobs}
    ordered = {**knobs, **advisor} if advisor.get("advisor_mode") != "none" else {**advisor, **knobs}
    thp = settings["thp_enabled"]
    first: list[tuple[str, str | int]] = (
        [(f"{_HOST}/transparent_hugepage/enabled", thp)] if thp != KEEP else []
    )
    return [*first, *((f"{_HOST}/ksm/{knob}", value) for knob, value in {**ordered, "run": 1}.items())]


def _comment(advice: Advice) -> str:
    """Where a file comes from."""
    one = advice.places[0]
    said = [
        f"The KSM policy {advice.recommendation.chosen.policy}, by `python -m analysis recommend`",
        f"from the runs {', '.join(advice.run_ids)} on {one.hypervisor}",
        *verdict(advice).splitlines()[1:],
    ]
    return "".join(f"# {line}\n" for line in said)


def check_workloads(places: Sequence[Place], weights: Mapping[str, float]) -> None:
    """Raise UserError where a workload that is asked for was not measured."""
    known = sorted({place.workload for place in places})
    missing = [load for load in weights if load not in known]
    if missing:
        raise UserError(
            f"--workloads has {', '.join(missing)}: measured from checkpoints were {', '.join(known)}."
        )
