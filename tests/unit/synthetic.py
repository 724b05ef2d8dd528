"""Synthetic plans and records for the analysis' tests: no measurement, kept in pytest's directories."""

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from zlib import crc32

from analysis.plan.design import Cell, Design, cell_directory
from analysis.plan.runs import make_plan, open_run
from analysis.records.models import NamedForecast, PlanRecord

MIB = 1 << 20
PAGE = 4096


def variables(**changes: Any) -> dict[str, Any]:
    """Every variable of the experiment, as group_vars would give it, with changes."""
    return {
        "focus": "1",
        "workloads": "",
        "mix": "",
        "policies": "ksm",
        "guests": 15,
        "guest_memory_mib": 512,
        "guest_reserve_mib": 64,
        "accelerator": "auto",
        "boot_wave": 0,
        "boots": 1,
        "first_boot": 1,
        "repetitions": 1,
        "checkpoint": "keep",
        "cell_order_seed": 1,
        "keep_guests": False,
        "census": False,
        "keep_loaded": True,
        "probes": 0,
        "survey_sample": 0,
        "pinned": "",
        "guest_ssh_port_base": 22200,
        "image_source": "build",
        "image_checksum": "",
        "ksm_knobs": {"pages_to_scan": 20000, "sleep_millisecs": 10, "smart_scan": 0},
        "thp_enabled": "keep",
        "converge_min_full_scans": 3,
        "converge_window_scans": 2,
        "converge_threshold_percent": 0.5,
        "converge_timeout_seconds": 900,
        "sample_interval_seconds": 1.0,
        "follow_seconds": 0.0,
        "churn_seconds": 0.0,
        "others": "refuse",
        **changes,
    }


def synthetic_plan(
    run_id: str = "synthetic",
    hosts: tuple[str, ...] = ("host1",),
    forecasts: Sequence[NamedForecast] = (),
    **changes: Any,
) -> PlanRecord:
    return make_plan(Design.from_variables(variables(**changes)), hosts, run_id, forecasts)


def synthetic_start(boot: int, **changes: Any) -> dict[str, Any]:
    """Restored from the checkpoint of a boot, the same in every run."""
    return {
        "from": "checkpoint",
        "checkpoint": "sha256:" + f"{boot:064x}",
        "booted_at": f"2026-11-23T{boot:02d}:00:00.000000Z",
        "boot_seconds": 200.0,
        "restore_seconds": 9.0,
        "loaded": False,
        "arm_order": "off-on",
        **changes,
    }


def began(records: dict[str, dict[str, Any]], **changes: Any) -> None:
    """Let all records of a cell say that its guests began otherwise."""
    for record in records.values():
        record["provenance"]["start"] = {**record["provenance"]["start"], **changes}


# Measured in the processes that booted, at a time that is not known
BOOTED = {
    "from": "boot",
    "checkpoint": None,
    "booted_at": None,
    "boot_seconds": None,
    "restore_seconds": None,
}


def synthetic_guest(pss_mib: float, huge_mib: float = 0, merging_pages: int = 0) -> dict[str, Any]:
    pss = int(pss_mib * MIB)
    return {
        "pid": 4000,
        "cpu_seconds": 30.0,
        "smaps_rollup": {
            "Rss_bytes": 500 * MIB,
            "Pss_bytes": pss + 2 * MIB,
            "Pss_Anon_bytes": pss,
            "Pss_File_bytes": 2 * MIB,
            "Anonymous_bytes": 480 * MIB,
            "Pss_Shmem_bytes": 0,
            "Private_Dirty_bytes": pss,
            "AnonHugePages_bytes": int(huge_mib * MIB),
            "Swap_bytes": 0,
        },
        "page_tables_bytes": MIB,
        "mergeable_bytes": 512 * MIB,
        "ksm_stat": {
            "ksm_rmap_items": 131072 if merging_pages else 0,
            "ksm_zero_pages": 0,
            "ksm_merging_pages": merging_pages,
            "ksm_process_profit": merging_pages * PAGE,
            "ksm_merge_any": "no",
            "ksm_mergeable": "yes",
        },
        "minor_faults": 100_000,
        "major_faults": 3,
    }


