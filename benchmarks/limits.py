"""How the use foretold errs at each step of capacity runs beyond the guests of its calibration.

Usage: python -m benchmarks.limits DIRECTORY ...
Reads the capacity runs and forecasts below these directories, by the forecasts that the runs name: mean of
the absolute errors, the worst one, how many steps lie inside the 95 % interval, and of what is saved where
both arms of a boot had as many guests. Of a run with probes: what the QEMU of guests that had been probed
holds, and that of the others. Steps of a boot are no replicates.
"""

import sys
from pathlib import Path
from statistics import fmean

from analysis.errors import UserError
from analysis.model.capacity import used_bytes
from analysis.model.judging import judge
from analysis.plan.design import MIB
from analysis.plan.policies import OFF
from analysis.records.capacity import CapacityRun, load_capacity
from analysis.records.forecasts import load_forecasts
from analysis.records.models import LoadForecast, StepRecord

CALIBRATED = 8


def said(errors: list[float]) -> str:
    """Mean of the absolute errors and the worst one, percent."""
    worst = max(errors, key=abs)
    return f"{fmean(map(abs, errors)):.2f} % (worst {worst:+.2f}, {len(errors)} steps)"


def foretold(load: LoadForecast, step: StepRecord) -> tuple[float, float, bool] | None:
    """Foretold without KSM and in this arm, and whether the step is inside; None beyond the curve."""
    curve = load.curve
    if step.guests not in curve.guests:
        return None
    at = curve.guests.index(step.guests)
    off, on = curve.off_bytes[at], curve.on_bytes[at]
    if step.policy == OFF:
        return off, off, True
    low, high = curve.on_low_bytes[at], curve.on_high_bytes[at]
    inside = low is not None and high is not None and low <= used_bytes(step) <= high
    return off, on, inside


def show(run: CapacityRun, loads: dict[str, LoadForecast]) -> None:
    """The errors of a run by its forecast."""
    measured: dict[tuple[int, int], float] = {
        (step.boot, step.guests): used_bytes(step) for step in run.arms.get(OFF, ())
    }
    # A forecast speaks of both arms.
    known = next(iter(loads.values()), None)
    for policy in run.arms:
        load = loads.get(policy, known)
        if load is None:
            continue
        errors, saved, held = [], [], 0
        for step in run.arms.get(policy, ()):
            seen = foretold(load, step)
            if seen is None or step.guests <= CALIBRATED:
                continue
            off, mine, inside = seen
            used = used_bytes(step)
            errors.append(100 * (mine / used - 1))
            held += inside
            alone = measured.get((step.boot, step.guests))
            if policy != OFF and alone is not None:
                saved.append(100 * ((off - mine) / (alone - used) - 1))
        if errors:
            inside_words = "" if policy == OFF else f", {held} inside"
            of_saving = (
                f"; of the saving {min(saved):+.1f} to {max(saved):+.1f} % ({len(saved)})" if saved else ""
            )
            print(f"{run.run_id}, {policy}: {said(errors)}{inside_words}{of_saving}")


def show_probed(run: CapacityRun) -> None:
    """What guests hold that had been probed in an earlier step of their arm, and the others."""
    for policy, steps in run.arms.items():
        before: set[str] = set()
        for step in steps:
            held: dict[bool, list[float]] = {True: [], False: []}
            for name, guest in step.observed.guests.items():
                held[name in before].append(guest.smaps_rollup["Pss_Anon_bytes"] / MIB)
            if all(held.values()):
                means = ", ".join(f"{fmean(held[one]):.1f} MiB ({len(held[one])})" for one in (True, False))
                print(f"{run.run_id}, {policy}, {step.guests} guests: probed before, not: {means}")
            before |= {probe.guest for probe in step.observed.probes}


def main(directories: list[str]) -> None:
    """Print it for each run. Raises UserError for what cannot be read."""
    for directory in map(Path, directories):
        forecasts, _left_out = load_forecasts(directory)
        for run in load_capacity(directory)[0]:
            show(run, dict(judge(run, [one.record for one in forecasts]).loads))
            show_probed(run)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(str(error))
