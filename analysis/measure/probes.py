"""What probes of guests say: speed by the guest's clock, and what its work cost the host's CPUs."""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median

from analysis.plan.design import MIB
from analysis.records.models import Probe, Window
from analysis.records.probes import PROBES

# Reading less than that costs a guest no more than the request does.
_LEAST_READ_BYTES = 64 * MIB

P99, OPERATION_CPU = "p99_added_percent", "operation_cpu_added_percent"
KSMD = "ksmd_percent"
# What is lost against KSM off: name, the value of probed(), and 1 where more of it is worse
COSTS = {
    "touch_lost_percent": ("touch_mib_per_second", -1),
    "cpu_lost_percent": ("cpu_iterations_per_second", -1),
    "p50_added_percent": ("write_latency_p50_us", 1),
    P99: ("write_latency_p99_us", 1),
    "read_cpu_added_percent": ("read_cpu_us_per_mib", 1),
    OPERATION_CPU: ("operation_cpu_us", 1),
}


def probed(probes: Sequence[Probe]) -> dict[str, float]:
    """Medians over the probes, NaN where none tells: what the guests answered, by its names, and of the
    host's CPUs ``read_cpu_us_per_mib`` and ``operation_cpu_us``.
    """
    answers = [probe.answer for probe in probes if probe.answer is not None]
    return {
        **{name: _median(getattr(answer, name) for answer in answers) for name in PROBES},
        "read_cpu_us_per_mib": _median(map(_read_cpu_us_per_mib, probes)),
        "operation_cpu_us": _median(map(_operation_cpu_us, probes)),
    }


def lost(off: Mapping[str, float], on: Mapping[str, float]) -> dict[str, float]:
    """By how many percent ``on`` is worse than ``off``, both of probed(), by COSTS; NaN: it is not told."""
    return {
        name: sign * 100 * (on[value] / off[value] - 1) if off[value] else math.nan
        for name, (value, sign) in COSTS.items()
    }


def probed_ksmd_percent(window: Window | None) -> float:
    """ksmd's share of one CPU while guests were probed; NaN where none was."""
    return math.nan if window is None else 100 * window.ksmd_cpu_seconds / window.seconds


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
