"""What was stored with schema version 1, as version 2 has it: pure functions, applied when a file is read.

In version 1 guests were booted for each repetition and measured in the processes that booted, with one set of
knobs, which is the policy ksm. What does not look like version 1 is returned as it is: the schemas judge it.
"""

from collections.abc import Mapping
from typing import Any

VERSION = 2
# The one policy of version 1.
POLICY = "ksm"


def migrate_cell(cell: Mapping[str, Any]) -> dict[str, Any]:
    """A cell: each repetition was a boot of its own; the workload says the focus. KeyError where it is none."""
    return {
        "hypervisor": cell["hypervisor"],
        "cell_id": cell["cell_id"],
        "workload": cell["workload"],
        "policy": POLICY,
        "guests": cell["guests"],
        "guest_memory_bytes": cell["guest_memory_bytes"],
        "boot": cell["repetition"],
        "repetition": 1,
    }


def migrate_record(record: Any) -> Any:
    """A record of one phase of a cell (off, merge, on, verify, failed)."""
    if not _is_first(record) or not _has_mappings(record, "cell", "requested", "provenance"):
        return record
    try:
        cell = migrate_cell(record["cell"])
        start = _start(record["cell"]["order"])
    except KeyError:
        return record
    return {
        **record,
        "schema_version": VERSION,
        "cell": cell,
        "requested": {**record["requested"], "policy": POLICY, "service": ""},
        "provenance": {**record["provenance"], "start": start},
    }


def migrate_census(record: Any) -> Any:
    """A census, of a cell or of guests outside an experiment."""
    if not _is_first(record):
        return record
    try:
        cell = record["cell"] and migrate_cell(record["cell"])
    except (KeyError, TypeError):
        return record
    return {**record, "schema_version": VERSION, "cell": cell}


def migrate_capacity(record: Any) -> Any:
    """A step of a capacity run or a divergence: ``ksm`` becomes the policy."""
    if not _is_first(record) or not _has_mappings(record, "provenance"):
        return record
    policy = {"off": "off", "on": POLICY}.get(str(record.get("ksm")))
    if policy is None:
        return record
    rest = {name: value for name, value in record.items() if name != "ksm"}
    return {
        **rest,
        "schema_version": VERSION,
        "policy": policy,
        "provenance": {**record["provenance"], "start": _start("off-on")},
    }


def migrate_forecast(content: Any) -> Any:
    """A forecast: its digests are those of what is stored, so they are checked before."""
    if not _is_first(content) or not _has_mappings(content, "calibration"):
        return content
    calibration = content["calibration"]
    if not _has_mappings(calibration, "conditions"):
        return content
    conditions = {**calibration["conditions"], "start.from": "boot"}
    return {
        **content,
        "schema_version": VERSION,
        "policy": POLICY,
        "calibration": {**calibration, "conditions": conditions},
    }


def _is_first(content: Any) -> bool:
    return isinstance(content, Mapping) and content.get("schema_version") == 1


def _has_mappings(content: Mapping[str, Any], *names: str) -> bool:
    return all(isinstance(content.get(name), Mapping) for name in names)


def _start(arm_order: str) -> dict[str, Any]:
    return {
        "from": "boot",
        "checkpoint": None,
        "booted_at": None,
        "boot_seconds": None,
        "restore_seconds": None,
        "loaded": False,
        "arm_order": arm_order,
    }
