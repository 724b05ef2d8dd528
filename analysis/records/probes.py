"""Probes of guests and the window of the host beside them, from what modules answered to what is recorded."""

from collections.abc import Iterable, Mapping
from typing import Any

from analysis.records.models import ProbeAnswer

# What a guest answers
PROBES = tuple(ProbeAnswer.model_fields)
VMSTAT = ("pgfault", "pgmajfault", "cow_ksm", "pswpin", "pswpout", "oom_kill")
RESOURCES = ("cpu", "memory", "io")


def as_recorded(probes: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the module workload returned of its probes, as a record holds it."""
    return [
        {**probe, "answer": answer and {name: answer[name] for name in PROBES}}
        for probe in probes
        for answer in [probe["answer"]]
    ]


def window(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """What happened on the host from one snapshot to the other; None for what the kernel does not count."""
    hosts = before["host"], after["host"]

    def difference(*path: str) -> Any:
        ends = []
        for node in hosts:
            for name in path:
                node = None if node is None else node.get(name)  # noqa: PLW2901 -- walks down
            ends.append(node)
        return None if None in ends else max(0, ends[1] - ends[0])

    psi = {name: difference("psi", name, "some", "total_microseconds") for name in RESOURCES}
    return {
        "seconds": round(after["monotonic_seconds"] - before["monotonic_seconds"], 3),
        "ksmd_cpu_seconds": difference("ksmd_cpu_seconds"),
        "steal_seconds": difference("cpu_seconds", "steal"),
        "vmstat": {name: difference("vmstat", name) for name in VMSTAT},
        "psi_some_microseconds": None if None in psi.values() else psi,
    }