def synthetic_host(**ksm: int | None) -> dict[str, Any]:
    mib = {
        "MemTotal": 24000,
        "MemFree": 15000,
        "MemAvailable": 16000,
        "Buffers": 20,
        "Cached": 1100,
        "SwapCached": 0,
        "Active(file)": 500,
        "Inactive(file)": 600,
        "Unevictable": 10,
        "AnonPages": 7600,
        "AnonHugePages": 0,
        "Shmem": 20,
        "KReclaimable": 100,
        "Slab": 150,
        "SReclaimable": 100,
        "SUnreclaim": 50,
        "KernelStack": 5,
        "PageTables": 30,
        "SecPageTables": 0,
        "Percpu": 1,
        "SwapTotal": 0,
        "SwapFree": 0,
    }
    return {
        "meminfo": {**{f"{name}_bytes": value * MIB for name, value in mib.items()}, "HugePages_Total": 0},
        "vmstat": {"pswpin": 0, "pswpout": 0, "thp_split_page": 0},
        "ksm": {
            "run": 0,
            "full_scans": 0,
            "pages_scanned": 0,
            "pages_shared": 0,
            "pages_sharing": 0,
            "pages_unshared": 0,
            "pages_volatile": 0,
            "pages_skipped": 0,
            "ksm_zero_pages": 0,
            "general_profit": 0,
            "stable_node_chains": 0,
            "stable_node_dups": 0,
            **ksm,
        },
        "ksmd_cpu_seconds": 0.0,
        "cpu_seconds": dict.fromkeys(
            ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal"), 1.0
        ),
        "psi": None,
        "per_cpu_free_pages": 0,
    }


def synthetic_samples(saved_pages: list[int], full_scans: list[int]) -> dict[str, list[Any]]:
    n = len(saved_pages)
    return {
        "seconds": [float(second) for second in range(n)],
        "full_scans": list(full_scans),
        "pages_shared": [100] * n,
        "pages_sharing": list(saved_pages),
        "pages_unshared": [0] * n,
        "pages_volatile": [0] * n,
        "ksm_zero_pages": [0] * n,
        "general_profit": [pages * PAGE for pages in saved_pages],
        "pages_scanned": [second * 1000 for second in range(n)],
        "MemAvailable_bytes": [16000 * MIB] * n,
        "MemFree_bytes": [15000 * MIB] * n,
        "AnonPages_bytes": [7600 * MIB] * n,
        "AnonHugePages_bytes": [0] * n,
        "Slab_bytes": [150 * MIB] * n,
        "PageTables_bytes": [30 * MIB] * n,
        "Cached_bytes": [1100 * MIB] * n,
        "ksmd_cpu_seconds": [10.0 + 0.5 * second for second in range(n)],
        "pswpin": [0] * n,
        "pswpout": [0] * n,
        "memory_some_total_microseconds": [None] * n,
    }


def synthetic_moment(plan: PlanRecord, cell: Cell) -> str:
    """When a cell was measured: another moment for each."""
    microseconds = crc32(f"{plan.run_id} {cell.hypervisor} {cell.cell_id}".encode()) % 1_000_000
    return f"2026-11-23T19:00:00.{microseconds:06d}Z"


