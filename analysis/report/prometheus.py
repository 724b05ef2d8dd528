"""What surveyed hosts save, for Prometheus: the text format that node_exporter's textfile collector reads.

Names, base units and the text format are those of prometheus.io/docs/practices/naming and
prometheus.io/docs/instrumenting/exposition_formats. What is not known of a host has no line.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from analysis.measure.room import own_bytes
from analysis.plan.design import MIB
from analysis.records.survey import SurveyRecord
from analysis.report.survey import Survey


@dataclass(frozen=True)
class _Metric:
    name: str
    kind: str
    help: str
    value: Callable[[Survey], float | None]


def _mib(name: str) -> Callable[[Survey], float | None]:
    """A quantity of the registry, in bytes."""

    def value(seen: Survey) -> float | None:
        total = seen.totals.get(name)
        return None if total is None else total.pages * MIB

    return value


def _half_width(seen: Survey) -> float | None:
    total = seen.totals.get("surveyed_ideal_mib")
    return None if total is None else total.half_width_pages * MIB


def _profit(seen: Survey) -> float | None:
    ksm = seen.record.observed.ksm
    return None if ksm is None else ksm.general_profit


def _running(seen: Survey) -> float | None:
    ksm = seen.record.observed.ksm
    return None if ksm is None else float(ksm.run == 1)


_METRICS = (
    _Metric(
        "ksm_saved_bytes",
        "gauge",
        "Memory that KSM's counters say is merged away on the host now.",
        _mib("surveyed_gross_mib"),
    ),
    _Metric(
        "ksm_general_profit_bytes",
        "gauge",
        "The kernel's own net figure: merged away less KSM's rmap_items; may be negative.",
        _profit,
    ),
    _Metric(
        "ksm_own_memory_bytes",
        "gauge",
        "Memory of KSM's own rmap_items for the host's machines now.",
        lambda seen: own_bytes(seen.record.observed.machines),
    ),
    _Metric("ksm_running", "gauge", "Whether ksmd scans (1) or not (0).", _running),
    _Metric(
        "ksm_ksmd_cpu_seconds_total",
        "counter",
        "CPU time of ksmd since the host's boot.",
        lambda seen: seen.record.observed.ksmd_cpu_seconds,
    ),
    _Metric(
        "ksm_survey_ideal_saving_bytes",
        "gauge",
        "Memory that a perfect KSM would save, by the survey's page census.",
        _mib("surveyed_ideal_mib"),
    ),
    _Metric(
        "ksm_survey_ideal_saving_half_width_bytes",
        "gauge",
        "Half of the 95 % interval of ksm_survey_ideal_saving_bytes; 0 where all contents were counted.",
        _half_width,
    ),
    _Metric(
        "ksm_survey_resident_bytes",
        "gauge",
        "Resident memory of the machines that KSM may merge, by the page census.",
        _mib("surveyed_resident_mib"),
    ),
    _Metric(
        "ksm_survey_machines",
        "gauge",
        "Virtual machines on the host.",
        lambda seen: len(seen.record.observed.machines),
    ),
    _Metric(
        "ksm_survey_mergeable_machines",
        "gauge",
        "Virtual machines whose memory KSM may merge.",
        lambda seen: sum(machine.is_mergeable for machine in seen.record.observed.machines),
    ),
    _Metric(
        "ksm_survey_timestamp_seconds",
        "gauge",
        "Unix time at which the host was surveyed.",
        lambda seen: datetime.fromisoformat(seen.record.recorded_at).timestamp(),
    ),
)


def exposition(records: Sequence[SurveyRecord]) -> str:
    """The newest survey of each host in the text format, version 0.0.4."""
    newest = {one.hypervisor: one for one in sorted(records, key=lambda one: one.recorded_at)}
    hosts = [Survey(newest[name]) for name in sorted(newest)]
    lines = []
    for metric in _METRICS:
        samples = [
            f'{metric.name}{{host="{_escaped(seen.record.hypervisor)}"}} {_number(value)}'
            for seen in hosts
            if (value := metric.value(seen)) is not None
        ]
        if samples:
            lines += [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.kind}", *samples]
    return "".join(f"{line}\n" for line in lines)


def _escaped(label: str) -> str:
    return label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    """A whole number without an exponent, so that a person can read bytes, too."""
    return str(int(value)) if float(value).is_integer() else repr(float(value))
