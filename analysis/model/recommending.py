"""Which policy for a goal: by what was measured from the same checkpoints, and how far from the best it is.

Scores of several workloads are weighted by their guests; what guests of different workloads share is not in
them, unless that very mix was measured. Boots are the replicates, and policies are compared within each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf

from analysis.errors import UserError
from analysis.measure.policies import CPU, TO_BEST, USE, Against, Line, Place, against
from analysis.measure.probes import P99
from analysis.measure.statistics import LEAST_BOOTS, Estimate, estimate
from analysis.measure.steady import CPU_SETTLED

MEMORY, BUDGET, TIME, LATENCY = "memory", "cpu", "time", "latency"
# What each goal makes least
SCORES = {MEMORY: USE, BUDGET: USE, TIME: TO_BEST, LATENCY: USE}
LEAST_WORKLOADS = 3


class RecommendationError(UserError):
    """What the records cannot carry, or a goal that cannot be had."""


@dataclass(frozen=True)
class Goal:
    """What is wanted.

    ``cpu_percent``: for BUDGET alone, the most of one CPU for ksmd once settled. ``latency_percent``: for
    LATENCY alone, by how much the p99 of the guests' write latency may rise.
    """

    kind: str
    cpu_percent: float | None = None
    latency_percent: float | None = None

    @property
    def score(self) -> str:
        """The quantity that is to be least."""
        return SCORES[self.kind]


@dataclass(frozen=True)
class Candidate:
    """A policy that was measured in every workload and can meet the goal.

    ``scores``: by boot, weighted over the workloads. ``loss``: paired by boot, less the best's; None for the
    best itself. ``costs``: quantity of ksmd's CPU -> by boot, likewise weighted.
    """

    policy: str
    scores: Mapping[str, float]
    estimate: Estimate
    loss: Against | None
    costs: Mapping[str, Mapping[str, float]]

    @property
    def alike(self) -> bool:
        """Whether it is the best, or is not shown to be worse."""
        return self.loss is None or not self.loss.apart or self.loss.difference.mean < 0

    def cost(self, name: str) -> Estimate | None:
        """ksmd's CPU, None where it is not known."""
        return estimate([[value] for value in self.costs[name].values()])


@dataclass(frozen=True)
class Recommendation:
    """The policy for a goal.

    ``candidates``: the best by its mean first. ``chosen``: of those that cannot be told apart from the best
    the one with the least ``cost``, a quantity of ksmd's CPU. ``excluded``: why each other policy is none.
    """

    goal: Goal
    candidates: tuple[Candidate, ...]
    chosen: Candidate
    cost: str
    excluded: tuple[str, ...]

    @property
    def best(self) -> Candidate:
        """The candidate with the least mean score."""
        return self.candidates[0]


@dataclass(frozen=True)
class Regret:
    """What the policy that the other workloads recommend loses in the one that was left out.

    ``loss``: its score there less that of the best one there, paired by boot; None where it is the best.
    """

    workload: str
    policy: str
    best: str
    loss: Against | None


def recommend(places: Sequence[Place], weights: Mapping[str, float], goal: Goal) -> Recommendation:
    """The policy for a goal on these workloads.

    Args:
        places: of one host, number and size of guests.
        weights: workload -> its share of the guests, not 0; each has a place.
        goal: what is wanted.

    Raises RecommendationError, in one sentence, where the records cannot carry it.
    """
    mine = [place for place in places if place.workload in weights]
    share = {name: weight / sum(weights.values()) for name, weight in weights.items()}
    everywhere = set.intersection(*({line.policy for line in place.lines} for place in mine))
    excluded = [
        f"{policy} was not measured in every one of these workloads"
        for policy in sorted({line.policy for place in mine for line in place.lines} - everywhere)
    ]
    if len(everywhere) < 2:
        raise RecommendationError(
            f"a recommendation needs two policies that were measured in each of {', '.join(weights)}, and "
            f"the records have {', '.join(everywhere) or 'none'}: measure more with -e policies=ksm,advisor."
        )
    able = []
    for policy in sorted(everywhere):
        lines = {place.workload: place.line(policy) for place in mine}
        problem = _problem(lines, goal) or _uncontrolled(mine, goal)
        scores = _weighted(lines, share, goal.score)
        seen = estimate([[value] for value in scores.values()])
        if problem or seen is None or not seen.conclusive:
            excluded.append(f"{policy} {problem or _untold(seen, goal)}")
        else:
            costs = {name: _weighted(lines, share, name) for name in (CPU, CPU_SETTLED)}
            able.append(Candidate(policy, scores, seen, None, costs))
    if not able:
        raise RecommendationError(f"no policy can be recommended: {'; '.join(excluded)}.")
    best, *others = sorted(able, key=lambda one: one.estimate.mean)
    candidates = [best]
    for one in others:
        loss = against(one.scores, best.scores)
        if loss is None or loss.n_boots < LEAST_BOOTS:
            excluded.append(
                f"{one.policy} has fewer than {LEAST_BOOTS} boots in common with {best.policy}, the best"
            )
        else:
            candidates.append(replace(one, loss=loss))
    alike = [one for one in candidates if one.alike]
    cost = CPU_SETTLED if all(one.cost(CPU_SETTLED) for one in alike) else CPU
    return Recommendation(
        goal=goal,
        candidates=tuple(candidates),
        chosen=min(alike, key=lambda one: _mean(one.cost(cost))),
        cost=cost,
        excluded=tuple(excluded),
    )