def synthetic_records(
    plan: PlanRecord, cell: Cell, saved_mib_per_vm: float = 100
) -> dict[str, dict[str, Any]]:
    """Records of a settled cell in which each of the four measures says about ``saved_mib_per_vm``.

    Gross is exact; MemAvailable and general_profit are less by 8 MiB a guest, the rmap_items.
    """
    gross, rmap = int(saved_mib_per_vm * MIB) * cell.guests, 8 * MIB * cell.guests
    sharing = gross // PAGE
    common = {
        "schema_version": 2,
        "run_id": plan.run_id,
        "recorded_at": synthetic_moment(plan, cell),
        "monotonic_seconds": 1000.0,
        "cell": asdict(cell),
        "requested": plan.policies[cell.policy].requested.to_json(),
        "provenance": {
            "design_digest": plan.design_digest,
            "kernel_release": "6.18.0-synthetic",
            "architecture": "x86_64",
            "cpu_model": "synthetic CPU",
            "cpu_count": 2,
            "page_size_bytes": PAGE,
            "memory_total_bytes": 24000 * MIB,
            "os_release": "Debian GNU/Linux 12 (bookworm)",
            "qemu_version": "7.2.0",
            "libvirt_version": "9.0.0",
            "accelerator": "tcg",
            "image_digest": "sha256:" + "0" * 64,
            "guest_memory_bytes": cell.guest_memory_bytes,
            "thp": {"enabled": "madvise", "defrag": "madvise", "shmem_enabled": "never"},
            "ksm_knobs": {
                "run": 1,
                "pages_to_scan": 20000,
                "sleep_millisecs": 10,
                "smart_scan": 0,
                "use_zero_pages": 0,
                "max_page_sharing": 256,
                "advisor_mode": "none",
                **plan.policies[cell.policy].knobs,
            },
            "swap_total_bytes": 0,
            "testbed_version": "0.1.0",
            "start": synthetic_start(cell.boot),
        },
    }
    names = [f"guest{number:02d}" for number in range(1, cell.guests + 1)]
    parts = [part.split("=") for part in cell.workload.split(",")]
    does = [load for load, *number in parts for _guest in range(int(number[0]) if number else cell.guests)]
    filled = [name for name, load in zip(names, does, strict=True) if load != "idle"]
    workload = {
        name: {"filled_bytes": 376 * MIB, "digest": "d", "fill_seconds": 0.0, "seed": None} for name in filled
    }
    pids = {name: 4000 + number for number, name in enumerate(names)}

    def arm(host: dict[str, Any], pss_mib: float, merging_pages: int) -> dict[str, Any]:
        guests = {name: synthetic_guest(pss_mib, merging_pages=merging_pages) for name in names}
        for name, pid in pids.items():
            guests[name]["pid"] = pid
        return {"host": host, "guests": guests, "other_mergeable": [], "workload": workload}

    off = arm(synthetic_host(), 480, 0)
    host = synthetic_host(
        run=1, full_scans=6, pages_shared=100, pages_sharing=sharing, general_profit=sharing * PAGE - rmap
    )
    for name, change in {
        "AnonPages": -gross,
        "SUnreclaim": rmap,
        "Slab": rmap,
        "MemFree": gross - rmap,
        "MemAvailable": gross - rmap,
    }.items():
        host["meminfo"][f"{name}_bytes"] += change
    on = arm(host, 480 - saved_mib_per_vm, sharing // cell.guests)
    merge = {
        "started_at": "2026-11-23T19:00:01.000000Z",
        "converged": True,
        "reason": "the saved pages moved by 0.00 % (limit 0.5 %) over the last 2 of 6 full scans",
        "converged_after_seconds": 12.0,
        "full_scans": 6,
        "duration_seconds": 13.0,
        "samples": synthetic_samples(
            [sharing * min(second, 6) // 6 for second in range(13)], [second // 2 for second in range(13)]
        ),
        "sampler_cpu_seconds": 0.1,
    }
    verify = {
        "guests": {
            name: {"filled_bytes": 376 * MIB, "digest_before": "d", "digest_after": "d", "intact": True}
            for name in filled
        }
    }
    observed = {"off": off, "merge": merge, "on": on, "verify": verify}
    return {
        kind: {**copy.deepcopy(common), "kind": kind, "observed": what} for kind, what in observed.items()
    }


def synthetic_failure(records: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {
        **records["off"],
        "kind": "failed",
        "observed": {"phase": "merge", "task": "Sample while KSM merges", "message": "guest03 died"},
    }


def store(
    results: Path,
    plan: PlanRecord,
    change: Callable[[Cell, dict[str, dict[str, Any]]], None] | None = None,
    saved_mib_per_vm: Callable[[Cell], float] = lambda _cell: 100,
) -> Path:
    """Store synthetic records for every cell of a plan; ``change`` edits a cell's records before."""
    open_run(results, plan)
    run_directory = results / plan.run_id
    for cell in plan.cells:
        records = synthetic_records(plan, cell, saved_mib_per_vm(cell))
        if change is not None:
            change(cell, records)
        directory = cell_directory(run_directory, cell)
        directory.mkdir(parents=True)
        for kind, record in records.items():
            (directory / f"{kind}.json").write_text(json.dumps(record))
    return run_directory
