"""What earlier versions wrote, as this version reads it: pure functions, in and out as JSON has it."""

from typing import Any

_MIB = 1 << 20

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
        "schema_version": 2,
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
