"""What guests lose in performance for the memory saved: in capacity runs by guests, and in cells."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.measure.policies import Place
from analysis.measure.probes import COSTS, KSMD, probed, probed_ksmd_percent
from analysis.measure.statistics import Estimate, estimate
from analysis.model.capacity import peak_bytes, used_bytes
from analysis.plan.design import MIB
from analysis.plan.policies import OFF
from analysis.records.capacity import CapacityRun
from analysis.records.models import StepRecord


def steps_table(run: CapacityRun) -> pd.DataFrame:
    """One row a step, by policy, boot and guests.

    Columns: boot, policy, guests, used_bytes, peak_bytes; those of :func:`analysis.measure.probes.probed`;
    ``silent_guests``; ksmd_percent and psi_memory_percent of the window's time, steal_percent of all CPUs;
    cow_ksm_per_second, pgmajfault_per_second, swapped_pages; converged; stop, "" while it went on.
    """
    return pd.DataFrame([_row(step) for steps in run.arms.values() for step in steps])


def was_probed(run: CapacityRun) -> bool:
    """Whether guests of a run were probed on the way to its limits."""
    return any(step.observed.probes for steps in run.arms.values() for step in steps)


def relation(table: pd.DataFrame) -> pd.DataFrame:
    """Memory saved against performance lost: a row for each boot, policy and number of guests seen off, too.

    Columns: boot, policy, guests, saved_bytes, ksmd_percent under the policy, and those of COSTS: by how many
    percent the policy is worse than off.
    """
    # At 0 guests there is neither a saving nor a probe.
    running = table[table["guests"] > 0]
    off, on = running[running["policy"] == OFF], running[running["policy"] != OFF]
    both = on.merge(off, on=["boot", "guests"], suffixes=("_on", "_off"), validate="many_to_one")
    return pd.DataFrame(
        {
            "boot": both["boot"],
            "policy": both["policy_on"],
            "guests": both["guests"],
            "saved_bytes": both["used_bytes_off"] - both["used_bytes_on"],
            KSMD: both[f"{KSMD}_on"],
            **{
                name: sign * 100 * (both[f"{value}_on"] / both[f"{value}_off"] - 1)
                for name, (value, sign) in COSTS.items()
            },
        }
    )


@dataclass(frozen=True)
class Cost:
    """Memory saved and performance lost at one number of guests, over the boots; None: not known.

    ``ksmd_percent``: of one CPU, under the policy while the guests were probed.
    """

    policy: str
    guests: int
    saved_bytes: Estimate | None
    lost: dict[str, Estimate | None]
    ksmd_percent: Estimate | None


def costs(both: pd.DataFrame) -> list[Cost]:
    """The rows of relation() over boots, which are the replicates: the difference is taken in each boot.

    None of numbers of guests at which nothing was probed.
    """
    found = []
    for _key, rows in both.groupby(["policy", "guests"], sort=False):
        over = {
            name: estimate([[float(value)] for value in rows[name]]) for name in ("saved_bytes", KSMD, *COSTS)
        }
        first, saved, ksmd = rows.iloc[0], over.pop("saved_bytes"), over.pop(KSMD)
        if any(seen is not None for seen in over.values()):
            found.append(Cost(str(first["policy"]), int(first["guests"]), saved, over, ksmd))
    return found


def cell_costs(places: Iterable[Place]) -> dict[str, dict[str, list[Cost]]]:
    """By host and workload, what the policies of places freed and lost, at each number of guests."""
    found: dict[str, dict[str, list[Cost]]] = {}
    for place in places:
        for line in place.lines:
            freed = line.values["freed_mib_per_vm"].values()
            saved = estimate([[value * place.guests * MIB] for value in freed])
            lost = {name: line.estimates[name] for name in COSTS}
            if any(seen is not None for seen in lost.values()):
                mine = found.setdefault(place.hypervisor, {}).setdefault(place.workload, [])
                mine.append(Cost(line.policy, place.guests, saved, lost, line.estimates[KSMD]))
    return found


def _row(step: StepRecord) -> dict[str, Any]:
    observed, window = step.observed, step.observed.window
    # Without a probe the moment between two readings is too short for a rate.
    seconds = window.seconds if observed.probes else math.nan
    vmstat, psi = window.vmstat, window.psi_some_microseconds
    steal, cow = window.steal_seconds, vmstat["cow_ksm"]
    return {
        "boot": step.boot,
        "policy": step.policy,
        "guests": step.guests,
        "used_bytes": used_bytes(step),
        "peak_bytes": _number(peak_bytes(step)),
        **probed(observed.probes),
        "silent_guests": sum(probe.answer is None for probe in observed.probes),
        KSMD: probed_ksmd_percent(window if observed.probes else None),
        "psi_memory_percent": _number(None if psi is None else psi.memory / 1e4 / seconds),
        "steal_percent": _number(
            None if steal is None else 100 * steal / seconds / step.provenance.cpu_count
        ),
        "cow_ksm_per_second": _number(None if cow is None else cow / seconds),
        "pgmajfault_per_second": _number(vmstat["pgmajfault"]) / seconds,
        "swapped_pages": _number(vmstat["pswpin"]) + _number(vmstat["pswpout"]),
        "converged": observed.converged,
        "stop": "" if step.stop is None else step.stop.reason,
    }


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
