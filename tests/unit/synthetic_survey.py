"""A survey's record of machines whose contents are given page by page; counted the plain way."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

MIB = 1 << 20
PAGE_BYTES = 4096


def machine(name: str, place: int, **values: Any) -> dict[str, Any]:
    """A machine of 1 MiB, half of it resident, and half a MiB outside of it."""
    return {
        "pid": 1000 + place,
        "name": name,
        "libvirt": False,
        "accelerator": "kvm",
        "memory_bytes": MIB,
        "resident_bytes": MIB // 2,
        "rss_bytes": MIB,
        "pss_bytes": MIB,
        "anonymous_bytes": MIB - 8192,
        "swap_bytes": 0,
        "page_tables_bytes": 8192,
        "mergeable_bytes": MIB,
        "memory_kind": "mergeable",
        "why_not_mergeable": "",
        "merging_pages": 0,
        "ksm_stat": None,
        "cpu_seconds": 1.5,
        **values,
    }


def stratum(pages: Sequence[Sequence[int]], contents: Collection[int], one_in: int) -> dict[str, Any]:
    """The table of these contents, of which one in so many was kept."""
    kept = set(contents)
    held = [set(mine) & kept for mine in pages]
    copies = Counter(content for mine in pages for content in mine if content in kept)
    kinds = Counter((sum(c in mine for mine in held), number) for c, number in copies.items())
    rows = sorted((holders, number, many) for (holders, number), many in kinds.items())
    return {
        "one_in": one_in,
        "contents": {
            "guests": [row[0] for row in rows],
            "copies": [row[1] for row in rows],
            "contents": [row[2] for row in rows],
        },
        "alone_pages": [
            sum(all(c not in other for other in held if other is not mine) for c in mine) for mine in held
        ],
        "shared_contents": [[len(one & other) for other in held] for one in held],
    }


def survey_record(
    machines: Mapping[str, Sequence[int]],
    *,
    hypervisor: str = "host1",
    one_in: int = 1,
    always: Collection[int] = (),
    kept: Collection[int] = (),
    changed_pages: int = 0,
    knobs: Mapping[str, int] | None = None,
    ksm: Mapping[str, int | None] | None = None,
    others: Sequence[Mapping[str, Any]] = (),
    more: Sequence[dict[str, Any]] = (),
    census: bool = True,
    available_mib: int = 10,
) -> dict[str, Any]:
    """Content 0 is a page of zeros; ``always`` and ``kept`` name the contents that a sample counted."""
    names, pages = list(machines), list(machines.values())
    every = {content for mine in pages for content in mine} - {0}
    strata = (
        [stratum(pages, every, 1)]
        if one_in == 1
        else [stratum(pages, always, 1), stratum(pages, set(kept) - set(always), one_in)]
    )
    counted = {
        "one_in": one_in,
        "cpu_percent": 100,
        "processes": 1,
        "paused": False,
        "machines": [
            {
                "pid": 1000 + place,
                "resident_pages": len(mine),
                "zero_pages": list(mine).count(0),
                "zero_huge_pages": 0,
                "zero_mapped_pages": 0,
                "swapped_pages": 0,
            }
            for place, mine in enumerate(pages)
        ],
        "strata": strata,
        "look_one_in": 64,
        "looked_pages": 100,
        "changed_pages": changed_pages,
        "bytes_read": sum(map(len, pages)) * PAGE_BYTES,
        "read_seconds": 1.0,
        "seconds": 1.5,
    }
    counters = dict.fromkeys(
        ("pages_unshared", "pages_volatile", "pages_skipped", "stable_node_chains", "stable_node_dups"), 0
    )
    return {
        "schema_version": 2,
        "kind": "survey",
        "run_id": "synthetic",
        "hypervisor": hypervisor,
        "recorded_at": "2026-11-23T19:00:00.123456Z",
        "monotonic_seconds": 1.5,
        "testbed_version": "0.1.0",
        "provenance": {
            "kernel_release": "6.12.1",
            "architecture": "x86_64",
            "cpu_model": "AMD EPYC",
            "cpu_count": 2,
            "page_size_bytes": PAGE_BYTES,
            "memory_total_bytes": 24 << 30,
            "os_release": "Debian GNU/Linux 13 (trixie)",
            "qemu_version": None,
            "libvirt_version": None,
            "thp": {"enabled": "madvise"},
            "ksm_knobs": dict(knobs or {"max_page_sharing": 256, "use_zero_pages": 0}),
            "swap_total_bytes": 0,
        },
        "observed": {
            "boot_id": "5f1b7e0e",
            "uptime_seconds": 93784.1,
            "meminfo": {
                "MemTotal_bytes": 24 << 30,
                "MemAvailable_bytes": available_mib * MIB,
                "SwapTotal_bytes": 0,
                "SwapFree_bytes": 0,
            },
            "vmstat": {"pswpin": 0, "pswpout": 0},
            "ksm": {
                "run": 0,
                "full_scans": 0,
                "pages_shared": 0,
                "pages_sharing": 0,
                "pages_scanned": 0,
                "ksm_zero_pages": 0,
                "general_profit": 0,
                **counters,
                **(ksm or {}),
            },
            "ksmd_cpu_seconds": 4.0,
            "cpu_seconds": {"user": 1.0},
            "psi": None,
            "per_cpu_free_pages": 0,
            "machines": [*(machine(name, place) for place, name in enumerate(names)), *more],
            "other_mergeable": list(others),
            "tuners": [],
            "seconds": 0.1,
            "census": counted if census and machines else None,
        },
    }
