"""What a capacity run costs: use and performance by guests, and memory saved against performance lost."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from typing import Any

import pandas as pd

from analysis.measure.statistics import Estimate, estimate
from analysis.model.capacity import peak_bytes, used_bytes
from analysis.plan.design import MIB
from analysis.plan.policies import OFF
from analysis.records.capacity import PROBES, CapacityRun
from analysis.records.models import Probe, StepRecord

# Reading less than that costs a guest no more than the request does.
_LEAST_READ_BYTES = 64 * MIB

# What a policy is compared by with KSM off: column, the step's value, and 1 where more of it is worse
COSTS = {
    "touch_lost_percent": ("touch_mib_per_second", -1),
    "cpu_lost_percent": ("cpu_iterations_per_second", -1),
    "p50_added_percent": ("write_latency_p50_us", 1),
    "p99_added_percent": ("write_latency_p99_us", 1),
    "read_cpu_added_percent": ("read_cpu_us_per_mib", 1),
    "operation_cpu_added_percent": ("operation_cpu_us", 1),
}


def steps_table(run: CapacityRun) -> pd.DataFrame:
    """One row a step, by policy, boot and guests.

    Columns: boot, policy, guests, used_bytes, peak_bytes; medians over the probes (NaN when none answered):
    the guest's own values, read_cpu_us_per_mib and operation_cpu_us of the host's CPUs; ``silent_guests``;
    ksmd_percent and psi_memory_percent of the window's time, steal_percent of all CPUs; cow_ksm_per_second,
    pgmajfault_per_second, swapped_pages; converged; stop, "" while it went on.
    """
    return pd.DataFrame([_row(step) for steps in run.arms.values() for step in steps])


def relation(table: pd.DataFrame) -> pd.DataFrame:
    """Memory saved against performance lost: a row for each boot, policy and number of guests seen off, too.

    Columns: boot, policy, guests, saved_bytes, and those of COSTS: by how many percent the policy is worse
    than off.
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
            **{
                name: sign * 100 * (both[f"{value}_on"] / both[f"{value}_off"] - 1)
                for name, (value, sign) in COSTS.items()
            },
        }
    )


@dataclass(frozen=True)
class Cost:
    """Memory saved and performance lost at one number of guests, over the boots; None: not known."""

    policy: str
    guests: int
    saved_bytes: Estimate | None
    lost: dict[str, Estimate | None]


def costs(both: pd.DataFrame) -> list[Cost]:
    """The rows of relation() over boots, which are the replicates: the difference is taken in each boot."""
    found = []
    for _key, rows in both.groupby(["policy", "guests"], sort=False):
        over = {name: estimate([[float(value)] for value in rows[name]]) for name in ("saved_bytes", *COSTS)}
        first = rows.iloc[0]
        found.append(Cost(str(first["policy"]), int(first["guests"]), over.pop("saved_bytes"), over))
    return found


def _row(step: StepRecord) -> dict[str, Any]:
    observed, window = step.observed, step.observed.window
    seconds, vmstat, psi = window.seconds, window.vmstat, window.psi_some_microseconds
    steal, cow = window.steal_seconds, vmstat["cow_ksm"]
    answers = [probe.answer for probe in observed.probes if probe.answer is not None]
    return {
        "boot": step.boot,
        "policy": step.policy,
        "guests": step.guests,
        "used_bytes": used_bytes(step),
        "peak_bytes": _number(peak_bytes(step)),
        **{name: _median(getattr(answer, name) for answer in answers) for name in PROBES},
        "read_cpu_us_per_mib": _median(map(_read_cpu_us_per_mib, observed.probes)),
        "operation_cpu_us": _median(map(_operation_cpu_us, observed.probes)),
        "silent_guests": sum(probe.answer is None for probe in observed.probes),
        "ksmd_percent": 100 * window.ksmd_cpu_seconds / seconds,
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


def _read_cpu_us_per_mib(probe: Probe) -> float | None:
    """CPU time of the host for a MiB that a guest reads, less that of a request that does nothing.

    None of a guest that holds too little to tell.
    """
    size = probe.read_bytes or 0
    if probe.read is None or probe.request is None or size < _LEAST_READ_BYTES:
        return None
    if probe.read.run_seconds is None or probe.request.run_seconds is None:
        return None
    return 1e6 * (probe.read.run_seconds - probe.request.run_seconds) / (size / MIB)


def _operation_cpu_us(probe: Probe) -> float | None:
    """CPU time of the host for an operation of a guest's probe, the CRC-32 of 64 KiB; as above.

    The probe's writes, 16 MiB at most, are in it.
    """
    if probe.probe is None or probe.request is None or probe.answer is None:
        return None
    if probe.probe.run_seconds is None or probe.request.run_seconds is None:
        return None
    ran = probe.probe.run_seconds - probe.request.run_seconds
    operations = probe.answer.cpu_iterations_per_second * (probe.probe.seconds - probe.request.seconds)
    return 1e6 * ran / operations if operations > 0 else None


def _median(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return median(known) if known else math.nan


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
