"""What earlier versions wrote, as this version reads it: pure functions, in and out as JSON has it."""

import re
from collections.abc import Mapping
from typing import Any

VERSION = 2

_MIB = 1 << 20

# /proc/PID/smaps_rollup begins with "55d0c5a00000-7ffd0b3ff000 ---p 00000000 00:00 0 [rollup]".
_ROLLUP_HEADER = re.compile(r"[0-9a-f]+-[0-9a-f]+ ")

# What plans of version 1 lack that were made before these variables, with what was measured then
_SINCE = {"mix": "", "census": False, "guest_ssh_port_base": 22200}
# Version 1 knew these workloads and, by the name of today, this one policy.
_FILLS: dict[str, list[dict[str, Any]]] = {
    "idle": [],
    "constant_fill": [{"content": "constant", "percent": 100}],
    "random_fill": [{"content": "random", "percent": 100}],
}
_POLICY = "ksm"


def migrate_plan(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a plan.json as schema version 2 has it; one of that version as it is.

    Version 1 booted the guests of each repetition anew and restored none: its repetitions are boots. Its
    cells keep their names, which are their directories, and their order; cell_order_seed is None.
    Raises KeyError or TypeError where the content is no plan.
    """
    if content["schema_version"] != 1:
        return content
    given = {**_SINCE, **content["design"]}
    cells = [_cell(cell) for cell in content["cells"]]
    single = {part.partition("=")[0] for cell in cells for part in cell["workload"].split(",")}
    return {
        **content,
        "schema_version": VERSION,
        "cell_order_seed": None,
        "design": {
            **{name: value for name, value in given.items() if name not in ("orders", "run_id")},
            "workloads": [],
            "policies": [_POLICY],
            "guests": [given["guests"]],
            "boots": given["repetitions"],
            "repetitions": 1,
            "checkpoint": "fresh",
            "cell_order_seed": "",
        },
        "policies": {_POLICY: _policy(given)},
        "workloads": {
            name: {"name": name, "segments": _FILLS[name], "checkpoint_loaded": False}
            for name in sorted(single)
        },
        "cells": cells,
    }


def migrate_record(record: Any) -> Any:
    """A record of one phase of a cell (off, merge, on, verify, failed) as schema version 2 has it.

    Its guests were measured in the processes that booted. What does not look like a record of version 1 is
    returned as it is, as by the functions below: the schema judges it.
    """
    if not _is_first(record) or not _has_mappings(record, "cell", "requested", "provenance"):
        return record
    try:
        cell = _cell(record["cell"])
        start = _start(record["cell"]["order"])
    except KeyError:
        return record
    return {
        **record,
        "schema_version": VERSION,
        "cell": cell,
        "requested": {**record["requested"], "policy": _POLICY, "service": ""},
        "provenance": {**record["provenance"], "start": start},
    }


def migrate_census(record: Any) -> Any:
    """A census, of a cell or of guests outside an experiment."""
    if not _is_first(record):
        return record
    if record.get("cell") is None:
        return {**record, "schema_version": VERSION}
    try:
        return {**record, "schema_version": VERSION, "cell": _cell(record["cell"])}
    except (KeyError, AttributeError):
        return record


def migrate_capacity(record: Any) -> Any:
    """A step of a capacity run or a divergence, whose guests were probed, and diverged, all at once.

    Of version 1 ``ksm`` becomes the policy, too. The probes of a divergence are left out.
    """
    if not isinstance(record, Mapping) or not _has_mappings(record, "provenance", "observed"):
        return record
    observed = record["observed"]
    if _has_mappings(observed, "probes"):
        probes = [{"guest": name, "answer": answer} for name, answer in observed["probes"].items()]
        record = {**record, "observed": {**observed, "probes": probes}}
    elif _has_mappings(observed, "write") and _has_mappings(observed["write"], "written_bytes"):
        record = {**record, "observed": _in_turns(observed)}
    if not _is_first(record):
        return record
    policy = {"off": "off", "on": _POLICY}.get(str(record.get("ksm")))
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
        "policy": _POLICY,
        "calibration": {**calibration, "conditions": conditions},
    }


def without_rollup_header(table: Any) -> Any:
    """A guest's smaps_rollup without its first line, the range of its addresses, which was no counter."""
    if not isinstance(table, Mapping) or not _ROLLUP_HEADER.match(str(next(iter(table), ""))):
        return table
    return dict(list(table.items())[1:])


def _in_turns(observed: Mapping[str, Any]) -> dict[str, Any]:
    """What a divergence of all guests at once showed, each guest's turn the same."""
    write, gone = observed["write"], ("write", "probes_before", "probes_during")
    times = {name: write.get(name) for name in ("started_seconds", "finished_seconds")}
    written = write["written_bytes"]
    return {
        **{name: value for name, value in observed.items() if name not in gone},
        "turns": [{"guest": name, **times, "written_bytes": count} for name, count in written.items()],
        "held_bytes": written,
    }


def _cell(cell: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in cell.items() if name not in ("focus", "order")}
    return {**kept, "policy": _POLICY, "boot": cell["repetition"], "repetition": 1}


def _policy(design: dict[str, Any]) -> dict[str, Any]:
    setting = {"thp_enabled": design["thp_enabled"], "service": ""}
    return {
        "name": _POLICY,
        "run": 1,
        "knobs": design["ksm_knobs"],
        "optional_knobs": [],
        **setting,
        "requested": {
            "policy": _POLICY,
            "ksm_knobs": design["ksm_knobs"],
            **setting,
            "accelerator": design["accelerator"],
            "guest_reserve_bytes": design["guest_reserve_mib"] * _MIB,
            "convergence": {
                name: design[f"converge_{name}"]
                for name in ("min_full_scans", "window_scans", "threshold_percent", "timeout_seconds")
            },
            "sample_interval_seconds": design["sample_interval_seconds"],
        },
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