def regrets(places: Sequence[Place], weights: Mapping[str, float], goal: Goal) -> list[Regret]:
    """For each workload: the policy that the others recommend, and what it loses in this one.

    None for fewer than LEAST_WORKLOADS. Raises RecommendationError where one of them cannot be left out.
    """
    if len(weights) < LEAST_WORKLOADS:
        return []
    found = []
    for workload in weights:
        others = {name: weight for name, weight in weights.items() if name != workload}
        policy = recommend(places, others, goal).chosen.policy
        here = recommend(places, {workload: 1.0}, goal)
        mine = next((one for one in here.candidates if one.policy == policy), None)
        if mine is None:
            raise RecommendationError(
                f"{policy}, which the other workloads recommend, cannot meet the goal in {workload}: "
                f"{'; '.join(here.excluded)}."
            )
        found.append(Regret(workload, policy, here.best.policy, mine.loss))
    return found


def _weighted(lines: Mapping[str, Line], share: Mapping[str, float], name: str) -> dict[str, float]:
    """A quantity by the physical boots that every workload has, weighted over the workloads."""
    by_load = {load: _by_physical_boot(line.values[name]) for load, line in lines.items()}
    boots = set.intersection(*(set(mine) for mine in by_load.values()))
    return {boot: sum(share[load] * mine[boot] for load, mine in by_load.items()) for boot in sorted(boots)}


def _by_physical_boot(values: Mapping[str, float]) -> dict[str, float]:
    """The same by the boot alone: loaded guests of a boot have another checkpoint than idle ones."""
    return {boot.split()[0]: value for boot, value in values.items()}


def _problem(lines: Mapping[str, Line], goal: Goal) -> str:
    """Why a policy cannot meet the goal, "" where it can."""
    never = [load for load, line in lines.items() if line.unreached]
    if goal.kind == TIME and never:
        return f"did not come to 90 % of the best saving in every cell ({', '.join(never)})"
    if goal.cpu_percent is not None:
        words = "takes", "take", "% of a CPU once settled"
        unknown = "was not followed once settled", "-e follow_seconds=120"
        return _beyond(lines, CPU_SETTLED, goal.cpu_percent, words, unknown)
    if goal.latency_percent is not None:
        words = "adds", "add", "% to the guests' p99"
        unknown = "was not probed", "-e policies=off,... -e probes=5"
        return _beyond(lines, P99, goal.latency_percent, words, unknown)
    return ""


def _beyond(
    lines: Mapping[str, Line], name: str, limit: float, words: tuple[str, str, str], unknown: tuple[str, str]
) -> str:
    """Why a quantity is not within a limit in each workload, "" where it is; its whole interval has to be.

    ``words``: what a policy surely does, may do, and of what. ``unknown``: why it is not known, and what
    measures it.
    """
    surely, maybe, unit = words
    for load, line in lines.items():
        seen = line.estimates[name]
        if seen is None:
            return f"{unknown[0]} ({load}): measure with {unknown[1]}"
        half = seen.half_width or 0.0
        if seen.mean + half > limit:
            does = surely if seen.mean - half > limit else f"may {maybe}"
            return f"{does} more than {limit:g} {unit} ({seen.mean:.1f} ± {half:.1f} in {load})"
    return ""


def _uncontrolled(places: Sequence[Place], goal: Goal) -> str:
    """Why a latency says nothing of a policy: order alone changes it, which cells under off tell."""
    loads = [place.workload for place in places if not place.control]
    if goal.kind != LATENCY or not loads:
        return ""
    return f"has no cell under off beside it in each boot ({', '.join(loads)}): measure -e policies=off,..."


def _mean(seen: Estimate | None) -> float:
    """A cost to choose by: one that is not known is the greatest."""
    return inf if seen is None else seen.mean


def _untold(seen: Estimate | None, goal: Goal) -> str:
    """Why the boots of a policy tell nothing."""
    if seen is None:
        return f"has no boot that tells {goal.score} in each workload"
    return (
        f"has {seen.n_boots} boots in common to its workloads, and nothing follows from fewer than "
        f"{LEAST_BOOTS}: measure with -e boots={LEAST_BOOTS}"
    )
