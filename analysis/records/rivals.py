"""What somebody else set of KSM while guests of a capacity run settled, were probed or diverged."""

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.records.checks import self_tuned


def knob_changes(
    policy: Mapping[str, Any],
    *,
    guests: bool,
    series: Sequence[Mapping[str, Any]],
    readings: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """The first change of each knob that neither the run nor its policy made, as a record holds it.

    Args:
        policy: as a plan has it; with KSM off its knobs say nothing, so ``run`` alone is looked at.
        guests: whether any runs; ``run`` is 0 until then.
        series: results of the module measure_series, the one that began first before the others.
        readings: ``host``, ``provenance`` and ``monotonic_seconds`` of the module measure_host, one or more,
            in their order: what a series that had ended did not see.

    Returns: KnobChange, its seconds from the begin of the first series, or from the first reading.
    """
    run, service = int(policy["run"]), str(policy["service"])
    first = readings[0]
    expected = {**_knobs(first), **policy["knobs"], "run": run if guests else 0}
    began = float(series[0]["began_monotonic_seconds"] if series else first["monotonic_seconds"])
    seen = [
        {**change, "seconds": one["began_monotonic_seconds"] - began + change["seconds"]}
        for one in series
        for change in one["observed"]["knob_changes"]
        # The run itself switches KSM on.
        if (change["knob"], change["after"]) != ("run", str(run))
    ]
    for reading in readings:
        after = reading["monotonic_seconds"] - began
        seen += [
            {"seconds": after, "knob": name, "before": str(expected[name]), "after": str(value)}
            for name, value in _knobs(reading).items()
            if str(value) != str(expected.get(name, value))
        ]
    tuned = self_tuned(expected, service) - (frozenset() if service else {"run"})
    told: dict[str, dict[str, Any]] = {}
    for change in seen:
        if change["knob"] not in tuned and (run or change["knob"] == "run"):
            told.setdefault(change["knob"], {**change, "seconds": round(max(0.0, change["seconds"]), 3)})
    return list(told.values())


def _knobs(reading: Mapping[str, Any]) -> dict[str, Any]:
    return {**reading["provenance"]["ksm_knobs"], "run": reading["host"]["ksm"]["run"]}
